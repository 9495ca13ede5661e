"""``openrlhf demo``: the main job from nothing, in minutes, on a laptop.

It makes a tokenizer, a tiny model and arithmetic problems, then runs the same two commands a user would: SFT, which
teaches the model two styles of answering, and RL with a Python reward file, which tells it which one is right.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import openrlhf.demo

REWARD_FILE = Path(openrlhf.demo.__file__).with_name("reward.py")
HELD_OUT = 200
SHOWN = 4
MAX_NEW_TOKENS = 24


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="openrlhf demo", description=__doc__)
    parser.add_argument("--cluster", action="store_true", help="run the RL part on Ray + vLLM + DeepSpeed")
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"), help="run folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # before torch is imported: for a tiny model a second thread only spins
    run(args.folder, args.cluster, args.seed)


def run(folder: Path, cluster: bool, seed: int) -> tuple[float, float]:
    """The whole demo. Returns the held-out accuracy before and after RL."""
    from openrlhf.cli import train_ppo_ray, train_sft
    from openrlhf.cli.process import quiet_libraries
    from openrlhf.demo.plot import plot_metric
    from openrlhf.demo.task import write_data
    from openrlhf.models.tiny import build_model, build_tokenizer

    began = time.monotonic()
    quiet_libraries()
    base, sft, rl = folder / "base", folder / "sft", folder / "rl"
    folder.mkdir(parents=True, exist_ok=True)
    say(f"1/4  A tiny model from scratch and arithmetic problems → {folder}")
    write_data(folder, seed, demonstrations=15_000, held_out=HELD_OUT)
    tokenizer = build_tokenizer(base)
    build_model(base, vocab_size=len(tokenizer), hidden=128, layers=4, heads=4, kv_heads=2, head_dim=32, seed=seed)

    say("2/4  SFT on demonstrations of two styles, most of them careless")
    command("sft", sft_flags(folder, base, sft, seed), train_sft.main)
    before = evaluate(sft, folder / "held_out.jsonl")

    say("3/4  RL: a Python file pays 1 for a right sum and 0 for a wrong one")
    command("ppo", rl_flags(folder, sft, rl, seed, cluster), train_ppo_ray.main)
    after = evaluate(rl, folder / "held_out.jsonl")
    plot_metric(rl / "metrics.jsonl", "reward", rl / "reward.png", "demo: mean reward of the samples")

    say("4/4  Held-out problems, greedy answers")
    for (question, label, old), (_, _, new) in list(zip(before, after, strict=True))[:SHOWN]:
        print(f"  {question} {label}\n      before RL: {verdict(old, label)}\n      after RL:  {verdict(new, label)}")
    scores = accuracy(before), accuracy(after)
    print(f"\naccuracy on {HELD_OUT} held-out problems: {scores[0]:.1%} → {scores[1]:.1%}")
    print(f"took {time.monotonic() - began:.0f} s; everything is in {folder}:")
    print(f"  {rl}/metrics.jsonl, reward.png, run_config.yaml and the model as a Hugging Face folder")
    print_next(folder, cluster)
    return scores


def sft_flags(folder: Path, base: Path, out: Path, seed: int) -> dict[str, Any]:
    return {
        "pretrain": base,
        "dataset": folder / "sft.jsonl",
        "input_key": "input",
        "output_key": "output",
        "input_template": "{}",
        "max_len": 64,
        "max_epochs": 2,
        "train_batch_size": 64,
        "micro_train_batch_size": 64,
        "learning_rate": 1e-3,
        "logging_steps": 25,
        "save_path": out,
        "seed": seed,
    }


def rl_flags(folder: Path, sft: Path, out: Path, seed: int, cluster: bool) -> dict[str, Any]:
    common = {
        "pretrain": sft,
        "remote_rm_url": REWARD_FILE,
        "prompt_data": folder / "prompts.jsonl",
        "max_samples": 960,
        "input_key": "input",
        "label_key": "label",
        "prompt_max_len": 16,
        "generate_max_len": MAX_NEW_TOKENS,
        "advantage_estimator": "group_norm",
        "n_samples_per_prompt": 8,
        "rollout_batch_size": 32,
        "train_batch_size": 256,
        "micro_train_batch_size": 256,
        "micro_rollout_batch_size": 256,
        "actor_learning_rate": 7e-5,
        "init_kl_coef": 0.001,
        "use_kl_loss": True,
        "kl_estimator": "k3",
        "save_path": out,
        "seed": seed,
    }
    if not cluster:
        return {**common, "local": True}
    sizes = {f"{role}_num_gpus_per_node": 1 for role in ("actor", "ref", "critic", "reward")}
    return {**common, **sizes, "vllm_num_engines": 1, "vllm_sync_backend": "gloo", "zero_stage": 2}


def command(verb: str, flags: dict[str, Any], main: Any) -> None:
    """Show the command line and run it, here in this process."""
    words: list[str] = []
    for name, value in flags.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    print(f"$ openrlhf {verb} {shlex.join(words)}\n", flush=True)
    main(words)


def evaluate(model_folder: Path, held_out: Path) -> list[tuple[str, str, str]]:
    """(question, label, greedy answer) of every held-out problem."""
    from openrlhf.backends.hf_generate import HFGenerate
    from openrlhf.config.groups import ModelConfig
    from openrlhf.demo.task import read_rows
    from openrlhf.models.load import load_causal_lm, load_tokenizer
    from openrlhf.rollout.engine import SamplingParams

    config = ModelConfig(pretrain=str(model_folder))
    tokenizer = load_tokenizer(config.pretrain, config)
    engine = HFGenerate(load_causal_lm(config.pretrain, config).hf)
    rows = read_rows(held_out)
    params = SamplingParams(temperature=0, max_new_tokens=MAX_NEW_TOKENS, stop_token_ids=(tokenizer.eos_token_id,))
    prompts = [tokenizer(row["input"], add_special_tokens=False).input_ids for row in rows]
    answers = [str(tokenizer.decode(c.token_ids, skip_special_tokens=True)) for c in engine.generate(prompts, params)]
    return [(row["input"], row["label"], answer) for row, answer in zip(rows, answers, strict=True)]


def accuracy(answers: list[tuple[str, str, str]]) -> float:
    return sum(right(text, label) for _, label, text in answers) / len(answers)


def right(text: str, label: str) -> bool:
    from openrlhf.demo.reward import answer

    return answer(text) == label


def verdict(text: str, label: str) -> str:
    return f"{text}   ({'right' if right(text, label) else 'wrong'})"


def say(line: str) -> None:
    print(f"\n=== {line}", flush=True)


def print_next(folder: Path, cluster: bool) -> None:
    print("\nNext:")
    if sys.prefix != sys.base_prefix and "VIRTUAL_ENV" not in os.environ:
        print(f"  source {os.path.relpath(sys.prefix)}/bin/activate        puts openrlhf on the path of a shell")
    print(f"  openrlhf view {folder}/rl --export {folder}/rl.html    a page of its curves, answers and tokens")
    print(f"  openrlhf ppo --config {folder}/rl/run_config.yaml --num_episodes 2 --save_path {folder}/rl2")
    print("                                   change a flag, run again")
    if not cluster:
        print("  openrlhf demo --cluster          the same on Ray + vLLM + DeepSpeed, on this CPU (make cluster first)")
    print("  openrlhf ppo --help              every flag")


if __name__ == "__main__":
    main()
