"""``openrlhf serve_rm`` as a process of its own: a served score is the score of the tokens of training."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from openrlhf.cli.serve_rm import check_reach, main, scorer
from openrlhf.cli.train_ppo_ray import main as ppo
from openrlhf.config.groups import DataConfig, ModelConfig, PairConfig, ServeConfig
from openrlhf.data.paired import paired_samples
from openrlhf.models.load import load_score_model, load_tokenizer, save_model
from openrlhf.models.tiny import EOS, PAD
from openrlhf.types import Sample, collate
from tests.recipes.helpers import metrics, run, words, write_rows

ROWS = [
    {"chosen": "What is 2 + 3? The answer is 5.", "rejected": "What is 2 + 3? I do not know, and who does?"},
    {"chosen": "hello there, how are you? fine", "rejected": "hello" * 40},
]
TEXTS = [text for row in ROWS for text in row.values()]
MAX_LEN = 64


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with a drawn head and statistics of its own."""
    folder = tmp_path_factory.mktemp("rm")
    config = ModelConfig(pretrain=str(tiny_folder))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = load_score_model(str(tiny_folder), config, "score", new_head=True)
    model.set_statistics(0.5, 2.0)
    save_model(model, folder, load_tokenizer(str(tiny_folder), config))
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[float]:
    """The scores of the samples that training makes of the texts, one by one, standardised by hand."""
    config = ModelConfig(pretrain=str(folder))
    tokenizer, model = load_tokenizer(str(folder), config), load_score_model(str(folder), config, "score").eval()
    pairs = PairConfig(dataset="rows", max_len=MAX_LEN)
    made, _ = paired_samples(ROWS, tokenizer, DataConfig(), pairs, drop_long_prompts=False)
    samples: list[Sample] = [sample for pair in made for sample in pair]
    with torch.no_grad():
        return [(float(model(collate([s], 0))) - 0.5) / 2.0 for s in samples]


@contextlib.contextmanager
def served(folder: Path, **flags: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address; SIGTERM ends it with code 0."""
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "openrlhf.cli.serve_rm", "--reward_pretrain", str(folder), "--port", "0", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert " answers at http://127.0.0.1:" in line
        yield process, line.split()[-1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
        process.wait(timeout=120)


@pytest.mark.slow
def test_served_scores_are_those_of_training(folder: Path, expected: list[float]) -> None:
    """With padding on either side, in one pass and in several; the text over --max_len is said to be cut."""
    with served(folder, batch_size=3, max_len=MAX_LEN, normalize_reward="true") as (_, url):
        for queries in (TEXTS, [PAD * 5 + t + EOS for t in TEXTS], [t + EOS + PAD * 7 for t in TEXTS]):
            answer = httpx2.post(url, json={"query": queries, "prompts": queries, "labels": queries}, timeout=60).json()
            assert answer["rewards"] == pytest.approx(expected, abs=1e-6)
            assert answer["scores"] == answer["rewards"]
            assert answer["extra_logs"] == {"cut": [0, 0, 0, 1]}
        assert httpx2.post(url, json={"query": 5}, timeout=60).status_code == 422
        assert httpx2.get(url.replace("get_reward", "health"), timeout=60).status_code == 200


@pytest.mark.slow
def test_rl_with_served_rewards(folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """Two addresses, here of one server, share each batch; what the server logs arrives."""
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"input": f"say {i}:"} for i in range(4)])
    flags = {
        "local": True, "pretrain": tiny_folder, "prompt_data": prompts, "advantage_estimator": "rloo",
        "rollout_batch_size": 4, "n_samples_per_prompt": 4, "train_batch_size": 16, "micro_train_batch_size": 16,
        "micro_rollout_batch_size": 3, "generate_max_len": 6, "num_episodes": 2, "actor_learning_rate": 1e-3,
    }  # fmt: skip
    with served(folder) as (_, url):
        remote = metrics(run(ppo, flags | {"remote_rm_url": f"{url},{url}", "save_path": tmp_path / "remote"}))
    assert [row["reward/cut"] for row in remote] == [0.0, 0.0]
    assert all(row["score"] == row["reward"] for row in remote)
    assert all(-10 < row["reward"] < 10 and row["reward_std"] > 0 for row in remote)


@pytest.mark.slow
def test_rl_without_its_server_ends_with_a_sentence(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"input": "say:"}])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/get_reward"
    flags = {
        "local": True, "pretrain": tiny_folder, "prompt_data": prompts, "advantage_estimator": "reinforce",
        "rollout_batch_size": 1, "train_batch_size": 1, "micro_train_batch_size": 1, "generate_max_len": 4,
        "remote_rm_url": url, "reward_timeout": 1, "save_path": tmp_path / "out",
    }  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        ppo(words(flags))
    assert stop.value.code == 2
    assert f"--remote_rm_url {url} gave no rewards within 1 s: " in capsys.readouterr().err


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_the_size_of_a_pass_changes_nothing(folder: Path, expected: list[float], batch_size: int | None) -> None:
    config = ServeConfig(str(folder), normalize_reward=True, max_len=MAX_LEN, batch_size=batch_size)
    scored = scorer(config)(TEXTS)
    assert scored.rewards == pytest.approx(expected, abs=1e-6)
    assert scored.cut == [False, False, False, True]
    assert scorer(config)([]).rewards == []


def test_a_host_that_others_reach_needs_a_token(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENRLHF_RM_TOKEN", raising=False)
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            main(["--reward_pretrain", str(folder), "--host", "0.0.0.0"])
        assert stop.value.code == 2
        assert "--host 0.0.0.0 is reached from other machines: set OPENRLHF_RM_TOKEN" in capsys.readouterr().err
        monkeypatch.setenv("OPENRLHF_RM_TOKEN", "")  # as a container's file of variables may leave it
    for host in ("127.0.0.1", "localhost", "::1"):
        check_reach(host, None)
    check_reach("0.0.0.0", "secret")


def test_a_taken_port_is_a_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    try:
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as stop:
            main(["--reward_pretrain", "/nowhere", "--port", str(taken.getsockname()[1])])
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
    assert stop.value.code == 2
    assert "cannot be listened on (Address already in use): choose another port" in capsys.readouterr().err
