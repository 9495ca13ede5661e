"""The package's source as syntax trees, for the tests of this folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import openrlhf

PACKAGE = Path(openrlhf.__file__).parent


@cache
def trees() -> dict[str, ast.Module]:
    """Syntax tree of every file, by its path inside the package: ``training/ppo.py``."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def imported_libraries(tree: ast.AST) -> Iterator[str]:
    """Top-level name of everything imported anywhere in a file, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def module_name(path: str) -> str:
    """``training/ppo.py`` → ``openrlhf.training.ppo``."""
    return ".".join(["openrlhf", *path.removesuffix(".py").removesuffix("__init__").strip("/").split("/")]).rstrip(".")
