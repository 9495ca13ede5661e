"""The configuration of each command: which groups it has, which defaults differ, which flags it does without."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from typing import Any, TypeVar, get_type_hints

from openrlhf.config.groups import (
    AlgorithmConfig,
    ChatConfig,
    CheckpointConfig,
    CombineConfig,
    DataConfig,
    DatasetConfig,
    DeepSpeedConfig,
    DistillationConfig,
    EvaluationConfig,
    FitConfig,
    GenerationConfig,
    InferenceConfig,
    KTOLossConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    PairConfig,
    PlacementConfig,
    PreferenceConfig,
    ProcessConfig,
    PromptConfig,
    RewardConfig,
    RewardTrainConfig,
    RolloutConfig,
    SampleConfig,
    SamplingConfig,
    ServeConfig,
    TrainConfig,
    UnpairedConfig,
    VLLMConfig,
)


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning"""

    model: ModelConfig
    data: DataConfig
    dataset: DatasetConfig
    optim: OptimConfig
    train: TrainConfig
    fit: FitConfig
    deepspeed: DeepSpeedConfig
    checkpoint: CheckpointConfig
    log: LogConfig


@dataclass(frozen=True)
class RMConfig:
    """Reward model training"""

    model: ModelConfig
    data: DataConfig
    pairs: PairConfig
    optim: OptimConfig
    train: TrainConfig
    fit: FitConfig
    reward_training: RewardTrainConfig
    deepspeed: DeepSpeedConfig
    checkpoint: CheckpointConfig
    log: LogConfig


@dataclass(frozen=True)
class DPOConfig:
    """Direct preference optimisation"""

    model: ModelConfig
    data: DataConfig
    pairs: PairConfig
    optim: OptimConfig
    train: TrainConfig
    fit: FitConfig
    preference: PreferenceConfig
    deepspeed: DeepSpeedConfig
    checkpoint: CheckpointConfig
    log: LogConfig


@dataclass(frozen=True)
class KTOConfig:
    """Preference optimisation from single labelled answers"""

    model: ModelConfig
    data: DataConfig
    unpaired: UnpairedConfig
    optim: OptimConfig
    train: TrainConfig
    fit: FitConfig
    kto: KTOLossConfig
    deepspeed: DeepSpeedConfig
    checkpoint: CheckpointConfig
    log: LogConfig


@dataclass(frozen=True)
class KDConfig:
    """Knowledge distillation"""

    model: ModelConfig
    data: DataConfig
    dataset: DatasetConfig
    optim: OptimConfig
    train: TrainConfig
    fit: FitConfig
    distillation: DistillationConfig
    deepspeed: DeepSpeedConfig
    checkpoint: CheckpointConfig
    log: LogConfig


@dataclass(frozen=True)
class PRMConfig:
    """Process reward model training"""

    model: ModelConfig
    data: DataConfig
    process: ProcessConfig
    optim: OptimConfig
    train: TrainConfig
    fit: FitConfig
    deepspeed: DeepSpeedConfig
    checkpoint: CheckpointConfig
    log: LogConfig


@dataclass(frozen=True)
class PPOConfig:
    """Reinforcement learning"""

    model: ModelConfig
    data: DataConfig
    prompts: PromptConfig
    optim: OptimConfig
    train: TrainConfig
    deepspeed: DeepSpeedConfig
    checkpoint: CheckpointConfig
    log: LogConfig
    samples: SampleConfig
    algorithm: AlgorithmConfig
    rollout: RolloutConfig
    evaluation: EvaluationConfig
    reward: RewardConfig
    placement: PlacementConfig
    vllm: VLLMConfig


@dataclass(frozen=True)
class ServeRMConfig:
    """Reward model over HTTP"""

    serve: ServeConfig


@dataclass(frozen=True)
class BatchInferenceConfig:
    """Answers to many prompts, or rewards of many answers"""

    inference: InferenceConfig
    model: ModelConfig
    data: DataConfig
    dataset: DatasetConfig
    generation: GenerationConfig
    sampling: SamplingConfig
    deepspeed: DeepSpeedConfig
    train: TrainConfig


@dataclass(frozen=True)
class LoraCombinerConfig:
    """A LoRA adapter and its model into one model"""

    combine: CombineConfig


@dataclass(frozen=True)
class InteractiveChatConfig:
    """Conversation with a model in the terminal"""

    chat: ChatConfig
    model: ModelConfig
    data: DataConfig
    sampling: SamplingConfig


TrainCommand = SFTConfig | RMConfig | DPOConfig | KTOConfig | KDConfig | PRMConfig | PPOConfig
Command = TrainCommand | ServeRMConfig | BatchInferenceConfig | LoraCombinerConfig | InteractiveChatConfig
C = TypeVar(
    "C", SFTConfig, RMConfig, DPOConfig, KTOConfig, KDConfig, PRMConfig, PPOConfig, ServeRMConfig, BatchInferenceConfig,
    LoraCombinerConfig, InteractiveChatConfig,
)  # fmt: skip

# The verb of each command: ``openrlhf sft``.
COMMANDS: dict[str, type[Command]] = {
    "sft": SFTConfig, "rm": RMConfig, "dpo": DPOConfig, "kto": KTOConfig, "kd": KDConfig, "prm": PRMConfig,
    "ppo": PPOConfig, "serve_rm": ServeRMConfig, "lora_combiner": LoraCombinerConfig,
    "batch_inference": BatchInferenceConfig, "interactive_chat": InteractiveChatConfig,
}  # fmt: skip

DEFAULTS: dict[type[Command], dict[str, Any]] = {
    SFTConfig: {
        "max_epochs": 2,
        "max_samples": 1_000_000,
        "input_template": "User: {}\nAssistant: ",
        "ckpt_path": "./ckpt/checkpoints_sft",
        "wandb_project": "openrlhf_train_sft",
    },
    RMConfig: {
        "micro_train_batch_size": 1,
        "learning_rate": 9e-6,
        "max_samples": 1_000_000,
        "ckpt_path": "./ckpt/checkpoints_rm",
        "wandb_project": "openrlhf_train_rm",
    },
    DPOConfig: {
        "learning_rate": 1e-5,
        "max_samples": 1_000_000,
        "eval_split": "test",
        "ckpt_path": "./ckpt/checkpoints_dpo",
        "wandb_project": "openrlhf_train_dpo",
    },
    KTOConfig: {
        "learning_rate": 1e-5,
        "max_samples": 1_000_000,
        "eval_split": "test",
        "input_template": "User: {}\nAssistant: ",
        "ckpt_path": "./ckpt/checkpoints_kto",
        "wandb_project": "openrlhf_train_dpo",
    },
    KDConfig: {
        "max_samples": 1_000_000,
        "eval_split": "test",
        "input_template": "User: {}\nAssistant: ",
        "output_key": "output",
        "ckpt_path": "./ckpt/checkpoints_kd",
        "wandb_project": "openrlhf_train_sft",
    },
    PRMConfig: {
        "micro_train_batch_size": 1,
        "learning_rate": 1e-6,
        "max_samples": 1_000_000,
        "eval_split": "test",
        "ckpt_path": "./ckpt/checkpoints_prm",
        "wandb_project": "openrlhf_train_prm",
    },
    PPOConfig: {
        "micro_train_batch_size": 4,
        "ckpt_path": "./ckpt/checkpoints_ppo_ray",
        "wandb_project": "openrlhf_train_ppo",
    },
    ServeRMConfig: {},
    LoraCombinerConfig: {},
    BatchInferenceConfig: {"output_key": "output", "zero_stage": 0, "seed": 1234},
    InteractiveChatConfig: {
        "input_template": "User: {}\nAssistant: ",
        "top_p": 0.9,
        "temperature": 0.2,
        "repetition_penalty": 1.2,
    },
}

# Of the commands that log.
RUN_PREFIX: dict[type[Command], str] = {
    SFTConfig: "sft_",
    RMConfig: "rm_",
    DPOConfig: "exp_",
    KTOConfig: "rm_",
    KDConfig: "sft_",
    PRMConfig: "prm_",
    PPOConfig: "ppo_",
}


def all_but(group: type, *taken: str) -> frozenset[str]:
    """The flags of a group that a command does without when it takes only these."""
    return frozenset(f.name for f in fields(group)) - set(taken)


HIDDEN = "true"  # as in --use_wandb true: the machine is logged in, or WANDB_API_KEY is set

# Flags that belong to a group of the command but mean nothing to the command.
WITHOUT: dict[type[Command], frozenset[str]] = {
    SFTConfig: frozenset({"value_head_prefix", "deepspeed_enable_sleep"}),
    RMConfig: frozenset({"input_key", "deepspeed_enable_sleep"}),
    DPOConfig: frozenset({"input_key", "value_head_prefix", "deepspeed_enable_sleep"}),
    KTOConfig: frozenset({"value_head_prefix", "deepspeed_enable_sleep"}),
    KDConfig: frozenset({"train_split", "multiturn", "value_head_prefix", "deepspeed_enable_sleep"}),
    PRMConfig: frozenset(
        {
            *("input_template", "apply_chat_template", "tokenizer_chat_template"),
            *("value_head_prefix", "deepspeed_enable_sleep"),
        }
    ),
    PPOConfig: frozenset(),
    ServeRMConfig: frozenset(),
    LoraCombinerConfig: frozenset(),
    BatchInferenceConfig: frozenset().union(
        all_but(
            ModelConfig,
            *("pretrain", "bf16", "flash_attn", "disable_fast_tokenizer", "tokenizer_chat_template"),
            *("value_head_prefix", "trust_remote_code", "use_ms"),
        ),
        {"eval_dataset", "eval_split", "preview", "train_split", "multiturn", "pretrain_mode"},
        all_but(DeepSpeedConfig, "zero_stage"),
        all_but(TrainConfig, "seed", "full_determinism", "local_rank"),
    ),
    InteractiveChatConfig: frozenset().union(
        all_but(
            ModelConfig,
            *("pretrain", "bf16", "flash_attn", "disable_fast_tokenizer", "tokenizer_chat_template", "load_in_4bit"),
            *("trust_remote_code", "use_ms"),
        ),
        all_but(DataConfig, "input_template", "apply_chat_template"),
    ),
}


@cache  # reading the types of fields takes long for who asks about thousands of configurations
def _hints(holder: Any) -> dict[str, Any]:
    return get_type_hints(holder)


def groups(command: type[Command]) -> dict[str, type]:
    """The groups of a command, by name."""
    return _hints(command)  # type: ignore[arg-type]  # a class is hashable


def flags(command: type[Command], group: type) -> dict[str, Field[Any]]:
    """The flags that a command takes from a group."""
    return _flags(command, group)  # type: ignore[arg-type]  # a class is hashable


@cache
def _flags(command: Any, group: type) -> dict[str, Field[Any]]:
    return {f.name: f for f in fields(group) if f.name not in WITHOUT[command]}


def types(command: type[Command]) -> dict[str, Any]:
    """The type of every flag of a command."""
    hints = {group: _hints(group) for group in groups(command).values()}
    return {name: hints[group][name] for group in hints for name in flags(command, group)}


def defaults(command: type[Command]) -> dict[str, Any]:
    """The default of every flag that may be left out. The name of the run holds the present time."""
    every = [f for group in groups(command).values() for f in flags(command, group).values()]
    own = {f.name: f.default for f in every if f.default is not MISSING}
    prefix = RUN_PREFIX.get(command)
    run_name = {} if prefix is None else {"wandb_run_name": prefix + time.strftime("%m%dT%H:%M")}
    return {**own, **DEFAULTS[command], **run_name}


def build(command: type[C], values: Mapping[str, Any]) -> C:
    """The configuration with these flags, and defaults for the rest. Not checked: that is ``rules.check``.

    Raises ValueError when a required flag is missing or a name is not a flag of the command.
    """
    taken = {name: flags(command, group) for name, group in groups(command).items()}
    every = [flag for group in taken.values() for flag in group]
    if strange := [name for name in values if name not in every]:
        raise ValueError(f"--{strange[0]} is not a flag of this command.")
    resolved = {**defaults(command), **values}
    if missing := [f"--{name}" for name in every if name not in resolved]:
        raise ValueError(f"{' and '.join(missing)} must be given.")
    made = {name: group(**{flag: resolved[flag] for flag in taken[name]}) for name, group in groups(command).items()}
    return command(**made)


def flat(config: Command) -> dict[str, Any]:
    """Every flag of the command and its value, fit to be shown: of a secret, only that it is set (``"true"``)."""
    command = type(config)
    shown = {}
    for name, group in groups(command).items():
        for flag, declared in flags(command, group).items():
            value = vars(vars(config)[name])[flag]
            shown[flag] = HIDDEN if declared.metadata["secret"] and value is not None else value
    return shown
