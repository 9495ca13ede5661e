"""Whether the tokenizers, vocabularies and folders of all models of a run fit each other and the flags."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf.check.findings import Severity
from openrlhf.config.commands import (
    Command,
    DPOConfig,
    KDConfig,
    LoraCombinerConfig,
    PPOConfig,
    ServeRMConfig,
    flat,
)
from openrlhf.config.derived import critic_source, reference_source, reward_models, served_model
from openrlhf.config.groups import ModelConfig
from openrlhf.models.folder import weight_names
from openrlhf.models.hub import local_folder
from openrlhf.models.load import is_score_model, load_config, load_tokenizer
from openrlhf.models.vocabulary import check_embedding, check_same_tokens


@dataclass(frozen=True)
class Role:
    """A model of the run. ``head`` is whether its folder must hold a score head."""

    flag: str
    path: str
    head: bool = False


def roles(config: Command) -> list[Role]:
    """The models that a run loads, the one of ``--pretrain`` first."""
    if isinstance(config, LoraCombinerConfig):
        return [Role("--model_path", config.combine.model_path)]
    if isinstance(config, ServeRMConfig):
        return [Role("--reward_pretrain", config.serve.reward_pretrain, head=True)]
    own = Role("--pretrain", config.model.pretrain, head=flat(config).get("eval_task") == "rm")
    if isinstance(config, DPOConfig):
        return [own, Role("--ref_pretrain", reference_source(config))]
    if isinstance(config, KDConfig):
        return [own, Role("--teacher_model", config.distillation.teacher_model)]
    return [own, *read_by_others(config)] if isinstance(config, PPOConfig) else [own]


def read_by_others(config: PPOConfig) -> list[Role]:
    """The models of an RL run that read the policy's token ids, besides its own reference."""
    sources = [Role("--reward_pretrain", path, head=True) for path in reward_models(config)]
    critic = critic_source(config)
    return sources if critic is None else [*sources, Role("--critic_pretrain", critic.path, head=not critic.new_head)]


def check_engine_length(config: PPOConfig) -> None:
    """Raise ValueError when vLLM would refuse texts as long as the flags allow."""
    if config.placement.local:
        return
    longest = config.prompts.prompt_max_len + config.rollout.generate_max_len
    positions = _positions(config.model.pretrain, config.model)
    if positions is not None and longest > positions:
        raise ValueError(
            f"--prompt_max_len + --generate_max_len is {longest} tokens, and --pretrain {config.model.pretrain} was "
            f"made for {positions}, beyond which vLLM does not go: choose --generate_max_len "
            f"{positions - config.prompts.prompt_max_len} or less."
            if positions > config.prompts.prompt_max_len
            else f"--prompt_max_len {config.prompts.prompt_max_len} leaves no room for a response: --pretrain "
            f"{config.model.pretrain} was made for {positions} tokens."
        )


def look_at_statistics(config: Command) -> Iterator[tuple[Severity, str]]:
    """Reward models in which ``--normalize_reward`` finds no numbers to standardise with."""
    if not isinstance(config, PPOConfig | ServeRMConfig) or not flat(config)["normalize_reward"]:
        return
    settings = _settings(config)
    for path in dict.fromkeys(role.path for role in roles(config) if role.flag == "--reward_pretrain"):
        if not {"mean", "std"} <= load_config(path, settings, "--reward_pretrain").to_dict().keys():
            yield (
                "warning",
                f"--normalize_reward changes no reward of --reward_pretrain {path}: its config.json has no mean and "
                "std of scores, which openrlhf rm writes",
            )


def look_at_models(config: Command) -> Iterator[tuple[Severity, str]]:
    settings = _settings(config)
    first, *others = roles(config)
    yield from _look_at_folder(first, settings, settings.value_head_prefix)
    if isinstance(config, LoraCombinerConfig):
        return
    yield from look_at_statistics(config)
    tokenizer = load_tokenizer(first.path, settings, first.flag)
    check_embedding(first.path, first.flag, tokenizer, settings)
    yield "ok", f"{first.flag} {first.path}: {_described(tokenizer)}"
    for role in others:
        if role.path == first.path and not role.head:
            continue
        check_same_tokens(role.path, role.flag, tokenizer, settings)
        check_embedding(role.path, role.flag, tokenizer, settings)
        yield from _look_at_folder(role, settings, settings.value_head_prefix)
        yield "ok", f"{role.flag} {role.path}: the vocabulary of --pretrain"
    if isinstance(config, PPOConfig):
        check_engine_length(config)
    yield from _look_at_length(config, first, settings)
    yield from _look_at_heads(config, first, settings)


def longest_text(config: Command) -> tuple[str, int] | None:
    """The flags that bound a text, and the tokens it may have."""
    if isinstance(config, PPOConfig):
        both = config.prompts.prompt_max_len + config.rollout.generate_max_len
        return "--prompt_max_len + --generate_max_len", both
    values = flat(config)
    return ("--max_len", values["max_len"]) if values.get("max_len") else None


def _settings(config: Command) -> ModelConfig:
    if isinstance(config, LoraCombinerConfig):
        own = config.combine
        return ModelConfig(pretrain=own.model_path, bf16=own.bf16, trust_remote_code=own.trust_remote_code)
    return served_model(config.serve) if isinstance(config, ServeRMConfig) else config.model


def _look_at_folder(role: Role, settings: ModelConfig, prefix: str) -> Iterator[tuple[Severity, str]]:
    found = load_config(role.path, settings, role.flag)
    folder = Path(local_folder(role.path, settings, role.flag))
    if not folder.is_dir():
        yield "ok", f"{role.flag} {role.path} is no folder here: its weights come from the hub when the run starts"
        return
    names = weight_names(folder, role.flag)
    prefix = found.to_dict().get("value_head_prefix") or prefix
    if role.head and names is not None and not {f"{prefix}.weight", "score.weight"} & names:
        kind = "is a reward model" if is_score_model(role.path, settings, role.flag) else "is a language model"
        raise ValueError(
            f"{role.flag} {role.path}: there is no reward head named {prefix!r} in that folder, which {kind}; name its "
            "head with --value_head_prefix or train a reward model first"
        )


def _look_at_length(config: Command, role: Role, settings: ModelConfig) -> Iterator[tuple[Severity, str]]:
    bound, positions = longest_text(config), _positions(role.path, settings)
    if bound is not None and positions is not None and bound[1] > positions:
        yield (
            "warning",
            f"{bound[0]} is {bound[1]} tokens, and {role.flag} {role.path} was made for {positions}: what lies beyond "
            f"is read badly; choose at most {positions}",
        )


def _look_at_heads(config: Command, role: Role, settings: ModelConfig) -> Iterator[tuple[Severity, str]]:
    """Tensor parallelism gives each process whole attention heads."""
    heads = load_config(role.path, settings, role.flag).get_text_config().to_dict().get("num_attention_heads")
    values = flat(config)
    for flag in ("vllm_tensor_parallel_size", "ds_tensor_parallel_size", "tp_size"):
        if heads and (size := values.get(flag)) and heads % size:
            yield (
                "error",
                f"--{flag} {size} does not divide the {heads} attention heads of {role.flag} {role.path}: choose "
                f"{' or '.join(str(n) for n in (1, 2, 4, 8) if heads % n == 0)}",
            )


def _positions(path: str, settings: ModelConfig) -> int | None:
    """The longest text that the model knows, None where it does not say so or stretches its positions."""
    values = load_config(path, settings, "--pretrain").get_text_config().to_dict()
    scaling = values.get("rope_scaling") or values.get("rope_parameters") or {}
    stretched = scaling.get("rope_type", "default") not in ("default", "llama3")
    return None if stretched else values.get("max_position_embeddings")


def _described(tokenizer: Any) -> str:
    template = "a chat template" if tokenizer.chat_template else "no chat template"
    return f"{len(tokenizer)} tokens, eos {tokenizer.eos_token!r}, pad {tokenizer.pad_token!r}, {template}"
