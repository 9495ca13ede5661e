"""Final answers and their labels: a table of cases with the verdict that a teacher would give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from openrlhf.rollout import math_answers
from openrlhf.rollout.isolated import IsolatedFunction
from openrlhf.rollout.math_answers import final_answer, response_of, same_answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("so it is \\boxed{42}.", "42"),
        ("\\boxed{1} no, \\boxed {2}", "2"),
        ("\\boxed{\\frac{1}{2}}, which is 3 less", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("#### 42", "42"),
        ("#### 1\n#### 2<|im_end|>", "2"),
        ("#### -1,200 \nand that is 7", "-1,200"),
        ("\\boxed{1}\n#### 2", "2"),
        ("#### 2\n\\boxed{1}", "1"),
        ("3 + 4 = 7", "7"),
        ("it is 4, no, 5.<|im_end|>\n<|pad|><|pad|>", "5"),
        ("she has $1,234.50 left</s>", "$1,234.50"),
        ("that is 3/4 of 8, or 75%", "75%"),
        ("9-4", "4"),
        ("it falls to -4 degrees", "-4"),
        ("the sum is １２", "12"),
        ("½", "1/2"),
        ("it grew by .5", ".5"),
        ("on <|reserved_7|>", None),
        ("5<|reserved_7|>", "5"),
        ("", None),
        ("<|im_end|>", None),
        ("no idea", None),
        ("我不知道", None),
        # Cut within the last mark: what stands there may be half a number.
        ("3 + 4 = 7, \\boxed{1", None),
        ("3 + 4 = 7\n####", None),
        ("\\boxed{}", None),
        ("\\boxed{\\frac{1}{2}", None),
    ],
)
def test_the_final_answer_of_a_response(response: str, answer: str | None) -> None:
    assert final_answer(response) == answer


@pytest.mark.parametrize(
    ("query", "prompt", "response"),
    [
        ("Q 1\nA 2", "Q 1\nA ", "2"),
        ("Q 1\nA ", "Q 1\nA ", ""),
        ("the end of a prompt that once was longer: A 2", "Cut. the end of a prompt that once was longer: A ", "2"),
        ("<s>Q 1\nA 2", "Q 1\nA ", "2"),
        ("something else", "Q 1\nA ", "something else"),
    ],
)
def test_the_response_is_what_stands_behind_the_prompt(query: str, prompt: str, response: str) -> None:
    assert response_of(query, prompt) == response


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("42", "42"),
        ("42.", "42"),
        ("42.0", "42"),
        ("042", "42"),
        ("+42", "42"),
        ("42", "3 * 14 = <<3*14=42>>42\n#### 42"),
        ("1200", "so 400 * 3\n#### 1,200"),
        ("42", "so it is $\\boxed{42}$."),
        # units and currencies
        ("42 dollars", "42"),
        ("$42", "42"),
        ("\\$42", "42"),
        ("18$", "18"),
        ("£5", "5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("42 apples", "42"),
        ("5 km/h", "5"),
        ("5m", "5"),
        ("12 m^2", "12"),
        ("12 m²", "12"),
        ("12 \\text{ cm}", "12"),
        ("12\\,\\text{cm}", "12"),
        ("90^\\circ", "90"),
        ("2^{10} \\text{ bytes}", "1024"),
        # thousands
        ("1,000", "1000"),
        ("1,234,567", "1234567"),
        ("10 000", "10000"),
        ("10{,}000", "10000"),
        ("1e3", "1000"),
        # fractions
        ("1/2", "0.5"),
        ("\\frac{1}{2}", "0.5"),
        ("\\dfrac{3}{4}", "3/4"),
        ("\\frac12", "1/2"),
        ("\\frac{2}{4}", "\\frac{1}{2}"),
        ("1 1/2", "1.5"),
        ("1\\frac{1}{2}", "1.5"),
        ("½", "0.5"),
        ("1½", "1.5"),
        # negative
        ("-5", "-5"),
        ("−5", "-5"),
        ("-\\frac{1}{2}", "-0.5"),
        # percent
        ("50%", "50"),
        ("50\\%", "50"),
        ("50%", "0.5"),
        ("0.5", "50%"),
        ("20 percent", "20"),
        ("20 percent", "20%"),
        # expressions
        ("2\\sqrt{2}", "\\sqrt{8}"),
        ("(x+1)^2", "x^2+2x+1"),
        ("x=5", "5"),
        ("3 \\cdot 14", "42"),
        ("$42$", "42"),
        ("\\(42\\)", "42"),
        ("**42**", "42"),
        ("\\text{42}", "42"),
        ("[0, 1)", "[0,1)"),
        # not ASCII, and words
        ("４２", "42"),
        ("٤٢", "42"),
        ("１，０００", "1000"),
        ("4\u200b2", "42"),
        ("Tuesday", "tuesday"),
    ],
)
def test_right(answer: str, label: str) -> None:
    assert same_answer(answer, label)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("41", "42"),
        ("420", "42"),
        ("-42", "42"),
        ("42", "-42"),
        ("4.2", "42"),
        ("0.333", "1/3"),
        ("50%", "5"),
        ("50%", "0.05"),
        ("1,2", "12"),
        ("1, 2", "2"),
        ("42 or 43", "43"),
        ("42 43", "43"),
        ("42 43", "85"),  # as sympy would add them
        ("42 out of 50", "42"),
        ("1 1/2", "1"),
        ("2 million", "2"),
        ("2 pi", "2"),
        ("5x", "5"),
        ("1/0", "1"),
        ("1e999999999", "1"),
        ("yes", "no"),
        ("forty two", "42"),
        ("\\pi", "3.14159"),
        ("", "42"),
        (".", "42"),
        ("42", ""),
        ("42", "####"),
        ("42", "\\boxed{4"),
        ("1" * 201, "1" * 201),  # too long for an answer
        ("\\frac{" * 30, "1"),
        ("{" * 50, "1"),
        ("\x00", "1"),
        ("😀", "1"),
    ],
)
def test_wrong(answer: str, label: str) -> None:
    assert not same_answer(answer, label)


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Verdicts and the process that gave them, before and after a test that has another one."""
    yield
    math_answers._comparison.cache_clear()
    math_answers._same_expression.cache_clear()


@pytest.mark.usefixtures("forgotten")
def test_what_takes_too_long_is_wrong_and_the_next_answer_is_graded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sympy in a call that no signal interrupts is this sleep with signals blocked."""
    real = Path(math_answers.__file__).with_name("math_child.py").read_text()
    file = tmp_path / "math_child.py"
    file.write_text(
        real + "\nimport signal, time\ngrade = reward_func\ndef reward_func(queries, prompts, labels):\n"
        "    if queries == ['x']:\n        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\n"
        "        time.sleep(1000)\n    return grade(queries, prompts, labels)\n"
    )
    process = IsolatedFunction(str(file), 60)
    monkeypatch.setattr(math_answers, "_comparison", lambda: process)
    process.timeout_s = 0.5
    assert not math_answers._same_expression("x", "5")
    process.timeout_s = 60
    assert math_answers._same_expression("\\frac{10}{2}", "5")


def test_a_tower_of_powers_does_not_hold_a_batch_up() -> None:
    """9 to the 9 to the 9 … has more digits than any memory: without a limit this test would never end."""
    assert not same_answer("9^{9^{9^{9^9}}}", "5")
    assert same_answer("\\frac{10}{2}", "5")


def test_without_the_grader_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_answers, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'openrlhf\[math\]'"):
        same_answer("1", "1")
