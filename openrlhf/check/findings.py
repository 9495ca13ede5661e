"""A finding: how bad, about what, one sentence that names the flag or row and, where it is bad, the way out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    severity: Severity
    topic: str  # flags, packages, models, data, reward, devices, memory, disk
    sentence: str

    def line(self) -> str:
        return f"{self.severity:<7}  {self.topic:<8}  {self.sentence}"


def gathered(topic: str, sentences: Iterable[tuple[Severity, str]]) -> Iterator[Finding]:
    """Findings of one look. What it raises as bad input, a ValueError or ImportError, is its last finding."""
    try:
        for severity, sentence in sentences:
            yield Finding(severity, topic, sentence)
    except (ValueError, ImportError) as error:
        yield Finding("error", topic, str(error))


def would_start(findings: Sequence[Finding]) -> bool:
    return all(finding.severity != "error" for finding in findings)


def summary(findings: Sequence[Finding]) -> str:
    """``the run would start: 0 errors, 2 warnings``."""
    count = {bad: sum(finding.severity == bad for finding in findings) for bad in ("error", "warning")}
    named = ", ".join(f"{number} {bad}{'s' * (number != 1)}" for bad, number in count.items())
    return f"the run would {'' if would_start(findings) else 'not '}start: {named}"
