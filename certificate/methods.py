"""Every method of training as the certificate sees it: a model, examples, what is measured before the step, a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from certificate.material import FROZEN, POLICY, SCORER, VOCABULARY, noise, ragged
from openrlhf.algorithms.policy_losses import POLICY_LOSSES
from openrlhf.algorithms.rollout_correction import ROLLOUT_CORRECTIONS
from openrlhf.config.groups import AlgorithmConfig, ModelConfig
from openrlhf.models.adapters import adapter_state, with_adapter
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.load import load_causal_lm, load_score_model
from openrlhf.models.step_model import StepModel
from openrlhf.models.teacher import Teacher
from openrlhf.models.value_head import ScoreModel
from openrlhf.objectives.distillation import kd_loss
from openrlhf.objectives.language import sft_loss
from openrlhf.objectives.loss import Objective
from openrlhf.objectives.preference import preference_loss
from openrlhf.objectives.process import step_loss
from openrlhf.objectives.reinforcement import policy_loss, value_loss
from openrlhf.objectives.reward import pair_loss
from openrlhf.objectives.unpaired import kto_loss
from openrlhf.training.baseline import with_kl_baseline
from openrlhf.training.members import forward
from openrlhf.training.roles import ForwardEngine, StepEngine
from openrlhf.training.update import Weigh, pair_mean, sequence_mean, token_mean
from openrlhf.types import Batch, present

EXAMPLES = 8
# Every term of the policy loss at once.
ALGORITHM = AlgorithmConfig(
    eps_clip_low_high=(0.2, 0.3), dual_clip=1.5, use_kl_loss=True, kl_estimator="k3", entropy_loss_coef=0.02
)

Trained = CausalLM | ScoreModel
# batch, engine, frozen engine, examples of a micro-batch, packed → the batch with what the step compares with
Prepare = Callable[[Batch, StepEngine, ForwardEngine | None, int, bool], Batch]


def unprepared(batch: Batch, engine: StepEngine, frozen: ForwardEngine | None, micro: int, packed: bool) -> Batch:
    return batch


@dataclass(frozen=True)
class Method:
    """``examples(seed)`` has ``rows`` rows an example. ``objective`` takes the frozen model, if any, and ``packed``."""

    load: Callable[[Path, ModelConfig], Trained]
    examples: Callable[[int], Batch]
    objective: Callable[[Any, bool], Objective]
    weigh: Weigh = token_mean
    rows: int = 1
    load_frozen: Callable[[Path, ModelConfig], Trained | Teacher] | None = None
    prepare: Prepare = unprepared


# Models ---------------------------------------------------------------------------------------------------------------


def policy(folder: Path, config: ModelConfig) -> CausalLM:
    return load_causal_lm(str(folder / POLICY), config)


def adapted(*targets: str) -> Callable[[Path, ModelConfig], CausalLM]:
    """The policy with LoRA adapters that do something: as drawn, half of each is 0."""

    def load(folder: Path, config: ModelConfig) -> CausalLM:
        generator = torch.Generator().manual_seed(0)
        model = with_adapter(policy(folder, config), replace(config, lora_rank=4, target_modules=targets))
        with torch.no_grad():
            for matrix in adapter_state(model.hf).values():
                matrix.copy_(0.1 * torch.randn(matrix.shape, generator=generator))
        return model

    return load


def frozen_policy(folder: Path, config: ModelConfig) -> CausalLM:
    return load_causal_lm(str(folder / FROZEN), config)


def teacher(folder: Path, config: ModelConfig) -> Teacher:
    return Teacher(frozen_policy(folder, config), VOCABULARY)


def step_model(folder: Path, config: ModelConfig) -> StepModel:
    return StepModel(policy(folder, config).hf)


def scorer(folder: Path, config: ModelConfig) -> ScoreModel:
    return load_score_model(str(folder / SCORER), config, "score")


# Examples -------------------------------------------------------------------------------------------------------------


def answers(seed: int) -> Batch:
    return ragged(seed, EXAMPLES)


def pairs(seed: int) -> Batch:
    """Chosen and rejected rows by turns; ``rewards`` of the chosen rows are margins, or KTO's labels."""
    batch = ragged(seed, 2 * EXAMPLES)
    return batch.fill(rewards=(torch.arange(2 * EXAMPLES) % 4 == 0).float())


def steps(seed: int) -> Batch:
    batch = ragged(seed, EXAMPLES)
    return batch.fill(labels=(batch.tokens % 2).float())


def soft_steps(seed: int) -> Batch:
    batch = ragged(seed, EXAMPLES)
    return batch.fill(labels=noise(seed, batch, 1.0).sigmoid().float())


def rollouts(seed: int) -> Batch:
    """Old log-probs and values are noise yet: how far earlier steps of the update went."""
    batch = ragged(seed, EXAMPLES)
    return batch.fill(
        advantages=noise(seed, batch, 1.0),
        old_log_probs=noise(seed + 1, batch, 0.3),
        rollout_log_probs=noise(seed + 2, batch, 0.3),
        values=noise(seed + 3, batch, 0.3),
        returns=noise(seed + 4, batch, 1.0),
    )


# What is measured before the step -------------------------------------------------------------------------------------


def with_reference(batch: Batch, engine: StepEngine, frozen: ForwardEngine | None, micro: int, packed: bool) -> Batch:
    assert frozen is not None
    return batch.fill(ref_log_probs=forward(frozen, batch, 2 * micro, packed))


def with_baseline(batch: Batch, engine: StepEngine, frozen: ForwardEngine | None, micro: int, packed: bool) -> Batch:
    assert frozen is not None
    return with_kl_baseline(batch, engine, frozen, micro, packed)


def with_log_probs(temperature: float) -> Prepare:
    def fill(batch: Batch, engine: StepEngine, frozen: ForwardEngine | None, micro: int, packed: bool) -> Batch:
        assert frozen is not None
        old = forward(engine, batch, micro, packed, temperature=temperature)
        return batch.fill(
            old_log_probs=old + present(batch.old_log_probs, "old_log_probs"),
            rollout_log_probs=old + present(batch.rollout_log_probs, "rollout_log_probs"),
            ref_log_probs=forward(frozen, batch, micro, packed, temperature=temperature),
        )

    return fill


def with_old_values(batch: Batch, engine: StepEngine, frozen: ForwardEngine | None, micro: int, packed: bool) -> Batch:
    return batch.fill(values=forward(engine, batch, micro, packed, what="values") + present(batch.values, "values"))


# Methods --------------------------------------------------------------------------------------------------------------


def without_frozen(function: Any, /, **settings: Any) -> Callable[[Any, bool], Objective]:
    return lambda frozen, packed: partial(function, **settings, packed=packed)


def preference(**changes: Any) -> Method:
    settings = {"beta": 0.3, "label_smoothing": 0.0, "ipo": False, "nll_loss_coef": 0.0, **changes}
    objective = without_frozen(preference_loss, **settings)
    return Method(policy, pairs, objective, pair_mean, 2, frozen_policy, with_reference)


def reward(loss: str, margin: bool) -> Method:
    return Method(scorer, pairs, without_frozen(pair_loss, loss=loss, margin=margin, fp32=False), pair_mean, 2)


def process(tokens: tuple[int, ...] | None, soft: bool) -> Method:
    objective = without_frozen(step_loss, tokens=tokens, soft=soft)
    return Method(step_model, soft_steps if soft else steps, objective)


def reinforcement(temperature: float = 1.0, **changes: Any) -> Method:
    algorithm = replace(ALGORITHM, **changes)
    objective = without_frozen(policy_loss, algorithm=algorithm, temperature=temperature, kl_coef=0.3)
    weigh = sequence_mean if POLICY_LOSSES[algorithm.policy_loss_type].by_sequence else token_mean
    return Method(policy, rollouts, objective, weigh, 1, frozen_policy, with_log_probs(temperature))


def corrected(correction: str) -> Method:
    return reinforcement(
        enable_vllm_is_correction=True, vllm_is_correction_type=correction, vllm_is_truncated_threshold=(0.8, 1.2)
    )


# Only part of the weights trains.
ADAPTED = {
    "sft, LoRA": Method(adapted("all-linear"), answers, without_frozen(sft_loss)),
    "sft, LoRA on the head": Method(adapted("lm_head", "v_proj"), answers, without_frozen(sft_loss)),
    "dpo, LoRA": replace(preference(), load=adapted("all-linear"), load_frozen=policy),
}


METHODS: dict[str, Method] = {
    "sft": Method(policy, answers, without_frozen(sft_loss)),
    "kd": Method(
        policy,
        answers,
        lambda frozen, packed: partial(kd_loss, teacher=frozen, kd_coef=0.4, packed=packed),
        load_frozen=teacher,
    ),
    "rm": reward("sigmoid", margin=False),
    "rm, margin": reward("sigmoid", margin=True),
    "rm, logexp": reward("logexp", margin=False),
    "prm": process((40, 41), soft=False),
    "prm, whole vocabulary": process(None, soft=False),
    "prm, soft labels": process((40, 41), soft=True),
    "dpo": preference(),
    "cdpo with nll": preference(label_smoothing=0.2, nll_loss_coef=0.7),
    "ipo": preference(ipo=True),
    "kto": Method(
        policy,
        pairs,
        without_frozen(kto_loss, beta=0.3, desirable_weight=1.5, undesirable_weight=0.7),
        pair_mean,
        2,
        frozen_policy,
        with_baseline,
    ),
    **{f"ppo, policy at temperature {temperature}": reinforcement(temperature) for temperature in (0.5, 1.0, 1.7)},
    "ppo, gspo": reinforcement(policy_loss_type="gspo", eps_clip_low_high=(0.02, 0.03)),
    "ppo, cispo": reinforcement(policy_loss_type="cispo", dual_clip=None),
    **{f"ppo, {correction}": corrected(correction) for correction in ROLLOUT_CORRECTIONS},
    "ppo, critic": Method(scorer, rollouts, without_frozen(value_loss, value_clip=0.2), prepare=with_old_values),
    **ADAPTED,
}
