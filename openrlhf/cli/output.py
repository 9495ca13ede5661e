"""Standard output and error: said line by line, into a file too, and lost, not fatal, where the disk is full."""

from __future__ import annotations

import errno
import io
import sys
from contextlib import suppress
from typing import Any, TextIO

NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


class Sparing(io.FileIO):
    """A file that throws away what the disk has no room for."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            return memoryview(data).nbytes


def spare_output() -> None:
    """From now on a line appears when it is said, wherever it goes, and a full disk under the standard streams is no
    error; streams that somebody replaced stay theirs."""
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        sys.stdout = _sparing(sys.stdout)
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        sys.stderr = _sparing(sys.stderr)


def _sparing(stream: TextIO) -> TextIO:
    with suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Sparing(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=True,
    )
