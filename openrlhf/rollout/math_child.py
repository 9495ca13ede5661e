"""The comparison of expressions, a reward function for ``math_answers.py`` alone: it runs in a process of its own."""

from __future__ import annotations

import logging
import resource

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

SECONDS = 2  # for reading an expression, and for comparing two
BYTES = 4 * 2**30

READ_AS = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())

_, most = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (BYTES if most == resource.RLIM_INFINITY else min(BYTES, most), most))
logging.getLogger("math_verify").setLevel(logging.ERROR)  # its warnings are of answers that a policy may give


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> list[float]:
    """1 where a query and its label are the same expression, as LaTeX or plain."""
    return [float(same(query, label)) for query, label in zip(queries, labels, strict=True)]


def same(answer: str, label: str) -> bool:
    given, wanted = read(answer), read(label)
    return bool(given and wanted) and verify(wanted, given, timeout_seconds=SECONDS)


def read(text: str) -> list[object]:
    """What math-verify makes of a text that is all answer, which a box says; empty where it can make nothing of it."""
    return parse(rf"\boxed{{{text}}}", READ_AS, fallback_mode="no_fallback", parsing_timeout=SECONDS)
