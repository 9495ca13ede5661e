"""The dotted spelling of flags, ``--actor.adam.lr 1e-6``, that OpenRLHF has from 0.10 on, put into the flat one.

Names and their values are translated; defaults are those of the flat flags, as ``docs/flags.md`` gives them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openrlhf.config.other_versions import OTHER_VERSIONS

# Flags whose flat name is the dotted one's last part.
SAME_LEAF = {
    "data": "dataset dataset_probs dataset_split max_samples input_key output_key label_key prompt_key chosen_key "
    "rejected_key input_template apply_chat_template tokenizer_chat_template multiturn disable_fast_tokenizer",
    "ds": "zero_stage zpg adam_offload overlap_comm grad_accum_dtype deepcompile use_liger_kernel load_in_4bit "
    "packing_samples ring_attn_size value_head_prefix",
    "vllm": "enforce_eager enable_prefix_caching",
    "train": "max_epochs num_episodes seed colocate_actor_ref colocate_critic_reward async_queue_size agent_func_path "
    "enable_ema ema_beta",
    "rollout": "n_samples_per_prompt temperature top_p",
    "actor": "eps_clip eps_clip_low_high dual_clip policy_loss_type",
    "critic": "value_clip save_value_network",
    "reward": "overlong_buffer_len overlong_penalty_factor stop_properly_penalty_coef",
    "model": "beta label_smoothing nll_loss_coef",
    "logger": "logging_steps",
    "ckpt": "save_steps best_metric_key",
}

RENAMED = {
    "ckpt.output_dir": "save_path", "ckpt.path": "ckpt_path", "ckpt.max_num": "max_ckpt_num",
    "ckpt.max_mem": "max_ckpt_mem", "ckpt.save_hf": "save_hf_ckpt", "ckpt.disable_ds": "disable_ds_ckpt",
    "ckpt.load_enable": "load_checkpoint", "ds.use_universal_ckpt": "use_ds_universal_ckpt",
    "eval.steps": "eval_steps", "eval.dataset": "eval_dataset", "eval.split": "eval_split",
    "eval.temperature": "eval_temperature", "eval.n_samples_per_prompt": "eval_n_samples_per_prompt",
    "logger.wandb.key": "use_wandb", "logger.wandb.org": "wandb_org", "logger.wandb.group": "wandb_group",
    "logger.wandb.project": "wandb_project", "logger.wandb.run_name": "wandb_run_name",
    "logger.tensorboard_dir": "use_tensorboard",
    "train.batch_size": "train_batch_size", "train.micro_batch_size": "micro_train_batch_size",
    "train.full_determinism_enable": "full_determinism", "train.colocate_all": "colocate_all_models",
    "train.async_enable": "async_train", "train.partial_rollout_enable": "partial_rollout",
    "train.dynamic_batch_enable": "use_dynamic_batch", "train.max_tokens_per_gpu": "train_max_tokens_per_gpu",
    "rollout.max_tokens_per_gpu": "rollout_max_tokens_per_gpu",
    "rollout.batch_size": "rollout_batch_size", "rollout.micro_batch_size": "micro_rollout_batch_size",
    "rollout.max_new_tokens": "generate_max_len",
    "ref.model_name_or_path": "ref_pretrain", "reward.model_name_or_path": "reward_pretrain",
    "critic.model_name_or_path": "critic_pretrain",
    "ds.tensor_parallel_size": "ds_tensor_parallel_size", "ds.ring_attn_head_stride": "ring_head_stride",
    "ds.enable_sleep": "deepspeed_enable_sleep", "ds.lora.rank": "lora_rank", "ds.lora.alpha": "lora_alpha",
    "ds.lora.dropout": "lora_dropout", "ds.lora.target_modules": "target_modules",
    "adam.lr": "learning_rate", "actor.adam.lr": "actor_learning_rate", "critic.adam.lr": "critic_learning_rate",
    "data.prompt_dataset": "prompt_data", "data.prompt_probs": "prompt_data_probs",
    "data.prompt_split": "prompt_split",
    "algo.advantage.estimator": "advantage_estimator", "algo.advantage.gamma": "gamma",
    "algo.advantage.lambd": "lambd", "algo.advantage.no_std_norm": "no_advantage_std_norm",
    "algo.advantage.is_correction_enable": "enable_vllm_is_correction",
    "algo.advantage.is_correction_threshold": "vllm_is_truncated_threshold",
    "algo.advantage.is_correction_type": "vllm_is_correction_type",
    "algo.kl.init_coef": "init_kl_coef", "algo.kl.target": "kl_target", "algo.kl.horizon": "kl_horizon",
    "algo.kl.estimator": "kl_estimator", "algo.kl.use_loss": "use_kl_loss",
    "algo.dynamic_filtering_enable": "dynamic_filtering",
    "algo.dynamic_filtering_range": "dynamic_filtering_reward_range",
    "actor.entropy_coef": "entropy_loss_coef", "critic.freezing_steps": "freezing_actor_steps",
    "reward.normalize_enable": "normalize_reward", "reward.clip_range": "reward_clip_range",
    "reward.remote_url": "remote_rm_url",
    "model.ipo_enable": "ipo", "model.loss_type": "loss", "model.margin_loss_enable": "margin_loss",
    "model.compute_fp32_loss_enable": "compute_fp32_loss", "model.pretrain_mode_enable": "pretrain_mode",
    **{f"{role}.{leaf}": f"{role}_{leaf}"
       for role in ("actor", "critic", "ref", "reward") for leaf in ("num_nodes", "num_gpus_per_node")},
    **{f"vllm.{leaf}": f"vllm_{leaf}"
       for leaf in ("num_engines", "tensor_parallel_size", "sync_backend", "sync_with_ray", "enable_sleep",
                    "gpu_memory_utilization")},
    # What the dotted form says for each model, we have once.
    **{f"{model}.{dotted}": flat
       for model in ("model", "actor", "critic")
       for dotted, flat in {"gradient_checkpointing_enable": "gradient_checkpointing",
                            "gradient_checkpointing_reentrant": "gradient_checkpointing_use_reentrant",
                            "aux_loss_coef": "aux_loss_coef", "lr_warmup_ratio": "lr_warmup_ratio",
                            "lr_scheduler": "lr_scheduler", "max_norm": "max_norm", "adam.betas": "adam_betas",
                            "adam.weight_decay": "l2"}.items()},
    "adam.betas": "adam_betas", "adam.weight_decay": "l2", "lr_scheduler": "lr_scheduler",
    "model.model_name_or_path": "pretrain", "actor.model_name_or_path": "pretrain",
}  # fmt: skip

DOTTED = {f"{group}.{leaf}": leaf for group, leaves in SAME_LEAF.items() for leaf in leaves.split()} | RENAMED

_DTYPE = {"bf16": ["--bf16"], "fp32": ["--bf16", "false"]}
_ATTENTION = {
    "flash_attention_2": ["--flash_attn"], "sdpa": ["--flash_attn", "false"], "eager": ["--flash_attn", "false"]
}  # fmt: skip

# Values that are switches here: flag, of 0.9 or dotted → its values → the words of the flat form.
SWITCHES = {
    "param_dtype": _DTYPE,
    "ds.param_dtype": _DTYPE,
    "attn_implementation": _ATTENTION,
    "ds.attn_implementation": _ATTENTION,
}


def undotted(words: Sequence[str], flat: Mapping[str, Any]) -> list[str]:
    """A command line in the flat form; what is flat already stays as it is. ``flat`` holds the command's flags.

    Raises ValueError for a dotted flag that has no flat one, and for two that are one flag here and disagree.
    """
    line: list[str] = []
    given: dict[str, tuple[str, list[str]]] = {}  # flat flag → the dotted one it came from, its values
    for words_of_one in _flags(words):
        name, equals, value = words_of_one[0].partition("=")
        if not name.startswith("--") or ("." not in name and name.removeprefix("--") not in SWITCHES):
            line += words_of_one
            continue
        name, values = name.removeprefix("--"), [value][: len(equals)] + words_of_one[1:]
        if name in SWITCHES:
            line += _switched(name, values)
        else:
            target = _flat_name(name, flat)
            before = given.setdefault(target, (name, values))
            if before[1] != values:
                raise ValueError(
                    f"--{before[0]} {' '.join(before[1])} and --{name} {' '.join(values)} are one flag here, "
                    f"--{target}: give both the same value."
                )
            if before == (name, values) and f"--{target}" not in line:
                line += [f"--{target}", *values]
    return _with_prompt_length(line, given)


def _flags(words: Sequence[str]) -> list[list[str]]:
    """The words cut in front of every flag."""
    cut: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not cut:
            cut.append([])
        cut[-1].append(word)
    return cut


def _switched(name: str, values: list[str]) -> list[str]:
    known = SWITCHES[name]
    if len(values) != 1 or values[0] not in known:
        raise ValueError(f"--{name} takes {', '.join(known)} here, not {' '.join(values) or 'nothing'}.")
    return known[values[0]]


def _flat_name(name: str, flat: Mapping[str, Any]) -> str:
    if name in ("ref.offload", "reward.offload"):
        return "ref_reward_offload" if "ref_reward_offload" in flat else "ref_offload"
    if name == "data.max_len":
        return "total_max_len" if "generate_max_len" in flat else "max_len"
    leaf = name.rpartition(".")[2]
    if leaf in OTHER_VERSIONS:
        raise ValueError(f"--{name} {OTHER_VERSIONS[leaf]}.")
    if name not in DOTTED:
        raise ValueError(f"--{name} has no counterpart among the flat flags: leave it out, or see --help.")
    return DOTTED[name]


def _with_prompt_length(line: list[str], given: Mapping[str, tuple[str, list[str]]]) -> list[str]:
    """In RL the dotted form bounds prompt and answer together; ours bounds the prompt."""
    if "total_max_len" not in given:
        return line
    at = line.index("--total_max_len")
    if "generate_max_len" not in given:
        raise ValueError("--data.max_len bounds prompt and answer together: give --rollout.max_new_tokens as well.")
    total, answer = (" ".join(given[name][1]) for name in ("total_max_len", "generate_max_len"))
    if not (total.isdigit() and answer.isdigit() and int(total) > int(answer)):
        raise ValueError(f"--data.max_len {total} must be more than --rollout.max_new_tokens {answer}.")
    return [*line[:at], "--prompt_max_len", str(int(total) - int(answer)), *line[at + 2 :]]


def flattened(content: Mapping[Any, Any], flat: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """The lines of a YAML file, where names under a name are joined by dots: ``ckpt: {path: x}`` → ``ckpt.path: x``."""
    lines: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict) and f"{before}{name}" in flat:
            raise ValueError(f"{name} holds further names, but flags stand in one flat list.")
        whole = f"{before}{name}"
        lines |= flattened(value, flat, f"{whole}.") if isinstance(value, dict) else {whole: value}
    return lines


def dotted_words(name: str, value: Any) -> list[str]:
    """One dotted line of a YAML file as words of a command line; none for null."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}", str(value).lower()]
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
