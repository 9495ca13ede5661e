"""Programs without one of the protections that a run has: the tests of faults must notice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from openrlhf.data.sampler import Cursor
from openrlhf.training import checkpoint_files, ppo, update
from openrlhf.training.ahead import Asked, ask_ahead


def without_rename() -> None:
    """Checkpoints are written under their final name."""
    checkpoint_files.TEMPORARY = ""
    checkpoint_files.publish = lambda root, name: None
    checkpoint_files.sweep = lambda root: None


def without_comparing() -> None:
    """A checkpoint counts as whole when its manifest can be read."""
    checkpoint_files.verify = checkpoint_files.read_manifest


def with_prompts_handed_out() -> None:
    """A checkpoint says which prompts were asked for, not which were learned from."""

    def ask(engines: Any, prompt_batches: Any, *rest: Any) -> Iterator[Asked]:
        newest = Cursor()

        def noted() -> Iterator[Any]:
            nonlocal newest
            for prompts, cursor in prompt_batches:
                newest = cursor
                yield prompts, cursor

        for asked in ask_ahead(engines, noted(), *rest):
            yield replace(asked, cursor=newest)

    ppo.ask_ahead = ask


def without_vote() -> None:
    """A rank that finds its loss not finite keeps that to itself."""

    def judge(self: update.Poison, loss: torch.Tensor) -> None:
        self.factor = torch.ones(())

    update.Poison.judge = judge


PATCHED = [
    (checkpoint_files, "TEMPORARY"), (checkpoint_files, "publish"), (checkpoint_files, "sweep"),
    (checkpoint_files, "verify"), (ppo, "ask_ahead"), (update.Poison, "judge"),
]  # fmt: skip
