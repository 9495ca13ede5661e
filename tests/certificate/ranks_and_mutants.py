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
ONE = {"sft": METHODS["sft"]}


def measure(models: Path) -> Iterator[Row]:
    yield from ranks.data_parallel_rows(models, SOME)
    yield from ranks.zero_rows(models, SOME)
    yield from ranks.ring_rows(models, SOME)
    whole_cut, packing.cut = packing.cut, lambda lengths, ring: replace(whole_cut(lengths, ring), before=0)
    yield from mutants("keys of earlier ranks forgotten", ranks.ring_rows(models, ONE))
    packing.cut = whole_cut
    own_sum, ranks.sum_over_ranks = ranks.sum_over_ranks, lambda x: x
    yield from mutants("sums of one rank", ranks.data_parallel_rows(models, ONE))
    ranks.sum_over_ranks = own_sum
    backward = DeepSpeedTrain.backward
    DeepSpeedTrain.backward = lambda self, loss, last: backward(self, loss / 2, last)
    yield from mutants("mean over ranks", ranks.zero_rows(models, ONE))
    yield from mutants("mean over a ring", ranks.ring_rows(models, ONE))


def mutants(fault: str, rows: Iterator[Row]) -> Iterator[Row]:
    return (replace(row, method=fault) for row in rows)


if __name__ == "__main__":
    ranks.main(Path(sys.argv[1]), Path(sys.argv[2]), measure)
