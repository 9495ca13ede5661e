"""On two ranks: some methods as they are, then with the faults that the checks are there for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from certificate import ranks
from certificate.methods import METHODS
from certificate.table import Row
from openrlhf.backends.deepspeed import DeepSpeedTrain
from openrlhf.models import packing

SOME = {name: METHODS[name] for name in ("sft", "kto", "ppo, critic")}
FAMILIES = (ranks.zero_rows, ranks.ring_rows, ranks.tensor_rows)  # in this order: AutoTP leaves traces in DeepSpeed
ONE = {"sft": METHODS["sft"]}


def measure(models: Path) -> Iterator[Row]:
    yield from ranks.data_parallel_rows(models, SOME)
    own_sum, ranks.sum_over_ranks = ranks.sum_over_ranks, lambda x: x
    yield from mutants("sums of one rank", ranks.data_parallel_rows(models, ONE))
    ranks.sum_over_ranks = own_sum
    whole_cut, packing.cut = packing.cut, lambda lengths, ring: replace(whole_cut(lengths, ring), before=0)
    yield from mutants("keys of earlier ranks forgotten", ranks.ring_rows(models, ONE))
    packing.cut = whole_cut
    for rows in FAMILIES:
        yield from rows(models, SOME)
        backward = DeepSpeedTrain.backward
        DeepSpeedTrain.backward = lambda self, loss, last, real=backward: real(self, loss / 2, last)
        yield from mutants("mean over ranks", rows(models, ONE))
        DeepSpeedTrain.backward = backward


def mutants(fault: str, rows: Iterator[Row]) -> Iterator[Row]:
    return (replace(row, method=fault) for row in rows)


if __name__ == "__main__":
    ranks.main(Path(sys.argv[1]), Path(sys.argv[2]), measure)
