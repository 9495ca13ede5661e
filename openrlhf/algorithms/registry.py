"""Find an algorithm by name, or in a user's file by ``path/file.py:function``."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")


def lookup(registry: Mapping[str, T], name: str, flag: str) -> T:
    """The entry called ``name``, or what ``path/file.py:function`` defines; ``flag`` is named in error sentences.

    Raises ValueError when the name, the file or the function does not exist.
    """
    if ".py:" in name:
        found: T = load_from_file(name, flag)
        return found
    if name not in registry:
        raise ValueError(f"{flag}: there is no {name!r}{_nearest(name, registry)}; choose from {', '.join(registry)}.")
    return registry[name]


def load_from_file(spec: str, flag: str) -> Any:
    """What ``path/file.py:function`` names. The file runs once per process, whatever is taken from it.

    Raises ValueError when the file or the function does not exist; errors inside the file come through as they are.
    """
    path, _, function = spec.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"{flag}: there is no file {path!r}; write it as path/file.py:function.")
    defined = vars(_run_file(Path(path).resolve()))
    if function not in defined:
        raise ValueError(f"{flag}: {path} does not define {function!r}{_nearest(function, defined)}.")
    return defined[function]


@cache
def _run_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # always so for an existing .py file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names))
    return f" (did you mean {' or '.join(close)}?)" if close else ""
