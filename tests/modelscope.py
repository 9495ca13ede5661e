"""A stand-in for the package ``modelscope``: the real hub cannot be reached from where the tests run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest


def offer(monkeypatch: pytest.MonkeyPatch, models: Mapping[str, Path], data: Mapping[str, Path]) -> list[str]:
    """Put a package in place that "downloads" these names to these folders. Answers the list of what is asked for."""
    asked: list[str] = []

    def from_shelf(shelf: Mapping[str, Path], name: str) -> str:
        asked.append(name)
        if name not in shelf:
            raise LookupError(f"no repository {name}\nand a second line")
        return str(shelf[name])

    package = ModuleType("modelscope")
    vars(package)["snapshot_download"] = lambda name: from_shelf(models, name)
    vars(package)["dataset_snapshot_download"] = lambda name: from_shelf(data, name)
    monkeypatch.setitem(sys.modules, "modelscope", package)
    return asked


def take_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the package is not installed."""
    monkeypatch.setitem(sys.modules, "modelscope", None)
