"""Samples as a person reads them: the text and ids with the tokens that carry loss marked, and how long they are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from statistics import median

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from openrlhf.types import Sample

Title = Callable[[Sample], str]
Note = Callable[[Sample, int], str]  # a sample and a token of it → what is written behind the token

OPEN, CLOSE = "⟦", "⟧"  # around what carries loss, where there is no colour; rare in data, unlike [ and ]
LOSS_STYLE, NOTE_STYLE, HEAD_STYLE = "bold green", "bold magenta", "bold"
BINS, BAR = 8, 40


def print_samples(
    console: Console,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    titles: Sequence[Title] = (lambda sample: "",),
    note: Note | None = None,
) -> None:
    """Each sample under its row number and title, its text, and its ids.

    ``titles`` has one entry for each sample of an example, which lie next to each other. Tokens that carry loss are in
    colour on a terminal, else (and with NO_COLOR) between ⟦ and ⟧.
    """
    colour = console.is_terminal and not console.no_color
    carries = f"{OPEN}…{CLOSE}" if not colour else "this colour"
    console.print(_plain(console, f"{carries} marks what carries loss", LOSS_STYLE if colour else ""))
    for i, sample in enumerate(samples):
        learnt = int(sample.action_mask.sum())
        parts = [f"row {sample.group}", titles[i % len(titles)](sample)]
        parts.append(f"{len(sample.tokens)} tokens, {learnt} carry loss")
        console.print(_plain(console, "\n" + " · ".join(filter(None, parts)), HEAD_STYLE))
        runs = list(_runs(sample, note))
        texts = _texts(tokenizer, sample.tokens.tolist(), [end for _, end, _ in runs])
        console.print(_marked(console, zip(texts, runs, strict=True), colour, ""))
        ids = [" ".join(map(str, sample.tokens[start:end].tolist())) for start, end, _ in runs]
        console.print(_plain(console, "ids ").append(_marked(console, zip(ids, runs, strict=True), colour, " ")))


def print_lengths(console: Console, samples: Sequence[Sample], flag: str, limit: int) -> None:
    """A histogram of the lengths in tokens, and the shortest, median and longest against ``limit`` of ``flag``."""
    lengths = [len(sample.tokens) for sample in samples]
    width = math.ceil(max(lengths) / BINS)
    counts = Counter((length - 1) // width for length in lengths)
    most, digits = max(counts.values()), len(str(max(lengths)))
    console.print(f"\nlength of {len(lengths)} texts in tokens")
    for b in range(max(counts) + 1):
        span = f"{b * width + 1:>{digits}} to {min((b + 1) * width, max(lengths)):>{digits}}"
        console.print(f"  {span}  {'#' * math.ceil(BAR * counts[b] / most):<{BAR}}  {counts[b]}")
    at_limit = sum(length >= limit for length in lengths)
    console.print(
        f"shortest {min(lengths)}, median {median(lengths):.0f}, longest {max(lengths)}; {flag} is {limit}, "
        f"reached by {at_limit}"
    )


def terminal() -> Console:
    """Standard output, as wide as its lines are."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def _runs(sample: Sample, note: Note | None) -> Iterator[tuple[int, int, str | None]]:
    """(start, end, what is written behind) of tokens alike; None where they carry no loss, "" where nothing is said."""
    mask = sample.action_mask.tolist()
    # A token with a note of its own is a run of its own.
    for learnt, group in groupby(range(len(mask)), key=lambda t: (mask[t], t if note and mask[t] else -1)):
        places = list(group)
        yield places[0], places[-1] + 1, (note(sample, places[0]) if note else "") if learnt[0] else None


def _texts(tokenizer: PreTrainedTokenizerBase, tokens: list[int], ends: list[int]) -> Iterator[str]:
    # By the growth of the text before: a run decoded alone may lose the space in front of it.
    start, before = 0, ""
    for end in ends:
        text = str(tokenizer.decode(tokens[:end], clean_up_tokenization_spaces=False))
        alone = str(tokenizer.decode(tokens[start:end], clean_up_tokenization_spaces=False))
        yield text[len(before) :] if text.startswith(before) else alone
        start, before = end, text


def _marked(console: Console, parts: Iterator[tuple[str, tuple[int, int, str | None]]], colour: bool, gap: str) -> Text:
    line = Text()
    for i, (text, (_, _, note)) in enumerate(parts):
        line.append(gap if i else "")
        if note is None:
            line.append(_plain(console, text))
        else:
            line.append(_plain(console, text if colour else f"{OPEN}{text}{CLOSE}", LOSS_STYLE if colour else ""))
            line.append(_plain(console, note, NOTE_STYLE))
    return line


def _plain(console: Console, text: str, style: str = "") -> Text:
    """Text that cannot steer the terminal, in characters that the output has."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
    return Text(shown.encode(console.encoding, "backslashreplace").decode(console.encoding), style=style)
