"""What may not be combined: one function a rule, each raising ValueError with one sentence that names the fix.

A rule never changes a value. What follows from the flags stands in ``derived.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from openrlhf.config.commands import (
    DEFAULTS,
    BatchInferenceConfig,
    Command,
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
    TrainCommand,
    defaults,
    flat,
)
from openrlhf.config.derived import (
    critic_source,
    needs_deepspeed,
    own_reference,
    ranks_sharing_rows,
    reference_source,
    reward_models,
    role_sizes,
    starts_from,
)
from openrlhf.config.groups import TrainConfig
from openrlhf.config.inference_rules import INFERENCE_RULES, condition
from openrlhf.config.not_built import check_built
from openrlhf.config.ranges import check_ranges

__all__ = ["broken", "check", "check_workers", "critic_source", "needs_deepspeed"]


def check(config: Command) -> None:
    """Raise ValueError with one sentence for the first rule that the configuration breaks."""
    check_built(config)
    check_ranges(config)
    for rule in RULES[type(config)]:
        rule(config)


def broken(config: Command) -> list[str]:
    """The sentence of every rule that the configuration breaks, where ``check`` raises the first."""
    ranges = _sentences(config, (check_built, check_ranges))
    return ranges or _sentences(config, RULES[type(config)])  # rules may divide by what is in its range


def _sentences(config: Command, rules: Iterable[Callable[[Any], None]]) -> list[str]:
    sentences = []
    for rule in rules:
        try:
            rule(config)
        except ValueError as error:
            sentences.append(str(error))
    return list(dict.fromkeys(sentences))


# Every training command.

# Those of transformers' schedulers that need no settings of their own.
SCHEDULERS = (
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "cosine", "cosine_with_restarts", "linear", "polynomial",
    "constant", "constant_with_warmup", "inverse_sqrt",
)  # fmt: skip


def scheduler(config: TrainCommand) -> None:
    name = config.optim.lr_scheduler
    if name not in SCHEDULERS:
        raise ValueError(f"--lr_scheduler {name!r} is not one of {', '.join(SCHEDULERS)}.")


def template(config: TrainCommand | BatchInferenceConfig | InteractiveChatConfig) -> None:
    text, chat = config.data.input_template, config.data.apply_chat_template
    if text is None:
        return
    if "\\n" in text:
        raise ValueError(
            "--input_template holds a backslash and an n, not a new line: write for example $'User: {}\\nAssistant: '."
        )
    if "{}" not in text:
        raise ValueError(f"--input_template {text!r} has no {{}} to put the prompt in.")
    if chat and text != DEFAULTS[type(config)].get("input_template"):
        raise ValueError("--apply_chat_template and --input_template both shape the prompt: leave one out.")


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


def micro_batches(config: TrainCommand) -> None:
    check_workers(config.train, 1, "")


def check_workers(train: TrainConfig, workers: int, where: str) -> None:
    """Raise ValueError when ``workers`` cannot share a mini-batch in whole micro-batches; ``where`` says whose."""
    micro = 1 if train.use_dynamic_batch else train.micro_train_batch_size
    part = micro * workers
    if train.train_batch_size % part:
        times = f" × {workers} workers{where}" if workers > 1 else ""
        of = f"{workers} workers{where}" if train.use_dynamic_batch else f"--micro_train_batch_size {micro}{times}"
        above = math.ceil(train.train_batch_size / part) * part
        raise ValueError(
            f"--train_batch_size {train.train_batch_size} is not a multiple of {of}: "
            f"choose for example --train_batch_size {above}."
        )


def token_budgets(config: TrainCommand) -> None:
    train, default, values = config.train, defaults(type(config)), flat(config)
    if train.use_dynamic_batch:
        if train.micro_train_batch_size != default["micro_train_batch_size"]:
            raise ValueError(
                "--micro_train_batch_size says how many samples go through the model at a time and --use_dynamic_batch "
                "that --train_max_tokens_per_gpu does: leave one of the two out."
            )
        return
    for name in ("train_max_tokens_per_gpu", "rollout_max_tokens_per_gpu"):
        if name in values and values[name] != default[name]:
            raise ValueError(f"--{name} is the size of what --use_dynamic_batch makes: give that too.")


def shares(names: str, probs: str | None, flag: str) -> None:
    """Raise ValueError unless ``--{flag}_probs`` gives each part of ``--{flag}`` a share, and the shares sum to 1."""
    if probs is None:
        return
    parts = names.count(",") + 1
    try:
        numbers = [float(text) for text in probs.split(",")]
    except ValueError:
        raise ValueError(f"--{flag}_probs {probs!r} must be numbers separated by commas, as in 0.3,0.7.") from None
    if len(numbers) != parts:
        raise ValueError(f"--{flag}_probs has {len(numbers)} shares but --{flag} has {parts} parts: give one for each.")
    if not (all(x > 0 for x in numbers) and math.isclose(sum(numbers), 1, abs_tol=1e-6)):
        raise ValueError(f"--{flag}_probs {probs} must be above 0 and sum to 1.")


def evaluation(config: TrainCommand) -> None:
    if config.data.eval_dataset is not None:
        return
    values, default = flat(config), defaults(type(config))
    for name in ("eval_steps", "eval_temperature", "eval_n_samples_per_prompt", "best_metric_key"):
        if name in values and values[name] != default[name]:
            raise ValueError(f"--{name} needs --eval_dataset to evaluate on.")


# Flag → the package that it needs, and the extra that brings it.
PACKAGES = {"use_liger_kernel": ("liger_kernel", "liger"), "load_in_4bit": ("bitsandbytes", "qlora")}


def packages(config: Command) -> None:
    values = flat(config)
    for flag, (package, extra) in PACKAGES.items():
        if values.get(flag) and find_spec(package) is None:
            raise ValueError(f"--{flag} needs a package that is not here: pip install 'openrlhf[{extra}]'.")


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


def balance(config: TrainCommand) -> None:
    model = config.model
    if model.aux_loss_coef > 0 and model.gradient_checkpointing and model.gradient_checkpointing_use_reentrant:
        raise ValueError(
            "--aux_loss_coef reads the routers inside of the layers, which --gradient_checkpointing_use_reentrant cuts "
            "off: leave that out."
        )


def adapters(config: TrainCommand) -> None:
    if config.model.lora_rank > 0:
        return
    values, default = flat(config), defaults(type(config))
    for name in ("lora_alpha", "lora_dropout", "target_modules"):
        if values[name] != default[name]:
            raise ValueError(f"--{name} shapes LoRA adapters: give --lora_rank above 0 too.")


def checkpoints(config: TrainCommand) -> None:
    kept = config.checkpoint
    if kept.save_steps > 0 and kept.disable_ds_ckpt and not kept.save_hf_ckpt:
        raise ValueError("--disable_ds_ckpt leaves nothing to write every --save_steps: give --save_hf_ckpt too.")
    if kept.disable_ds_ckpt and kept.save_steps < 0:
        raise ValueError("--disable_ds_ckpt says what a checkpoint holds: give --save_steps too.")
    if kept.max_restarts > 0 and (kept.save_steps < 0 or kept.disable_ds_ckpt):
        raise ValueError("--max_restarts goes on from checkpoints: give --save_steps, and no --disable_ds_ckpt.")
    if kept.use_ds_universal_ckpt and not kept.load_checkpoint:
        raise ValueError("--use_ds_universal_ckpt says how a checkpoint is loaded: give --load_checkpoint too.")


# Supervised fine-tuning and distillation.


def dataset_shares(config: SFTConfig | KDConfig | BatchInferenceConfig) -> None:
    shares(config.dataset.dataset, config.dataset.dataset_probs, "dataset")


def answers(config: SFTConfig | KDConfig) -> None:
    if not (config.dataset.output_key or config.data.apply_chat_template or config.dataset.pretrain_mode):
        raise ValueError(
            "--output_key must name the column of the answer, unless --apply_chat_template takes it from a "
            "conversation or --pretrain_mode learns the whole text."
        )


def multiturn(config: SFTConfig) -> None:
    if config.dataset.multiturn and not config.data.apply_chat_template:
        raise ValueError("--multiturn finds the turns with the chat template: give --apply_chat_template too.")


def pretrain_mode(config: SFTConfig | KDConfig) -> None:
    extra = {
        "output_key": config.dataset.output_key not in (None, DEFAULTS[type(config)].get("output_key")),
        "multiturn": config.dataset.multiturn,
        "apply_chat_template": config.data.apply_chat_template,
    }
    if config.dataset.pretrain_mode and any(extra.values()):
        raise ValueError(
            f"--pretrain_mode learns the text of --input_key as it is: leave out "
            f"{', '.join(f'--{name}' for name, given in extra.items() if given)}."
        )


# Reward models and preferences.


def pair_shares(config: RMConfig | DPOConfig) -> None:
    shares(config.pairs.dataset, config.pairs.dataset_probs, "dataset")


def pair_template(config: RMConfig | DPOConfig) -> None:
    if config.data.input_template is not None and config.pairs.prompt_key is None:
        raise ValueError("--input_template goes around the prompt: name its column with --prompt_key.")


def margin(config: RMConfig) -> None:
    training = config.reward_training
    if training.margin_loss and training.loss != "sigmoid":
        raise ValueError(f"--loss {training.loss} has no margin: leave out --margin_loss, or --loss.")


def smoothing(config: DPOConfig) -> None:
    preference = config.preference
    if preference.ipo and preference.label_smoothing != 0:
        raise ValueError("--ipo has no --label_smoothing: leave one of them out.")


def reference_offload(config: DPOConfig | KTOConfig) -> None:
    source = reference_source(config) if isinstance(config, DPOConfig) else config.model.pretrain
    if flat(config)["ref_offload"] and starts_from(config.model, source):
        raise ValueError(
            "--ref_offload: with --lora_rank the reference is the model without its adapter and takes no memory: "
            "leave --ref_offload out."
        )


# Labelled answers and steps.


def unpaired_shares(config: KTOConfig) -> None:
    shares(config.unpaired.dataset, config.unpaired.dataset_probs, "dataset")


def unpaired_answers(config: KTOConfig) -> None:
    if not (config.unpaired.output_key or config.data.apply_chat_template):
        raise ValueError(
            "--output_key must name the column of the answer, unless --apply_chat_template takes it from a "
            "conversation."
        )


def mismatched(config: KTOConfig) -> None:
    if config.train.train_batch_size < 2:
        raise ValueError("--train_batch_size 1 leaves KTO one answer to estimate its KL from: make it at least 2.")


def process_shares(config: PRMConfig) -> None:
    shares(config.process.dataset, config.process.dataset_probs, "dataset")


def reward_tokens(config: PRMConfig) -> None:
    tokens = config.process.reward_tokens
    if tokens is not None and (len(tokens) < 2 or len(set(tokens)) < len(tokens)):
        raise ValueError(
            f"--reward_tokens {' '.join(tokens)} must be two or more different tokens, as in --reward_tokens + -."
        )


# Reinforcement learning.


def prompt_shares(config: PPOConfig) -> None:
    shares(config.prompts.prompt_data, config.prompts.prompt_data_probs, "prompt_data")


def reward_source(config: PPOConfig) -> None:
    models, file, weights = reward_models(config), config.reward.remote_rm_url, config.reward.reward_weights
    agent = config.rollout.agent_func_path
    if not models and file is None and agent is None:
        raise ValueError(
            "nothing gives rewards: set --reward_pretrain (a model), --remote_rm_url (a .py file "
            "or the address of a server) or --agent_func_path (a .py file that holds the conversations)."
        )
    if not all(models):
        raise ValueError(f"--reward_pretrain {config.reward.reward_pretrain!r} has a comma without a name beside it.")
    if models and file is not None and weights is None:
        raise ValueError(
            "--reward_pretrain and --remote_rm_url both give rewards: say with --reward_weights how much each counts, "
            "or leave one out; a critic that starts from a reward model is named by --critic_pretrain."
        )
    sources = len(models) + ((file or agent) is not None)
    if weights is not None and len(weights) != sources:
        raise ValueError(
            f"--reward_weights has {len(weights)} numbers for {sources} rewards: give one for each model of "
            "--reward_pretrain, in their order, and then one for --remote_rm_url if there is one."
        )
    for name in ("reward_timeout", "on_reward_failure"):
        if file is None and agent is None and vars(config.reward)[name] != defaults(PPOConfig)[name]:
            raise ValueError(
                f"--{name} is about reward functions, servers and agents: it needs --remote_rm_url or "
                "--agent_func_path."
            )
    if config.reward.normalize_reward and not models:
        raise ValueError("--normalize_reward uses numbers stored in a reward model: it needs --reward_pretrain.")


def agent(config: PPOConfig) -> None:
    file, reward = config.rollout.agent_func_path, config.reward
    if file is None:
        return
    if not file.endswith(".py"):
        raise ValueError(f"--agent_func_path {file} must be a .py file that defines AgentInstance or AgentExecutor.")
    for name in ("reward_pretrain", "remote_rm_url"):
        if vars(reward)[name] is not None:
            raise ValueError(
                f"--agent_func_path and --{name} both give rewards: leave one out; an agent may ask a reward server "
                "itself, and a critic that starts from a reward model is named by --critic_pretrain."
            )
    if reward.overlong_buffer_len is not None:
        raise ValueError(
            "--overlong_buffer_len is about the length of a single response: with --agent_func_path leave it out and "
            "let the agent take length off its rewards."
        )


def reward_address(config: PPOConfig) -> None:
    given = config.reward.remote_rm_url
    if given is None or (given.endswith(".py") and "," not in given and "://" not in given):
        return
    for part in given.split(","):
        try:
            place = urlsplit(part)
            sound = place.scheme in ("http", "https") and place.hostname and place.port != 0
        except ValueError:  # a port that is no number, a broken IPv6 address
            sound = False
        if not sound:
            raise ValueError(
                f"--remote_rm_url {part!r} must be a .py file that defines reward_func, or addresses that begin with "
                "http:// or https://, separated by commas."
            )
        if place.username is not None:
            raise ValueError(
                "--remote_rm_url holds a user name, which logs would show: set OPENRLHF_RM_TOKEN for a server that "
                "needs a token."
            )


def rollout_batch(config: PPOConfig) -> None:
    samples, train = _samples(config), config.train.train_batch_size
    if samples % train:
        raise ValueError(
            f"--rollout_batch_size × --n_samples_per_prompt = {samples} samples are not a multiple of "
            f"--train_batch_size {train}: choose for example --train_batch_size {math.gcd(samples, train)}."
        )


def filtering(config: PPOConfig) -> None:
    rollout = config.rollout
    if not rollout.dynamic_filtering:
        if rollout.dynamic_filtering_reward_range != defaults(PPOConfig)["dynamic_filtering_reward_range"]:
            raise ValueError("--dynamic_filtering_reward_range says what to keep: it needs --dynamic_filtering.")
        return
    if rollout.n_samples_per_prompt == 1:
        raise ValueError(
            "--dynamic_filtering looks at the scores of all responses to a prompt: --n_samples_per_prompt must be "
            "above 1."
        )
    if config.reward.remote_rm_url is None and config.rollout.agent_func_path is None:
        raise ValueError(
            "--dynamic_filtering keeps prompts by the scores of a function or an agent: it needs --remote_rm_url or "
            "--agent_func_path."
        )
    if rollout.async_train and rollout.async_queue_size > 1:
        raise ValueError(
            f"--async_queue_size {rollout.async_queue_size}: with --dynamic_filtering a rollout batch takes prompts "
            "until it is full, and the next one begins behind them: choose --async_queue_size 1."
        )


def estimator(config: PPOConfig) -> None:
    from openrlhf.algorithms.advantages import find_estimator  # here, so that --help does not wait for torch

    algorithm, name = config.algorithm, config.algorithm.advantage_estimator
    chosen = find_estimator(name)
    if chosen.needs_groups and config.rollout.n_samples_per_prompt == 1:
        raise ValueError(
            f"--advantage_estimator {name} compares the responses to a prompt: --n_samples_per_prompt must be above 1."
        )
    if chosen.needs_groups and algorithm.gamma != 1:
        raise ValueError(f"--advantage_estimator {name} does not discount: leave out --gamma.")
    if algorithm.no_advantage_std_norm and not chosen.whitens:
        raise ValueError(
            f"--advantage_estimator {name} never divides by the std of a batch: leave out --no_advantage_std_norm."
        )


def surrogate(config: PPOConfig) -> None:
    from openrlhf.algorithms.policy_losses import find_policy_loss  # here, so that --help does not wait for torch

    algorithm = config.algorithm
    find_policy_loss(algorithm.policy_loss_type)
    if algorithm.policy_loss_type == "cispo" and algorithm.dual_clip is not None:
        raise ValueError("--dual_clip bounds the losses ppo and gspo: leave it out with --policy_loss_type cispo.")


def correction(config: PPOConfig) -> None:
    from openrlhf.algorithms.rollout_correction import find_correction

    algorithm, default = config.algorithm, defaults(PPOConfig)
    find_correction(algorithm.vllm_is_correction_type)
    names = ("vllm_is_correction_type", "vllm_is_truncated_threshold")
    given = [f"--{name}" for name in names if vars(algorithm)[name] != default[name]]
    if given and not algorithm.enable_vllm_is_correction:
        raise ValueError(f"{given[0]} says how to correct: it needs --enable_vllm_is_correction.")


def asynchronous(config: PPOConfig) -> None:
    rollout, default = config.rollout, defaults(PPOConfig)
    if not rollout.async_train:
        for name in ("async_queue_size", "max_staleness", "partial_rollout"):
            if vars(rollout)[name] != default[name]:
                raise ValueError(f"--{name} is about rollouts that run ahead: it needs --async_train.")
        return
    most, ahead = rollout.max_staleness, rollout.async_queue_size
    if most is not None and most >= ahead:
        raise ValueError(
            f"--max_staleness {most} would never act: with --async_queue_size {ahead} no sample is more than {ahead} "
            "updates old: leave it out."
        )
    if most is not None and not rollout.partial_rollout:
        raise ValueError(
            f"--async_queue_size {ahead} makes samples {ahead} updates old and --max_staleness {most} would leave all "
            f"of them out: choose --async_queue_size {most} instead, or give --partial_rollout."
        )
    if rollout.partial_rollout and (ahead == 0 or config.placement.local):
        other = "--local" if config.placement.local else "--async_queue_size 0"
        raise ValueError(
            f"--partial_rollout lets new weights in while the engines generate, and with {other} they do not generate "
            "then: leave one out."
        )
    for flag, given in (
        ("colocate_all_models", config.placement.colocate_all_models),
        ("vllm_enable_sleep", config.vllm.vllm_enable_sleep),
    ):
        if given:
            raise ValueError(
                f"--async_train samples while the models learn, and --{flag} lets them take turns on the same GPUs: "
                "leave one out."
            )


def overlong(config: PPOConfig) -> None:
    reward, longest = config.reward, config.rollout.generate_max_len
    if reward.overlong_buffer_len is None:
        if reward.overlong_penalty_factor != defaults(PPOConfig)["overlong_penalty_factor"]:
            raise ValueError("--overlong_penalty_factor needs --overlong_buffer_len, where the penalty begins.")
    elif reward.overlong_buffer_len > longest:
        raise ValueError(
            f"--overlong_buffer_len {reward.overlong_buffer_len} is longer than --generate_max_len {longest}: every "
            "answer would be overlong."
        )


def critic(config: PPOConfig) -> None:
    name = config.algorithm.advantage_estimator
    if critic_source(config) is not None:
        return
    if config.reward.critic_pretrain is not None:
        raise ValueError(f"--advantage_estimator {name} has no critic: leave out --critic_pretrain.")
    if config.reward.save_value_network:
        raise ValueError(f"--advantage_estimator {name} has no critic: leave out --save_value_network.")


def freezing(config: PPOConfig) -> None:
    if config.algorithm.freezing_actor_steps > 0 and critic_source(config) is None:
        raise ValueError(
            f"--freezing_actor_steps trains the critic alone, and --advantage_estimator "
            f"{config.algorithm.advantage_estimator} has none: leave it out."
        )


def average(config: PPOConfig) -> None:
    if config.algorithm.ema_beta != defaults(PPOConfig)["ema_beta"] and not config.algorithm.enable_ema:
        raise ValueError("--ema_beta is the decay of the moving average: it needs --enable_ema.")


def reference(config: PPOConfig) -> None:
    algorithm = config.algorithm
    if algorithm.init_kl_coef > 0:
        return
    if algorithm.kl_target is not None:
        raise ValueError("--kl_target adapts the KL weight: it needs --init_kl_coef above 0.")
    if algorithm.use_kl_loss:
        raise ValueError("--use_kl_loss weighs the KL by --init_kl_coef, which is 0: set it above 0.")


def kl_horizon(config: PPOConfig) -> None:
    """The bound of ``AdaptiveKL.update``, told before the first rollout."""
    samples, algorithm = _samples(config), config.algorithm
    if algorithm.kl_target is not None and 0.2 * samples >= algorithm.kl_horizon:
        raise ValueError(
            f"--kl_horizon {algorithm.kl_horizon} is too short for {samples} samples a rollout: make it larger than "
            f"{samples // 5}, or the KL weight may turn negative."
        )


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
    samples, sharing = _samples(config), ranks_sharing_rows(config)
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


SHARED_RULES = (
    template, scheduler, ring, tensor_parallel, micro_batches, token_budgets, packages, four_bits, adapters, balance,
    checkpoints,
)  # fmt: skip
# Each command's rules, in the order in which they are asked; their argument is of that command's type.
RULES: dict[type[Command], tuple[Callable[[Any], None], ...]] = {
    SFTConfig: (*SHARED_RULES, dataset_shares, pretrain_mode, multiturn, answers, evaluation),
    RMConfig: (*SHARED_RULES, pair_shares, pair_template, margin, evaluation),
    DPOConfig: (*SHARED_RULES, pair_shares, pair_template, smoothing, reference_offload, evaluation),
    KTOConfig: (*SHARED_RULES, unpaired_shares, unpaired_answers, mismatched, reference_offload, evaluation),
    KDConfig: (*SHARED_RULES, dataset_shares, pretrain_mode, answers, evaluation),
    PRMConfig: (*SHARED_RULES, process_shares, reward_tokens, evaluation),
    PPOConfig: (
        *SHARED_RULES, evaluation, prompt_shares, reward_source, agent, reward_address, rollout_batch, filtering,
        estimator, surrogate, correction, asynchronous, overlong, critic, freezing, average, reference, kl_horizon,
        local, engines, no_engines, workers, idle_reference, colocation, colocated_engines, sleep,
    ),
    ServeRMConfig: (packages,),
    LoraCombinerConfig: (),
    BatchInferenceConfig: (*INFERENCE_RULES, template, dataset_shares),
    InteractiveChatConfig: (template, condition, packages),
}  # fmt: skip


def _samples(config: PPOConfig) -> int:
    return config.rollout.rollout_batch_size * config.rollout.n_samples_per_prompt
