"""Secrets on a command line move to the environment."""

from __future__ import annotations

import os

import pytest

from openrlhf.config.commands import PPOConfig, ServeRMConfig
from openrlhf.config.parse import resolve
from openrlhf.config.secrets import MOVED, forget, moved


@pytest.mark.parametrize(
    ("words", "rest", "secrets"),
    [
        (["--use_wandb", "k3y", "--seed", "1"], ["--use_wandb", MOVED, "--seed", "1"], {"USE_WANDB": "k3y"}),
        (["--use_wandb=k3y"], [f"--use_wandb={MOVED}"], {"USE_WANDB": "k3y"}),
        (["--logger.wandb.key", "k3y"], ["--logger.wandb.key", MOVED], {"USE_WANDB": "k3y"}),
        (["--token", "t"], ["--token", MOVED], {"TOKEN": "t"}),
        (["--use_wandb", "true"], ["--use_wandb", "true"], {}),
        (["--use_wandb", "--seed", "1"], ["--use_wandb", "--seed", "1"], {}),
        (["--use_wandb", MOVED], ["--use_wandb", MOVED], {}),
        (["--wandb_run_name", "k3y"], ["--wandb_run_name", "k3y"], {}),
    ],
)
def test_what_moves(words: list[str], rest: list[str], secrets: dict[str, str]) -> None:
    assert moved(words) == (rest, {f"OPENRLHF_SECRET_{name}": value for name, value in secrets.items()})


def test_what_has_moved_is_found_again_until_it_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    words, secrets = moved(["--pretrain", "m", "--prompt_data", "p", "--logger.wandb.key", "k3y"])
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    assert resolve(PPOConfig, words).log.use_wandb == "k3y"
    forget()
    assert not secrets.keys() & os.environ.keys()
    with pytest.raises(ValueError, match=r"--use_wandb \(moved\) stands for a secret"):
        resolve(PPOConfig, words)


def test_the_token_of_a_reward_server_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    words, secrets = moved(["--reward_pretrain", "m", "--token", "t0ken"])
    monkeypatch.setenv(*next(iter(secrets.items())))
    assert resolve(ServeRMConfig, words).serve.token == "t0ken"
