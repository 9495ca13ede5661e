"""How a command makes samples of its rows, and how it shows them: one object, for training, preview and check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from openrlhf.data.preview import Note, Title
from openrlhf.data.report import DropReport
from openrlhf.data.rows import Row
from openrlhf.types import Sample

# rows, the flag they came from → samples, those of an example next to each other
Encode = Callable[[Iterable[Row], str], tuple[list[Sample], DropReport]]


def untitled(sample: Sample) -> str:
    return ""


@dataclass(frozen=True)
class Reader:
    """``titles`` has one entry for each sample of an example; ``note`` is written behind tokens that carry loss."""

    encode: Encode
    limit_flag: str  # the flag that bounds a text, as in --max_len
    limit: int  # tokens
    titles: Sequence[Title] = (untitled,)
    note: Note | None = None
