"""Command line, YAML file and configuration: a flag goes before the file, the file before the default."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml

from openrlhf.config.commands import COMMANDS, C, Command, build, defaults, flags, flat, groups, types
from openrlhf.config.dotted import dotted_words, flattened, undotted
from openrlhf.config.other_versions import OTHER_VERSIONS
from openrlhf.config.secrets import revealed

__all__ = ["flat", "parse", "parse_flags", "read", "resolve", "write_yaml"]

NUMBER_LIKE_A_FLAG = re.compile(r"-(\d*\.?\d*e[+-]?\d+|inf)", re.IGNORECASE)


def parse(command: type[C], argv: Sequence[str] | None = None) -> C:
    """The checked configuration. A bad command line or file ends the process with a sentence and code 2."""
    try:
        return read(command, sys.argv[1:] if argv is None else argv)
    except ValueError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def read(command: type[C], argv: Sequence[str]) -> C:
    """As ``parse``, but raises ValueError."""
    config = resolve(command, argv)
    from openrlhf.config.rules import check  # here, so that --help does not wait for torch

    check(config)
    return config


def resolve(command: type[C], argv: Sequence[str]) -> C:
    """The configuration as it was given, its rules unasked. Raises ValueError."""
    given = revealed(parse_flags(command, argv))
    file = given.pop("config", None)
    return build(command, {**(_read_yaml(command, Path(file)) if file is not None else {}), **given})


def write_yaml(config: Command, path: Path) -> None:
    """Write every flag and its value, so that ``--config path`` repeats the run. Secrets are left out.

    Raises ValueError when the folder cannot be written.
    """
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in flat(config).items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"--save_path {path.parent} cannot be written ({error.strerror}): name another folder."
        ) from error


class _Parser(argparse.ArgumentParser):
    """argparse, but an error is a ValueError of one sentence and not a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message.removeprefix('argument ')}.")


def _parser(command: type[Command]) -> argparse.ArgumentParser:
    """The parser of what is given; defaults are no part of it, since the file comes between."""
    parser = _Parser(
        prog=next((f"openrlhf {verb}" for verb, known in COMMANDS.items() if known is command), None),
        description=command.__doc__,
        usage="%(prog)s [--flag value ...]",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=120),
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of flags; what the command line says goes first")
    default, hints = defaults(command), types(command)
    for group in groups(command).values():
        section = parser.add_argument_group(str(group.__doc__))
        for name, f in flags(command, group).items():
            end = f"(default: {_shown(default[name])})" if name in default else "(required)"
            text = f"{f.metadata['help']} {end}".replace("%", "%%")
            section.add_argument(f"--{name}", help=text, **_argument(hints[name]))
    return parser


def _argument(hint: Any) -> dict[str, Any]:
    """The type of a field → what argparse is told."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    if NoneType in get_args(hint):
        return _argument(kinds[0])
    if get_origin(hint) is Literal:
        return {"choices": kinds}
    if get_origin(hint) is tuple:
        return {"nargs": "*" if Ellipsis in kinds else len(kinds), "type": kinds[0], "metavar": kinds[0].__name__}
    if hint is bool:
        return {"nargs": "?", "const": True, "type": _switch, "metavar": "true|false"}
    return {"type": hint, "metavar": hint.__name__}


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, not {text!r}")
    return text.lower() == "true"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return repr(value) if isinstance(value, str) else str(value)


def parse_flags(command: type[Command], argv: Sequence[str]) -> dict[str, Any]:
    """The flags in ``argv`` and their values; no defaults, no rules. Raises ValueError."""
    # argparse takes -1e-3 and -inf for flags unless a space stands before them.
    words = undotted(argv, types(command))
    spaced = [f" {word}" if NUMBER_LIKE_A_FLAG.fullmatch(word) else word for word in words]
    known, rest = _parser(command).parse_known_args(spaced)
    for word in rest:
        if word.startswith("-"):
            raise ValueError(_unknown(command, word.partition("=")[0]))
    if rest:
        raise ValueError(f"{rest[0]!r} follows no flag that takes it.")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in vars(known).items()}


def _unknown(command: type[Command], name: str) -> str:
    if name.lstrip("-") in OTHER_VERSIONS:
        return f"{name} {OTHER_VERSIONS[name.lstrip('-')]}."
    near = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), ["config", *types(command)])
    hint = f"did you mean {' or '.join(f'--{other}' for other in near)}?" if near else "--help lists them."
    return f"{name} is not a flag of this command; {hint}"


def _read_yaml(command: type[Command], path: Path) -> dict[str, Any]:
    """The flags in a file, checked by the same parser as the command line. Raises ValueError that names the file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--config: {path} cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"--config {path} must hold one flag a line, as in `train_batch_size: 128`.")
    try:
        lines = flattened(content, types(command))
        words = [word for name, value in lines.items() for word in _words(command, name, value)]
        unset = {name: None for name, value in lines.items() if value is None and "." not in name}
        return {**unset, **parse_flags(command, words)}
    except ValueError as error:
        raise ValueError(f"--config {path}: {error}") from None


def _words(command: type[Command], name: str, value: Any) -> list[str]:
    """One line of YAML as words of a command line; none for null, which says that a flag has no value."""
    hints = types(command)
    if "." in name:
        return dotted_words(name, value)
    if name not in hints:
        raise ValueError(_unknown(command, name))
    if value is None:
        if NoneType not in get_args(hints[name]):
            raise ValueError(f"{name} needs a value; leave the line out for the default.")
        return []
    if isinstance(value, bool) and hints[name] is not bool:
        raise ValueError(f"{name}: {value} is a truth value; put text such as 'no' in quotes.")
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]
