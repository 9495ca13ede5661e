"""What RL says of flags that are allowed and rarely meant."""

from __future__ import annotations

from typing import Any

import pytest

from openrlhf.cli.train_ppo_ray import warn
from openrlhf.config.commands import PPOConfig, build

LOCAL = {"pretrain": "p", "prompt_data": "d", "remote_rm_url": "r.py", "local": True}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"top_p": 0.9}, "--top_p 0.9: samples come from a part of the policy"),
        ({"use_kl_loss": True}, "--kl_estimator k1: its gradient is zero on average"),
        ({"policy_loss_type": "gspo"}, "--policy_loss_type gspo: the ratio of a whole answer hardly leaves 1"),
        ({"async_train": True}, "--async_train: samples are older than the policy"),
    ],
)
def test_it_is_said_once_and_only_then(flags: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    warn(build(PPOConfig, LOCAL | flags))
    (line,) = capsys.readouterr().out.splitlines()
    assert says in line
    warn(build(PPOConfig, LOCAL))
    assert capsys.readouterr().out == ""
