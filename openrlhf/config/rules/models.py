"""How a model is loaded and cut: packages, adapters, quantised weights, rings and tensor parallelism."""

from __future__ import annotations

from importlib.util import find_spec

from openrlhf.config.commands import Command, TrainCommand, defaults, flat

# Flag → the package that it needs, and the extra that brings it.
PACKAGES = {"use_liger_kernel": ("liger_kernel", "liger"), "load_in_4bit": ("bitsandbytes", "qlora")}


def packages(config: Command) -> None:
    values = flat(config)
    for flag, (package, extra) in PACKAGES.items():
        if values.get(flag) and find_spec(package) is None:
            raise ValueError(f"--{flag} needs a package that is not here: pip install 'openrlhf[{extra}]'.")


def ring(config: TrainCommand) -> None:
    model = config.model
    if model.ring_attn_size > 1 and not model.packing_samples:
        raise ValueError("--ring_attn_size above 1 splits packed sequences: give --packing_samples too.")
    if model.ring_attn_size == 1 and model.ring_head_stride > 1:
        raise ValueError("--ring_head_stride says how heads travel in a ring: it needs --ring_attn_size above 1.")
    if model.ring_attn_size > 1 and config.deepspeed.ds_tensor_parallel_size > 1:
        raise ValueError(
            "--ring_attn_size divides the tokens and --ds_tensor_parallel_size the weights of a layer: leave one out."
        )


def tensor_parallel(config: TrainCommand) -> None:
    """The cut layers are DeepSpeed's own; it does not know those of an adapter or of quantised weights."""
    model, size = config.model, config.deepspeed.ds_tensor_parallel_size
    if size > 1 and (model.lora_rank > 0 or model.load_in_4bit):
        flag = "--lora_rank" if model.lora_rank > 0 else "--load_in_4bit"
        raise ValueError(
            f"--ds_tensor_parallel_size {size} cuts the model's own layers and {flag} replaces them: leave one out, "
            "for example partition the weights with --zero_stage 3."
        )


def four_bits(config: TrainCommand) -> None:
    if not config.model.load_in_4bit:
        return
    if config.model.lora_rank == 0:
        raise ValueError("--load_in_4bit freezes the weights: give --lora_rank above 0 to train adapters beside them.")
    if config.deepspeed.zero_stage == 3:
        raise ValueError(
            "--load_in_4bit with --zero_stage 3: quantised weights are not partitioned: use --zero_stage 2, they are "
            "small and nothing of theirs is trained."
        )


def adapters(config: TrainCommand) -> None:
    if config.model.lora_rank > 0:
        return
    values, default = flat(config), defaults(type(config))
    for name in ("lora_alpha", "lora_dropout", "target_modules"):
        if values[name] != default[name]:
            raise ValueError(f"--{name} shapes LoRA adapters: give --lora_rank above 0 too.")


def balance(config: TrainCommand) -> None:
    model = config.model
    if model.aux_loss_coef > 0 and model.gradient_checkpointing and model.gradient_checkpointing_use_reentrant:
        raise ValueError(
            "--aux_loss_coef reads the routers inside of the layers, which --gradient_checkpointing_use_reentrant cuts "
            "off: leave that out."
        )
