"""One GRPO step in one process, ours and TRL's: generation with Transformers, a Python reward, one on-policy update.

Sampling differs, so losses cannot agree. The programs share weights, prompts, optimizer, clip, loss and group
normalisation, and each records how many tokens a step sampled and at which rate it learned: those must be equal.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gate import Gate
from benchmarks.material import BETAS, LEARNING_RATE, MAX_NORM, token_rows

PROMPTS, SAMPLES, RESPONSE, PROMPT_LENGTH, CLIP = 4, 8, 64, 32, 0.2
BATCH = PROMPTS * SAMPLES


def prompt_texts() -> list[str]:
    return [" ".join(f"w{token}" for token in row[:PROMPT_LENGTH]) for row in token_rows("uniform", PROMPTS)]


def ours(gate: Gate, model: str, beta: float) -> None:
    """The loop of ``openrlhf ppo --local``."""
    from openrlhf.backends.local_roles import local_roles
    from openrlhf.config.commands import PPOConfig
    from openrlhf.config.parse import flat, read
    from openrlhf.data.sampler import Cursor
    from openrlhf.models.load import load_tokenizer
    from openrlhf.training.log import RunLog
    from openrlhf.training.ppo import train
    from openrlhf.types import Metrics, Prompt

    class Recorder(RunLog):
        def step(self, step: int, metrics: Metrics) -> None:
            gate.record(tokens=BATCH * metrics["response_length"], lr=metrics["lr"])
            super().step(step, metrics)

    config = read(PPOConfig, words(our_flags(model, beta)))
    tokenizer = load_tokenizer(model, config.model)
    prompts = [Prompt(i, text, tokenizer(text).input_ids) for i, text in enumerate(prompt_texts())]

    def batches() -> Iterator[tuple[list[Prompt], Cursor]]:
        while gate.opens():
            yield prompts, Cursor()

    with tempfile.TemporaryDirectory() as folder:
        log = Recorder(Path(folder), config.log, flat(config))
        train(config, local_roles(config, tokenizer, gate.total), batches(), log, tokenizer.pad_token_id, 600.0)


def our_flags(model: str, beta: float) -> dict[str, Any]:
    return {
        "local": True,
        "pretrain": model,
        "prompt_data": model,  # not read: the prompts are made here
        "remote_rm_url": Path(__file__).with_name("reward.py"),
        "advantage_estimator": "group_norm",
        "rollout_batch_size": PROMPTS,
        "n_samples_per_prompt": SAMPLES,
        "generate_max_len": RESPONSE,
        "train_batch_size": BATCH,
        "micro_train_batch_size": BATCH,
        "micro_rollout_batch_size": BATCH,
        "actor_learning_rate": LEARNING_RATE,
        "lr_scheduler": "linear",
        "lr_warmup_ratio": 0.0,
        "adam_betas": BETAS,
        "max_norm": MAX_NORM,
        "eps_clip": CLIP,
        "init_kl_coef": beta,
        "logging_steps": 10**9,
        **({"use_kl_loss": True, "kl_estimator": "k3"} if beta else {}),
    }


def words(flags: dict[str, Any]) -> list[str]:
    """Flags as words of a command line."""
    line: list[str] = []
    for name, value in flags.items():
        values = [] if value is True else map(str, value) if isinstance(value, tuple) else [str(value)]
        line += [f"--{name}", *values]
    return line


def trl(gate: Gate, model: str, beta: float) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.reward import even_share
    from benchmarks.trl_gate import GateCallback

    config = GRPOConfig(
        output_dir=str(Path(model) / "trl"),
        model_init_kwargs={"dtype": "float32"},
        per_device_train_batch_size=BATCH,
        num_generations=SAMPLES,
        max_completion_length=RESPONSE,
        max_steps=gate.total,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="linear",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=MAX_NORM,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=beta,
        epsilon=CLIP,
        loss_type="dapo",  # mean over the tokens of the batch, as ours
        scale_rewards="group",
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        rate = trainer.optimizer.param_groups[0]["lr"]  # type: ignore[union-attr]  # it is there when a reward is asked for
        gate.record(tokens=sum(map(len, completion_ids)), lr=rate)
        return [even_share(prompt + " " + completion) for prompt, completion in zip(prompts, completions, strict=True)]

    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,  # type: ignore[arg-type]  # its types know no keyword arguments
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompt_texts()}),
        callbacks=[GateCallback(gate)],
    )
    trainer.train()
