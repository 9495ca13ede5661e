"""``python -m certificate.learning``: every advantage estimator raises a reward, in one process and on Ray, vLLM and
DeepSpeed, with its roles on devices of their own and on shared ones; exit code 1 when one does not.

``--write`` keeps the table in docs/learning.md. A placement is started once: between two estimators actor, critic and
engine go back to the weights that they began with.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers

from benchmarks.machine import describe
from benchmarks.table import markdown
from openrlhf.algorithms.advantages import ADVANTAGE_ESTIMATORS
from openrlhf.cli.train_ppo_ray import prompt_batches, read_prompts, session, start_roles
from openrlhf.config.commands import PPOConfig
from openrlhf.config.parse import read
from openrlhf.models.tiny import build_model, build_tokenizer
from openrlhf.training.log import RunLog
from openrlhf.training.ppo import train
from openrlhf.training.roles import Absent, Actor, Critic, Roles, gather
from openrlhf.training.seeds import seed_process
from openrlhf.types import Prompt

PAGE = Path(__file__).parents[1] / "docs" / "learning.md"
STEPS = 8
RISE = 0.25  # chance alone moves the mean of a step by 0.02
DEADLINE_S = 600.0
ONE_EACH = "--actor_num_gpus_per_node 1 --critic_num_gpus_per_node 1 --ref_num_gpus_per_node 1 --vllm_num_engines 1"
PLACEMENTS = {
    "one process": "--local",
    "Ray, separate": f"{ONE_EACH} --zero_stage 2",
    "Ray, colocated": f"{ONE_EACH} --zero_stage 3 --colocate_all_models --vllm_enable_sleep --deepspeed_enable_sleep",
}

INTRO = f"""\
Made by `make learning`. A random Qwen3 of bytes answers with up to six of them, and its reward is the share of letters
and digits among them. Each cell is the mean reward of the first rollout batch, before any update, and of the last,
after {STEPS - 1} updates on 64 samples: on-policy, with a reference, in micro-batches by tokens. It counts as learnt
when the reward has risen by {RISE} or more; chance alone moves it by about 0.02. In one process everything is plain
PyTorch; on Ray each role is a worker on DeepSpeed and vLLM samples, with ZeRO 2 where every role has a device of its
own, and with ZeRO 3, roles and engine asleep while others work, where all share one."""


@dataclass(frozen=True)
class Learnt:
    placement: str
    estimator: str
    rewards: list[float]

    @property
    def rises(self) -> bool:
        """False for NaN too."""
        return self.rewards[-1] - self.rewards[0] >= RISE

    @property
    def cell(self) -> str:
        text = f"{self.rewards[0]:.2f} → {self.rewards[-1]:.2f}"
        return text if self.rises else f"**{text}**"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m certificate.learning", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write the table to docs/{PAGE.name} too")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        cells: list[Learnt] = []
        for number, placement in enumerate(PLACEMENTS):
            cells += learnt(placement, ADVANTAGE_ESTIMATORS, Path(folder) / str(number))
    text = page(cells)
    print(text)
    if args.write:
        PAGE.write_text(text, encoding="utf-8")
    if not all(cell.rises for cell in cells):
        raise SystemExit(1)


def learnt(placement: str, estimators: Iterable[str], folder: Path) -> Iterator[Learnt]:
    """The rewards of a run with each estimator, all on the same workers and engines."""
    with started(configuration(PLACEMENTS[placement], folder)) as run:
        for estimator in estimators:
            rewards = run.train(with_estimator(run.config, estimator), folder / estimator)
            yield Learnt(placement, estimator, rewards)


def configuration(placement: str, folder: Path) -> PPOConfig:
    """With a critic: estimators that need none leave it alone."""
    model, data = folder / "model", folder / "prompts.jsonl"
    build_model(model, vocab_size=len(build_tokenizer(model)))
    data.write_text("".join(json.dumps({"input": f"say {i}:"}) + "\n" for i in range(8)))
    flags = (
        f"--pretrain {model} --prompt_data {data} --remote_rm_url {Path(__file__).with_name('alphanumeric.py')} "
        f"--rollout_batch_size 8 --n_samples_per_prompt 8 --train_batch_size 64 --num_episodes {STEPS} "
        "--use_dynamic_batch --train_max_tokens_per_gpu 1024 --prompt_max_len 16 --generate_max_len 6 "
        "--lr_scheduler constant --lr_warmup_ratio 0 --actor_learning_rate 2e-2 --critic_learning_rate 2e-2 "
        f"--init_kl_coef 0.001 --advantage_estimator gae --save_path {folder / 'out'} --ckpt_path {folder / 'start'} "
        f"{placement}"
    )
    return read(PPOConfig, flags.split())


def with_estimator(config: PPOConfig, estimator: str) -> PPOConfig:
    return replace(config, algorithm=replace(config.algorithm, advantage_estimator=estimator))


@dataclass(frozen=True)
class Started:
    """Workers and engines that hold the weights they began with, or get them back."""

    config: PPOConfig
    roles: Roles
    prompts: list[Prompt]
    tokenizer: Any
    folder: Path

    def train(self, config: PPOConfig, out: Path) -> list[float]:
        """A whole run from the start, its log and its model in ``out``. Returns the mean reward of each step."""
        for name, role in self.learners().items():
            succeed(role.load_state(self.folder / name, False))
        gather(self.roles.rollout.sync(0), deadline_s=DEADLINE_S)
        needs_critic = ADVANTAGE_ESTIMATORS[config.algorithm.advantage_estimator].needs_critic
        roles = self.roles if needs_critic else replace(self.roles, critic=Absent())
        log = RunLog(out, config.log, {})
        train(config, roles, prompt_batches(self.prompts, config), log, self.tokenizer.pad_token_id, DEADLINE_S)
        log.close()
        succeed(self.roles.actor.save_state(None, out))
        return [json.loads(line)["reward"] for line in (out / "metrics.jsonl").read_text().splitlines()]

    def learners(self) -> dict[str, Actor | Critic]:
        return {"actor": self.roles.actor, "critic": self.roles.critic}


@contextmanager
def started(config: PPOConfig) -> Iterator[Started]:
    """With what actor and critic begin with kept on disk, as checkpoints have it."""
    folder = Path(config.checkpoint.ckpt_path)
    seed_process(config.train)  # in one process the critic's head is drawn here
    with session(config):
        tokenizer, prompts = read_prompts(config)
        with start_roles(config, tokenizer, STEPS) as roles:
            run = Started(config, roles, prompts, tokenizer, folder)
            for name, role in run.learners().items():
                (folder / name).mkdir(parents=True)
                succeed(role.save_state(folder / name, None))
            yield run


def succeed(future: Future[str | None]) -> None:
    (reason,) = gather(future, deadline_s=DEADLINE_S)
    if reason is not None:
        raise RuntimeError(reason)


def page(cells: Sequence[Learnt]) -> str:
    """A row for each estimator, a column for each placement."""
    by = {(cell.estimator, cell.placement): cell for cell in cells}
    placements = list(dict.fromkeys(cell.placement for cell in cells))
    rows = [
        [f"`{estimator}`", *(by[estimator, placement].cell for placement in placements)]
        for estimator in dict.fromkeys(cell.estimator for cell in cells)
    ]
    packages = ["torch", "transformers", "ray", "deepspeed"]
    good = sum(cell.rises for cell in cells)
    return (
        "\n\n".join(
            [
                "# What learns where",
                f"{describe(packages)}: **{good} of {len(cells)} learnt**",
                INTRO,
                markdown(("estimator", *placements), rows),
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
