"""``python -m benchmarks [NAME …]``: run the comparisons and print one table. ``--write`` keeps it in RESULTS.md;
after some NAMEs alone, their rows and sections there are replaced and the rest stays.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import reduce
from pathlib import Path

from benchmarks.asynchronous import async_table
from benchmarks.comparisons import COMPARISONS
from benchmarks.controller import controller_table
from benchmarks.growth import growth_table
from benchmarks.machine import describe
from benchmarks.material import write_model
from benchmarks.phases import phase_table, workers_table
from benchmarks.planning import planning_table
from benchmarks.schedules import schedule_table
from benchmarks.syncing import sync_table
from benchmarks.table import Row, markdown

SECTIONS = {
    "planning": planning_table,
    "controller": controller_table,
    "growth": growth_table,
    "schedules": schedule_table,
    "phases": phase_table,
    "async": async_table,
    "sync": sync_table,
    "workers": workers_table,
}  # each with a table of its own
RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = ("what", "ours", "other", "ratio: median (min–max)", "goal", "met")
NOTES = """\
Made by `make bench`. One thread a program; times are CPU seconds of the program's process per step, so that other jobs
on the machine count little. The programs of a comparison run in turns, A B A B …, each in its own process; a ratio is
formed in each round, and a goal counts as met or missed only when all rounds agree. The first two steps are dropped.
Before any ratio is printed, losses (for the head: gradients too) of all programs must agree to 1e-5 in every step.
GRPO samples, so its losses cannot agree: there the number of sampled tokens and the learning rate of every step must.
Memory is the peak of the whole process, imports and model included. The model has 1.05 million parameters and a
vocabulary of 2,048, in float32.

Where ours is packed, TRL pads, as it does by default; its padding-free mode is not measured. At equal lengths there is
no padding to leave out, but the prompt that chosen and rejected have in common goes through our model once. The head's
backward pass computes the logits of all but the first chunks again: four large matrix products instead of three,
against fewer passes over memory. So its time ratio rises with the hidden size, towards 4/3 where the products are all
that counts; the goal for time is out of reach there as long as the head does not know the loss when it runs forward,
and keeping more logits would miss the goal for memory. A reward model's step is the decoder's forward and backward and
next to nothing else, in a bare loop and in TRL alike; ours runs the last of its four layers for the last token of a row
alone. An update on groups that share their prompts has 9/16 of its tokens left, but as many answers to score in the
head and as much attention from them to the prompt: hence more than 0.56.
"""


def main() -> None:
    names = [*COMPARISONS, *SECTIONS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(names)} (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each program (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULTS.name} too")
    args = parser.parse_args()
    if unknown := set(args.names) - set(names):
        parser.error(f"no comparison is called {', '.join(sorted(unknown))}; choose from {', '.join(names)}")
    text, failures = run(args.names or names, args.rounds)
    print(text)
    if args.write and args.names and not failures:
        kept = reduce(with_row, rows_of(text), RESULTS.read_text(encoding="utf-8"))
        text = reduce(with_section, sections_of(text), kept)
    if args.write:
        RESULTS.write_text(text, encoding="utf-8")
    if failures:
        raise SystemExit(1)


def run(names: list[str], rounds: int) -> tuple[str, list[str]]:
    """The report in Markdown, and what failed: one comparison that fails does not cost the others."""
    began = time.monotonic()
    rows: list[Row] = []
    failures: list[str] = []
    parts = ["# Benchmark results", describe(), NOTES.rstrip()]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder)
        write_model(model)
        for name in (name for name in names if name in COMPARISONS):
            print(f"{name} …", flush=True)
            try:
                measured = COMPARISONS[name](model, rounds)
            except RuntimeError as error:
                print(error, flush=True)
                failures.append(f"{name} failed.")
                continue
            print(markdown(HEAD, [row.cells() for row in measured]), flush=True)
            rows += measured
    if rows:
        parts.append(markdown(HEAD, [row.cells() for row in rows]))
    for name in (name for name in names if name in SECTIONS):
        print(f"{name} …", flush=True)
        try:
            parts.append(SECTIONS[name]())
        except RuntimeError as error:
            print(error, flush=True)
            failures.append(f"{name} failed.")
    parts += failures
    parts.append(f"Took {(time.monotonic() - began) / 60:.0f} minutes.")
    return "\n\n".join(parts) + "\n", failures


def rows_of(text: str) -> list[str]:
    """The lines of the table of comparisons, without its head."""
    table = text.partition("\n\n## ")[0]
    return [line for line in table.splitlines() if line.startswith("| ")][2:]


def with_row(text: str, row: str) -> str:
    """``text`` with this row of the table of comparisons in place of the one of the same name, or as the last one."""
    rows, name = rows_of(text), row.split(" | ")[0]
    for old in rows:
        if old.split(" | ")[0] == name:
            return text.replace(old, row)
    return text.replace(rows[-1], f"{rows[-1]}\n{row}")


def sections_of(text: str) -> list[str]:
    """Each from its heading to its last line."""
    body = text.partition("\n\nTook ")[0].rstrip()
    return ["## " + section for section in body.split("\n\n## ")[1:]]


def with_section(text: str, section: str) -> str:
    """``text`` with this section in place of the one with its heading, or as the last one."""
    heading = section.partition("\n")[0] + "\n"
    for old in sections_of(text):
        if old.startswith(heading):
            return text.replace(old, section)
    body, *end = text.partition("\n\nTook ")
    return "".join([body.rstrip(), "\n\n", section, *end]).rstrip() + "\n"


if __name__ == "__main__":
    main()
