"""Secrets on a command line, which every user of the machine can read: they move to the environment of the process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from openrlhf.config import groups
from openrlhf.config.dotted import RENAMED

MOVED = "(moved)"  # what stands in their place


def secret_flags() -> dict[str, str]:
    """Flags that hold a secret, by every name that they have."""
    kinds = [group for group in vars(groups).values() if isinstance(group, type) and is_dataclass(group)]
    secret = {f.name for group in kinds for f in fields(group) if f.metadata["secret"]}
    return {name: name for name in secret} | {dotted: name for dotted, name in RENAMED.items() if name in secret}


def moved(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """A command line without its secrets, and these as environment variables."""
    flags = {f"--{name}": flag for name, flag in secret_flags().items()}
    rest, found = list(words), {}
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if equals and name in flags and _is_secret(value):
            rest[i], found[variable(flags[name])] = f"{name}={MOVED}", value
        elif i > 0 and words[i - 1] in flags and _is_secret(word):
            rest[i], found[variable(flags[words[i - 1]])] = MOVED, word
    return rest, found


def revealed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Flags with the secrets that had been moved. Raises ValueError when they are gone."""
    hidden = [name for name, value in given.items() if value == MOVED]
    for name in hidden:
        if variable(name) not in os.environ:
            raise ValueError(f"--{name} {MOVED} stands for a secret that was moved to the environment: give it again.")
    return {**given, **{name: os.environ[variable(name)] for name in hidden}}


def forget() -> None:
    """Processes that this one starts do not inherit its secrets."""
    for flag in secret_flags().values():
        os.environ.pop(variable(flag), None)


def variable(flag: str) -> str:
    return f"OPENRLHF_SECRET_{flag.upper()}"


def _is_secret(value: str) -> bool:
    return not value.startswith("--") and value != MOVED and value.lower() not in ("", "true", "false")
