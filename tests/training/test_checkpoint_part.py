"""A process finds its random numbers again."""

from __future__ import annotations

import random
from pathlib import Path

import numpy
import torch

from openrlhf.training.checkpoint_part import RandomPart


def draws() -> list[float]:
    return [
        *(random.random(), random.gauss(0, 1), float(numpy.random.rand()), float(numpy.random.randn())),
        *torch.rand(2).tolist(),
    ]


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    draws()  # a spare Gaussian is kept by Python and by NumPy
    assert RandomPart().save_state(tmp_path, None).result(timeout=1) is None
    expected = draws()
    random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
    assert draws() != expected
    RandomPart().load_state(tmp_path, False).result(timeout=1)
    assert draws() == expected


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    reason = RandomPart().save_state(tmp_path / "file" / "part", None).result(timeout=1)
    assert reason is not None and "Not a directory" in reason
