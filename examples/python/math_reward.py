r"""A reward file for mathematics: 1 where the final answer of the response is the label's, 0 where not.

The final answer is the last ``\boxed{…}`` or ``#### …``, and without these the last number. Labels are answers, or
solutions with such a mark: the column ``answer`` of GSM8K, ``solution`` of MATH. ``scores`` are the rewards, and
``reward/answered`` in the log is the share of responses with a final answer. Needs ``pip install 'openrlhf[math]'``.
"""

from __future__ import annotations

from openrlhf.rollout.math_answers import final_answer, response_of, same_answer


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> dict[str, object]:
    if not all(labels):
        raise ValueError("a label is empty: name the column of the answers with --label_key")
    answers = [final_answer(response_of(query, prompt)) for query, prompt in zip(queries, prompts, strict=True)]
    right = [
        float(answer is not None and same_answer(answer, label)) for answer, label in zip(answers, labels, strict=True)
    ]
    return {
        "rewards": right,
        "scores": right,
        "extra_logs": {"answered": [float(answer is not None) for answer in answers]},
    }
