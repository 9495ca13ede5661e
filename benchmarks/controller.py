"""What the driver of an RL run costs: the loop, its tensors and the division of rows among ranks, with workers that
answer at once.

Everything else of a step, engines, models, Ray's messages, grows with the machines that do it; this part does not.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.grpo import our_flags, words
from benchmarks.machine import describe
from benchmarks.rounds import DEADLINE_S, ENVIRONMENT
from benchmarks.table import markdown

if TYPE_CHECKING:
    from openrlhf.config.commands import PPOConfig

GROUP = 8  # samples of a prompt
STEPS = 3
SAMPLES, RANKS, TOKENS = (1024, 4096, 16384), (1, 64, 512), 256
LONG = (2048, 64, 4096)  # samples, ranks, tokens
SAMPLE_GOAL_S, RANK_GOAL_S, EXPONENT_GOAL = 20e-6, 2e-3, 1.1


def controller_table() -> str:
    """Every case in a process of its own, and the table in Markdown. Raises RuntimeError when one fails."""
    cases = [*((samples, 1, TOKENS) for samples in SAMPLES), *((SAMPLES[-1], ranks, TOKENS) for ranks in RANKS[1:])]
    seconds = {case: measured(*case) for case in [*cases, LONG]}
    intro = f"""\
## The controller of an RL step

{describe(("torch",))}.
The loop of `openrlhf ppo` with roles that answer at once, so that nothing is left but the driver: collating samples, \
rewards, advantages, metrics, and the division of rows among ranks, for log-probs and for an update of two optimizer \
steps. CPU seconds of one thread a step, median of {STEPS}; groups of {GROUP} samples, answers of lognormal length. \
At {LONG[2]:,} tokens nearly all of it is copying: some 100 KB a sample, several times."""
    return intro + "\n\n" + summarise(seconds)


def measured(samples: int, ranks: int, tokens: int) -> float:
    command = [sys.executable, "-m", "benchmarks.controller", *map(str, (samples, ranks, tokens))]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=DEADLINE_S, env={**os.environ, **ENVIRONMENT}
    )
    if done.returncode != 0:
        raise RuntimeError(f"the controller of {samples} samples ended with {done.returncode}: {done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def summarise(seconds: dict[tuple[int, int, int], float]) -> str:
    """A row for each case; growth over samples is the slope between the least and the most, both logarithmic."""
    alone = {samples: s for (samples, ranks, tokens), s in seconds.items() if ranks == 1 and tokens == TOKENS}
    rows = []
    for (samples, ranks, tokens), s in seconds.items():
        each = s / samples
        more = (s - alone[samples]) / ranks if ranks > 1 and samples in alone and tokens == TOKENS else None
        rows.append(
            [
                f"{samples:,} samples of {tokens:,} tokens, {ranks} ranks",
                f"{1000 * s:.0f}",
                f"{1e6 * each:.0f} µs",
                "–" if more is None else f"{1000 * more:.2f} ms",
                f"≤ {1e6 * SAMPLE_GOAL_S:.0f} µs" if more is None else f"≤ {1000 * RANK_GOAL_S:.0f} ms a rank",
                yes(each <= SAMPLE_GOAL_S if more is None else more <= RANK_GOAL_S),
            ]
        )
    least, most = min(alone), max(alone)
    slope = math.log(alone[most] / alone[least]) / math.log(most / least)
    what = f"growth from {least:,} to {most:,} samples"
    rows.append([what, f"exponent {slope:.2f}", "–", "–", f"≤ {EXPONENT_GOAL:.1f}", yes(slope <= EXPONENT_GOAL)])
    return markdown(("what", "a step, ms", "a sample", "more than with one rank, a rank", "goal", "met"), rows)


def yes(met: bool) -> str:
    return "yes" if met else "no"


def settings(samples: int) -> PPOConfig:
    from openrlhf.config.commands import PPOConfig
    from openrlhf.config.parse import read

    flags = our_flags("model", 0.0) | {
        "rollout_batch_size": samples // GROUP, "n_samples_per_prompt": GROUP, "train_batch_size": samples // 2,
    }  # fmt: skip
    return read(PPOConfig, words(flags))


def run(samples: int, ranks: int, tokens: int) -> float:
    """CPU seconds of a step, median."""
    import torch

    from openrlhf.config.parse import flat
    from openrlhf.data.sampler import Cursor
    from openrlhf.training.log import RunLog
    from openrlhf.training.ppo import train
    from openrlhf.training.roles import Absent, Roles, done
    from openrlhf.types import Batch, Metrics, Prompt, Sample
    from openrlhf.cluster.group import merge, shard  # isort: skip

    torch.set_num_threads(1)
    torch.manual_seed(0)
    lengths = (tokens / 2 * torch.exp(0.5 * torch.randn(samples))).clamp(16, tokens).long().tolist()
    made = [
        Sample(
            torch.randint(2048, (n,)), torch.arange(n) >= n // 4, reward=float(i % 3), rollout_log_probs=torch.zeros(n),
            weight_versions=torch.zeros(n, dtype=torch.int64), group=i // GROUP,
        )
        for i, n in enumerate(lengths)
    ]  # fmt: skip

    class Fake:
        def collect(self, prompts: list[Prompt], seed: int) -> Future[list[Sample]]:
            return done(made)

        def sync(self, version: int) -> Future[None]:
            return done(None)

        def log_probs(self, batch: Batch) -> Future[Any]:
            parts, rows = shard(batch.inputs(), ranks, len(batch))
            answers = [torch.zeros(part.tokens.shape) for part in parts]
            return done(merge(answers, rows, len(batch), batch.tokens.shape[1]))

        def update(self, batch: Batch, kl_coef: float) -> Future[Metrics]:
            shard(batch.fill(values=None, returns=None), ranks, samples // 2)
            return done({"lr": 0.0, "skipped_steps": 0.0})

    prompts = [Prompt(i, "", [1]) for i in range(samples // GROUP)]
    config = settings(samples)
    times: list[float] = []

    def batches() -> Iterator[tuple[list[Prompt], Cursor]]:
        for _ in range(STEPS + 1):
            times.append(time.process_time())
            yield prompts, Cursor()
        times.append(time.process_time())

    fake = Fake()
    roles = Roles(rollout=fake, actor=fake, critic=Absent(), reference=Absent(), reward=Absent())  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        train(config, roles, batches(), RunLog(Path(folder), config.log, flat(config)), 0, 600.0)
    return statistics.median(after - before for before, after in pairwise(times[1:]))


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:]))))
