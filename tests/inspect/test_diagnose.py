"""A fault is planted in a run folder, and it is the finding; a healthy run has none; thin evidence is called so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openrlhf.cli import diagnose as command
from openrlhf.inspect.diagnose import Diagnosis, diagnose, report
from openrlhf.inspect.evidence import Evidence, gather_evidence
from openrlhf.inspect.rules import RULES
from openrlhf.inspect.rules.finding import Finding, Unknown
from openrlhf.training.sample_file import StoredSample, StoredStep
from tests.inspect.runs import sample, step_of, write_run

STEPS = 20
Line = dict[str, float]
Plant = Callable[[float], Line]  # progress from 0 to 1 → what the line of the step has instead
WORDS = ["the sum is 12", "I count to 7", "perhaps 9, or so", "7 and 5 make it", "no idea at all", "eleven I think"]


def healthy_line(progress: float) -> Line:
    return {
        "reward": 0.2 + 0.5 * progress, "reward_std": 0.4, "score": 0.2 + 0.5 * progress, "response_length": 14.0,
        "truncated": 0.02, "entropy": 1.2 - 0.4 * progress, "kl": 0.001 + 0.04 * progress, "ppo_kl": 0.001,
        "clip_ratio": 0.05, "grad_norm": 1.0, "lr": 1e-6, "engine_log_prob_diff": 0.01, "skipped_steps": 0.0,
        "staleness": 0.0,
    }  # fmt: skip


def healthy_sample(row: int, step: int) -> StoredSample:
    """Eight groups of four; half of the answers are right, long and short ones alike."""
    reward = float((row + step) % 2)
    answer = WORDS[(row // 2 + step) % len(WORDS)]
    return sample(
        row, reward, answer, score=reward, per_token={"log_probs": -1.0, "engine_log_probs": -1.01, "kl": 0.02}
    )


def planted(
    folder: Path,
    line: Plant = lambda progress: {},
    late: Callable[[StoredSample], StoredSample] = lambda sample: sample,
    steps: int = STEPS,
    **files: str,
) -> Path:
    lines = [{**healthy_line(i / (steps - 1)), **line(i / (steps - 1))} for i in range(steps)]
    kept: list[StoredStep] = []
    for number in [n for n in range(1, steps + 1) if n <= 5 or n > steps - 5]:
        samples = [healthy_sample(row, number) for row in range(32)]
        kept.append(step_of(number, [late(s) for s in samples] if number > steps - 5 else samples))
    run = write_run(folder, lines, kept)
    for name, text in files.items():
        (run / f"{name}.jsonl").write_text(text)
    return run


def diagnosed(run: Path) -> Diagnosis:
    return diagnose(gather_evidence(run))


def rewritten(old: StoredSample, reward: float, answer: str, **given: Any) -> StoredSample:
    """Another answer and reward to the same prompt; ``score`` stays what it was unless given."""
    return sample(
        old.row, reward, answer, **{"score": old.score, "per_token": {"log_probs": -1.0, "kl": 0.02}, **given}
    )


def wordy(old: StoredSample) -> StoredSample:
    """The reward is the length."""
    length = 10 + 7 * (old.row % 4)
    return rewritten(old, float(length), "w" + WORDS[old.row % 6][: 3 + old.row % 5] + chr(65 + old.row) * length)


def terse(old: StoredSample) -> StoredSample:
    return rewritten(old, -float(1 + old.row % 4), WORDS[old.row % 6][: 1 + old.row % 4])


def phrase(old: StoredSample) -> StoredSample:
    return rewritten(old, 1.0 - 0.1 * (old.row % 4), "Certainly! Here: " + WORDS[old.row % 6][: 4 + old.row % 3])


def off(old: StoredSample) -> StoredSample:
    """In row 9 the engine is far off at token 7."""
    gap = torch.zeros(len(old.tokens))
    gap[7] = 3.0
    theirs = old.per_token["log_probs"] - (gap if old.row == 9 else 0.15) * old.action_mask
    return replace(old, per_token={**old.per_token, "engine_log_probs": theirs})


FAULTS: dict[str, tuple[Plant, Callable[[StoredSample], StoredSample]]] = {
    "entropy_collapse": (
        lambda p: {"entropy": 1.2 * 0.001**p},
        lambda s: rewritten(s, s.reward, "the sum is 12"),
    ),
    "length_hacking": (lambda p: {"response_length": 14 + 30 * p, "score": 0.3}, wordy),
    "format_hacking": (lambda p: {"score": 0.3 - 0.1 * p, "reward/format": p}, phrase),
    "kl_runaway": (lambda p: {"kl": 0.001 * 5000**p}, lambda s: s),
    "engine_mismatch": (lambda p: {"engine_log_prob_diff": 0.01 + 0.3 * p}, off),
    "dead_groups": (lambda p: {}, lambda s: rewritten(s, float(s.group % 2), WORDS[s.row % 6])),
    "truncation": (lambda p: {"truncated": 0.05 + 0.8 * p}, lambda s: replace(s, truncated=s.row % 3 == 0)),
    "learning_rate_too_high": (
        lambda p: {"clip_ratio": 0.1 + 0.6 * p, "grad_norm": 10 ** (4 * p), "reward": 0.2 + p if p < 0.5 else 0.1},
        lambda s: s,
    ),
    "learning_rate_too_low": (lambda p: {"kl": 1e-7, "reward": 0.2, "score": 0.2, "lr": 1e-12}, lambda s: s),
    "invalid_rewards": (lambda p: {"reward/invalid": 0.4 * p}, lambda s: s),
    "not_finite": (lambda p: {"skipped_steps": float(p > 0.5)}, lambda s: s),
}
EXPECTED_SAMPLES: dict[str, Callable[[str], bool]] = {
    "length_hacking": lambda name: int(name.partition(":")[2]) % 4 == 3,  # the longest of each group
    "engine_mismatch": lambda name: True,
    "truncation": lambda name: int(name.partition(":")[2]) % 3 == 0,
    "not_finite": lambda name: name in ("step 15 group 4", "step 15 group 6"),
}


def test_a_healthy_run_has_no_finding(tmp_path: Path) -> None:
    found = diagnosed(planted(tmp_path))
    assert found.findings == [] and found.thin == ""
    assert next(report(found)) == "nothing stands out"
    assert set(found.unknown) == {"loss_rises"}


@pytest.mark.parametrize("rule", FAULTS)
def test_a_planted_fault_is_the_finding(tmp_path: Path, rule: str) -> None:
    line, late = FAULTS[rule]
    skipped = {"skipped": '{"step": 15, "model": "actor", "rows": [4, 4, 6, 6]}\n'} if rule == "not_finite" else {}
    found = diagnosed(planted(tmp_path, line, late, **skipped))
    assert [finding.rule for finding in found.findings] == [rule]
    (finding,) = found.findings
    assert not finding.thin and 0.3 <= finding.weight <= 1
    assert finding.numbers and finding.remedy
    if rule in EXPECTED_SAMPLES:
        assert finding.samples and all(map(EXPECTED_SAMPLES[rule], finding.samples))
    text = "\n".join(report(found))
    assert f"[{rule}, weight" in text and all(name in text for name in finding.samples)


def test_answers_that_become_shorter_for_reward_are_found(tmp_path: Path) -> None:
    (finding,) = diagnosed(planted(tmp_path, lambda p: {"response_length": 14 - 11 * p, "score": 0.3}, terse)).findings
    assert finding.rule == "length_hacking" and "shorter" in finding.what
    assert finding.numbers["correlation of reward and length within groups, last steps"] == pytest.approx(-1)


def test_one_leap_of_the_policy_is_enough(tmp_path: Path) -> None:
    """Whatever the reward did afterwards."""
    (finding,) = diagnosed(planted(tmp_path, lambda p: {"ppo_kl": 8.0 if p == 0 else 0.0})).findings
    assert finding.rule == "learning_rate_too_high"
    assert finding.numbers["ppo_kl, worst fifth"] == pytest.approx(2)
    assert diagnosed(planted(tmp_path / "less", lambda p: {"ppo_kl": 3.0 if p == 0 else 0.0})).findings == []


@pytest.mark.parametrize(("rise", "still"), [(0.0, True), (0.05, True), (0.4, False)])
def test_a_policy_that_does_not_move_is_found_in_noisy_rewards(tmp_path: Path, rise: float, still: bool) -> None:
    """Neighbours differ by 0.1, more than a fifth of their spread within a step: that is no learning."""

    def line(p: float) -> dict[str, float]:
        noise = 0.05 if round(19 * p) % 2 else -0.05
        return {"kl": 1e-7, "reward": 0.3 + noise + rise * p, "score": 0.3, "reward_std": 0.1, "lr": 1e-12}

    found = diagnosed(planted(tmp_path, line)).findings
    assert [finding.rule for finding in found] == ["learning_rate_too_low"] * still


def test_the_numbers_are_those_of_the_run(tmp_path: Path) -> None:
    found = diagnosed(planted(tmp_path, *FAULTS["engine_mismatch"]))
    (finding,) = found.findings
    diffs = [0.01 + 0.3 * i / 19 for i in range(20)]
    assert finding.numbers["mean |difference of log-probs|, last fifth"] == pytest.approx(sum(diffs[-4:]) / 4)
    assert finding.numbers["largest of a stored token"] == pytest.approx(3.0)
    assert finding.numbers["which stands at token"] == 7
    assert {name.partition(":")[2] for name in finding.samples} == {"9"}


@pytest.mark.parametrize(("rewards", "easy"), [((0.0, 1.0), [0.5]), ((0.0, 0.0), [])])
def test_prompts_are_too_easy_only_where_others_are_paid_less(
    tmp_path: Path, rewards: tuple[float, float], easy: list[float]
) -> None:
    samples = [healthy_sample(row, 1) for row in range(32)]
    same = [rewritten(old, rewards[old.group % 2], WORDS[old.row % 6]) for old in samples]
    found = diagnosed(write_run(tmp_path, [healthy_line(i / 9) for i in range(10)], [step_of(10, same)]))
    (finding,) = (finding for finding in found.findings if finding.rule == "dead_groups")
    assert [number for name, number in finding.numbers.items() if "too easy" in name] == easy


@pytest.mark.parametrize("rule", ["length_hacking", "format_hacking"])
def test_what_a_score_confirms_is_no_hacking(tmp_path: Path, rule: str) -> None:
    line, late = FAULTS[rule]
    assert diagnosed(planted(tmp_path, lambda p: {**line(p), "score": 0.3 + 0.5 * p}, late)).findings == []


@pytest.mark.parametrize("rule", ["length_hacking", "format_hacking"])
def test_without_a_score_hacking_is_thin_evidence(tmp_path: Path, rule: str) -> None:
    line, late = FAULTS[rule]
    run = planted(tmp_path, line, lambda s: replace(late(s), score=late(s).reward))
    (finding,) = diagnosed(run).findings
    assert finding.thin == "nothing but the reward itself says whether answers got better"


def test_few_steps_are_thin_evidence(tmp_path: Path) -> None:
    found = diagnosed(planted(tmp_path, lambda p: {"kl": 0.001 * 5000**p}, steps=6))
    assert [finding.thin for finding in found.findings] == ["only 6 logged steps"]
    assert "   thin evidence: only 6 logged steps" in report(found)
    quiet = diagnosed(planted(tmp_path / "quiet", steps=3))
    assert next(report(quiet)) == "nothing stands out, but the evidence is thin: only 3 logged steps"


def test_the_worst_comes_first_and_the_thin_last() -> None:
    def rule(weight: float, thin: str = "") -> Callable[[Evidence], Finding]:
        return lambda run: Finding("x", weight, {}, "y", thin=thin)

    rules = {"mild": rule(0.3), "thin": rule(0.9, "few"), "bad": rule(0.8), "silent": lambda run: Unknown("no data")}
    found = diagnose(Evidence([]), rules)
    assert [finding.rule for finding in found.findings] == ["bad", "mild", "thin"]
    assert found.unknown == {"silent": "no data"}


def test_two_faults_are_both_found(tmp_path: Path) -> None:
    found = diagnosed(planted(tmp_path, lambda p: {"kl": 0.001 * 5000**p, "reward/invalid": 0.1 * p}))
    assert [finding.rule for finding in found.findings] == ["kl_runaway", "invalid_rewards"]


def test_a_run_without_samples_still_has_its_curves_read(tmp_path: Path) -> None:
    run = write_run(tmp_path, [{**healthy_line(i / 19), "kl": 0.001 * 5000 ** (i / 19)} for i in range(20)])
    found = diagnosed(run)
    assert [finding.rule for finding in found.findings] == ["kl_runaway"]
    assert {"length_hacking", "format_hacking", "dead_groups"} <= set(found.unknown)


def test_a_supervised_run(tmp_path: Path) -> None:
    lines = [{"loss": 2 - i / 20, "eval_loss": 1.5 + (i - 8) ** 2 / 100, "grad_norm": 1.0} for i in range(20)]
    (finding,) = diagnosed(write_run(tmp_path, lines)).findings
    assert finding.rule == "loss_rises" and "by heart" in finding.what
    assert finding.numbers["eval_loss, lowest"] == 1.5


def test_a_loss_that_is_no_number(tmp_path: Path) -> None:
    run = write_run(tmp_path, [{"loss": 1.0 if i < 10 else float("nan"), "grad_norm": 1.0} for i in range(20)])
    (finding,) = diagnosed(run).findings
    assert finding.rule == "not_finite" and finding.what.endswith(": loss")


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    found = diagnosed(write_run(tmp_path))
    assert found.findings == [] and found.thin == "only 0 logged steps"
    assert set(found.unknown) == set(RULES) - {"not_finite", "loss_rises"}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main([str(planted(tmp_path / "run", *FAULTS["truncation"]))])
    shown = capsys.readouterr().out
    assert "20 logged steps, 160 samples" in shown and "1. truncation" in shown
    with pytest.raises(SystemExit) as ended:
        command.main([str(tmp_path)])
    assert ended.value.code == 2
    assert "is no run folder" in capsys.readouterr().err
