"""Is the final answer of a response the label? Numbers are compared here, everything else by math-verify.

math-verify hands expressions to sympy, and a short text such as ``9^{9^{9^9}}`` keeps sympy busy for ever in one call
that nothing but the end of its process stops. So it works in a process of its own (``math_child.py``).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from openrlhf.rollout.isolated import IsolatedFunction
from openrlhf.rollout.rewards import RewardFailed

LONGEST = 200  # characters of an answer; what is longer is none
COMPARE_SECONDS = 10.0  # for one comparison, the start of the process included
MATCHED = 40  # last characters of a prompt that are looked for where the whole prompt is not in the query

SPECIAL_TOKEN = re.compile(r"<[^<>\s]{1,40}>$")
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
FINAL_LINE = re.compile(r"####[^\S\n]*([^\n]*)")
CURRENCY = "$€£¥₹"
DIGITS = r"(?:\d{1,3}(?:[, ]\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
LAST_NUMBER = re.compile(rf"(?:(?<![\w.)])-)?[{CURRENCY}]?(?<![\d.])(?:{DIGITS})(?:/\d+)?\s?%?")
UNIT = r"(?:[A-Za-z°][A-Za-z°'.-]*(?:\^?[23])?)"
PLAIN = re.compile(
    rf"(?P<sign>[-+]?)\s*[{CURRENCY}]?\s*(?P<inner>-?)"
    rf"(?:(?P<whole>\d+)\s+(?P<top>\d+)/(?P<bottom>\d+)"
    rf"|(?P<number>(?:{DIGITS})(?:[eE][-+]?\d{{1,2}})?)(?:\s*/\s*(?P<under>\d+))?)"
    rf"\s*(?P<percent>%|(?:percent|per cent)\b)?[{CURRENCY}]?"
    rf"(?:(?:\s+|(?=(?:[mck]?m|k?g|m?l|s|h|min|mph|ft|lbs?|oz|°)\b))(?P<unit>{UNIT}(?:[\s/]+{UNIT})*))?"
)
# What makes another number of the one before it, or another answer.
NO_UNIT = {
    *("pi", "or", "and", "to", "sqrt", "times", "plus", "minus", "over", "half", "dozen", "hundred", "thousand"),
    *("million", "billion", "trillion", "x", "y", "z", "n", "k", "e", "i"),
}
WRAPPERS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
SPACES = re.compile(r"\\[,;:! ]|~|\\quad")
SIGNS = str.maketrans({"−": "-", "–": "-", "²": "^2", "³": "^3", "\u200b": None, "\ufeff": None})


@dataclass(frozen=True)
class Number:
    value: Fraction
    percent: bool

    def text(self) -> str:
        return f"{self.value}{'%' * self.percent}"


def response_of(query: str, prompt: str) -> str:
    """What the policy wrote: the query behind the prompt, of which a long one has lost its beginning."""
    if query.startswith(prompt):
        return query[len(prompt) :]
    _, found, rest = query.partition(prompt[-MATCHED:])
    return rest if found else query


def final_answer(response: str) -> str | None:
    r"""What a response gives as its answer: the last ``\boxed{…}`` or ``#### …``, without them its last number.

    None where there is nothing, or where the response was cut within its last mark.
    """
    text = _without_special_tokens(response)
    marked, answer = _marked(text)
    if not marked:
        numbers = LAST_NUMBER.findall(_characters(text))
        answer = numbers[-1].strip() if numbers else None
    return answer


def same_answer(answer: str, label: str) -> bool:
    """Whether two answers are the same number, expression or text. A percentage equals its number, 50% both 50 and 0.5.

    Of a label with marks, as the solutions of GSM8K and MATH are, the marked answer counts. Raises ImportError without
    math-verify.
    """
    if find_spec("math_verify") is None:
        raise ImportError("grading of mathematics needs a package that is not here: pip install 'openrlhf[math]'.")
    marked, wanted = _marked(label)
    answer, label = _bare(answer), _bare(wanted or "" if marked else label)
    if len(answer) > LONGEST:
        return False
    given, wanted = _without_layout(answer), _without_layout(label)
    if not given or not wanted:
        return False
    a, b = plain_number(given), plain_number(wanted)
    if a is not None and b is not None:
        return a.value == b.value or (a.percent != b.percent and _share(a) == _share(b))
    if given.casefold() == wanted.casefold():
        return True
    if "\\" not in given and re.search(r"\d\s+\d", given):  # several numbers, of which sympy makes a product
        return False
    return _same_expression(a.text() if a else answer, b.text() if b else label)


def plain_number(text: str) -> Number | None:
    """The number that a text is, with its currency or unit left out: ``-$1,200.50``, ``3/4``, ``1 1/2 cups``, ``20%``.

    None for everything else.
    """
    found = PLAIN.fullmatch(text) if len(text) <= LONGEST else None
    if found is None or any(word in NO_UNIT for word in re.split(r"[\s/]+", (found["unit"] or "").lower())):
        return None
    try:
        if found["whole"]:
            value = int(found["whole"]) + Fraction(int(found["top"]), int(found["bottom"]))
        else:
            value = Fraction(re.sub("[, ]", "", found["number"])) / int(found["under"] or 1)
    except ZeroDivisionError:
        return None
    negative = (found["sign"] == "-") != (found["inner"] == "-")
    return Number(-value if negative else value, found["percent"] is not None)


def _without_special_tokens(response: str) -> str:
    text = response.rstrip()
    while found := SPECIAL_TOKEN.search(text, max(len(text) - 42, 0)):
        text = text[: found.start()].rstrip()
    return text


def _marked(text: str) -> tuple[bool, str | None]:
    """Whether there is a mark, and what stands in the last one."""
    boxes, lines = list(BOX.finditer(text)), list(FINAL_LINE.finditer(text))
    if boxes and (not lines or boxes[-1].start() > lines[-1].start()):
        return True, _until_closed(text[boxes[-1].end() :])
    if lines:
        return True, lines[-1][1].strip() or None
    return False, None


def _until_closed(text: str) -> str | None:
    """Up to the brace that closes the one before ``text``; None where it was never closed."""
    depth = 1
    for place, letter in enumerate(text):
        if letter in "{}" and text[place - 1 : place] != "\\":
            depth += 1 if letter == "{" else -1
        if depth == 0:
            return text[:place].strip() or None
    return None


def _bare(text: str) -> str:
    """Without the signs around it, and in the characters that numbers are written with."""
    text = " ".join(_characters(text).replace("**", "").split())
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)]
    return text.rstrip(".,;:! ").lstrip()


def _without_layout(text: str) -> str:
    """Without the LaTeX that says how a number and its unit look."""
    text = SPACES.sub(" ", WRAPPERS.sub(r" \1 ", text))
    text = text.replace("\\$", "$").replace("\\%", "%").replace("{,}", ",")
    return " ".join(text.split()).rstrip(".,;:! ")


def _characters(text: str) -> str:
    """Full-width and other digits as ASCII, ½ as 1/2, one kind of minus and of space."""
    if text.isascii():
        return text
    told = (unicodedata.normalize("NFKC", letter) for letter in text.translate(SIGNS))
    text = "".join(f" {part.replace('⁄', '/')}" if "⁄" in part else part for part in told)
    return "".join(str(unicodedata.decimal(letter, letter)) for letter in text)


def _share(number: Number) -> Fraction:
    return number.value / 100 if number.percent else number.value


@lru_cache(maxsize=4096)
def _same_expression(answer: str, label: str) -> bool:
    """By math-verify. What it cannot read or decide in time is wrong."""
    try:
        return _comparison()([answer], [""], [label]).rewards == [1.0]
    except RewardFailed:
        return False


@lru_cache(maxsize=1)
def _comparison() -> IsolatedFunction:
    return IsolatedFunction(str(Path(__file__).with_name("math_child.py")), COMPARE_SECONDS)
