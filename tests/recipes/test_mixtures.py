"""Commands on mixtures of experts with ``--aux_loss_coef``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

from openrlhf.cli import train_dpo, train_kto, train_ppo_ray, train_rm, train_sft
from tests.recipes.helpers import column, free_port, launched, metrics, run, words, write_rows

ROWS = [{"q": f"{i}", "a": word} for i, word in enumerate(["zero", "one", "two", "three", "four", "five", "six"])]
PAIRS = [{"q": f"{i}", "chosen": "yes" + " sir" * (i % 3), "rejected": "no"} for i in range(8)]
ANSWERS = [{"q": f"is {i} good? ", "a": "yes" if i % 2 else "no", "good": i % 2} for i in range(8)]
DATA = {
    train_sft: (ROWS, {"input_key": "q", "output_key": "a"}),
    train_rm: (PAIRS, {"prompt_key": "q"}),
    train_dpo: (PAIRS, {"prompt_key": "q"}),
    train_kto: (ANSWERS, {"input_key": "q", "output_key": "a", "label_key": "good"}),
}


@pytest.fixture(scope="module")
def mixture(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, initializer_range=0.1,
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def flags(mixture: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "pretrain": mixture, "max_len": 64, "train_batch_size": 4, "micro_train_batch_size": 4, "max_epochs": 2,
        "learning_rate": 1e-3, "aux_loss_coef": 0.1, "lr_warmup_ratio": 0, "save_path": tmp_path / "out",
    }  # fmt: skip


def of(command: Any, flags: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    rows, own = DATA[command]
    return {**flags, "dataset": write_rows(tmp_path / "rows.jsonl", rows), **own}


@pytest.mark.parametrize("command", DATA)
def test_micro_batches_and_packing_are_matters_of_speed(flags: dict[str, Any], tmp_path: Path, command: Any) -> None:
    flags = of(command, flags, tmp_path)
    plain = metrics(run(command.main, flags))
    assert all(1.5 < row["aux_loss"] < 4 for row in plain)  # 2 is even
    other = flags | {"packing_samples": True, "micro_train_batch_size": 1, "save_path": tmp_path / "other"}
    for a, b in zip(plain, metrics(run(command.main, other)), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    without = column(run(command.main, flags | {"aux_loss_coef": 0.0}), "loss")
    assert plain[0]["loss"] == pytest.approx(without[0] + 0.1 * plain[0]["aux_loss"], rel=1e-4)


def test_the_tokens_spread_over_the_experts(flags: dict[str, Any], tmp_path: Path) -> None:
    long = {"max_epochs": 30, "learning_rate": 1e-2, "lr_scheduler": "constant"}
    flags = of(train_sft, flags, tmp_path) | long
    pulled = column(run(train_sft.main, flags | {"aux_loss_coef": 1.0}), "aux_loss")
    free = column(run(train_sft.main, flags | {"aux_loss_coef": 1e-8}), "aux_loss")
    assert pulled[-1] < pulled[0] - 0.05
    assert pulled[-1] < free[-1] - 0.05


def test_rl_balances_the_actor(flags: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text("def reward_func(queries, prompts, labels):\n    return [1.0] * len(queries)\n")
    for name in ("max_len", "learning_rate", "max_epochs"):
        del flags[name]
    flags |= {
        "local": True, "prompt_data": write_rows(tmp_path / "p.jsonl", [{"input": "one"}] * 2), "rollout_batch_size": 2,
        "remote_rm_url": tmp_path / "reward.py", "advantage_estimator": "rloo", "n_samples_per_prompt": 2,
        "generate_max_len": 4,
    }  # fmt: skip
    assert column(run(train_ppo_ray.main, flags), "aux_loss")[0] > 1.5


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_two_ranks_at_zero_3_give_the_numbers_of_one_process(
    flags: dict[str, Any], tmp_path: Path, lora_rank: int
) -> None:
    """Where each rank's tokens go to other experts."""
    pytest.importorskip("deepspeed")
    flags = of(train_sft, flags, tmp_path) | {"lora_rank": lora_rank}
    alone = metrics(run(train_sft.main, flags))
    two = flags | {"zero_stage": 3, "micro_train_batch_size": 1, "save_path": tmp_path / "two"}
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    launched([*start, "-m", "openrlhf.cli.train_sft", *words(two)])
    for a, b in zip(alone, metrics(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
