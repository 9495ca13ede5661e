"""The rows of the certificate and the page they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.machine import describe
from benchmarks.table import markdown

INTRO = """\
Made by `make certificate`. A row compares steps of one method that must be the same step: each goes through the
project's own update, on random ragged examples and a tiny Qwen3. The errors are the largest difference of an entry of
the gradient, as a part of its largest entry, and the largest difference of a number of the log (loss, accuracies,
norm, …), as a part of that number or of 1. Gradients are in float64, except where the row says float32; what a frozen
model says and the sums of the log are float32 everywhere. I9 to I11 compare whole runs and folders: there the number
is the largest difference of a saved weight, a logit or a number of the log. A row is met when both errors are within
the tolerance. The tests run the same checks, and break the code in each of these ways to see that the check notices."""


@dataclass(frozen=True)
class Row:
    """``gradient`` is None where there is none to compare; ``numbers`` are those of the log, weights or logits."""

    id: str
    statement: str
    method: str
    gradient: float | None
    numbers: float
    tolerance: float

    @property
    def met(self) -> bool:
        """False for NaN too."""
        return (self.gradient or 0.0) <= self.tolerance and self.numbers <= self.tolerance

    def cells(self) -> list[str]:
        gradient = "–" if self.gradient is None else shown(self.gradient)
        return [self.method, gradient, shown(self.numbers), "yes" if self.met else "**NO**"]


def shown(error: float) -> str:
    return "0" if error == 0 else f"{error:.1e}"


def page(rows: Sequence[Row], missing: Sequence[str], packages: Sequence[str]) -> str:
    """A table for each statement. ``missing`` are sentences about what could not be measured here."""
    met = sum(row.met for row in rows)
    parts = [
        "# Certificate of invariance",
        f"{describe(packages)}: **{met} of {len(rows)} met**",
        INTRO,
        *missing,
    ]
    for id in sorted({row.id for row in rows}, key=by_number):
        about = [row for row in rows if row.id == id]
        bound = "no bit may differ" if about[0].tolerance == 0 else f"tolerance {about[0].tolerance:.0e}"
        parts += [
            f"## {id}: {about[0].statement}",
            f"{bound[0].upper()}{bound[1:]}.",
            markdown(("method", "gradient", "numbers", "met"), [row.cells() for row in about]),
        ]
    return "\n\n".join(parts) + "\n"


def by_number(id: str) -> tuple[int, str]:
    """ "I2" stands before "I11"."""
    number, _, rest = id.removeprefix("I").partition(", ")
    return int(number), rest
