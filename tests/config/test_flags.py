"""Every flag of the reference's commands exists, with its type and default, and every flag of ours has help."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields
from datetime import datetime
from typing import Any

import pytest

from openrlhf.algorithms.advantages import ADVANTAGE_ESTIMATORS
from openrlhf.config.commands import (
    DEFAULTS,
    BatchInferenceConfig,
    DPOConfig,
    InteractiveChatConfig,
    KDConfig,
    KTOConfig,
    LoraCombinerConfig,
    PPOConfig,
    PRMConfig,
    RMConfig,
    ServeRMConfig,
    SFTConfig,
    build,
    defaults,
    flags,
    groups,
    types,
)
from openrlhf.config.parse import parse_flags
from tests.config.expected_flags import BATCH_INFERENCE, CHAT, DPO, KD, KTO, LORA_COMBINER, PPO, PRM, RM, SERVE_RM, SFT

COMMANDS: list[tuple[type, dict[str, tuple[str, object]]]] = [
    (SFTConfig, SFT),
    (RMConfig, RM),
    (DPOConfig, DPO),
    (KTOConfig, KTO),
    (KDConfig, KD),
    (PRMConfig, PRM),
    (PPOConfig, PPO),
    (ServeRMConfig, SERVE_RM),
    (BatchInferenceConfig, BATCH_INFERENCE),
    (LoraCombinerConfig, LORA_COMBINER),
    (InteractiveChatConfig, CHAT),
]
EXPECTED = [(command, name, *row) for command, table in COMMANDS for name, row in table.items()]
IDS = [f"{command.__name__}-{name}" for command, name, _, _ in EXPECTED]
# Without a default here, where the reference fails later; for KTO it downloads a model that nobody named.
DIFFERENT = {
    (ServeRMConfig, "host"): "127.0.0.1",  # no stranger reaches a server by default
    (BatchInferenceConfig, "value_head_prefix"): "score",  # as everything that trains one here calls it
}
REQUIRED = {
    *("pretrain", "dataset", "prompt_data", "teacher_model", "placeholder_token", "output_path"),
    *("model_path", "lora_path"),
}
# type in the table → words on the command line, and the value they mean
EXAMPLES: dict[str, tuple[list[str], Any]] = {
    "int": (["7"], 7),
    "float": (["2.5e-3"], 0.0025),
    "str": (["some text"], "some text"),
    "switch": ([], True),
    "float nargs=2": (["-0.5", "3"], (-0.5, 3.0)),
    "str nargs=*": (["q_proj", "v_proj"], ("q_proj", "v_proj")),
}
CHOICES = {
    "vllm_sync_backend": ("nccl", "gloo"),
    "grad_accum_dtype": ("fp32", "bf16", "fp16"),
    "loss": ("sigmoid", "logexp"),
}
OURS: dict[type, set[str]] = {
    SFTConfig: set(),
    RMConfig: {"lr_scheduler", "use_liger_kernel"},
    DPOConfig: {"lr_scheduler", "tokenizer_chat_template"},
    KTOConfig: {
        *("lr_scheduler", "tokenizer_chat_template", "packing_samples", "ring_attn_size", "ring_head_stride"),
        *("ds_tensor_parallel_size", "save_hf_ckpt", "disable_ds_ckpt"),
    },
    KDConfig: {
        *("tokenizer_chat_template", "packing_samples", "ring_attn_size", "ring_head_stride"),
        *("ds_tensor_parallel_size", "save_hf_ckpt", "disable_ds_ckpt"),
    },
    PRMConfig: {
        *("ring_attn_size", "ring_head_stride", "ds_tensor_parallel_size", "save_hf_ckpt", "disable_ds_ckpt"),
        "use_tensorboard",
    },
    PPOConfig: {
        "lr_scheduler",
        "tokenizer_chat_template",
        "dual_clip",
        "eps_clip_low_high",
        "local",
        "agent_func_path",
        "reward_timeout",
        "reward_weights",
        "on_reward_failure",
        "best_metric_key",
        *("dynamic_filtering", "dynamic_filtering_reward_range", "stop_strings"),
        "policy_loss_type",
        *("enable_vllm_is_correction", "vllm_is_correction_type", "vllm_is_truncated_threshold"),
        *("async_train", "async_queue_size", "max_staleness", "partial_rollout"),
        *("overlong_buffer_len", "overlong_penalty_factor", "stop_properly_penalty_coef"),
        *("samples_per_step", "samples_max_mb"),
    },
    ServeRMConfig: {"token"},
    LoraCombinerConfig: set(),
    BatchInferenceConfig: {"tokenizer_chat_template", "dataset_split"},
    InteractiveChatConfig: {"tokenizer_chat_template"},
}
DATA = {"strict_data", "preview"}  # ours, in every command that reads rows, the latter where it trains


def test_the_tables_are_whole() -> None:
    assert (len(SFT), len(RM), len(DPO), len(PPO)) == (73, 73, 75, 126)
    assert (len(KTO), len(KD), len(PRM), len(BATCH_INFERENCE)) == (67, 67, 63, 38)
    assert (len(SERVE_RM), len(LORA_COMBINER), len(CHAT)) == (12, 5, 16)


@pytest.mark.parametrize(("command", "name", "kind", "default"), EXPECTED, ids=IDS)
def test_default(command: Any, name: str, kind: str, default: Any) -> None:
    if name in REQUIRED or (command, name) == (ServeRMConfig, "reward_pretrain"):
        assert default is None or (command, name) == (KTOConfig, "pretrain")
        assert name not in defaults(command)
    elif name == "wandb_run_name":
        start = datetime.strptime(defaults(command)[name].removeprefix(default), "%m%dT%H:%M")
        assert start.minute in range(60)
    else:
        ours, expected = defaults(command)[name], DIFFERENT.get((command, name), default)
        assert ours == expected
        assert type(ours) is type(expected)


@pytest.mark.parametrize(("command", "name", "kind", "default"), EXPECTED, ids=IDS)
def test_type(command: Any, name: str, kind: str, default: Any) -> None:
    choices = re.findall(r"\w+", kind.partition("{")[2]) or list(CHOICES.get(name, ()))
    for words, value in [([c], c) for c in choices] or [EXAMPLES[kind]]:
        given = parse_flags(command, [f"--{name}", *words])
        assert given == {name: value}
        assert type(given[name]) is type(value)


@pytest.mark.parametrize(("command", "table"), COMMANDS)
def test_flags_of_our_own(command: Any, table: dict[str, Any]) -> None:
    ours = types(command).keys() - table.keys()
    apart = {command: set[str]() for command in (ServeRMConfig, LoraCombinerConfig, InteractiveChatConfig)}
    rows = {**apart, BatchInferenceConfig: {"strict_data"}}.get(command, DATA)
    assert ours == {"trust_remote_code"} | rows | OURS[command]


@pytest.mark.parametrize("command", [command for command, _ in COMMANDS])
def test_every_flag_has_help_and_one_home(command: Any) -> None:
    declared = [f for group in groups(command).values() for f in fields(group)]
    assert all(f.metadata["help"].strip() for f in declared)
    assert max(Counter(f.name for f in declared).values()) == 1


@pytest.mark.parametrize("command", [command for command, _ in COMMANDS])
def test_defaults_of_a_command_are_flags_and_differ_from_the_group(command: Any) -> None:
    own = {name: f.default for group in groups(command).values() for name, f in flags(command, group).items()}
    for name, default in DEFAULTS[command].items():
        assert own[name] != default


@pytest.mark.parametrize("command", [command for command, _ in COMMANDS])
def test_every_default_has_the_type_of_its_flag(command: Any) -> None:
    simple = {name: kind for name, kind in types(command).items() if kind in (bool, int, float, str)}
    for name, value in defaults(command).items():
        if name in simple:
            assert type(value) is simple[name], name


def test_help_and_table_name_the_estimators() -> None:
    help = flags(PPOConfig, groups(PPOConfig)["algorithm"])["advantage_estimator"].metadata["help"]
    assert all(name in help for name in ADVANTAGE_ESTIMATORS)
    assert set(re.findall(r"\w+", PPO["advantage_estimator"][0])) - {"str"} <= ADVANTAGE_ESTIMATORS.keys()


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (SFTConfig, "value_head_prefix"),
        (DPOConfig, "value_head_prefix"),
        (RMConfig, "input_key"),
        (DPOConfig, "input_key"),
        (RMConfig, "ref_pretrain"),
        (DPOConfig, "margin_loss"),
        (KTOConfig, "ref_pretrain"),
        (KTOConfig, "value_head_prefix"),
        (KDConfig, "multiturn"),
        (KDConfig, "train_split"),
        (PRMConfig, "apply_chat_template"),
        (PRMConfig, "input_template"),
        (PRMConfig, "tokenizer_chat_template"),
        (PRMConfig, "value_head_prefix"),
    ],
)
def test_a_flag_that_means_nothing_to_the_command_is_refused(command: Any, flag: str) -> None:
    with pytest.raises(ValueError, match=flag):
        parse_flags(command, [f"--{flag}", "score"])
    with pytest.raises(ValueError, match=flag):
        build(command, {"pretrain": "m", "dataset": "d", flag: "score"})
