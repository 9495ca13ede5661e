import json

import pytest

from openrlhf.config.commands import SFTConfig
from openrlhf.config.groups import LogConfig
from openrlhf.config.parse import flat, read
from openrlhf.training.log import RunLog


def test_every_logged_step_is_a_line_of_metrics_jsonl(tmp_path):
    log = RunLog(tmp_path, LogConfig(logging_steps=2), {})
    for step in range(1, 5):
        log.step(step, {"loss": step / 2})
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 2.0}]


def test_a_second_run_moves_the_first_curve_aside(tmp_path):
    for value in (1.0, 2.0):
        log = RunLog(tmp_path, LogConfig(), {})
        log.step(1, {"loss": value})
        log.close()
    files = sorted(tmp_path.glob("metrics*.jsonl"))
    assert len(files) == 2
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 2.0


def test_a_name_outside_the_table_is_refused(tmp_path):
    log = RunLog(tmp_path, LogConfig(), {})
    with pytest.raises(ValueError, match="my_metric"):
        log.step(1, {"my_metric": 1.0})


def test_other_ranks_stay_silent(tmp_path):
    log = RunLog(tmp_path / "out", LogConfig(), {}, writes=False)
    log.step(1, {"loss": 1.0})
    log.close()
    assert not (tmp_path / "out").exists()


def test_tensorboard_gets_the_values(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, LogConfig(use_tensorboard=str(tmp_path / "tb"), wandb_run_name="me"), {})
    log.step(1, {"loss": 0.25})
    log.close()
    events = EventAccumulator(str(tmp_path / "tb" / "me"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.25)]


@pytest.mark.slow
def test_wandb_gets_the_values_and_never_the_key(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    config = read(SFTConfig, ["--pretrain", "m", "--dataset", "d", "--output_key", "o", "--use_wandb", "canary" * 7])
    log = RunLog(tmp_path, config.log, flat(config))
    log.step(1, {"loss": 0.25})
    log.close()
    written = b"".join(path.read_bytes() for path in (tmp_path / "wandb").rglob("*") if path.is_file())
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert b"openrlhf_train_sft" in written
    assert b"canary" not in written
