"""The same roles in one process and on Ray + DeepSpeed + vLLM: the same numbers on the same samples."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openrlhf.backends.local import LocalTrain
from openrlhf.backends.local_roles import local_roles
from openrlhf.config.commands import PPOConfig
from openrlhf.config.derived import critic_source
from openrlhf.config.groups import ModelConfig
from openrlhf.config.parse import read
from openrlhf.models.load import load_score_model, load_tokenizer, save_model
from openrlhf.models.tiny import build_model, build_tokenizer
from openrlhf.training.members import CriticMember, load_critic
from openrlhf.training.roles import Roles, gather
from openrlhf.training.seeds import seed_process
from openrlhf.types import Batch, Prompt, Sample, collate
from tests.conftest import TEXTS

pytest.importorskip("ray")
pytest.importorskip("vllm")
pytest.importorskip("deepspeed")
from openrlhf.cluster.group import Group
from openrlhf.cluster.placement import Placement, plan
from openrlhf.cluster.roles import ClusterActor, ClusterCritic, ClusterReference, ClusterReward

pytestmark = pytest.mark.cluster

DEADLINE_S = 240.0
ROWS = 8


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two key-value heads, one for each worker that shares a model."""
    folder = tmp_path_factory.mktemp("two-heads")
    build_model(folder, len(build_tokenizer(folder, TEXTS, vocab_size=300)), kv_heads=2)
    return folder


@pytest.fixture(scope="module")
def reward_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with a drawn head and statistics; also where the critic starts, so that both runs share it."""
    torch.manual_seed(0)
    config = ModelConfig(pretrain=str(tiny_folder))
    model = load_score_model(str(tiny_folder), config, "score", new_head=True)
    model.set_statistics(0.1, 0.5)
    folder = tmp_path_factory.mktemp("reward")
    save_model(model, folder, load_tokenizer(str(tiny_folder), config))
    return folder


def configure(tiny_folder: Path, reward_folder: Path, extra: str) -> PPOConfig:
    micro = "" if "--use_dynamic_batch" in extra else "--micro_train_batch_size 2"
    flags = (
        f"--pretrain {tiny_folder} --reward_pretrain {reward_folder} --prompt_data unused --normalize_reward "
        f"--rollout_batch_size {ROWS} --train_batch_size 4 --micro_rollout_batch_size 2 {micro} "
        "--prompt_max_len 16 --generate_max_len 16 --actor_learning_rate 1e-3 --critic_learning_rate 1e-3 "
        f"--max_epochs 2 {extra}"
    )
    return read(PPOConfig, flags.split())


def fixed_batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    samples = []
    for row in range(ROWS):
        length = 6 + row
        mask = torch.arange(length) >= 3
        samples.append(Sample(torch.randint(5, 250, (length,), generator=generator), mask, group=row))
    return collate(samples, pad_token_id=0)


def one_step(roles: Roles, batch: Batch) -> dict[str, Any]:
    """What the loop asks of the roles, on a fixed batch, with advantages and returns given."""

    def ask(*futures: Future[Any]) -> list[Any]:
        return gather(*futures, deadline_s=DEADLINE_S)

    (rewards,) = ask(*roles.reward.rewards(batch))
    old, reference, values = ask(
        roles.actor.log_probs(batch), roles.reference.log_probs(batch), roles.critic.values(batch)
    )
    advantages = torch.linspace(-1, 1, batch.tokens.numel()).view_as(batch.tokens)
    batch = batch.fill(
        rewards=rewards, old_log_probs=old, ref_log_probs=reference, values=values, advantages=advantages,
        returns=advantages.flip(0),
    )  # fmt: skip
    critic, actor = ask(roles.critic.update(batch), roles.actor.update(batch, 0.1))
    after, new_values = ask(roles.actor.log_probs(batch), roles.critic.values(batch))
    return {
        "rewards": rewards, "old": old, "reference": reference, "values": values, "after": after,
        "new_values": new_values, "actor": actor, "critic": critic,
    }  # fmt: skip


def engine_difference(roles: Roles, tokenizer: Any) -> float:
    """Largest |engine − trainer| log-prob of freshly sampled tokens."""
    prompts = [Prompt(i, "", tokens) for i, tokens in enumerate([[10, 11, 12], [40, 41, 42, 43], [7, 8, 9]])]
    (samples,) = gather(roles.rollout.collect(prompts, 3), deadline_s=DEADLINE_S)
    batch = collate(samples, tokenizer.pad_token_id)
    (log_probs,) = gather(roles.actor.log_probs(batch), deadline_s=DEADLINE_S)
    return float((log_probs - batch.rollout_log_probs)[batch.action_mask].abs().max())


PLACEMENTS = {
    "pairs together on rings of two, ZeRO-3, packed by tokens, the actor samples": (
        "--actor_num_gpus_per_node 2 --critic_num_gpus_per_node 2 --ref_num_gpus_per_node 2 "
        "--reward_num_gpus_per_node 2 --vllm_num_engines 0 --colocate_actor_ref --colocate_critic_reward "
        "--zero_stage 3 --packing_samples --ring_attn_size 2 --use_dynamic_batch --train_max_tokens_per_gpu 9"
    ),
    "pairs together with sleeps, two workers a model, ZeRO-2": (
        "--actor_num_gpus_per_node 2 --critic_num_gpus_per_node 2 --ref_num_gpus_per_node 2 "
        "--reward_num_gpus_per_node 2 --vllm_num_engines 1 --colocate_actor_ref --colocate_critic_reward "
        "--deepspeed_enable_sleep --ds_tensor_parallel_size 2"
    ),
    # Of rows of 6, 7, 8 and 9 tokens one worker has 9 and 6, which do not fit, the other 8 and 7, which do.
    "all together with sleeps, two engines, ZeRO-3, padded by tokens": (
        "--actor_num_gpus_per_node 2 --critic_num_gpus_per_node 2 --ref_num_gpus_per_node 2 "
        "--reward_num_gpus_per_node 2 --vllm_num_engines 2 --colocate_all_models --vllm_enable_sleep "
        "--deepspeed_enable_sleep --zero_stage 3 --use_dynamic_batch --train_max_tokens_per_gpu 16 "
        "--rollout_max_tokens_per_gpu 30"
    ),
}


@pytest.fixture(scope="module")
def in_one_process(tiny_folder: Path, reward_folder: Path) -> dict[str, Any]:
    config = configure(tiny_folder, reward_folder, "--local")
    tokenizer = load_tokenizer(str(tiny_folder), config.model)
    return one_step(local_roles(config, tokenizer, total_steps=4), fixed_batch())


@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
@pytest.mark.timeout(600)
def test_any_placement_gives_the_numbers_of_one_process(
    placement: str, tiny_folder: Path, reward_folder: Path, in_one_process: dict[str, Any]
) -> None:
    from openrlhf.cluster.roles import cluster_roles
    from openrlhf.cluster.start import ray_session

    config = configure(tiny_folder, reward_folder, placement)
    tokenizer = load_tokenizer(str(tiny_folder), config.model)
    with ray_session(config), cluster_roles(config, tokenizer, 4, DEADLINE_S) as roles:
        check_numbers(one_step(roles, fixed_batch()), in_one_process)
        check_engines(roles, tokenizer)


def check_numbers(numbers: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("rewards", "old", "reference", "values", "after", "new_values"):
        assert (numbers[name] - expected[name]).abs().max() < 2e-5, name
    for role in ("actor", "critic"):
        assert numbers[role] == pytest.approx(expected[role], rel=1e-3, abs=1e-5)
    assert (numbers["after"] - numbers["old"]).abs().max() > 1e-2  # the step was large enough to tell


def check_engines(roles: Roles, tokenizer: Any) -> None:
    for version in (1, 2):
        gather(roles.rollout.sync(version), deadline_s=DEADLINE_S)
        assert engine_difference(roles, tokenizer) < 1e-4


SLEEP = "--deepspeed_enable_sleep"
SHARED = ["--colocate_actor_ref", "--colocate_critic_reward", "--colocate_actor_ref --colocate_critic_reward"]
ENGINES_TOO = "--colocate_all_models --vllm_num_engines"
CELLS = [
    "--vllm_num_engines 1",
    *(f"{shared} --vllm_num_engines 1 {sleep}" for shared in SHARED for sleep in ("", SLEEP)),
    *(f"{ENGINES_TOO} {{0}} {sleep} {naps}" for sleep in ("", SLEEP) for naps in ("", "--vllm_enable_sleep")),
]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.timeout(600)
def test_sharing_and_sleeping_change_no_number(
    workers: int, tiny_folder: Path, reward_folder: Path, in_one_process: dict[str, Any], tmp_path: Path
) -> None:
    """Every combination, each from the same start, on workers that are started once: they differ in who takes turns
    with whom and who sleeps meanwhile."""
    from openrlhf.cluster.roles import cluster_roles
    from openrlhf.cluster.start import ray_session

    sizes = " ".join(f"--{role}_num_gpus_per_node {workers}" for role in ("actor", "critic", "ref", "reward"))
    config = configure(tiny_folder, reward_folder, f"{sizes} --vllm_num_engines {workers - 1}")
    tokenizer = load_tokenizer(str(tiny_folder), config.model)
    with ray_session(config), cluster_roles(config, tokenizer, 4, DEADLINE_S) as roles:
        learners = {"actor": roles.actor, "critic": roles.critic}
        for name, role in learners.items():
            (tmp_path / name).mkdir()
            assert gather(role.save_state(tmp_path / name, None), deadline_s=DEADLINE_S) == [None]
        for cell in CELLS:
            for name, role in learners.items():
                assert gather(role.load_state(tmp_path / name, False), deadline_s=DEADLINE_S) == [None]
            placement = plan(configure(tiny_folder, reward_folder, f"{sizes} {cell.format(workers)}"))
            with placed(roles, placement) as these:
                check_numbers(one_step(these, fixed_batch()), in_one_process)
        if workers > 1:
            check_engines(roles, tokenizer)


@contextmanager
def placed(roles: Any, placement: Placement) -> Iterator[Roles]:
    """The same workers with the locks and sleeps of ``placement``."""
    groups = {"actor": roles.actor, "critic": roles.critic, "reference": roles.reference, "reward": roles.reward}
    here: dict[str, Group] = {}
    for pool in placement.pools:
        lock = threading.RLock()
        for role in pool.roles:
            own = groups[role].group
            here[role] = Group(role, own.workers, lock, placement.roles_sleep, own.line, DEADLINE_S)
    assert here.keys() == groups.keys()
    states = [()] * len(here["actor"].workers)
    for group in here.values() if placement.roles_sleep else ():
        group.call("offload", states)
    yield replace(
        roles,
        actor=ClusterActor(here["actor"], 4),
        critic=ClusterCritic(here["critic"], 4),
        reference=ClusterReference(here["reference"], "log_probs"),
        reward=ClusterReward(here["reward"], 1),
    )
    for group in here.values() if placement.roles_sleep else ():
        group.call("onload", states)


def critic_alone(config: PPOConfig, batch: Batch) -> dict[str, Any]:
    """The critic's part of ``one_step``, seeded as a worker is: in ``local_roles`` the actor's adapter is drawn
    first."""
    seed_process(config.train)
    source = critic_source(config)
    assert source is not None
    model = load_critic(source, config)
    engine = LocalTrain(model, config.optim, config.algorithm.critic_learning_rate, 4, config.model.bf16)
    critic = CriticMember(engine, config)
    values = critic.values(batch)
    returns = torch.linspace(-1, 1, batch.tokens.numel()).view_as(batch.tokens).flip(0)
    return {
        "values": values,
        "critic": critic.update(batch.fill(values=values, returns=returns)),
        "new_values": critic.values(batch),
    }


@pytest.mark.timeout(600)
def test_an_adapter_is_merged_for_the_engines_and_taken_off_for_the_reference(
    tiny_folder: Path, reward_folder: Path
) -> None:
    """The critic learns by an adapter too."""
    from openrlhf.cluster.roles import cluster_roles
    from openrlhf.cluster.start import ray_session

    adapter = "--lora_rank 4 --lora_alpha 16 --actor_learning_rate 1e-2 --critic_learning_rate 1e-2"
    alone = configure(tiny_folder, reward_folder, f"{adapter} --local")
    tokenizer = load_tokenizer(str(tiny_folder), alone.model)
    seed_process(alone.train)
    expected = one_step(local_roles(alone, tokenizer, total_steps=4), fixed_batch())
    expected |= critic_alone(alone, fixed_batch())
    placement = (
        "--actor_num_gpus_per_node 2 --critic_num_gpus_per_node 2 --reward_num_gpus_per_node 2 --vllm_num_engines 2 "
        "--colocate_all_models --vllm_enable_sleep --deepspeed_enable_sleep --zero_stage 3"
    )
    config = configure(tiny_folder, reward_folder, f"{adapter} {placement}")
    with ray_session(config), cluster_roles(config, tokenizer, 4, DEADLINE_S) as roles:
        before = engine_difference(roles, tokenizer)
        numbers = one_step(roles, fixed_batch())
        stale = engine_difference(roles, tokenizer)
        gather(roles.rollout.sync(1), deadline_s=DEADLINE_S)
        difference = engine_difference(roles, tokenizer)
        (start,) = gather(roles.reference.log_probs(fixed_batch()), deadline_s=DEADLINE_S)
        assert roles.reference.group is roles.actor.group  # no second copy
    for name in ("rewards", "old", "reference", "values", "after", "new_values"):
        assert (numbers[name] - expected[name]).abs().max() < 2e-5, name
    for role in ("actor", "critic"):
        assert numbers[role] == pytest.approx(expected[role], rel=1e-3, abs=1e-5)
    assert (numbers["new_values"] - numbers["values"]).abs().max() > 1e-2
    assert torch.equal(start, numbers["reference"])
    assert (numbers["after"] - start).abs().max() > 1e-2  # the step was large enough to tell
    assert stale > 1e-3
    assert before < 1e-4
    assert difference < 1e-4


@pytest.mark.timeout(300)
def test_a_role_that_dies_ends_the_run_with_its_name(tiny_folder: Path, reward_folder: Path, tmp_path: Path) -> None:
    """And one that cannot read its model with a sentence, as in one process."""
    import ray

    from openrlhf.cluster.calls import RoleError
    from openrlhf.cluster.roles import cluster_roles
    from openrlhf.cluster.start import ray_session

    flags = "--actor_num_gpus_per_node 2 --vllm_num_engines 1 --init_kl_coef 0 --advantage_estimator reinforce"
    config = configure(tiny_folder, reward_folder, f"{flags} --reward_num_gpus_per_node 1")
    tokenizer = load_tokenizer(str(tiny_folder), config.model)
    batch = fixed_batch()
    broken = shutil.copytree(reward_folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"")
    wrong = configure(tiny_folder, broken, flags.replace("engines 1", "engines 0") + " --reward_num_gpus_per_node 1")
    refused = pytest.raises(ValueError, match=f"^--reward_pretrain {broken}: no model could be loaded from there")
    with ray_session(wrong), refused, cluster_roles(wrong, tokenizer, 4, DEADLINE_S):
        pass
    with ray_session(config), cluster_roles(config, tokenizer, 4, DEADLINE_S) as roles:
        victim = roles.actor.group.workers[1]
        ray.kill(victim)
        began = time.monotonic()
        with pytest.raises(RoleError, match="actor worker 1 of 2 died in log_probs"):
            gather(roles.actor.log_probs(batch), deadline_s=DEADLINE_S)
        assert time.monotonic() - began < 60
