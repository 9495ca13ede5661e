"""What comes with a model is data: no code of it runs, unless --trust_remote_code says so."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from openrlhf.config.groups import ModelConfig
from openrlhf.models.load import load_causal_lm, load_score_model, load_tokenizer

CODE = """
from pathlib import Path
from transformers import PreTrainedConfig
Path({marker!r}).touch()
class StrangeConfig(PreTrainedConfig):
    model_type = "strange"
"""


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that appears where code of the folder runs."""
    return tmp_path / "it ran"


@pytest.fixture
def strange(tiny_folder: Path, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose configuration and tokenizer are classes in files of its folder."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "strange"
    shutil.copytree(tiny_folder, folder)
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        content |= {"model_type": "strange", "tokenizer_class": "StrangeTokenizer"}
        content["auto_map"] = {
            "AutoConfig": "code.StrangeConfig",
            "AutoModelForCausalLM": "code.StrangeConfig",
            "AutoTokenizer": ["code.StrangeConfig", "code.StrangeConfig"],
        }
        (folder / name).write_text(json.dumps(content))
    (folder / "code.py").write_text(CODE.format(marker=str(marker)))
    return folder


@pytest.mark.parametrize(
    "load",
    [load_causal_lm, load_tokenizer, lambda path, config: load_score_model(path, config, "score", new_head=True)],
    ids=["language model", "tokenizer", "reward model"],
)
def test_code_in_a_model_folder_runs_only_with_the_flag(strange: Path, marker: Path, load: Any) -> None:
    with pytest.raises(ValueError, match="--pretrain .*trust_remote_code"):
        load(str(strange), ModelConfig(pretrain=str(strange)))
    assert not marker.exists()
    with suppress(Exception):  # the classes are no good: enough that their file was run
        load(str(strange), ModelConfig(pretrain=str(strange), trust_remote_code=True))
    assert marker.exists()


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def test_pickled_weights_cannot_run_anything(tiny_folder: Path, tmp_path: Path, marker: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({"lm_head.weight": Payload(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="--pretrain .*pickled"):
        load_causal_lm(str(folder), ModelConfig(pretrain=str(folder)))
    assert not marker.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert marker.exists()  # it would have run
