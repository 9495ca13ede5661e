"""The search for layouts: what it finds is what experience says, and every command is one of the real parser."""

from __future__ import annotations

from typing import Any

import pytest

from openrlhf.check.devices import look_at_placement
from openrlhf.cluster.placement import plan as place
from openrlhf.config.commands import DPOConfig, PPOConfig, SFTConfig, build
from openrlhf.config.parse import read
from openrlhf.plan.cluster import parse_cluster
from openrlhf.plan.estimate import Shapes, estimate, supervised_parts
from openrlhf.plan.layouts import Layout, best, search
from openrlhf.plan.memory import total
from openrlhf.plan.shape import find_shape

NEEDS = {"pretrain": "MODEL", "prompt_data": "PROMPTS", "remote_rm_url": "reward.py"}
GROUPS = {"advantage_estimator": "rloo", "n_samples_per_prompt": 8, "rollout_batch_size": 128, "init_kl_coef": 0.0}


def found(size: str, words: str, **flags: Any) -> tuple[list[Layout], list[Layout]]:
    given = NEEDS | flags
    model = build(PPOConfig, given).model
    policy = find_shape(size, "--model", model)
    critic = find_shape(size, "--model", model, scores=True)
    rewards = [critic] if "reward_pretrain" in given else []
    return search(PPOConfig, given, Shapes(policy, critic, rewards), parse_cluster(words, "--cluster"))


@pytest.mark.parametrize(
    ("size", "words", "flags"),
    [
        ("8B", "8xH100-80G", {}),
        ("8B", "4x8xH100-80G", GROUPS),
        ("0.5B", "1xH100-80G", GROUPS),
    ],
)
def test_three_ready_commands_that_fit(size: str, words: str, flags: dict[str, Any]) -> None:
    cluster = parse_cluster(words, "--cluster")
    layouts = best(found(size, words, **flags)[0])
    assert layouts == sorted(layouts, key=lambda layout: layout.estimate.step)
    assert 1 <= len(layouts) <= 3
    for layout in layouts:
        config = read(PPOConfig, layout.words())
        assert {**vars(config), "log": None} == {**vars(layout.config), "log": None}  # but for the name of the run
        assert [severity for severity, _ in look_at_placement(config, cluster) if severity == "error"] == []
        assert all(total(room.parts) <= room.usable <= 80e9 for room in layout.estimate.rooms)
        assert layout.estimate.slots >= 1


def test_models_share_the_gpus_where_memory_allows() -> None:
    """The known advice: a hybrid engine first."""
    layouts = found("8B", "8xH100-80G", **GROUPS)[0]
    assert layouts[0].kind in ("colocated", "resident")
    assert best(layouts)[0] is layouts[0]


def test_without_it_engines_actor_and_critic_get_a_third_each() -> None:
    flags = {"reward_pretrain": "R", "remote_rm_url": None, "rollout_batch_size": 256, "n_samples_per_prompt": 4}
    split = next(layout for layout in found("8B", "3x8xA100-80G", **flags)[0] if layout.kind == "split")
    placement = place(split.config)  # type: ignore[arg-type]
    assert [pool.devices for pool in placement.pools] == [8, 8]
    assert placement.engines * placement.engine_devices == 8


def test_colocation_that_does_not_fit_is_refused_with_the_way_out() -> None:
    """All models and engines resident on few cards: let them leave, or drop colocation."""
    flags = {"colocate_all_models": True, "vllm_enable_sleep": False, "deepspeed_enable_sleep": False}
    shape = {"actor_num_gpus_per_node": 2, "critic_num_gpus_per_node": 2, "ref_num_gpus_per_node": 2}
    more = {"vllm_num_engines": 2, "zero_stage": 2, "bf16": True, "packing_samples": True}
    config = build(PPOConfig, NEEDS | flags | shape | more)
    policy = find_shape("7B", "--model", config.model)
    refused = estimate(config, Shapes(policy, policy), parse_cluster("2xH100-80G", "--cluster"))
    assert refused.problem is not None
    assert refused.problem.startswith("actor+critic+reference needs ")
    for way in ("--adam_offload", "--vllm_enable_sleep", "--gradient_checkpointing"):
        assert way in refused.problem
    wider = build(PPOConfig, NEEDS | flags | shape | more | {"vllm_enable_sleep": True, "deepspeed_enable_sleep": True})
    assert total(estimate(wider, Shapes(policy, policy), parse_cluster("2xH100-80G", "--c")).rooms[0].parts) < total(
        refused.rooms[0].parts
    )


def test_seventy_billion_do_not_fit_eight_cards_and_fit_thirty_two() -> None:
    fitting, refused = found("70B", "8xH100-80G")
    assert not fitting
    assert refused[0].estimate.problem
    assert found("70B", "4x8xH100-80G")[0]


def test_what_no_machine_can_serve_is_said_to_need_others() -> None:
    """405B in two bytes are 101 GB on each of eight GPUs, whatever the number of machines."""
    fitting, refused = found("405B", "4x8xH100-80G")
    assert not fitting
    assert "and an engine cannot leave its machine, whose 8 GPUs would hold 101.5 GB of weights each" in "".join(
        str(layout.estimate.problem) for layout in refused
    )
    assert found("405B", "8x8xB200", **GROUPS)[0]


def test_any_stage_that_is_given_is_planned() -> None:
    given = {"pretrain": "M", "dataset": "D", "output_key": "A", "zero_stage": 1, "ds_tensor_parallel_size": 4}
    shape = find_shape("7B", "--model", build(SFTConfig, given).model)
    fitting, refused = search(SFTConfig, given, Shapes(shape), parse_cluster("8xH100-80G", "--cluster"))
    assert fitting and {layout.kind for layout in (*fitting, *refused)} == {"ZeRO 1"}


def test_a_budget_of_tokens_is_what_a_micro_batch_holds() -> None:
    """Sixteen rows of 1,024 tokens are 16,384: as rows or as a budget. A longer text is alone."""
    given = {"pretrain": "M", "dataset": "D", "bf16": True, "gradient_checkpointing": True, "packing_samples": True}
    by_rows = build(SFTConfig, given | {"max_len": 1024, "micro_train_batch_size": 16})
    budget = {"use_dynamic_batch": True, "train_max_tokens_per_gpu": 16384}
    by_tokens = build(SFTConfig, given | budget | {"max_len": 1024})
    shapes = Shapes(find_shape("7B", "--model", by_rows.model))
    assert supervised_parts(by_tokens, shapes, 8) == supervised_parts(by_rows, shapes, 8)
    longer = supervised_parts(build(SFTConfig, given | budget | {"max_len": 32768}), shapes, 8)["activations"]
    assert longer == 2 * supervised_parts(by_rows, shapes, 8)["activations"]
    ring = build(SFTConfig, given | budget | {"max_len": 1024, "ring_attn_size": 2})
    assert supervised_parts(ring, shapes, 8) == supervised_parts(by_rows, shapes, 8)


def test_a_host_that_is_too_small_is_named() -> None:
    """32B with its optimizer beside one GPU: 12 + 4 + 2 bytes a weight are 590 GB."""
    given = {"pretrain": "M", "dataset": "D", "output_key": "A", "adam_offload": True}
    shape = find_shape("32B", "--model", build(SFTConfig, given).model)
    _, refused = search(SFTConfig, given, Shapes(shape), parse_cluster("1xB200", "--cluster"))
    assert "model keeps 590 GB in host memory for each GPU" in str(refused[0].estimate.problem)


def test_more_gpus_do_not_make_a_long_answer_faster_and_sampling_ahead_does() -> None:
    """The reason for asynchronous training: every sampled token reads all weights."""
    flags = {**GROUPS, "generate_max_len": 15360, "train_batch_size": 1024, "rollout_batch_size": 256}
    layouts = found("8B", "8x8xH100-80G", **flags)[0]
    fastest = {layout.kind: layout.estimate for layout in reversed(layouts)}
    assert fastest["async"].step < fastest["split"].step
    flags |= {"generate_max_len": 3072, "rollout_batch_size": 128, "zero_stage": 3, "vllm_tensor_parallel_size": 8}
    small, large = (
        next(x for x in found("70B", f"{n}x8xH100-80G", **flags)[0] if x.kind == "colocated").estimate.phases
        for n in (4, 16)
    )
    assert large["update"] == pytest.approx(small["update"] / 4, rel=0.01)
    assert large["generate"] > small["generate"] / 2


def test_flags_that_are_given_stay() -> None:
    fitting, refused = found("8B", "8xH100-80G", zero_stage=3, vllm_tensor_parallel_size=2, micro_train_batch_size=4)
    for layout in (*fitting, *refused):
        assert isinstance(layout.config, PPOConfig)
        assert layout.config.deepspeed.zero_stage == 3
        assert layout.config.vllm.vllm_tensor_parallel_size == 2
        assert layout.config.train.micro_train_batch_size == 4
    assert fitting


def test_supervised_layouts() -> None:
    model = build(SFTConfig, {"pretrain": "M", "dataset": "D"}).model
    shape = find_shape("7B", "--model", model)
    given = {"pretrain": "M", "dataset": "D", "output_key": "A"}
    fitting, _ = search(SFTConfig, given, Shapes(shape), parse_cluster("8xA100-80G", "--cluster"))
    assert fitting and read(SFTConfig, fitting[0].words()).train.micro_train_batch_size % 2 == 0
    # 16 bytes a weight are 122 GB: one card of 80 needs the host's memory.
    alone, _ = search(SFTConfig, given, Shapes(shape), parse_cluster("1xA100-80G", "--cluster"))
    assert alone and all(layout.config.deepspeed.adam_offload for layout in alone)
    # With its reference 18 bytes a weight; a pair is two texts.
    pairs = {"pretrain": "M", "dataset": "D"}
    dpo, _ = search(DPOConfig, pairs, Shapes(shape, other=shape), parse_cluster("8xA100-80G", "--cluster"))
    assert dpo[0].estimate.phases["reference"] > 0
    assert dpo[0].estimate.rooms[0].parts["weights"] > fitting[0].estimate.rooms[0].parts["weights"]
