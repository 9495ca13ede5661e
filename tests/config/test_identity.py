"""What another run must share to go on from a checkpoint."""

from __future__ import annotations

import json

import pytest

from openrlhf.config.commands import DPOConfig, KDConfig, KTOConfig, PPOConfig, PRMConfig, RMConfig, SFTConfig, types
from openrlhf.config.identity import FREE_FLAGS, decisive
from openrlhf.config.parse import read

COMMANDS = (SFTConfig, RMConfig, DPOConfig, KTOConfig, KDConfig, PRMConfig, PPOConfig)
LINE = ["--pretrain", "m", "--dataset", "d", "--output_key", "o"]


def test_every_free_flag_is_a_flag() -> None:
    assert not FREE_FLAGS - {name for command in COMMANDS for name in types(command)}


@pytest.mark.parametrize(
    ("extra", "same"),
    [
        (["--save_steps", "5", "--ckpt_path", "elsewhere", "--logging_steps", "3"], True),
        (["--micro_train_batch_size", "2", "--gradient_checkpointing", "--zero_stage", "3"], True),
        (["--dataset", "moved.jsonl", "--use_wandb", "secret"], True),
        (["--learning_rate", "1e-3"], False),
        (["--max_epochs", "9"], False),
        (["--lora_rank", "4"], False),
    ],
)
def test_what_may_differ(extra: list[str], same: bool) -> None:
    base, other = decisive(read(SFTConfig, LINE)), decisive(read(SFTConfig, LINE + extra))
    assert (base == other) == same
    assert json.loads(json.dumps(other)) == other
    assert "secret" not in json.dumps(other)


RL = [
    "--pretrain",
    "m",
    "--prompt_data",
    "p",
    "--local",
    "--advantage_estimator",
    "rloo",
    "--n_samples_per_prompt",
    "2",
]


@pytest.mark.parametrize(
    ("extra", "same"),
    [
        (["--remote_rm_url", "http://127.0.0.1:2/get_reward", "--reward_timeout", "9"], True),
        (["--remote_rm_url", "moved.py", "--on_reward_failure", "drop"], True),
        (["--reward_pretrain", "rm"], False),
        (["--remote_rm_url", "r.py", "--reward_pretrain", "rm", "--reward_weights", "1", "1"], False),
    ],
)
def test_a_reward_server_may_have_moved(extra: list[str], same: bool) -> None:
    base = decisive(read(PPOConfig, [*RL, "--remote_rm_url", "http://127.0.0.1:1/get_reward"]))
    assert (base == decisive(read(PPOConfig, RL + extra))) == same
