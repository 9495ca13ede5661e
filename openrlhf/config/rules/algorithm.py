"""Estimator, loss and KL of the RL loop, and the critic and averages beside the actor."""

from __future__ import annotations

from openrlhf.config.commands import PPOConfig, defaults
from openrlhf.config.derived import critic_source
from openrlhf.config.rules.batches import samples_a_rollout


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
    samples, algorithm = samples_a_rollout(config), config.algorithm
    if algorithm.kl_target is not None and 0.2 * samples >= algorithm.kl_horizon:
        raise ValueError(
            f"--kl_horizon {algorithm.kl_horizon} is too short for {samples} samples a rollout: make it larger than "
            f"{samples // 5}, or the KL weight may turn negative."
        )
