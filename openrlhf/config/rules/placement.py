"""Which roles and engines run where, and who shares GPUs with whom."""

from __future__ import annotations

from openrlhf.config.commands import PPOConfig, defaults, flat
from openrlhf.config.derived import needs_deepspeed, own_reference, ranks_sharing_rows, role_sizes, starts_from
from openrlhf.config.rules.batches import check_workers, samples_a_rollout


def local(config: PPOConfig) -> None:
    if not config.placement.local:
        return
    default, values = defaults(PPOConfig), flat(config)
    names = (vars(config.placement) | vars(config.vllm)).keys() - {"local"} | {"ref_reward_offload", "ring_attn_size"}
    changed = [f"--{name}" for name in values if name in names and values[name] != default[name]]
    if idle := [*changed, *needs_deepspeed(config.deepspeed)]:
        raise ValueError(f"--local uses neither Ray nor DeepSpeed nor vLLM: leave out {', '.join(idle)}.")


def engines(config: PPOConfig) -> None:
    if not config.placement.local and config.vllm.vllm_num_engines is None:
        raise ValueError(
            "--vllm_num_engines must say how many engines sample; 0 lets the actor's workers do it, --local runs "
            "everything in this process."
        )


def no_engines(config: PPOConfig) -> None:
    """The actor's workers sample, with Transformers."""
    if config.vllm.vllm_num_engines != 0:
        return
    default, vllm = defaults(PPOConfig), vars(config.vllm)
    idle = [f"--{name}" for name in vllm if name != "vllm_num_engines" and vllm[name] != default[name]]
    if idle:
        raise ValueError(f"--vllm_num_engines 0 uses no vLLM: leave out {', '.join(idle)}.")
    if config.rollout.async_train:
        raise ValueError(
            "--async_train samples while the models learn, and with --vllm_num_engines 0 the actor's workers do both: "
            "leave one out."
        )


def workers(config: PPOConfig) -> None:
    """Every role gets the same share of a rollout batch on each data-parallel rank, and trains in whole micro-batches.

    The workers of a ring or a tensor-parallel group get the same rows and count as one.
    """
    if config.placement.local:
        return
    samples, sharing = samples_a_rollout(config), ranks_sharing_rows(config)
    by = "--ring_attn_size" if config.model.ring_attn_size > 1 else "--ds_tensor_parallel_size"
    for role, size in role_sizes(config).items():
        flags = f"--{role}_num_nodes × --{role}_num_gpus_per_node"
        if size.workers % sharing:
            raise ValueError(
                f"{by} {sharing} does not divide the {size.workers} workers of {flags}: choose a multiple of {sharing}."
            )
        parts = size.workers // sharing
        flags += f" / {by}" if sharing > 1 else ""
        if samples % parts:
            raise ValueError(
                f"--rollout_batch_size × --n_samples_per_prompt = {samples} samples cannot be shared equally by "
                f"{parts} workers ({flags}): choose a multiple of {parts}."
            )
        if role in ("actor", "critic"):
            check_workers(config.train, parts, f" ({flags})")


def idle_reference(config: PPOConfig) -> None:
    """Flags of a reference model, where the actor without its adapter is the reference."""
    if config.placement.local:
        return
    default, place = defaults(PPOConfig), config.placement
    if starts_from(config.model, config.model.pretrain):
        names = ("ref_num_nodes", "ref_num_gpus_per_node", "colocate_actor_ref")
        if idle := [f"--{name}" for name in names if vars(place)[name] != default[name]]:
            raise ValueError(
                "with --lora_rank the reference is the actor without its adapter and needs no GPUs: leave out "
                f"{', '.join(idle)}."
            )
    if config.reward.ref_reward_offload and not own_reference(config) and config.reward.reward_pretrain is None:
        raise ValueError(
            "--ref_reward_offload: this run has neither a reference model of its own nor a reward model: leave it out."
        )


def colocation(config: PPOConfig) -> None:
    place, sizes = config.placement, role_sizes(config)
    shared = {
        "colocate_actor_ref": ("actor", "ref"),
        "colocate_critic_reward": ("critic", "reward"),
        "colocate_all_models": ("actor", "critic", "ref", "reward"),
    }
    for flag, roles in shared.items():
        present = [role for role in roles if role in sizes]
        if vars(place)[flag] and len({sizes[role] for role in present}) > 1:
            raise ValueError(
                f"--{flag} needs the same --*_num_nodes and --*_num_gpus_per_node for {', '.join(present)}, not "
                f"{', '.join(f'{sizes[role].nodes} × {sizes[role].gpus_per_node}' for role in present)}."
            )


def colocated_engines(config: PPOConfig) -> None:
    engines, width = config.vllm.vllm_num_engines, config.vllm.vllm_tensor_parallel_size
    actor = role_sizes(config)["actor"].workers
    if config.placement.colocate_all_models and engines and engines * width != actor:
        raise ValueError(
            f"--colocate_all_models puts the engines on the actor's {actor} GPUs: --vllm_num_engines {engines} × "
            f"--vllm_tensor_parallel_size {width} must be {actor}."
        )


def sleep(config: PPOConfig) -> None:
    place = config.placement
    if config.vllm.vllm_enable_sleep and not place.colocate_all_models:
        raise ValueError("--vllm_enable_sleep frees GPUs that engines share: it needs --colocate_all_models.")
    shares_gpus = place.colocate_all_models or place.colocate_actor_ref or place.colocate_critic_reward
    if config.deepspeed.deepspeed_enable_sleep and not shares_gpus:
        raise ValueError(
            "--deepspeed_enable_sleep frees GPUs that models share: it needs --colocate_all_models, "
            "--colocate_actor_ref or --colocate_critic_reward."
        )
