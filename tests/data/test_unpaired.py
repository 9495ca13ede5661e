from __future__ import annotations

import pytest

from openrlhf.config.groups import DataConfig, UnpairedConfig
from openrlhf.data.unpaired import partners, unpaired_samples

ROWS = [
    {"input": "hello", "output": " fine.", "label": True},
    {"input": "how", "output": " world", "label": False},
    {"input": "there", "output": " answer", "label": True},
]


def build(tokenizer, rows, **flags):
    data_flags = {k: flags.pop(k) for k in ("input_template", "apply_chat_template") if k in flags}
    unpaired = UnpairedConfig(**{"dataset": "rows", "max_len": 64, "output_key": "output", **flags})
    return unpaired_samples(rows, tokenizer, DataConfig(**data_flags), unpaired)


def texts(tokenizer, sample):
    """The tokens outside and inside the mask."""
    return tokenizer.decode(sample.tokens[~sample.action_mask]), tokenizer.decode(sample.tokens[sample.action_mask])


def reasons(report):
    return {kind: (tally.count, tally.rows[0]) for kind, tally in report.dropped.items()}


def test_each_prompt_gets_its_own_answer_and_the_next(make_tokenizer):
    tokenizer = make_tokenizer()
    kept, report = build(tokenizer, ROWS)
    assert [texts(tokenizer, labelled) for labelled, _ in kept] == [
        ("hello", " fine.</s>"), ("how", " world</s>"), ("there", " answer</s>"),
    ]  # fmt: skip
    assert [texts(tokenizer, mismatched) for _, mismatched in kept] == [
        ("hello", " world</s>"), ("how", " answer</s>"), ("there", " fine.</s>"),
    ]  # fmt: skip
    assert [labelled.reward for labelled, _ in kept] == [1.0, 0.0, 1.0]
    assert [(labelled.group, mismatched.group) for labelled, mismatched in kept] == [(0, 0), (1, 1), (2, 2)]
    assert report.kept == 3 and not report.dropped


def test_labels_and_partners_skip_dropped_rows(make_tokenizer):
    tokenizer = make_tokenizer()
    rows = [ROWS[0], {"input": "how", "output": " ", "label": True}, ROWS[1], {**ROWS[2], "input": ""}]
    kept, report = build(tokenizer, rows)
    assert [(labelled.group, labelled.reward) for labelled, _ in kept] == [(0, 1.0), (2, 0.0)]
    assert [texts(tokenizer, mismatched)[1] for _, mismatched in kept] == [" world</s>", " fine.</s>"]
    assert reasons(report) == {"empty response": (1, 1), "empty prompt": (1, 3)}


@pytest.mark.parametrize(
    "conversation",
    [
        [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "fine."}],
        [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "fine."}],
    ],
)
def test_whole_conversations(make_tokenizer, conversation):
    tokenizer = make_tokenizer("chatml")
    other = [{"role": "user", "content": "how"}, {"role": "assistant", "content": "world"}]
    rows = [{"input": conversation, "label": 1}, {"input": other, "label": 0}]
    kept, _ = build(tokenizer, rows, apply_chat_template=True, output_key=None)
    asked = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert texts(tokenizer, kept[0][0]) == (asked, "fine.<|im_end|></s>")
    assert texts(tokenizer, kept[0][1]) == (asked, "world<|im_end|></s>")


def test_long_texts_are_cut_and_end_in_eos(make_tokenizer):
    """The mismatched text may be longer than both texts that it was made of."""
    tokenizer = make_tokenizer()
    rows = [{"input": "q" * 7, "output": "a", "label": 1}, {"input": "z", "output": "b" * 7, "label": 0}]
    kept, _ = build(tokenizer, rows, max_len=10)
    assert texts(tokenizer, kept[0][1]) == ("q" * 7, "bb</s>")
    assert texts(tokenizer, kept[1][1]) == ("z", "a</s>")
    assert texts(tokenizer, kept[0][0]) == ("q" * 7, "a</s>")  # what was cut was a copy
    assert texts(tokenizer, kept[1][0]) == ("z", "b" * 7 + "</s>")


@pytest.mark.parametrize(
    ("value", "reward"),
    [(True, 1), (False, 0), (1, 1), (0, 0), (1.0, 1), (0.0, 0), ("true", 1), ("False", 0), (" 1 ", 1), ("0", 0)],
)
def test_labels(make_tokenizer, value, reward):
    kept, _ = build(make_tokenizer(), [{**ROWS[0], "label": value}, ROWS[1]])
    assert kept[0][0].reward == reward


@pytest.mark.parametrize("value", [-1, 2, 0.5, "yes", "", None, [True], float("nan")])
def test_other_labels_are_named(make_tokenizer, value):
    with pytest.raises(ValueError, match=r"--dataset row 1: the column 'label' .* true or 1 for a desirable") as error:
        build(make_tokenizer(), [ROWS[0], {**ROWS[1], "label": value}])
    assert repr(value) in str(error.value)


def test_a_missing_label_column_is_named(make_tokenizer):
    with pytest.raises(ValueError, match="row 0: there is no column 'good'; set --label_key to one of: input, output"):
        build(make_tokenizer(), ROWS, label_key="good")


def test_one_row_is_too_few(make_tokenizer):
    with pytest.raises(ValueError, match="--dataset has one usable row: 1 of 1 rows kept"):
        build(make_tokenizer(), ROWS[:1])


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("abc", [1, 2, 0]),
        ("aabb", [2, 2, 0, 0]),
        ("abba", [1, 3, 3, 1]),
        ("aaba", [2, 2, 3, 2]),
        ("aaa", [1, 2, 0]),
        ("ab", [1, 0]),
    ],
)
def test_partners(prompts, expected):
    assert partners(prompts) == expected


def test_partners_of_long_runs_by_search():
    prompts = "aaabccccaabbbbbcdaaa"
    for i, partner in enumerate(partners(prompts)):
        steps = (partner - i) % len(prompts)
        assert prompts[partner] != prompts[i]
        assert all(prompts[(i + k) % len(prompts)] == prompts[i] for k in range(steps))
