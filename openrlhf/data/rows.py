"""Reading one row of a data set: columns by key, plain text, prompt templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openrlhf.data.report import whole_characters

Row = Mapping[str, Any]


def cell(row: Row, key: str, flag: str) -> Any:
    """The value of column ``key``.

    Raises ValueError naming ``flag`` and the columns there are when the row has no such column.
    """
    if key not in row:
        raise ValueError(f"there is no column {key!r}; set {flag} to one of: {', '.join(row)}")
    return row[key]


def plain_text(value: Any, flag: str) -> str:
    """A column as text; an empty cell is the empty string.

    Raises ValueError for a list or mapping: messages need a chat template; UnusableRow for half a character.
    """
    if isinstance(value, (list, tuple, Mapping)):
        raise ValueError(f"the column of {flag} holds messages, not text; add --apply_chat_template")
    return "" if value is None else whole_characters(str(value))


def fill_template(template: str | None, text: str) -> str:
    """``template`` with its ``{}`` replaced by ``text``; other braces stay as they are.

    Raises ValueError when the template has no ``{}``.
    """
    if not template:
        return text
    if "{}" not in template:
        raise ValueError(f"--input_template {template!r} has no {{}} where the input goes")
    return template.replace("{}", text)
