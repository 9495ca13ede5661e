"""``--partial_rollout`` on Ray + vLLM + DeepSpeed: every rollout is broken off by a sync and goes on, an engine dies in
the middle of one, and a run ends while one is in flight.

The engines are held in the middle of a rollout until the sync comes, so nothing here depends on how fast they are.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from openrlhf.backends.local_roles import local_roles
from openrlhf.cli.train_ppo_ray import main, prompt_batches
from openrlhf.config.commands import PPOConfig
from openrlhf.config.parse import read
from openrlhf.models.load import load_tokenizer
from openrlhf.training import ppo
from openrlhf.training.roles import PartLost, Roles, done, gather
from openrlhf.types import Prompt, Sample
from tests.recipes.helpers import metrics, run, words, write_rows
from tests.recipes.test_async import trained_prompts
from tests.training.test_ppo import Lines

ray = pytest.importorskip("ray")
pytest.importorskip("vllm")
pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.cluster, pytest.mark.slow]

DEADLINE_S = 240.0
LENGTH, HELD_AT = 12, 5
STEPS = 4
DEATH = 2  # the sync before which the second engine dies, in the middle of the rollout of the step after it
PROMPTS = [Prompt(i, f"p{i}", [10 + i, 11, 12 + i]) for i in range(2 * STEPS)]
REWARD = """
def reward_func(queries, prompts, labels):
    return [float(sum(map(ord, query)) % 7) for query in queries]
"""


def configure(folder: Path, reward: Path, extra: str) -> PPOConfig:
    flags = (
        f"--pretrain {folder} --prompt_data unused --remote_rm_url {reward} --advantage_estimator group_norm "
        "--rollout_batch_size 2 --n_samples_per_prompt 4 --train_batch_size 8 --micro_train_batch_size 2 "
        f"--prompt_max_len 16 --generate_max_len {LENGTH} --actor_learning_rate 1e-2 --lr_warmup_ratio 0 "
        f"--init_kl_coef 0 --enable_vllm_is_correction {extra}"
    )
    return read(PPOConfig, flags.split())


def hold(engine: Any) -> None:
    """In the engine's process: rollouts but the first stop after ``HELD_AT`` steps until they are broken off."""
    generate, step = engine.generate, engine._llm.llm_engine.step
    state: dict[str, Any] = {"calls": 0, "left": None}
    engine.held = threading.Event()

    def held_generate(prompts: Any, params: Any) -> Any:
        state["calls"] += 1
        begins = state["calls"] > 1 and any(own.max_new_tokens == LENGTH for own in params)
        state["left"] = HELD_AT if begins else None
        try:
            return generate(prompts, params)
        finally:
            if begins:
                engine.held.set()

    def held_step() -> Any:
        if state["left"] == 0:
            engine.held.set()
            assert engine._interrupted.wait(200)
            return []
        if state["left"] is not None:
            state["left"] -= 1
        return step()

    engine.generate, engine._llm.llm_engine.step = held_generate, held_step


def wait_until_held(engine: Any) -> None:
    assert engine.held.wait(200)
    engine.held.clear()


class Witness:
    """The rollout role, which keeps its samples and the weights of every version."""

    def __init__(self, roles: Roles, folder: Path) -> None:
        self.roles = roles
        self.folder = folder
        self.rollouts: list[Future[list[Sample]]] = []
        self.held = list(roles.rollout.engines.engine.engines)

    def collect(self, prompts: list[Prompt], seed: int) -> Future[list[Sample]]:
        self.rollouts.append(self.roles.rollout.collect(prompts, seed))
        return self.rollouts[-1]

    def sync(self, version: int) -> Future[None]:
        gather(self.roles.actor.save_state(None, self.folder / str(version)), deadline_s=DEADLINE_S)
        if version < STEPS:
            self.beside(wait_until_held)
        if version == DEATH:
            pid = aside(self.held.pop(), lambda engine: os.getpid())
            os.kill(ray.get(pid, timeout=DEADLINE_S), signal.SIGKILL)
        return self.roles.rollout.sync(version)

    def beside(self, act: Any) -> None:
        """In the engines that there were at the start and that live."""
        beside(self.held, act)


def beside(engines: list[Any], act: Any) -> None:
    ray.get([aside(engine, act) for engine in engines], timeout=DEADLINE_S)


def aside(engine: Any, act: Any) -> Any:
    from openrlhf.cluster.calls import ASIDE

    return engine.__ray_call__.options(concurrency_group=ASIDE).remote(act)


class Again:
    """Answers with samples that are there."""

    def __init__(self, rollouts: list[list[Sample]]) -> None:
        self.rollouts = iter(rollouts)

    def collect(self, prompts: list[Prompt], seed: int) -> Future[list[Sample]]:
        return done(next(self.rollouts))

    def sync(self, version: int) -> Future[None]:
        return done(None)


@pytest.mark.timeout(600)
def test_every_rollout_is_broken_off_by_a_sync_and_goes_on(tiny_folder: Path, tmp_path: Path) -> None:
    from openrlhf.cluster.roles import cluster_roles
    from openrlhf.cluster.start import ray_session

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # engines cannot import the tests
    (tmp_path / "reward.py").write_text(REWARD)
    parts = "--actor_num_gpus_per_node 1 --vllm_num_engines 2 --async_train --partial_rollout"
    config = configure(tiny_folder, tmp_path / "reward.py", parts)
    tokenizer = load_tokenizer(str(tiny_folder), config.model)
    log = Lines(config)
    with ray_session(config), cluster_roles(config, tokenizer, STEPS, DEADLINE_S) as roles:
        witness = Witness(roles, tmp_path)
        witness.beside(hold)
        started = list(witness.held)
        witnessed = replace(roles, rollout=witness)
        ppo.train(config, witnessed, prompt_batches(PROMPTS, config), log, tokenizer.pad_token_id, DEADLINE_S)
        replaced = [e != s for e, s in zip(roles.rollout.engines.engine.engines, started, strict=True)]
        in_flight = [roles.rollout.collect(PROMPTS[:2], seed) for seed in (7, 8)]
        witness.beside(wait_until_held)
    # A run that ends with rollouts in flight: nobody waits for what will not come, and no thread outlives Ray.
    for rollout in in_flight:
        assert isinstance(rollout.exception(timeout=0), PartLost)
    assert [t.name for t in threading.enumerate() if t.name.startswith(("engines", "rewards", "sync", "role"))] == []

    assert replaced == [False, True]
    rollouts = [rollout.result(timeout=0) for rollout in witness.rollouts]
    prompts = [prompt.text for prompt in PROMPTS for _ in range(4)]
    assert sorted(sample.prompt for samples in rollouts for sample in samples) == prompts
    # What the dead engine had sampled is lost: its answers, those to the second prompt, are of the weights that its
    # successor got. Those of the other engine went on.
    first, second = rollouts[DEATH][:4], rollouts[DEATH][4:]
    assert all(set(sample.weight_versions[sample.action_mask].tolist()) == {DEATH} for sample in second)
    assert all(int(sample.weight_versions[sample.action_mask][0]) == DEATH - 1 for sample in first)
    check_tokens(rollouts, [tiny_folder, *(tmp_path / str(version) for version in range(1, STEPS))])
    assert log.lines[0]["mixed"] == 0 < min(line["mixed"] for line in log.lines[1:])
    assert [line["staleness_max"] for line in log.lines] == [0, 1, 1, 1]
    for line in log.lines[1:]:
        assert 0 < line["staleness"] < 1

    # The same steps in one process, on the same samples.
    alone = configure(tiny_folder, tmp_path / "reward.py", "--local")
    lone_log, local = Lines(alone), local_roles(alone, tokenizer, STEPS)
    local = replace(local, rollout=Again(rollouts))
    ppo.train(alone, local, prompt_batches(PROMPTS, alone), lone_log, tokenizer.pad_token_id, DEADLINE_S)
    gather(local.actor.save_state(None, tmp_path / "alone"), deadline_s=DEADLINE_S)
    got, expected, start = (weights_of(folder) for folder in (tmp_path / str(STEPS), tmp_path / "alone", tiny_folder))
    assert (got - expected).norm() < 1e-3 * (expected - start).norm()
    for name in ("loss", "correction_weight", "engine_kl", "reward"):
        assert [line[name] for line in log.lines] == pytest.approx([line[name] for line in lone_log.lines], abs=1e-4)


def check_tokens(rollouts: list[list[Sample]], folders: list[Path]) -> None:
    """The engines' log-probs are those of the version that each token names, and of no other."""
    models = [AutoModelForCausalLM.from_pretrained(folder).float() for folder in folders]
    worst_of_others = 0.0
    for step, samples in enumerate(rollouts, start=1):
        for sample in samples:
            with torch.no_grad():
                tables = [model(sample.tokens[None]).logits[0].log_softmax(dim=1) for model in models]
            actions = sample.action_mask.nonzero().flatten().tolist()
            versions = sample.weight_versions[sample.action_mask].tolist()
            assert versions == sorted(versions)
            assert set(versions) <= ({0} if step == 1 else {step - 2, step - 1})
            for t, version in zip(actions, versions, strict=True):
                own = [float(table[t - 1, sample.tokens[t]]) for table in tables]
                assert float(sample.rollout_log_probs[t]) == pytest.approx(own[version], abs=1e-4)
                worst_of_others = max(worst_of_others, abs(own[version] - own[version - 1]))
    assert worst_of_others > 1e-2  # the steps were large enough to tell


def weights_of(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder).float()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# A command whose engines are held as above; it dies in the sync of step 2, while rollout 3 is held in its middle and
# rollout 4 waits its turn.
DIES = """
import os, signal, sys
from dataclasses import replace
import ray
from openrlhf.cli.train_ppo_ray import main
from openrlhf.cluster import roles
from tests.cluster import test_partial as tests

ray.cloudpickle.register_pickle_by_value(tests)
connected = roles.connected

def held(engines, *rest):
    sampling = connected(engines, *rest)
    tests.beside(engines.engines, tests.hold)

    def sync(version):
        tests.beside(engines.engines, tests.wait_until_held)
        if version == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        sampling.sync(version)

    return replace(sampling, sync=sync)

roles.connected = held
main(sys.argv[1:])
"""
COUNTING = """
def reward_func(queries, prompts, labels):
    return {"rewards": [len(set(query)) / 20 for query in queries],
            "extra_logs": {"prompts": [2.0 ** int(label) for label in labels]}}
"""


@pytest.mark.timeout(600)
def test_a_run_that_is_killed_with_rollouts_in_their_middle_learns_from_each_prompt_once(
    tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "reward.py").write_text(COUNTING)
    rows = [{"input": f"What is {i} + {i}?", "label": i} for i in range(2 * STEPS)]
    flags: dict[str, Any] = {
        "pretrain": tiny_folder, "remote_rm_url": tmp_path / "reward.py", "label_key": "label",
        "prompt_data": write_rows(tmp_path / "p.jsonl", rows), "advantage_estimator": "rloo", "init_kl_coef": 0,
        "actor_num_gpus_per_node": 1, "vllm_num_engines": 1, "rollout_batch_size": 2, "n_samples_per_prompt": 2,
        "train_batch_size": 4, "micro_train_batch_size": 4, "prompt_max_len": 32, "generate_max_len": LENGTH,
        "actor_learning_rate": 1e-3, "async_train": True, "async_queue_size": 2, "partial_rollout": True,
        "enable_vllm_is_correction": True, "save_steps": 1, "save_path": tmp_path / "out",
        "ckpt_path": tmp_path / "ckpt",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", DIES, *words(flags)], cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stdout[-3000:]
    out = run(main, flags | {"load_checkpoint": True})
    assert [row["step"] for row in metrics(out)] == list(range(1, STEPS + 1))
    assert sorted(trained_prompts(out, at_once=2)) == list(range(2 * STEPS))
