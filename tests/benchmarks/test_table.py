"""The parts of the benchmarks that decide: ratios, verdicts, agreement."""

from __future__ import annotations

import io
import json
import math

import pytest
import torch

from benchmarks.__main__ import rows_of, sections_of, with_row, with_section
from benchmarks.asynchronous import summarise as summarise_async
from benchmarks.controller import summarise as summarise_controller
from benchmarks.gate import Gate
from benchmarks.growth import Case, ending
from benchmarks.growth import summarise as summarise_growth
from benchmarks.phases import summarise
from benchmarks.planning import first_fit, load
from benchmarks.rounds import Usage, check_agreement
from benchmarks.schedules import SYNC_S, Clock, FakeEngines, Generation, simulated, training_seconds
from benchmarks.syncing import line
from benchmarks.table import cpu_row, markdown, memory_row
from openrlhf.rollout.engine import step_seed


def usages(**losses: list[float]) -> dict[str, Usage]:
    return {name: Usage(figures={"loss": values, name: [0.0]}) for name, values in losses.items()}


def test_ratios_are_formed_round_by_round() -> None:
    both = {"ours": Usage(cpu=[1.0, 2.0, 3.0]), "TRL": Usage(cpu=[2.0, 2.0, 4.0])}
    row = cpu_row("step", both, "TRL", goal=0.8)
    assert row.ratios == [0.5, 1.0, 0.75]
    assert row.cells() == [
        "step: CPU, ours ÷ TRL", "2000 ms", "2000 ms", "0.75 (0.50–1.00)", "≤ 0.80", "not shown: rounds on both sides",
    ]  # fmt: skip


@pytest.mark.parametrize(("goal", "met"), [(1.0, "yes"), (0.6, "not shown: rounds on both sides"), (0.4, "no")])
def test_goal_is_met_or_missed_only_in_every_round(goal: float, met: str) -> None:
    both = {"ours": Usage(cpu=[1.0, 2.0]), "TRL": Usage(cpu=[2.0, 2.0])}
    assert cpu_row("step", both, "TRL", goal).cells()[-1] == met


def test_memory_has_one_ratio() -> None:
    both = {"ours": Usage(peak=300_000_000), "loop": Usage(peak=600_000_000)}
    assert memory_row("step", both, "loop", None).cells()[1:] == ["300 MB", "600 MB", "0.50", "–", "–"]


def test_markdown() -> None:
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_a_row_takes_the_place_of_the_one_of_its_name() -> None:
    text = "Notes.\n\n| what | ours |\n| --- | --- |\n| a | 1 |\n| b | 2 |\n\n## More\n\n| a | 3 |\n"
    assert rows_of(text) == ["| a | 1 |", "| b | 2 |"]
    assert with_row(text, "| a | 9 |") == text.replace("| a | 1 |", "| a | 9 |")
    assert with_row(text, "| c | 9 |") == text.replace("| b | 2 |", "| b | 2 |\n| c | 9 |")


def test_agreement_is_the_largest_relative_difference() -> None:
    largest, figures = check_agreement(usages(ours=[8.0, 4.0], loop=[8.0, 4.0], TRL=[8.0, 4.00002]))
    assert figures == ["loss"]
    assert largest == pytest.approx(5e-6, rel=1e-4)


@pytest.mark.parametrize("other", [[8.0, 4.0001], [8.0, math.nan], [math.nan, 4.0]])
def test_disagreement_is_an_error(other: list[float]) -> None:
    with pytest.raises(RuntimeError, match="ours and TRL disagree in loss"):
        check_agreement(usages(ours=[8.0, 4.0], TRL=other))


def test_steps_that_are_missing_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        check_agreement(usages(ours=[8.0, 4.0], TRL=[8.0]))


def test_programs_without_a_common_figure_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="no figure in common"):
        check_agreement({"ours": Usage(figures={"loss": [1.0]}), "TRL": Usage(figures={"tokens": [1.0]})})


def test_gate_opens_once_a_step_and_reports_each_round() -> None:
    answers = io.StringIO()
    gate = Gate(io.StringIO("2\n1\n"), answers, total=3)
    step = 0
    while gate.opens():
        gate.record(loss=step)
        step += 1
    reports = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert step == 3
    assert [report["figures"] for report in reports] == [{}, {"loss": [0.0, 1.0]}, {"loss": [2.0]}]
    assert all(report["peak"] > 0 for report in reports)


def test_phases_and_what_is_left_for_the_controller() -> None:
    times = {"time/rollout": 1.0, "time/advantages": 0.1, "time/sync": 0.06}
    steps = [{"step": 1, **times, "busy/rollout": 0.9, "busy/sync": 0.05, "step_seconds": 1.25}]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in summarise(steps).splitlines()[2:]]
    assert lines == [
        ["rollout", "1000.0", "900.0", "80.0%", "–", "–"],
        ["advantages", "100.0", "0.0", "8.0%", "–", "–"],
        ["sync", "60.0", "50.0", "4.8%", "≤ 50 ms", "no"],
        ["controller", "300.0", "–", "24.0%", "≤ 10%", "no"],  # 1.25 − 0.9 − 0.05
        ["step", "1250.0", "950.0", "100.0%", "–", "–"],
    ]


def test_a_section_measured_again_replaces_the_old_one_alone() -> None:
    page = "# Results\n\n| a |\n\n## Phases\n\n| old |\n\nTook 9 minutes.\n"
    assert with_section(page, "## Phases\n\n| new |") == page.replace("old", "new")
    both = with_section(page, "## Others\n\n| more |")
    assert both == page.replace("\n\nTook", "\n\n## Others\n\n| more |\n\nTook")
    assert sections_of(both) == ["## Phases\n\n| old |", "## Others\n\n| more |"]
    assert with_section(both, "## Phases\n\n| new |") == both.replace("old", "new")
    undated = "# Results\n\n| a |\n\n## Phases\n\n| old |\n"
    assert with_section(undated, "## Phases\n\n| new |") == undated.replace("old", "new")
    assert with_section(undated, "## Others\n\n| more |") == undated + "\n## Others\n\n| more |\n"


def test_asynchronous_steps_are_as_many_times_as_fast_in_every_run() -> None:
    def run(step: float, wait: float) -> list[dict[str, float]]:
        return [{"step_seconds": step, "time/rollout": wait, "time/sync": wait / 2}] * 3

    lines = summarise_async({"off": [run(4.0, 2.0), run(3.0, 2.0)], "on": [run(2.0, 0.2), run(2.0, 0.2)]}).splitlines()
    assert lines[2] == "| off | 3500 | 3000 | – | – | – |"
    assert lines[3] == "| on | 2000 | 300 | 1.75 (1.50–2.00) | ≥ 1.6 | not shown: runs on both sides |"


def test_first_fit_and_the_load_of_the_fullest() -> None:
    assert first_fit([5, 6, 4, 5, 3], 10) == 3  # 5 4 | 6 3 | 5
    assert load([30, 20, 10]) == pytest.approx(1.5)


def test_what_a_controller_costs_more_with_ranks_and_how_it_grows() -> None:
    seconds = {(1024, 1, 256): 0.01, (16384, 1, 256): 0.16, (16384, 64, 256): 0.16 + 64 * 0.003, (64, 64, 4096): 1.0}
    rows = [line.split(" | ") for line in summarise_controller(seconds).splitlines()[2:]]
    assert [row[2] for row in rows[:3]] == ["10 µs", "10 µs", "21 µs"]
    assert [row[3] for row in rows] == ["–", "–", "3.00 ms", "–", "–"]
    assert [row[-1] for row in rows] == ["yes |", "yes |", "no |", "no |", "yes |"]
    assert rows[-1][1] == "exponent 1.00"


def test_growth_of_memory_and_how_a_run_ends() -> None:
    """2 GiB for 8,192 samples more, twice as much for twice as many."""
    gib = 2**30
    cases = [Case(256, n * 8192, 0.5 * n, gib, gib + n * 2 * gib, "") for n in (1, 2)]
    rows = summarise_growth([*cases, Case(256, 32768, None, gib, 0, "exit code 1")]).splitlines()[2:]
    assert rows[1] == "| 2,048 prompts, 16,384 samples of 256 tokens | 4.00 GiB | 262.1 KB | 1.00 s | – |"
    assert rows[2].endswith("| over the limit | – | – | exit code 1 |")
    assert rows[3].startswith("| growth at 256 tokens: 4,096 samples a GiB | exponent 1.00 |")
    said = "x\nmemory ran out; plan\n- lower it\nTraceback\n"
    assert ending(1, said) == "exit code 1: memory ran out; plan - lower it"
    assert ending(-9, "Traceback") == "exit code -9, without a word"


def test_a_line_through_the_seconds_of_a_sync() -> None:
    points = [{"bytes": size * 1e9, "seconds": 0.02 + 1.5 * size} for size in (0.001, 0.1, 2.0)]
    assert line(points) == "20 ms + 1.50 s a GB"


def test_a_rollout_on_a_counted_clock() -> None:
    """Two engines, answers of 100 and 300 tokens and of 100 and 100: (10 + 2 · 0.3) ms a token for the first 100, then
    (10 + 0.3) ms."""
    made = Generation(5.0, torch.tensor([[300.0, 100.0], [100.0, 100.0]]))
    assert made.own.tolist() == pytest.approx([1.06 + 2.06, 1.06])
    assert made.end == pytest.approx(8.12)
    assert made.drawn_before(5.53) == pytest.approx(200 / 600)
    assert made.drawn_before(6.06 + 1.03) == pytest.approx(500 / 600)
    assert made.drawn_before(9.0) == 1.0
    made.pauses.append(5.53)
    assert made.end == pytest.approx(8.12 + SYNC_S)
    assert made.drawn_before(5.53 + SYNC_S) == pytest.approx(200 / 600)


def test_steps_on_a_counted_clock_wait_for_what_the_loop_waits_for() -> None:
    """One after the other a step is generation, update, sync. With a rollout ahead it is the longer of two."""
    alone = simulated(8, 1.0, ahead=0, breaks_in=False)
    assert alone.staleness == 0
    lengths = FakeEngines(Clock(), 8, 128, False)
    ends = [lengths.collect([], step_seed(0, step)).made.own.max() for step in range(21, 41)]  # type: ignore[attr-defined]
    assert alone.step == pytest.approx(float(sum(ends)) / 20 + training_seconds(8) + SYNC_S, rel=1e-5)
    ahead = simulated(8, 0.75, ahead=1, breaks_in=False)  # the few that train are what is waited for
    assert ahead.staleness == pytest.approx(1)
    assert ahead.step == pytest.approx(4 * training_seconds(8) + SYNC_S, rel=0.01)
