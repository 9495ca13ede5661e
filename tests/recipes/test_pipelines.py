"""The pipelines of several commands run as they stand, with a tiny policy and a tiny reward model."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.docs.shell import ROOT
from tests.recipes.helpers import launched, words, write_rows

pytestmark = pytest.mark.slow

QUESTIONS = [f"What is {i} + 1?" for i in range(8)]
RENDERED = [f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for question in QUESTIONS]
TRAIN = {"bf16": "false", "max_len": 128, "train_batch_size": 2, "micro_train_batch_size": 2, "learning_rate": 1e-3}


def line(flags: dict[str, Any]) -> str:
    return " ".join(words(flags))


@pytest.fixture
def environment(tiny_folder: Path, reward_folder: Path, tmp_path: Path) -> dict[str, str]:
    """What makes a script small: four prompts an iteration, three answers to each, of eight tokens."""
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"messages": question} for question in QUESTIONS])
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "POLICY": str(tiny_folder),
        "REWARD": str(reward_folder),
        "PROMPT_DATA": str(prompts),
        "INPUT_KEY": "messages",
        "PROMPTS": "4",
        "BEST_OF": "3",
        "LAUNCH": "python -m",
        "GENERATE_TASK": "generate",
        "GENERATE_FLAGS": line({"bf16": "false", "prompt_max_len": 100, "max_new_tokens": 8}),
        "RM_FLAGS": line({"bf16": "false", "max_len": 128}),
        "FOLDER": str(tmp_path / "run"),
    }


def run(script: str, environment: dict[str, str], **more: str) -> Path:
    launched(["bash", str(ROOT / "examples/scripts" / script)], **environment, **more)
    return Path(environment["FOLDER"])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def flags_of(policy: Path) -> dict[str, Any]:
    return yaml.safe_load((policy / "run_config.yaml").read_text(encoding="utf-8"))


def differs(one: Path, other: Path) -> bool:
    weights, others = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return any(not weights[name].equal(others[name]) for name in weights)


def test_rejection_sampling_goes_on_where_it_stopped(environment: dict[str, str]) -> None:
    environment["SFT_FLAGS"] = line(TRAIN)
    folder = run("train_rejection_sampling_llama.sh", environment, ITERATIONS="1")
    assert (folder / "iteration").read_text() == "1\n"
    first = (folder / "0/best.jsonl").stat().st_mtime_ns
    run("train_rejection_sampling_llama.sh", environment, ITERATIONS="2")
    assert (folder / "iteration").read_text() == "2\n"
    assert (folder / "0/best.jsonl").stat().st_mtime_ns == first

    for i, prompts in enumerate([RENDERED[:4], RENDERED[4:]]):
        answers, best = rows(folder / f"{i}/answers.jsonl"), rows(folder / f"{i}/best.jsonl")
        assert [row["input"] for row in answers] == [prompt for prompt in prompts for _ in range(3)]
        assert [row["input"] for row in best] == prompts
        assert all({"input": row["input"], "output": row["output"]} in answers for row in best)
    assert flags_of(folder / "0/policy")["pretrain"] == environment["POLICY"]
    assert flags_of(folder / "1/policy")["pretrain"] == str(folder / "0/policy")
    assert differs(folder / "0/policy", Path(environment["POLICY"]))
    assert differs(folder / "1/policy", folder / "0/policy")


def test_iterative_dpo(environment: dict[str, str]) -> None:
    environment["DPO_FLAGS"] = line(TRAIN)
    folder = run("train_iterative_dpo_llama.sh", environment, ITERATIONS="2")
    assert (folder / "iteration").read_text() == "2\n"
    for i, prompts in enumerate([RENDERED[:4], RENDERED[4:]]):
        answers, pairs = rows(folder / f"{i}/answers.jsonl"), rows(folder / f"{i}/pairs.jsonl")
        assert [pair["prompt"] for pair in pairs] == prompts
        for pair in pairs:
            assert pair["chosen_reward"] > pair["rejected_reward"]
            assert {"input": pair["prompt"], "output": pair["chosen"]} in answers
            assert {"input": pair["prompt"], "output": pair["rejected"]} in answers
        assert flags_of(folder / f"{i}/policy")["ref_pretrain"] == environment["POLICY"]
    assert flags_of(folder / "1/policy")["pretrain"] == str(folder / "0/policy")
    assert differs(folder / "1/policy", folder / "0/policy")


@pytest.mark.cluster
def test_conditional_sft_answers_by_vllm(environment: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    pairs = [
        {"prompt": question, "chosen": f"It is {i + 1}.", "rejected": "no"} for i, question in enumerate(QUESTIONS)
    ]
    environment |= {"PAIRS": str(write_rows(tmp_path / "pairs.jsonl", pairs)), "PROMPT_KEY": "prompt"}
    environment |= {"SFT_FLAGS": line(TRAIN), "GENERATE_TASK": "generate_vllm"}
    folder = run("train_conditional_llama.sh", environment)
    for side in ("chosen", "rejected"):
        scored = rows(folder / f"{side}.jsonl")
        assert [row["output"] for row in scored] == [pair[side] + "<|im_end|>" for pair in pairs]
        assert [row["input"] for row in scored] == [
            f"{prompt} <rm_score>: {row['reward']:.2f} " for prompt, row in zip(RENDERED, scored, strict=True)
        ]
    assert flags_of(folder / "policy")["dataset"] == f"{folder}/chosen.jsonl,{folder}/rejected.jsonl"
    answers = rows(folder / "answers.jsonl")
    assert [row["input"] for row in answers] == [f"{prompt} <rm_score>: 5.00 " for prompt in RENDERED[:4]]
    assert all(not re.search("<\\|", row["output"]) for row in answers)
