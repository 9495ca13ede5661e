"""The file of a step: what is written comes back, and nothing but a whole file is ever there."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from openrlhf.training.sample_file import StoredSample, StoredStep, Turn, read_step, step_path, stored_steps, write_step


def made(row: int, length: int, **given: object) -> StoredSample:
    return StoredSample(
        row=row,
        prompt_id=7,
        group=row // 2,
        turns=[Turn(False, "<script>é"), Turn(True, "二" * length)],
        tokens=torch.arange(length) + 3,
        action_mask=torch.arange(length) > 0,
        outcome=0.1,
        reward=-0.25,
        parts={"model_1": 0.5, "function": -0.4},
        per_token={"advantages": torch.linspace(-1, 1, length), "log_probs": torch.full((length,), float("nan"))},
        **given,  # type: ignore[arg-type]
    )


def test_a_step_comes_back_as_it_was_written(tmp_path: Path) -> None:
    samples = [
        made(0, 3, extras={"turns": 2.0}, score=1.0, source="maths", label="42", weight_version=9),
        made(5, 1, truncated=True),
    ]
    step = StoredStep(12, 8, 0.03, samples, {3: "a", 4: "\n"})
    path = step_path(tmp_path, 12)
    write_step(path, step)
    back = read_step(path)
    assert (back.step, back.rows, back.kl_coef, back.vocabulary) == (12, 8, 0.03, {3: "a", 4: "\n"})
    assert not back.whole and back.name_of(back.samples[1]) == "12:5"
    tensors = {"tokens", "action_mask", "per_token"}
    for before, after in zip(samples, back.samples, strict=True):
        assert {k: v for k, v in vars(after).items() if k not in tensors} == {
            k: v for k, v in vars(before).items() if k not in tensors
        }
        for name in ("tokens", "action_mask"):
            assert torch.equal(vars(after)[name], vars(before)[name])
        for name, values in before.per_token.items():
            torch.testing.assert_close(after.per_token[name], values, rtol=0, atol=0, equal_nan=True)
    assert list(back.samples[0].parts) == ["model_1", "function"]  # the order of their weights
    assert back.samples[1].extras == {}


def test_any_reader_of_parquet_opens_it(tmp_path: Path) -> None:
    write_step(step_path(tmp_path, 1), StoredStep(1, 1, 0.0, [made(0, 2)]))
    (row,) = pq.read_table(tmp_path / "step_000001.parquet").to_pylist()
    assert row["token/advantages"] == [-1.0, 1.0]
    assert row["part/model_1"] == 0.5
    assert row["turns"][1] == {"policy": True, "text": "二二"}


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    step = StoredStep(1, 1, 0.0, [made(0, 2)])
    write_step(step_path(tmp_path, 1), step)
    (tmp_path / "step_000002.parquet").mkdir()  # nothing can be moved there
    with pytest.raises(OSError, match="step_000002"):
        write_step(step_path(tmp_path, 2), step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000001.parquet", "step_000002.parquet"]


def test_steps_are_found_in_order_among_other_files(tmp_path: Path) -> None:
    for name in ("step_000010.parquet", "step_000002.parquet", "step_1000000.parquet", "step_3.tmp", "notes.txt"):
        (tmp_path / name).touch()
    assert stored_steps(tmp_path) == [2, 10, 1_000_000]


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    broken, foreign = tmp_path / "broken.parquet", tmp_path / "foreign.parquet"
    broken.write_bytes(b"PAR1 and then the disk was full")
    pq.write_table(pa.table({"x": [1]}), foreign)
    with pytest.raises(ValueError, match=r"broken.parquet cannot be read"):
        read_step(broken)
    with pytest.raises(ValueError, match=r"foreign.parquet holds no samples in format 1"):
        read_step(foreign)
