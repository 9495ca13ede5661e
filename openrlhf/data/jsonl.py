"""Rows into a file of JSON lines that is there when it is complete, and not before."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Write = Callable[[Iterable[Mapping[str, Any]]], None]


@contextmanager
def whole_file(path: Path, flag: str) -> Iterator[Write]:
    """A function that writes rows; the file takes its name at the end, when nothing was raised.

    Until then it is ``<name>.part`` beside it. Raises ValueError naming ``flag`` at once when it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("w", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{flag} {path} cannot be written ({error.strerror}): name another file") from error
    try:
        with file:
            yield lambda rows: file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
