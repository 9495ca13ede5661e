"""``python -m certificate``: measure every invariance and print the table; exit code 1 when one does not hold.

``--write`` keeps it in docs/certificate.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import transformers

from certificate.launch import on_two_ranks
from certificate.material import write_models
from certificate.methods import METHODS
from certificate.runs import placed_rows, resumed_rows
from certificate.saved import SAVED, TEXT, TOLERANCE, error
from certificate.statements import STATEMENTS, worst
from certificate.steps import subject
from certificate.table import Row, page

PAGE = Path(__file__).parents[1] / "docs" / "certificate.md"
SEEDS = range(5)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m certificate", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write the table to docs/{PAGE.name} too")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    packages = ["torch", "transformers"]
    missing = []
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        rows = [*in_process(Path(folder)), *saved(Path(folder))]
        if find_spec("deepspeed") is not None:
            packages.append("deepspeed")
            print("two ranks …", flush=True)
            rows += on_two_ranks("certificate.ranks", Path(folder), Path(folder) / "rows.json")
        else:
            missing.append("DeepSpeed is not installed here: the rows of several ranks are missing.")
        print("whole runs …", flush=True)
        rows += resumed_rows(Path(folder))
        if all(find_spec(package) for package in ("ray", "vllm", "deepspeed")):
            rows += placed_rows(Path(folder) / "placed")
        else:
            missing.append("Ray, vLLM or DeepSpeed is not installed here: I9 is missing.")
    text = page(rows, missing, packages)
    print(text)
    if args.write:
        PAGE.write_text(text, encoding="utf-8")
    if not all(row.met for row in rows):
        raise SystemExit(1)


def in_process(models: Path) -> Iterator[Row]:
    for id, statement in STATEMENTS.items():
        print(f"{id}: {statement.text} …", flush=True)
        for name, method in METHODS.items():
            errors = [statement.check(subject(method, models), seed) for seed in SEEDS]
            if measured := [e for e in errors if e is not None]:
                whole = worst(*measured)
                yield Row(id, statement.text, name, whole.gradient, whole.metrics, statement.tolerance)


def saved(models: Path) -> Iterator[Row]:
    for name, check in SAVED.items():
        yield Row("I11", TEXT, name, None, error(check, models, models / f"saved {name}"), TOLERANCE)


if __name__ == "__main__":
    main()
