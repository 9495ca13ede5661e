import io
import json
import os
import re
import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest

from openrlhf.config.commands import SFTConfig
from openrlhf.config.groups import LogConfig
from openrlhf.config.parse import flat, read
from openrlhf.training.log import Phases, RunLog, time_left


def test_every_logged_step_is_a_line_of_metrics_jsonl(tmp_path):
    log = RunLog(tmp_path, LogConfig(logging_steps=2), {})
    for step in range(1, 5):
        log.step(step, {"loss": step / 2})
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 2.0}]


@pytest.mark.parametrize(
    ("made", "missing", "spent", "said"),
    [
        (2, 8, 60.0, "  left 0:04:00 for 8 steps"),
        (9, 1, 60.0, "  left 0:00:07 for 1 step"),
        (4, 0, 60.0, ""),
        (1, 24, 3600.0, "  left 1 day, 0:00:00 for 24 steps"),
        (0, 10, 5.0, ""),  # what was measured before the first step says nothing of the steps
        (3, -1, 5.0, ""),  # how many there are is not known
    ],
)
def test_the_time_that_is_left(made, missing, spent, said):
    assert time_left(made, missing, spent) == said


def test_a_line_says_how_many_steps_are_left_after_a_resume_too(tmp_path, capsys):
    for done in (0, 3):
        log = RunLog(tmp_path, LogConfig(), {}, done=done)
        log.start(10, "rl")
        log.step(done + 1, {"reward": 0.5, "kl": 0.1, "response_length": 7.0, "tokens_per_second": 9.0})
        log.close()
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"step {done + 1}: reward 0.5  kl 0.1  response_length 7  tokens_per_second 9  left ")
        assert line.endswith(f" for {9 - done} steps")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_what_a_step_is_at(tmp_path, monkeypatch, terminal):
    """And a log file has no bars."""
    shown = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    log = RunLog(tmp_path, LogConfig(), {})
    log.start(10, "rl")
    with Phases(enter=log.enter)("rollout"):
        pass
    log.step(1, {"reward": 0.5})
    log.close()
    assert (re.search(r"rl: +0%.* 0/10 .*rollout since \d\d:\d\d:\d\d\]", shown.getvalue()) is not None) is terminal
    assert terminal or shown.getvalue() == ""


def test_an_evaluation_is_always_a_line(tmp_path):
    log = RunLog(tmp_path, LogConfig(logging_steps=4), {})
    for step, metrics in enumerate([{"eval_maths_pass1": 0.0}, {}, {}, {"eval_loss": 1.0}, {"loss": 2.0}]):
        log.step(step, metrics)
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 0, "eval_maths_pass1": 0.0}, {"step": 3, "eval_loss": 1.0}, {"step": 4, "loss": 2.0}]


def test_a_second_run_moves_the_first_curve_aside(tmp_path):
    for value in (1.0, 2.0):
        log = RunLog(tmp_path, LogConfig(), {})
        log.step(1, {"loss": value})
        log.close()
    files = sorted(tmp_path.glob("metrics*.jsonl"))
    assert len(files) == 2
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 2.0


def test_a_run_that_goes_on_has_each_step_once(tmp_path):
    log = RunLog(tmp_path, LogConfig(), {})
    for step in range(1, 5):
        log.step(step, {"loss": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'\0\0\0\n\xff\n[1]\n{"st": 1}\n{"step": 5, "lo')  # the machine lost its power here
    log = RunLog(tmp_path, LogConfig(), {}, done=2)
    log.step(3, {"loss": 30.0})
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert len(list(tmp_path.glob("metrics*"))) == 1


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs the device that is always full")
def test_a_full_disk_does_not_end_the_run(tmp_path, capsys):
    log = RunLog(tmp_path, LogConfig(), {})
    assert log.file is not None
    os.dup2(os.open("/dev/full", os.O_WRONLY), log.file.fileno())
    for step in (1, 2):
        log.step(step, {"loss": 1.0})
    log.close()
    assert "metrics.jsonl could not be written (No space left on device)" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs the device that is always full")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread ends
def test_tensorboard_on_a_full_disk_does_not_end_the_run(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    log = RunLog(tmp_path, LogConfig(use_tensorboard=str(tmp_path / "tb"), wandb_run_name="began"), {})
    log.sinks[0].writer.flush()
    (events,) = (tmp_path / "tb").rglob("events*")
    events.unlink()
    events.symlink_to("/dev/full")
    for step in range(1, 20):
        log.step(step, {"loss": 1.0})
        with suppress(OSError):
            log.sinks[0].writer.flush()
    log.close()
    assert "TensorBoard could not be written (No space left on device)" in capsys.readouterr().out
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 19


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


def test_tensorboard_goes_on_with_the_run_of_before(tmp_path):
    """Under its name, which holds the time when it began; steps that are run again are not shown twice."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name, done, steps in (("began", 0, (1, 2, 3)), ("again", 1, (2,))):
        config = LogConfig(use_tensorboard=str(tmp_path / "tb"), wandb_run_name=name)
        log = RunLog(tmp_path, config, {}, done=done)
        for step in steps:
            log.step(step, {"loss": 0.5 * step})
        log.close()
    assert [path.name for path in (tmp_path / "tb").iterdir()] == ["began"]
    events = EventAccumulator(str(tmp_path / "tb" / "began"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 1.0)]


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


def wandb_history(file: Path) -> list[dict[str, str]]:
    """What one process logged, from the file that it left: records in LevelDB's log format, each whole here."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, rows = file.read_bytes(), 7, []
    while place < len(data):
        length, kind = struct.unpack_from("<HB", data, place + 4)
        assert kind == 1  # a whole record: there are few, in the file's first block
        record = Record.FromString(data[place + 7 : place + 7 + length])
        if record.WhichOneof("record_type") == "history":
            rows.append({item.key or item.nested_key[0]: item.value_json for item in record.history.item})
        place += 7 + length
    return rows


@pytest.mark.slow
def test_wandb_goes_on_with_the_run_of_before(tmp_path, monkeypatch):
    """Two processes are one run: same id, same name, and each step once."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for steps, done, name in ([1, 2], 0, "began"), ([3], 2, "later"):
        log = RunLog(tmp_path, LogConfig(use_wandb="true", wandb_run_name=name), {}, done=done)
        for step in steps:
            log.step(step, {"loss": 0.5 * step})
        assert log.sinks[0].run.name == "began"
        log.close()
        ended = int(time.time())
        while int(time.time()) == ended:  # W&B names the folder of a run by the second: two in one would share it
            time.sleep(0.05)
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1
    rows = [row for file in files for row in wandb_history(file)]
    assert [(row["_step"], row["loss"]) for row in rows] == [("1", "0.5"), ("2", "1"), ("3", "1.5")]
