"""Answers to many prompts, or rewards of many answers: ``openrlhf batch_inference``,
``python -m openrlhf.cli.batch_inference``, or the module under ``deepspeed --module`` and ``torchrun -m``."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf.cli.run_command import run_command
from openrlhf.config.commands import BatchInferenceConfig
from openrlhf.config.parse import parse

if TYPE_CHECKING:
    import datasets

    from openrlhf.data.processors import Scored
    from openrlhf.rollout.engine import Completion, SamplingParams
    from openrlhf.types import Prompt

Rows = list[dict[str, Any]]


def main(argv: list[str] | None = None) -> None:
    run_command(run, parse(BatchInferenceConfig, argv))


def run(config: BatchInferenceConfig) -> None:
    """Rows of ``--dataset`` → rows of ``--output_path``, which rank 0 writes."""
    from openrlhf.cli.process import prepare_process
    from openrlhf.cli.supervised import is_first
    from openrlhf.data.jsonl import whole_file

    prepare_process(config.train)
    path = Path(config.inference.output_path)
    tasks: dict[str | None, Callable[[BatchInferenceConfig], Rows]] = {
        "generate": generate,
        "generate_vllm": generate,
        "rm": judge,
    }
    with whole_file(path, "--output_path") if is_first() else nullcontext(len) as write:
        rows = tasks[config.inference.eval_task](config)
        write(rows)
    if is_first():
        print(f"wrote {len(rows)} rows to {path}")


def generate(config: BatchInferenceConfig) -> Rows:
    """{input, output}: ``--best_of_n`` rows a prompt, next to each other, in the order of the prompts."""
    from openrlhf.data.encode import eos_id
    from openrlhf.models.load import load_tokenizer
    from openrlhf.rollout.engine import SamplingParams

    generation, sampling = config.generation, config.sampling
    tokenizer = load_tokenizer(config.model.pretrain, config.model)
    asked = [prompt for prompt in read_prompts(config, tokenizer) for _ in range(generation.best_of_n)]
    params = SamplingParams(
        temperature=0 if sampling.greedy_sampling else sampling.temperature,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        max_new_tokens=generation.max_new_tokens,
        stop_token_ids=(eos_id(tokenizer),),
        seed=config.train.seed,
    )
    engine = by_vllm if config.inference.eval_task == "generate_vllm" else by_transformers
    answers = engine(config, [prompt.tokens for prompt in asked], params)
    if cut := sum(answer.truncated for answer in answers):
        print(f"{cut} of {len(answers)} answers reached --max_new_tokens {generation.max_new_tokens} and were cut")
    texts = (str(tokenizer.decode(answer.token_ids, skip_special_tokens=True)) for answer in answers)
    # Ranks above 0 have prompts and no answers.
    return [{"input": prompt.text, "output": text} for prompt, text in zip(asked, texts, strict=False)]


def read_prompts(config: BatchInferenceConfig, tokenizer: Any) -> list[Prompt]:
    from openrlhf.cli.supervised import is_first
    from openrlhf.config.groups import PromptConfig
    from openrlhf.data.prompts import load_prompts

    dataset, generation, sampling = config.dataset, config.generation, config.sampling
    rows, flag = of_iteration(read_rows(config), generation.iter, generation.rollout_batch_size)
    length = PromptConfig(prompt_data=dataset.dataset, prompt_max_len=generation.prompt_max_len)
    ending = f"{sampling.csft_prompt} " if sampling.enable_csft else ""
    prompts, report = load_prompts(rows, tokenizer, config.data, length, flag, ending)
    if is_first() and (report.dropped or report.shortened):
        print(f"{flag}: {report.line()}")
    return prompts


def read_rows(config: BatchInferenceConfig) -> datasets.Dataset:
    from openrlhf.data.load import load_rows

    dataset = config.dataset
    return load_rows(
        dataset.dataset, dataset.dataset_split, dataset.dataset_probs, config.data.max_samples, config.train.seed,
        use_ms=config.model.use_ms,
    )  # fmt: skip


def of_iteration(rows: datasets.Dataset, iteration: int | None, size: int) -> tuple[datasets.Dataset, str]:
    """Rows ``iteration`` · ``size`` and the ``size`` − 1 behind it, and what to call them in messages.

    Raises ValueError when there are none.
    """
    if iteration is None:
        return rows, "--dataset"
    start = iteration * size
    if start >= len(rows):
        raise ValueError(
            f"--iter {iteration} begins at row {start} (× --rollout_batch_size {size}), but --dataset has {len(rows)} "
            f"rows: the last iteration is {(len(rows) - 1) // size}"
        )
    return rows.select(range(start, min(start + size, len(rows)))), f"--dataset from row {start} on,"


def by_transformers(config: BatchInferenceConfig, prompts: list[list[int]], params: SamplingParams) -> list[Completion]:
    """On rank 0 an answer to each prompt. Each batch has a seed of its own, so ranks do not change the answers."""
    from dataclasses import replace

    from openrlhf.backends.choose import choose_forward_engine
    from openrlhf.backends.hf_generate import HFGenerate
    from openrlhf.backends.ranks import over_ranks
    from openrlhf.models.causal_lm import CausalLM
    from openrlhf.models.load import load_causal_lm
    from openrlhf.rollout.engine import request_seed

    if config.deepspeed.zero_stage == 3 and processes() > 1:
        raise ValueError(
            "--zero_stage 3 would gather the weights again for every token: leave it out, or give --eval_task "
            "generate_vllm, which spreads a large model over GPUs with --tp_size"
        )
    built: list[CausalLM] = []

    def build() -> CausalLM:
        built.append(load_causal_lm(config.model.pretrain, config.model))
        return built[0]

    choose_forward_engine(build, config.model, config.deepspeed, offload=False)
    engine = HFGenerate(built[0].hf)
    seed = config.train.seed
    return over_ranks(
        split(prompts, config.inference.micro_batch_size),
        lambda k, part: engine.generate(part, replace(params, seed=request_seed(seed, k))),
        "generate",
    )


def by_vllm(config: BatchInferenceConfig, prompts: list[list[int]], params: SamplingParams) -> list[Completion]:
    """An answer to each prompt, by an engine in this process."""
    import torch

    from openrlhf.backends.vllm import VLLMEngine, engine_environment
    from openrlhf.models.hub import local_folder

    if processes() > 1:
        raise ValueError(
            "--eval_task generate_vllm runs in one process: start it without a launcher; --tp_size spreads the model "
            "over GPUs"
        )
    generation = config.generation
    gpus = torch.cuda.device_count()
    size = generation.tp_size or max(1, gpus)
    os.environ.update(engine_environment(gpus > 0, size))
    engine = VLLMEngine(
        local_folder(config.model.pretrain, config.model, "--pretrain"),
        dtype="bfloat16" if config.model.bf16 else "float32",
        tensor_parallel_size=size,
        enable_prefix_caching=generation.enable_prefix_caching,
        max_model_len=generation.prompt_max_len + generation.max_new_tokens,
        max_num_seqs=generation.max_num_seqs,
        seed=config.train.seed,
        trust_remote_code=config.model.trust_remote_code,
    )
    return engine.generate(prompts, params)


def judge(config: BatchInferenceConfig) -> Rows:
    """{input, output, reward} of each usable row, in order, and what ``--post_processor`` makes of them."""
    from openrlhf.backends.choose import choose_forward_engine
    from openrlhf.backends.ranks import over_ranks
    from openrlhf.cli.supervised import is_first
    from openrlhf.data.answers import Answer, load_answers
    from openrlhf.models.load import load_score_model, load_tokenizer
    from openrlhf.models.value_head import ScoreModel
    from openrlhf.training.members import forward
    from openrlhf.types import collate

    model, size = config.model, config.inference.micro_batch_size
    tokenizer = load_tokenizer(model.pretrain, model)
    answers, report = load_answers(read_rows(config), tokenizer, config.data, config.dataset)
    if is_first() and (report.dropped or report.shortened):
        print(f"--dataset: {report.line()}")

    def build() -> ScoreModel:
        reward_model = load_score_model(model.pretrain, model, model.value_head_prefix, normalize=True)
        if is_first() and "mean" not in reward_model.hf.config.to_dict():
            print(f"--pretrain {model.pretrain} stores no mean and std of its scores: they are taken as they are")
        return reward_model

    engine = choose_forward_engine(build, model, config.deepspeed, offload=False)

    def score(_: int, part: list[Answer]) -> list[float]:
        rows = collate([answer.sample for answer in part], tokenizer.pad_token_id)
        return forward(engine, rows, size, packed=False, what="scores").tolist()

    longest_first = sorted(range(len(answers)), key=lambda i: -len(answers[i].sample.tokens))  # little padding
    rewards = over_ranks(split([answers[i] for i in longest_first], size), score, "rm")
    if not is_first():
        return []
    by_row = dict(zip(longest_first, rewards, strict=True))
    scored = [{"input": a.input, "output": a.output, "reward": by_row[i]} for i, a in enumerate(answers)]
    if wrong := [i for i, reward in by_row.items() if not math.isfinite(reward)]:
        row = answers[wrong[0]].sample.group
        raise ValueError(
            f"--pretrain {model.pretrain} gives row {row} the reward {by_row[wrong[0]]}: check its weights"
        )
    return process(scored, config)


def process(rows: list[Scored], config: BatchInferenceConfig) -> Rows:
    """``--post_processor``. Raises ValueError when nothing is left."""
    from openrlhf.data.processors import best_and_worst, best_answers, conditioned

    rewards = [row["reward"] for row in rows]
    print(f"rewards: mean {sum(rewards) / len(rewards):.4f}, from {min(rewards):.4f} to {max(rewards):.4f}")
    inference = config.inference
    if inference.post_processor == "rs":
        return best_answers(rows)
    if inference.post_processor == "csft":
        return conditioned(rows, inference.reward_template, inference.normalize_reward)
    if inference.post_processor == "iter_dpo":
        pairs, alike = best_and_worst(rows)
        if not pairs:
            raise ValueError(f"--post_processor iter_dpo: none of the {alike} inputs has answers of different rewards")
        if alike:
            print(f"{alike} of {alike + len(pairs)} inputs make no pair: their answers or rewards are all the same")
        return pairs
    return rows


def split(rows: list[Any], size: int) -> list[list[Any]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def processes() -> int:
    """How many processes a launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


if __name__ == "__main__":
    main()
