"""A model folder is written aside and moved in: what stands there is one whole model or none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASIDE = ".saving"
# Without these nobody takes a folder for a model, so they go first and come last.
CONFIGS = ("config.json", "adapter_config.json")
# Of another model these must not stay: an index names shards, and Transformers prefers an adapter to weights.
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")


@contextmanager
def replaced_model(folder: Path) -> Iterator[Path]:
    """A folder to write a model to, which then takes the place of the one in ``folder``; other files there stay.

    Where the writing fails, ``folder`` is as it was.
    """
    aside = folder / ASIDE
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
    aside.mkdir(parents=True)
    try:
        yield aside
        for pattern in (*CONFIGS, *WEIGHTS):
            for path in folder.glob(pattern):
                path.unlink()
        for path in sorted(aside.iterdir(), key=lambda path: path.name in CONFIGS):
            if (target := folder / path.name).is_dir():
                shutil.rmtree(target)
            path.replace(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
