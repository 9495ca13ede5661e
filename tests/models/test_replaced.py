"""A folder that a model is saved to holds a whole model or none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from openrlhf.config.groups import ModelConfig
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.load import load_causal_lm, save_model
from openrlhf.models.replaced import replaced_model


class Killed(BaseException):
    pass


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def old(tiny_folder: Path, tmp_path: Path) -> Path:
    """An older model, in several files, and what a run leaves beside it."""
    folder = tmp_path / "out"
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    (folder / "metrics.jsonl").write_text("{}\n")
    return folder


@pytest.fixture
def new(tiny_folder: Path) -> CausalLM:
    model = load_causal_lm(str(tiny_folder), ModelConfig(pretrain=str(tiny_folder)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


def test_the_files_of_an_older_model_give_way(old: Path, new: CausalLM, tiny_folder: Path) -> None:
    """Its shards, and an adapter, which Transformers would load on top."""
    (old / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "gone"}')
    (old / "adapter_model.safetensors").write_bytes(b"old")
    save_model(new, old, AutoTokenizer.from_pretrained(tiny_folder))
    loaded = AutoModelForCausalLM.from_pretrained(old)
    for a, b in zip(loaded.parameters(), new.hf.parameters(), strict=True):
        assert torch.equal(a, b)
    weights = {path.name for path in old.iterdir() if path.suffix == ".safetensors" or "index" in path.name}
    assert weights == {"model.safetensors"}
    assert (old / "metrics.jsonl").read_text() == "{}\n"
    assert not (old / ".saving").exists()


def test_where_writing_fails_the_older_model_is_untouched(old: Path) -> None:
    before = contents(old)

    def save() -> None:
        with replaced_model(old) as aside:
            (aside / "config.json").write_text("{")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        save()
    assert contents(old) == before


def test_killed_at_any_file_it_is_no_model_and_the_next_save_is_whole(
    old: Path, new: CausalLM, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    save_model(new, tmp_path / "whole", tokenizer)
    whole = contents(tmp_path / "whole")
    move = Path.replace
    for number in range(len(whole)):
        folder = shutil.copytree(old, tmp_path / str(number))
        moves = iter(range(number + 1))

        def killed(path: Path, target: Path, moves=moves, number=number) -> Path:
            if next(moves) == number:
                raise Killed
            return move(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            with pytest.raises(Killed):
                save_model(new, folder, tokenizer)
        assert not (folder / "config.json").exists()
        with pytest.raises((OSError, ValueError)):
            AutoModelForCausalLM.from_pretrained(folder)
        (folder / ".saving").mkdir()  # what a kill leaves
        (folder / ".saving" / "model.safetensors").write_bytes(b"half")
        save_model(new, folder, tokenizer)
        assert contents(folder) == whole | {"metrics.jsonl": b"{}\n"}
