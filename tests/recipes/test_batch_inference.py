"""``openrlhf batch_inference`` from files to a file, against Transformers' own generation and classifier."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from openrlhf.cli import batch_inference
from tests.recipes.helpers import free_port, launched, words, write_rows

QUESTIONS = [f"What is {i} + {j}? " for i, j in [(1, 2), (30, 4), (5, 600), (7, 8), (9, 1000), (1, 1), (22, 2)]]


@pytest.fixture
def prompts(tiny_folder: Path, tmp_path: Path) -> dict[str, Any]:
    rows = write_rows(tmp_path / "prompts.jsonl", [{"q": question} for question in QUESTIONS])
    return {
        "eval_task": "generate", "pretrain": tiny_folder, "dataset": rows, "input_key": "q", "max_new_tokens": 6,
        "micro_batch_size": 4, "output_path": tmp_path / "out" / "answers.jsonl",
    }  # fmt: skip


@pytest.fixture
def answers(reward_folder: Path, tmp_path: Path) -> dict[str, Any]:
    texts = ["3", "thirty four", "yes " * 9, "no", "x"]
    rows = [{"input": question, "output": text} for question in QUESTIONS[:2] for text in texts]
    return {
        "eval_task": "rm", "pretrain": reward_folder, "dataset": write_rows(tmp_path / "answers.jsonl", rows),
        "max_len": 64, "micro_batch_size": 3, "output_path": tmp_path / "out" / "judged.jsonl",
    }  # fmt: skip


def run(flags: dict[str, Any]) -> list[dict[str, Any]]:
    batch_inference.main(words(flags))
    return read(flags["output_path"])


def read(path: Path) -> list[dict[str, Any]]:
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no parts, no files of ranks
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Generation.


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_answers_are_those_of_transformers(prompts: dict[str, Any], penalty: float) -> None:
    rows = run(prompts | {"greedy_sampling": True, "repetition_penalty": penalty})
    tokenizer = AutoTokenizer.from_pretrained(prompts["pretrain"])
    model = AutoModelForCausalLM.from_pretrained(prompts["pretrain"])
    assert [row["input"] for row in rows] == QUESTIONS
    for row in rows:
        tokens = tokenizer(row["input"], return_tensors="pt", add_special_tokens=False)
        out = model.generate(**tokens, do_sample=False, max_new_tokens=6, repetition_penalty=penalty)
        assert row["output"] == tokenizer.decode(out[0, tokens.input_ids.shape[1] :], skip_special_tokens=True)


def test_the_same_command_writes_the_same_file(prompts: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(prompts | {"best_of_n": 3})
    assert [row["input"] for row in rows] == [question for question in QUESTIONS for _ in range(3)]
    assert run(prompts | {"best_of_n": 3}) == rows != run(prompts | {"best_of_n": 3, "seed": 5})
    assert len({row["output"] for row in rows}) > 15  # every answer is drawn by itself
    assert "answers reached --max_new_tokens 6 and were cut" in capsys.readouterr().out


def test_sampling_flags_reach_the_engine(prompts: dict[str, Any]) -> None:
    greedy = run(prompts | {"greedy_sampling": True})
    assert run(prompts) != greedy
    assert run(prompts | {"temperature": 1e-4}) == greedy == run(prompts | {"top_p": 1e-6})


def test_an_iteration_takes_its_own_rows(prompts: dict[str, Any]) -> None:
    part = prompts | {"rollout_batch_size": 3}
    assert [[row["input"] for row in run(part | {"iter": i})] for i in range(3)] == [
        QUESTIONS[:3], QUESTIONS[3:6], QUESTIONS[6:]
    ]  # fmt: skip


def test_the_prompt_is_shown_as_the_model_met_it(prompts: dict[str, Any]) -> None:
    (row, *_) = run(prompts | {"enable_csft": True, "input_template": "Q: {}\nA:", "max_samples": 1})
    assert row["input"] == "Q: What is 1 + 2? \nA:<rm_score>: 5.00 "
    (row, *_) = run(prompts | {"enable_csft": True, "csft_prompt": " good", "apply_chat_template": True})
    assert row["input"] == "<|im_start|>user\nWhat is 1 + 2? <|im_end|>\n<|im_start|>assistant\n good "


def test_the_end_of_a_long_prompt_is_kept(prompts: dict[str, Any], tmp_path: Path) -> None:
    long = write_rows(tmp_path / "long.jsonl", [{"q": "never read " * 20 + QUESTIONS[0]}])
    flags = prompts | {"greedy_sampling": True, "prompt_max_len": 5}
    short = run(flags | {"max_samples": 1})
    assert run(flags | {"dataset": long})[0]["output"] == short[0]["output"]


# Rewards.


def classifier_rewards(folder: Path, rows: list[dict[str, Any]]) -> list[float]:
    """(score at the last token − mean) / std, one row at a time, by Transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    texts = [row["input"] + row["output"] + tokenizer.eos_token for row in rows]
    tokens = [tokenizer(text, return_tensors="pt", add_special_tokens=False) for text in texts]
    with torch.no_grad():
        scores = [float(model.score(model.model(**t).last_hidden_state)[0, -1, 0]) for t in tokens]
    return [(score - 0.5) / 4.0 for score in scores]


def test_rewards_are_those_of_the_classifier(answers: dict[str, Any]) -> None:
    given = [json.loads(line) for line in answers["dataset"].read_text().splitlines()]
    rows = run(answers)
    assert [{**row, "reward": 0} for row in rows] == [{**row, "reward": 0} for row in given]
    expected = classifier_rewards(answers["pretrain"], given)
    assert [row["reward"] for row in rows] == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.1


def test_what_the_rewards_are_for(answers: dict[str, Any]) -> None:
    rows = run(answers)
    groups = [rows[:5], rows[5:]]
    best = [max(group, key=lambda row: row["reward"]) for group in groups]
    worst = [min(group, key=lambda row: row["reward"]) for group in groups]
    assert run(answers | {"post_processor": "rs"}) == best
    assert run(answers | {"post_processor": "iter_dpo"}) == [
        {
            "prompt": good["input"], "chosen": good["output"], "chosen_reward": good["reward"],
            "rejected": bad["output"], "rejected_reward": bad["reward"],
        }
        for good, bad in zip(best, worst, strict=True)
    ]  # fmt: skip
    template = {"post_processor": "csft", "reward_template": "{reward}: {input}"}
    assert [row["input"] for row in run(answers | template)] == [f"{r['reward']:.2f}: {r['input']}" for r in rows]


def test_a_conversation_holds_its_answer(answers: dict[str, Any], tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
    dataset = write_rows(tmp_path / "talk.jsonl", [{"chosen": talk}])
    flags = {"dataset": dataset, "input_key": "chosen", "output_key": "", "apply_chat_template": True}
    (row,) = run(answers | flags)
    assert row["input"] == "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    assert row["output"] == "2<|im_end|>"


def test_rows_without_use_are_counted(
    answers: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"input": "a", "output": ""}, {"input": "b", "output": "x" * 99}, {"input": "c", "output": "yes"}]
    dataset = write_rows(tmp_path / "some.jsonl", rows)
    assert [row["input"] for row in run(answers | {"dataset": dataset})] == ["b", "c"]
    shown = capsys.readouterr().out
    assert "2 of 3 rows kept; dropped: empty response 1 (first row 0: " in shown
    assert "shortened: text over --max_len 1 (first row 1: " in shown
    with pytest.raises(SystemExit):
        run(answers | {"dataset": dataset, "post_processor": "iter_dpo"})
    assert "none of the 2 inputs has answers of different rewards" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            {"eval_task": "generate_vlm"},
            "--eval_task 'generate_vlm' is not known: choose generate, generate_vllm or rm",
        ),
        ({"iter": 3, "rollout_batch_size": 3}, "--iter 3 begins at row 9"),
        ({"output_path": "/dev/null/x"}, "--output_path /dev/null/x cannot be written"),
        ({"eval_task": "rm", "output_key": "q"}, "--pretrain "),  # a language model has no reward head
        ({"input_key": "z"}, "--dataset row 0: there is no column 'z'"),
    ],
)
def test_refusals(
    prompts: dict[str, Any], wrong: dict[str, Any], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        batch_inference.main(words(prompts | wrong))
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(sentence)
    assert not prompts["output_path"].exists()


# Several processes.


@pytest.mark.slow
@pytest.mark.parametrize("task", ["generate", "rm"])
def test_two_ranks_write_the_file_of_one(
    task: str, prompts: dict[str, Any], answers: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed")
    flags = prompts | {"best_of_n": 2} if task == "generate" else answers
    alone = run(flags)
    path = tmp_path / "two" / "out.jsonl"
    more = {"output_path": path} | ({"zero_stage": 3} if task == "rm" else {})
    launched(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"),
            *(f"--master-port={free_port()}", "-m", "openrlhf.cli.batch_inference", *words(flags | more)),
        ]
    )
    rows = read(path)
    assert [{**row, "reward": 0} for row in rows] == [{**row, "reward": 0} for row in alone]
    if task == "rm":
        assert [row["reward"] for row in rows] == pytest.approx([row["reward"] for row in alone], abs=1e-5)


@pytest.mark.cluster
def test_vllm_writes_what_transformers_does(prompts: dict[str, Any], tmp_path: Path) -> None:
    """Greedy, with and without a penalty; and with a seed vLLM repeats itself as well."""
    pytest.importorskip("vllm")
    greedy = prompts | {"greedy_sampling": True, "repetition_penalty": 1.4}
    flags = greedy | {"eval_task": "generate_vllm", "output_path": tmp_path / "vllm" / "out.jsonl", "max_num_seqs": 4}
    launched([sys.executable, "-m", "openrlhf.cli.batch_inference", *words(flags)])
    assert read(flags["output_path"]) == run(greedy)
