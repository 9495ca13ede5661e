"""The certificate's rows of several ranks, in two processes over gloo."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


@pytest.mark.timeout(600)
def test_ranks_and_stages_change_nothing_and_faults_are_noticed(models: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    from certificate.launch import on_two_ranks

    rows = on_two_ranks("tests.certificate.ranks_and_mutants", models, tmp_path / "rows.json")
    met = {(row.id, row.method): row.met for row in rows}
    families = ("I5, ZeRO", "I5, ring", "I5, tensor parallel")
    real = {(id, method): True for id in ("I2", *families) for method in ("sft", "kto", "ppo, critic")}
    faults = [
        *[("I2", "sums of one rank"), ("I5, ring", "keys of earlier ranks forgotten")],
        *[(id, "mean over ranks") for id in families],
    ]
    assert met == real | dict.fromkeys(faults, False)


def test_a_launch_that_fails_says_how(models: Path, tmp_path: Path) -> None:
    from certificate.launch import on_two_ranks

    with pytest.raises(RuntimeError, match="No module named tests.certificate.nothing"):
        on_two_ranks("tests.certificate.nothing", models, tmp_path / "rows.json")
