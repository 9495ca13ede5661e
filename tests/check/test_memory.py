"""Predictions of memory before a run, and beside what happened when it ran out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from openrlhf.check.memory import look_at_memory, out_of_memory, shapes_of
from openrlhf.cli.run_command import run_command
from openrlhf.config.commands import DPOConfig, KTOConfig, PPOConfig, SFTConfig, build
from openrlhf.plan.cluster import parse_cluster
from openrlhf.plan.estimate import local_parts


def sft(folder: Path, **flags: Any) -> SFTConfig:
    return build(SFTConfig, {"pretrain": str(folder), "dataset": "d"} | flags)


def test_a_run_that_fits_and_one_that_does_not(tiny_folder: Path) -> None:
    ((severity, sentence),) = look_at_memory(sft(tiny_folder), parse_cluster("1xL4-24G", "--assume"), 1)
    assert severity == "ok" and "model takes about" in sentence and "of 22.8 GB of a GPU (CUDA contexts 1.5" in sentence
    long = sft(tiny_folder, max_len=400_000)
    ((severity, sentence),) = look_at_memory(long, parse_cluster("1xL4-24G", "--assume"), 1)
    assert severity == "warning" and "--gradient_checkpointing" in sentence and "(activations " in sentence


def test_rl_has_a_line_for_each_pool(tiny_folder: Path) -> None:
    given = {"pretrain": str(tiny_folder), "prompt_data": "p", "remote_rm_url": "r.py", "vllm_num_engines": 1}
    config = build(PPOConfig, given | {"colocate_actor_ref": True})
    found = [sentence.split(" takes ")[0] for _, sentence in look_at_memory(config, parse_cluster("24xL4", "--a"), 24)]
    assert found == ["actor+reference", "critic", "engines"]


def test_the_models_are_those_of_the_flags(tiny_folder: Path) -> None:
    pairs = {"pretrain": str(tiny_folder), "dataset": "d"}
    assert shapes_of(build(DPOConfig, pairs)).other is not None
    assert shapes_of(build(DPOConfig, pairs | {"lora_rank": 2})).other is None
    assert shapes_of(build(KTOConfig, pairs)).other is not None
    rl = {"pretrain": str(tiny_folder), "prompt_data": "p", "reward_pretrain": f"{tiny_folder},{tiny_folder}"}
    found = shapes_of(build(PPOConfig, rl))
    assert len(found.rewards) == 2 and found.critic is not None
    assert shapes_of(build(PPOConfig, rl | {"advantage_estimator": "rloo"})).critic is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_memory_that_ran_out_is_told_with_ways_out(
    error: RuntimeError, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: SFTConfig) -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_command(fail, sft(tiny_folder))
    assert ended.value.code == 1
    whole = capsys.readouterr().err
    trace, told = whole.split("memory ran out; `openrlhf plan`")
    assert trace.startswith("Traceback") and str(error) in trace
    _, predicted, held, *ways = told.splitlines()
    assert predicted.startswith("predicted for ") and "GB" in predicted
    assert held.startswith("this process held at most ")
    assert len(ways) == 3 and all(text.startswith("- ") for text in ways)
    if not torch.cuda.is_available():  # one process has nobody to share with
        assert not any(flag in told for flag in ("--adam_offload", "--zero_stage", "--ring_attn_size"))


def test_rl_tells_what_its_process_or_its_workers_were_to_hold(tiny_folder: Path) -> None:
    given = {"pretrain": str(tiny_folder), "prompt_data": "p", "remote_rm_url": "r.py"}
    error = MemoryError()
    told = out_of_memory(build(PPOConfig, given | {"local": True}), error)
    assert told[1].startswith("predicted for ") and len(told[3:]) == 3
    assert "--adam_offload" not in "".join(told[3:])
    if not torch.cuda.is_available():
        told = out_of_memory(build(PPOConfig, given), error)
        workers = {line.split(":")[0] for line in told[1:4]}
        assert workers == {f"predicted for a worker of {role}" for role in ("actor", "critic", "reference")}
        assert any("--ring_attn_size" in way for way in told)


def test_rl_in_one_process_holds_every_role(tiny_folder: Path) -> None:
    """Float32: 16 bytes a weight that learns, 4 for the reference; 256 texts at most in the attention cache."""
    given = {"pretrain": str(tiny_folder), "prompt_data": "p", "remote_rm_url": "r.py", "local": True}
    one = {"micro_train_batch_size": 1, "micro_rollout_batch_size": 1, "gradient_checkpointing": True}
    config = build(PPOConfig, given | one | {"prompt_max_len": 100_000, "generate_max_len": 1})
    shapes = shapes_of(config)
    assert shapes.critic is not None
    parts = local_parts(config, shapes, "cpu")
    policy, critic = shapes.policy.parameters, shapes.critic.parameters
    assert parts["weights"] == 4 * (2 * policy + critic)
    assert parts["optimizer"] == 8 * (policy + critic)
    assert parts["attention cache"] == 256 * 100_001 * 2 * 2 * 1 * 32 * 4


def test_the_driver_of_rl_that_holds_too_many_samples_is_told_to_ask_for_fewer(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: PPOConfig) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to")

    given = {"pretrain": str(tiny_folder), "prompt_data": "p", "remote_rm_url": "r.py"}
    with pytest.raises(SystemExit):
        run_command(fail, build(PPOConfig, given | {"rollout_batch_size": 512, "n_samples_per_prompt": 8}))
    ways = [line for line in capsys.readouterr().err.splitlines() if line.startswith("- ")]
    assert ways[0] == "- lower --rollout_batch_size: the driver holds all samples of a step, here 4,096"


def test_another_error_is_left_alone(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(config: SFTConfig) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run_command(fail, sft(tiny_folder))
    assert capsys.readouterr().err == ""
