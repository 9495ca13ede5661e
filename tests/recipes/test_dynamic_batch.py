"""Every command with micro-batches by tokens: the numbers of micro-batches by rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from certificate.runs import COMMANDS, prepared, run
from tests.recipes.helpers import metrics


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_tokens_instead_of_rows_change_no_number(command: str, tmp_path: Path) -> None:
    """30 tokens, of which some examples have more; 100, which several share."""
    main, flags = prepared(command, tmp_path, dropout=0.0)
    by_tokens = {name: flags.pop(name) for name in ("use_dynamic_batch", "train_max_tokens_per_gpu")}
    rows = metrics(run(main, flags | {"micro_train_batch_size": 2}, tmp_path / "rows"))
    for number, changed in enumerate([{"train_max_tokens_per_gpu": 30}, {"train_max_tokens_per_gpu": 100}]):
        for packed in ({}, {"packing_samples": True}):
            out = tmp_path / f"{number}{len(packed)}"
            tokens = metrics(run(main, flags | by_tokens | changed | packed, out))
            for a, b in zip(rows, tokens, strict=True):
                assert a == pytest.approx(b, rel=1e-3, abs=2e-5)
