"""Run folders that are not whole: what cannot be read is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from openrlhf.cli import diagnose, replay, view
from openrlhf.inspect.run_folder import read_metrics
from tests.inspect.runs import sample, step_of, write_run


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("metrics.jsonl", b'{"step": 1}\n{"step": 2, "lo\n', "line 2 does not hold the metrics of a step"),
        ("metrics.jsonl", b'{"step": 1, "\xff": 1}\n', "line 1 does not hold the metrics of a step"),
        ("metrics.jsonl", b"[1]\n", "line 1 does not hold the metrics of a step"),
        ("metrics.jsonl", b'{"loss": 1}\n', "line 1 does not hold the metrics of a step"),
        ("metrics.jsonl", b'{"step": 1, "loss": "high"}\n', "line 1 does not hold the metrics of a step"),
        ("run_config.yaml", b"a: [\n", "run_config.yaml is not YAML: "),
        ("run_config.yaml", b"a: \xff\n", "run_config.yaml is not YAML: "),
        ("run_config.yaml", b"a: !!python/object/apply:os.abort []\n", "run_config.yaml is not YAML: "),
        ("samples/step_000001.parquet", b"PAR1", "cannot be read as samples of a step"),
    ],
)
@pytest.mark.parametrize("main", [diagnose.main, replay.main, view.main], ids=["diagnose", "replay", "view"])
def test_what_is_broken_is_named(
    main: Callable[[list[str]], None], file: str, content: bytes, sentence: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = write_run(tmp_path / "run", [{"reward": 1.0}], [step_of(1, [sample(row) for row in range(4)])])
    (run / file).write_bytes(content)
    more = {diagnose.main: [], replay.main: ["1"], view.main: ["--export", str(tmp_path / "page.html")]}
    with pytest.raises(SystemExit) as ended:
        main([str(run), *more[main]])
    assert ended.value.code == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert sentence in shown[-1] and "Traceback" not in "".join(shown)
    assert not (tmp_path / "page.html").exists()


def test_a_number_that_is_none_is_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN, "kl": -Infinity}\n{"step": 2, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
