"""Tokenizers, vocabularies and folders of a run's models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from openrlhf.check.models import check_engine_length, look_at_models, look_at_statistics, roles
from openrlhf.config.commands import Command, DPOConfig, KDConfig, PPOConfig, ServeRMConfig, SFTConfig, build
from openrlhf.models.folder import INDEX, Count, count_parameters, weight_names
from openrlhf.models.load import load_config
from openrlhf.models.tiny import build_model


def ppo(folder: Path, **flags: Any) -> PPOConfig:
    return build(PPOConfig, {"pretrain": str(folder), "prompt_data": "p", "remote_rm_url": "r.py"} | flags)


def sft(folder: Path, **flags: Any) -> SFTConfig:
    return build(SFTConfig, {"pretrain": str(folder), "dataset": "d"} | flags)


def errors(config: Command) -> list[str]:
    return [sentence for severity, sentence in look_at_models(config) if severity == "error"]


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def test_roles_are_those_that_are_loaded(tiny_folder: Path) -> None:
    gae = roles(ppo(tiny_folder, reward_pretrain="a,b", remote_rm_url=None))
    assert [(role.flag, role.path, role.head) for role in gae] == [
        ("--pretrain", str(tiny_folder), False), ("--reward_pretrain", "a", True), ("--reward_pretrain", "b", True),
        ("--critic_pretrain", "a", True),
    ]  # fmt: skip
    assert [role.flag for role in roles(ppo(tiny_folder, advantage_estimator="rloo"))] == ["--pretrain"]
    dpo = build(DPOConfig, {"pretrain": "p", "dataset": "d", "ref_pretrain": "r"})
    assert [role.path for role in roles(dpo)] == ["p", "r"]
    kd = build(KDConfig, {"pretrain": "p", "dataset": "d", "teacher_model": "t"})
    assert [role.path for role in roles(kd)] == ["p", "t"]


@pytest.mark.parametrize("command", [PPOConfig, ServeRMConfig])
def test_reward_models_that_cannot_be_normalised(command: type[Command], tiny_folder: Path, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "mean": 0.5, "std": 2.0}))
    sizes = {"pretrain": str(tiny_folder), "prompt_data": "p"} if command is PPOConfig else {}

    def found(models: str, **flags: Any) -> list[str]:
        config = build(command, {**sizes, "reward_pretrain": models, **flags})
        return [sentence for _, sentence in look_at_statistics(config)]

    assert found(str(tiny_folder)) == found(str(copy), normalize_reward=True) == []
    (sentence,) = found(str(tiny_folder), normalize_reward=True)
    assert sentence.startswith(f"--normalize_reward changes no reward of --reward_pretrain {tiny_folder}: its config")
    if command is PPOConfig:  # several, one of them twice
        assert found(f"{copy},{tiny_folder},{tiny_folder}", normalize_reward=True) == [sentence]


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(copy: Path) -> None:
    build_model(copy, vocab_size=270)
    with pytest.raises(
        ValueError, match=r"--pretrain .*: the tokenizer goes up to \d+ \('.*'\) and the model has em.* 270"
    ):
        errors(sft(copy))


def test_texts_longer_than_the_model_knows(tiny_folder: Path) -> None:
    """The tiny model was made for 4096 tokens."""
    found = list(look_at_models(sft(tiny_folder, max_len=5000)))
    assert ("warning", True) in [(severity, "made for 4096" in sentence) for severity, sentence in found]
    check_engine_length(ppo(tiny_folder, prompt_max_len=96, generate_max_len=4000))
    check_engine_length(ppo(tiny_folder, prompt_max_len=97, generate_max_len=4000, local=True))
    with pytest.raises(ValueError, match="is 4097 tokens, .* choose --generate_max_len 3999 or less"):
        check_engine_length(ppo(tiny_folder, prompt_max_len=97, generate_max_len=4000))
    with pytest.raises(ValueError, match="--prompt_max_len 5000 leaves no room"):
        check_engine_length(ppo(tiny_folder, prompt_max_len=5000, generate_max_len=1))


def test_heads_are_divided_whole(tiny_folder: Path) -> None:
    (found,) = errors(ppo(tiny_folder, vllm_tensor_parallel_size=3, advantage_estimator="rloo"))
    assert found.startswith("--vllm_tensor_parallel_size 3 does not divide the 2 attention heads of --pretrain ")
    assert found.endswith("choose 1 or 2")


def test_a_folder_without_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="the folder has no weights"):
        errors(sft(copy))
    (copy / "pytorch_model.bin").touch()
    assert weight_names(copy, "--pretrain") is None


def test_a_folder_whose_download_broke_off(copy: Path) -> None:
    names = {"a.weight": "model.safetensors", "b.weight": "model-2.safetensors"}
    (copy / INDEX).write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ValueError, match=r"--pretrain .*model-2.safetensors of .* is not there \(1 of 2 files"):
        errors(sft(copy))
    (copy / INDEX).unlink()
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="model.safetensors: the file is broken"):
        errors(sft(copy))


def test_a_reward_model_without_a_head(tiny_folder: Path) -> None:
    config = ppo(tiny_folder, reward_pretrain=str(tiny_folder), remote_rm_url=None, advantage_estimator="rloo")
    with pytest.raises(ValueError, match="--reward_pretrain .* no reward head named 'score' in that folder"):
        errors(config)


def test_parameters_are_those_of_the_loaded_model(tiny_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    real = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny_folder).parameters())
    config = sft(tiny_folder)
    found = load_config(str(tiny_folder), config.model, "--pretrain")
    assert count_parameters(found, False, config.model) == Count(real, real, 0, normed_heads=True)
    # Rank 2 beside each of 7 linear layers of 2 blocks: 2 · (inputs + outputs).
    hidden, heads, kv, inner = 64, 2 * 32, 32, 256
    shapes = [
        (hidden, heads),
        (hidden, kv),
        (hidden, kv),
        (heads, hidden),
        (hidden, inner),
        (hidden, inner),
        (inner, hidden),
    ]
    adapted = count_parameters(found, False, sft(tiny_folder, lora_rank=2).model)
    assert (adapted.every, adapted.learns) == (real, 2 * 2 * sum(a + b for a, b in shapes))
