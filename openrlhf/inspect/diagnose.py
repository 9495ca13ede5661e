"""The rules asked one after the other, and their findings in order: the worst with the firmest evidence first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from openrlhf.inspect.evidence import Evidence
from openrlhf.inspect.rules import RULES
from openrlhf.inspect.rules.finding import Finding, Rule, Unknown


@dataclass(frozen=True)
class Diagnosis:
    findings: list[Finding]
    unknown: dict[str, str]  # rule → why it could not say anything
    thin: str  # why all of it is thin, or nothing


def diagnose(evidence: Evidence, rules: Mapping[str, Rule] = RULES) -> Diagnosis:
    answers = {name: rule(evidence) for name, rule in rules.items()}
    findings = [replace(answer, rule=name) for name, answer in answers.items() if isinstance(answer, Finding)]
    return Diagnosis(
        findings=sorted(findings, key=lambda finding: (bool(finding.thin), -finding.weight)),
        unknown={name: answer.why for name, answer in answers.items() if isinstance(answer, Unknown)},
        thin=evidence.thin(),
    )


def report(diagnosis: Diagnosis) -> Iterator[str]:
    """The diagnosis as lines of text."""
    if not diagnosis.findings:
        yield "nothing stands out" + (f", but the evidence is thin: {diagnosis.thin}" if diagnosis.thin else "")
    for number, finding in enumerate(diagnosis.findings, start=1):
        yield f"{number}. {finding.what}  [{finding.rule}, weight {finding.weight:.2f}]"
        if finding.thin:
            yield f"   thin evidence: {finding.thin}"
        yield from (f"   {name}: {value:.4g}" for name, value in finding.numbers.items())
        if finding.samples:
            yield f"   samples: {', '.join(finding.samples)}"
        yield f"   try: {finding.remedy}"
    if diagnosis.unknown:
        yield "could not be looked at:"
        yield from (f"   {rule}: {why}" for rule, why in diagnosis.unknown.items())
