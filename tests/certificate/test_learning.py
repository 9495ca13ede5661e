"""The table of what learns: one estimator in one process, some on Ray, and that chance does not count."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from certificate import learning
from certificate.learning import Learnt, learnt, page
from openrlhf.algorithms.advantages import ADVANTAGE_ESTIMATORS


@pytest.mark.slow
def test_in_one_process(tmp_path: Path) -> None:
    cells = list(learnt("one process", ["reinforce", "rloo"], tmp_path))
    assert all(cell.rises for cell in cells), cells
    assert abs(cells[0].rewards[0] - cells[1].rewards[0]) < 1e-9  # the second begins where the first began


@pytest.mark.slow
def test_chance_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "STEPS", 4)
    still = learning.configuration("--local --actor_learning_rate 0 --critic_learning_rate 0", tmp_path)
    with learning.started(still) as run:
        assert not Learnt("", "gae", run.train(still, tmp_path / "gae")).rises


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("placement", "estimators"), [("Ray, separate", ADVANTAGE_ESTIMATORS), ("Ray, colocated", ["gae", "group_norm"])]
)
def test_on_ray(placement: str, estimators: Iterable[str], tmp_path: Path) -> None:
    for package in ("ray", "vllm", "deepspeed"):
        pytest.importorskip(package)
    cells = list(learnt(placement, estimators, tmp_path))
    assert all(cell.rises for cell in cells), cells


def test_the_page_shows_what_did_not_rise() -> None:
    cells = [
        *(Learnt(where, "gae", [0.26, 0.9]) for where in ("here", "there")),
        *(Learnt(where, "rloo", [0.26, last]) for where, last in (("here", 0.5), ("there", float("nan")))),
    ]
    text = page(cells)
    assert "**2 of 4 learnt**" in text
    assert "| estimator | here | there |" in text
    assert "| `gae` | 0.26 → 0.90 | 0.26 → 0.90 |" in text
    assert "| `rloo` | **0.26 → 0.50** | **0.26 → nan** |" in text
