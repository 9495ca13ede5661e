"""Every metric a run may log, with its meaning: the one table that the log checks and the docs are made from."""

from __future__ import annotations

import re

METRICS: dict[str, str] = {
    # every trainer
    "loss": "mean of the loss per weighted element over the mini-batch, mean over the optimizer steps",
    "grad_norm": "global gradient norm before clipping",
    "lr": "learning rate of the step",
    "skipped_steps": "optimizer steps left out because a loss or a gradient was not finite",
    "tokens_per_second": "tokens (prompt and response) per second of wall time of the step",
    "step_seconds": "wall time of the step, s",
    "epoch": "passes over the data, counting from 0",
    # answers of the data
    "nll": "mean −log π per token; of pairs per token of the chosen answer, mean over the pairs",
    "aux_loss": "balance of a mixture's experts, of which --aux_loss_coef is in the loss: the number of experts that a "
    "token goes to where they share the tokens evenly, more where they do not",
    "distill": "mean cross-entropy of the model under the teacher's distribution, nats per token",
    # rollouts
    "reward": "mean outcome reward of the samples, before shaping and clipping",
    "reward_std": "standard deviation of the outcome rewards",
    "score": "mean score (0–1) of the samples",
    "dead_groups": "share of the prompts whose samples all have the same reward, where there are several",
    "groups_kept": "share of the prompts asked in the step that --dynamic_filtering kept",
    "reward/invalid": "share of samples left out because their reward or agent failed, with --on_reward_failure drop",
    "reward/turns": "mean number of turns of the policy in a conversation, with --agent_func_path",
    "response_length": "mean number of tokens that the policy chose",
    "response_length_max": "largest number of tokens that the policy chose",
    "truncated": "share of samples cut at the length limit",
    "weight_version": "syncs that the engines had received when they sampled a token, mean",
    "staleness": "updates of the policy since a token was sampled, mean; 0 without --async_train",
    "staleness_max": "updates of the policy since the oldest token was sampled",
    "mixed": "share of samples whose tokens are of several versions of the weights, with --partial_rollout",
    "stale": "share of samples left out because they were older than --max_staleness",
    # policy
    "policy_loss": "clipped policy loss alone, without KL and entropy terms",
    "clip_ratio": "share of tokens where the clipped branch of the policy loss was active",
    "ppo_kl": "mean log π_old − log π over the sampled tokens",
    "entropy": "mean entropy of the policy at the sampling temperature, nats per token",
    "kl": "mean KL estimate between policy and reference per token, by --kl_estimator",
    "kl_coef": "coefficient of the KL term in this step",
    "engine_log_prob_diff": "mean |log-prob by the trainer − log-prob by the engine| of the sampled tokens",
    "engine_kl": "mean of log-prob by the engine − log-prob by the trainer of the sampled tokens",
    "correction_weight": "mean weight of a token by --vllm_is_correction_type",
    "advantage_std": "standard deviation of the advantages over the action tokens",
    # critic
    "critic_loss": "clipped squared error of the values",
    "critic_value": "mean value",
    "critic_return": "mean return",
    "critic_grad_norm": "global gradient norm of the critic before clipping",
    "critic_lr": "learning rate of the critic",
    "critic_skipped_steps": "optimizer steps of the critic left out because a loss or a gradient was not finite",
    # pairs of a chosen and a rejected answer
    "accuracy": "share of pairs whose chosen answer has the higher reward; with KTO, share of answers on their label's "
    "side of the KL baseline",
    "chosen_reward": "mean reward of the chosen answers: the reward model's score; with DPO and IPO β·log(π/π_ref)",
    "rejected_reward": "mean reward of the rejected answers",
    "reward_margin": "mean of chosen minus rejected reward",
    # labelled answers
    "label_margin": "mean of β·(log(π/π_ref) − KL baseline), with the sign turned for undesirable answers",
    "kl_baseline": "mean of log(π/π_ref) of answers to other prompts, at least 0: where KTO counts gains from",
    # phases of an RL step, wall seconds
    "time/rollout": "generation and the reward function, with --async_train what is left to wait for, s",
    "time/reward": "reward model, s",
    "time/log_probs": "log-probs of actor and reference, values of the critic, s",
    "time/advantages": "advantages on the driver, s",
    "time/update": "optimizer steps of actor and critic, s",
    "time/sync": "weights from the actor to the engines, after the generation that is under way, s",
    "time/evaluate": "responses to the prompts of --eval_dataset, their rewards, and the saving of a best model, s",
    # of a phase on a cluster, the seconds in which its busiest devices worked; the rest is Ray, the driver and waiting
    "busy/rollout": "generation alone, slowest engine, s",
    "busy/reward": "reward model, slowest worker, s",
    "busy/log_probs": "slowest worker of the busiest devices, s",
    "busy/update": "slowest worker of the busiest devices, s",
    "busy/evaluate": "generation, reward models and saving in an evaluation, slowest engine and worker, s",
    "busy/sync": "gathering, sending and loading of weights, slowest side, s",
}

EVALUATED = "eval_"  # + a name of the table: the same over the evaluation rows
SKIPPED_STEP = "skipped_step/"  # + the number of an optimizer step within an RL step, from 0, that was left out
OF_CRITIC = "critic_"
REWARD_PARTS = "reward/"  # + a name of extra_logs: its mean over the samples
# Of RL, with the column datasource of the evaluation prompts: the mean over its prompts of the mean reward (pass1), and
# of the best of n rewards (passn).
PASS_RATE = re.compile(EVALUATED + r".+_pass\d+")


def pass_rate(source: str, samples: int) -> str:
    """The name of the metric of the best of ``samples`` rewards."""
    return f"{EVALUATED}{source}_pass{samples}"


def unknown_names(names: list[str]) -> list[str]:
    """The names that the table does not have."""
    open_ended = (REWARD_PARTS, SKIPPED_STEP, OF_CRITIC + SKIPPED_STEP)
    return [name for name in names if not (name.startswith(open_ended) or PASS_RATE.fullmatch(name) or _known(name))]


def _known(name: str) -> bool:
    return name.removeprefix(EVALUATED) in METRICS
