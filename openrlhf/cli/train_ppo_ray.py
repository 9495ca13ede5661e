"""RL: ``openrlhf ppo`` or ``python -m openrlhf.cli.train_ppo_ray``, alone or inside ``ray job submit``.

``--local`` runs it in this process, without Ray, DeepSpeed and vLLM.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf.cli.restarts import run_training
from openrlhf.config.commands import PPOConfig
from openrlhf.config.derived import critic_source, role_sizes, rollouts_ahead
from openrlhf.config.identity import decisive
from openrlhf.config.parse import flat, write_yaml

if TYPE_CHECKING:
    from openrlhf.data.reader import Reader
    from openrlhf.data.sampler import Cursor
    from openrlhf.training.roles import Roles
    from openrlhf.training.signals import StopRequest
    from openrlhf.types import Prompt, Sample


def main(argv: list[str] | None = None) -> None:
    run_training(run, PPOConfig, argv)


def run(config: PPOConfig) -> None:
    """Prompts → the RL loop → a Hugging Face folder at ``--save_path``."""
    from openrlhf.check.disk import check_disk
    from openrlhf.check.packages import check_packages
    from openrlhf.cli.process import check_folders, prepare_process
    from openrlhf.training.checkpoints import model_not_saved
    from openrlhf.training.roles import gather
    from openrlhf.training.signals import stop_requests

    prepare_process(config.train)
    if config.data.preview:
        preview(config)
        return
    warn(config)
    folder, kept = Path(config.checkpoint.save_path), config.checkpoint
    check_packages(config, launched=False)
    check_folders(kept)
    with session(config):
        tokenizer, prompts = read_prompts(config)
        check_disk(config)
        evaluation = read_evaluation(config, tokenizer)
        with (
            start_roles(config, tokenizer, optimizer_steps(config, len(prompts))) as roles,
            stop_requests(kept.save_steps > 0 and not kept.disable_ds_ckpt) as stop,
        ):
            learn(config, roles, tokenizer, prompts, evaluation, stop)
            saves = [roles.actor.save_state(None, folder)]
            if config.reward.save_value_network:
                saves.append(roles.critic.save_state(None, folder.with_name(folder.name + "_critic")))
            for failure in filter(None, gather(*saves, deadline_s=config.deepspeed.deadline)):
                raise model_not_saved(kept, failure)
    print(f"saved the model to {folder}")


def learn(
    config: PPOConfig,
    roles: Roles,
    tokenizer: Any,
    prompts: list[Prompt],
    evaluation: list[Prompt],
    stop: StopRequest,
) -> None:
    """The RL loop with a log in ``--save_path`` and checkpoints in ``--ckpt_path``."""
    from openrlhf.data.fingerprint import fingerprint_prompts
    from openrlhf.training.checkpoint_part import Driver, RandomPart
    from openrlhf.training.checkpoints import Checkpoints, Part, way_on
    from openrlhf.training.log import RunLog
    from openrlhf.training.ppo import train
    from openrlhf.training.roles import PartLost
    from openrlhf.training.samples import SampleStore

    made_by = {**decisive(config), "the rows of --prompt_data": fingerprint_prompts(prompts)}
    parts: dict[str, Part] = {"_actor": roles.actor, "_critic": roles.critic, "_driver": RandomPart()}
    weights = {"_actor": "_hf"} | ({"_critic": "_hf_critic"} if config.reward.save_value_network else {})
    team = Driver(checkpoint_writers(config))
    checkpoints = Checkpoints(config.checkpoint, made_by, parts, weights, team, stop, config.deepspeed.deadline)
    start = checkpoints.start
    folder = Path(config.checkpoint.save_path)
    write_yaml(config, folder / "run_config.yaml")  # not of a run that was refused
    log = RunLog(folder, config.log, flat(config), done=start.step)
    store = SampleStore(folder, config, tokenizer, done=start.step)
    log.start(math.ceil(len(prompts) * config.rollout.num_episodes / config.rollout.rollout_batch_size), "rl")
    try:
        batches = prompt_batches(prompts, config, start.cursor)
        deadline, pad = config.deepspeed.deadline, tokenizer.pad_token_id
        train(config, roles, batches, log, pad, deadline, checkpoints, evaluation, store)
    except (PartLost, TimeoutError) as lost:
        raise PartLost(f"{lost}. {way_on(checkpoints.root)}") from lost
    finally:
        store.close()
        log.close()


def checkpoint_writers(config: PPOConfig) -> int:
    """How many processes write into a checkpoint: the driver, and each worker of the roles that learn."""
    if config.placement.local:
        return 2 + (critic_source(config) is not None)
    return 1 + sum(size.workers for role, size in role_sizes(config).items() if role in ("actor", "critic"))


def warn(config: PPOConfig) -> None:
    """Say what is allowed and rarely meant."""
    from openrlhf.check.models import look_at_statistics

    for _, sentence in look_at_statistics(config):
        print(sentence)
    algorithm = config.algorithm
    if algorithm.use_kl_loss and algorithm.kl_estimator == "k1":
        print("--use_kl_loss with --kl_estimator k1: its gradient is zero on average; k2 or k3 is what you want")
    if algorithm.policy_loss_type == "gspo" and max(algorithm.eps_clip_low_high or (algorithm.eps_clip,)) >= 0.1:
        print("--policy_loss_type gspo: the ratio of a whole answer hardly leaves 1; its paper clips at 3e-4 and 4e-4")
    if config.rollout.top_p < 1:
        print(
            f"--top_p {config.rollout.top_p:g}: samples come from a part of the policy, and the log-probs that are "
            "trained are those of the whole; with 1 both are the same"
        )
    if rollouts_ahead(config.rollout) and not algorithm.enable_vllm_is_correction:
        print("--async_train: samples are older than the policy; --enable_vllm_is_correction takes that into account")


def read_prompts(config: PPOConfig) -> tuple[Any, list[Prompt]]:
    """The tokenizer and the prompts. Raises ValueError naming the flag and the row."""
    from openrlhf.check.models import check_engine_length, read_by_others
    from openrlhf.models.vocabulary import check_embedding, check_same_tokens, load_policy_tokenizer

    sources = config.prompts
    tokenizer = load_policy_tokenizer(config.model)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"--pretrain {config.model.pretrain}: its tokenizer has no eos token to end a response")
    for role in read_by_others(config):
        check_same_tokens(role.path, role.flag, tokenizer, config.model)
        check_embedding(role.path, role.flag, tokenizer, config.model)
    check_engine_length(config)
    given = (sources.prompt_data, sources.prompt_split, sources.prompt_data_probs)
    return tokenizer, _read(config, tokenizer, "--prompt_data", *given)


def read_evaluation(config: PPOConfig, tokenizer: Any) -> list[Prompt]:
    """The prompts of ``--eval_dataset``, none without it. Raises ValueError naming the flag and the row."""
    from openrlhf.training.metric_names import pass_rate

    data, own = config.data, config.evaluation
    if data.eval_dataset is None:
        return []
    prompts = _read(config, tokenizer, "--eval_dataset", data.eval_dataset, data.eval_split, None)
    sources, numbers = sorted({prompt.source for prompt in prompts}), sorted({1, own.eval_n_samples_per_prompt})
    names = [pass_rate(source, number) for source in sources for number in numbers]
    if own.best_metric_key not in (None, *names):
        raise ValueError(
            f"--best_metric_key {own.best_metric_key} is no metric of --eval_dataset, which has {', '.join(names)}."
        )
    return prompts


def _read(config: PPOConfig, tokenizer: Any, flag: str, names: str, split: str, probs: str | None) -> list[Prompt]:
    from openrlhf.data.load import load_rows
    from openrlhf.data.prompts import load_prompts

    rows = load_rows(names, split, probs, config.data.max_samples, config.train.seed, flag, config.model.use_ms)
    prompts, report = load_prompts(rows, tokenizer, config.data, config.prompts, flag)
    if report.dropped or report.shortened or config.data.preview:
        print(f"{flag}: {report.line()}")
    return prompts


def preview(config: PPOConfig) -> None:
    """Print the first ``--preview`` prompts with their labels, and how long all of them are."""
    from openrlhf.data.preview import print_lengths, print_samples, terminal

    tokenizer, prompts = read_prompts(config)
    samples, how = [_as_sample(prompt) for prompt in prompts], reader(config, tokenizer)
    print_samples(terminal(), tokenizer, samples[: config.data.preview], how.titles)
    print_lengths(terminal(), samples, how.limit_flag, how.limit)


def reader(config: PPOConfig, tokenizer: Any) -> Reader:
    """How rows become prompts; a sample is then the prompt alone."""
    from openrlhf.data.prompts import load_prompts
    from openrlhf.data.reader import Reader
    from openrlhf.data.report import DropReport
    from openrlhf.data.rows import Row

    def encode(rows: Iterable[Row], flag: str) -> tuple[list[Sample], DropReport]:
        prompts, report = load_prompts(rows, tokenizer, config.data, config.prompts, flag)
        return [_as_sample(prompt) for prompt in prompts], report

    def title(sample: Sample) -> str:
        label = f"label {sample.label!r}" if config.prompts.label_key else "no label"
        return f"prompt from {sample.source}, {label}"

    return Reader(encode, "--prompt_max_len", config.prompts.prompt_max_len, (title,))


def _as_sample(prompt: Prompt) -> Sample:
    """The prompt alone: no token of it carries loss."""
    import torch

    from openrlhf.types import Sample

    tokens = torch.tensor(prompt.tokens)
    mask = torch.zeros(len(tokens), dtype=torch.bool)
    return Sample(tokens, mask, group=prompt.id, prompt=prompt.text, label=prompt.label, source=prompt.source)


def session(config: PPOConfig) -> AbstractContextManager[None]:
    """Ray with the devices of the run, where it runs on Ray."""
    if config.placement.local:
        return nullcontext()
    from openrlhf.cluster.start import ray_session

    return ray_session(config)


def start_roles(config: PPOConfig, tokenizer: Any, total_steps: int) -> AbstractContextManager[Roles]:
    """Here, and in ``session``, one process and a cluster differ; nowhere else."""
    if config.placement.local:
        from openrlhf.backends.local_roles import local_roles

        return nullcontext(local_roles(config, tokenizer, total_steps))
    from openrlhf.cluster.roles import cluster_roles

    return cluster_roles(config, tokenizer, total_steps, config.deepspeed.deadline)


def prompt_batches(
    prompts: list[Prompt], config: PPOConfig, start: Cursor | None = None
) -> Iterator[tuple[list[Prompt], Cursor]]:
    """``rollout_batch_size`` prompts at a time, each once an episode; a batch may reach into the next episode. With it
    goes where the data stands afterwards. With ``--dynamic_filtering`` they come one at a time, to be taken as needed.
    """
    from openrlhf.data.sampler import Cursor, batches

    rollout = config.rollout
    every, seed, episodes = len(prompts), config.train.seed, rollout.num_episodes
    size = 1 if rollout.dynamic_filtering else rollout.rollout_batch_size
    order = batches(every, size, seed, episodes, start or Cursor(), across_epochs=True)
    for chosen, cursor in order:
        yield [prompts[i] for i in chosen], cursor


def optimizer_steps(config: PPOConfig, prompts: int) -> int:
    """Length of the learning-rate schedule for ``prompts`` rows; the last rollout batch may be smaller.

    With ``--dynamic_filtering`` it is that of a run which keeps every prompt: nobody knows how many it will.
    """
    rollout, train = config.rollout, config.train
    full, rest = divmod(prompts * rollout.num_episodes, rollout.rollout_batch_size)

    def mini_batches(asked: int) -> int:
        return math.ceil(asked * rollout.n_samples_per_prompt / train.train_batch_size)

    return train.max_epochs * (full * mini_batches(rollout.rollout_batch_size) + mini_batches(rest))


if __name__ == "__main__":
    main()
