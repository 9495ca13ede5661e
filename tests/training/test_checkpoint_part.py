"""A process finds its random numbers again."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from openrlhf.training.checkpoint_part import EnginePart, RandomPart


def draws() -> list[float]:
    return [
        *(random.random(), random.gauss(0, 1), float(numpy.random.rand()), float(numpy.random.randn())),
        *torch.rand(2).tolist(),
    ]


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    draws()  # a spare Gaussian is kept by Python and by NumPy
    assert RandomPart().save_state(tmp_path, None).result(timeout=1) is None
    expected = draws()
    random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
    assert draws() != expected
    RandomPart().load_state(tmp_path, False).result(timeout=1)
    assert draws() == expected


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    reason = RandomPart().save_state(tmp_path / "file" / "part", None).result(timeout=1)
    assert reason is not None and "Not a directory" in reason


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("payload", [True, False])
def test_what_is_no_state_is_a_sentence_and_runs_nothing(tmp_path: Path, payload: bool) -> None:
    """Somebody may have made the manifest fit."""
    path = tmp_path / "rank00000.pt"
    if payload:
        torch.save({"random": Payload(tmp_path / "it ran")}, path)
    else:
        path.write_bytes(b"no archive")
    said = "holds more than tensors, which could run code" if payload else "is no file of tensors"
    for load in (RandomPart().load_state, EnginePart(None, None).load_state):  # type: ignore[arg-type]
        assert load(tmp_path, False).result(timeout=1) == f"{path} {said}"
    assert not (tmp_path / "it ran").exists()
