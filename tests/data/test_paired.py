from __future__ import annotations

import pytest
import torch

from openrlhf.config.groups import DataConfig, PairConfig
from openrlhf.data.paired import paired_samples

PROMPT = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hello world"},
    {"role": "user", "content": "how are you?"},
]
FINE = {"role": "assistant", "content": "fine."}
HELLO = {"role": "assistant", "content": "hello"}
ASKED = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def build(tokenizer, rows, drop_long_prompts=True, **flags):
    data_flags = {k: flags.pop(k) for k in ("input_template", "apply_chat_template") if k in flags}
    pairs = PairConfig(**{"dataset": "rows", "max_len": 64, **flags})
    return paired_samples(rows, tokenizer, DataConfig(**data_flags), pairs, drop_long_prompts)


def only(tokenizer, row, **flags):
    kept, _ = build(tokenizer, [row], **flags)
    assert len(kept) == 1
    for sample in kept[0]:
        assert sample.tokens.dtype == torch.int64
        assert sample.action_mask.dtype == torch.bool
        assert sample.tokens.shape == sample.action_mask.shape
    return kept[0]


def texts(tokenizer, samples):
    """(prompt, answer) of each side: the tokens outside and inside the mask."""
    return [
        (tokenizer.decode(sample.tokens[~sample.action_mask]), tokenizer.decode(sample.tokens[sample.action_mask]))
        for sample in samples
    ]


def reasons(report):
    return {kind: (tally.count, tally.rows[0]) for kind, tally in report.dropped.items()}


def test_prompt_and_answers_by_hand(make_tokenizer):
    tokenizer = make_tokenizer()
    q, a, b, eos = tokenizer.convert_tokens_to_ids(["q", "a", "b", "</s>"])
    chosen, rejected = only(tokenizer, {"p": "qq", "chosen": "aaa", "rejected": "b"}, prompt_key="p")
    assert chosen.tokens.tolist() == [q, q, a, a, a, eos]
    assert chosen.action_mask.tolist() == [False, False, True, True, True, True]
    assert rejected.tokens.tolist() == [q, q, b, eos]
    assert rejected.action_mask.tolist() == [False, False, True, True]


def test_the_template_goes_around_the_prompt(make_tokenizer):
    tokenizer = make_tokenizer()
    pair = only(
        tokenizer,
        {"p": "hello", "good": " fine.", "bad": " hello"},
        prompt_key="p",
        chosen_key="good",
        rejected_key="bad",
        input_template="Question: {}\nAnswer:",
    )
    assert texts(tokenizer, pair) == [
        ("Question: hello\nAnswer:", " fine.</s>"),
        ("Question: hello\nAnswer:", " hello</s>"),
    ]


def test_text_without_a_prompt_is_all_answer(make_tokenizer):
    tokenizer = make_tokenizer()
    a, b, eos = tokenizer.convert_tokens_to_ids(["a", "b", "</s>"])
    chosen, rejected = only(tokenizer, {"chosen": "ab", "rejected": "bb"})
    assert chosen.tokens.tolist() == [a, b, eos]
    assert rejected.tokens.tolist() == [b, b, eos]
    assert chosen.action_mask.tolist() == [False, True, True]  # nothing predicts the first token
    assert rejected.action_mask.tolist() == [False, True, True]


@pytest.mark.parametrize("answer", ["fine.", "fine.\n\n", "fine.</s>", "fine.</s>\n"])
def test_both_texts_end_in_one_eos(make_tokenizer, answer):
    tokenizer = make_tokenizer()
    row = {"p": "hello", "chosen": answer, "rejected": "no"}
    swapped = {"p": "hello", "chosen": "no", "rejected": answer}
    assert texts(tokenizer, only(tokenizer, row, prompt_key="p"))[0] == ("hello", "fine.</s>")
    assert texts(tokenizer, only(tokenizer, swapped, prompt_key="p"))[1] == ("hello", "fine.</s>")


@pytest.mark.parametrize(
    "row",
    [
        {"p": "hello", "chosen": "fine.", "rejected": "hello"},
        {"p": PROMPT[:1], "chosen": FINE, "rejected": HELLO},
        {"p": PROMPT[:1], "chosen": [FINE], "rejected": [HELLO]},
        {
            "p": [{"from": "human", "value": "hello"}],
            "chosen": {"from": "gpt", "value": "fine."},
            "rejected": {"from": "gpt", "value": "hello"},
        },
    ],
)
def test_a_prompt_column_with_the_chat_template(make_tokenizer, row):
    tokenizer = make_tokenizer("chatml")
    pair = only(tokenizer, row, prompt_key="p", apply_chat_template=True)
    assert texts(tokenizer, pair) == [(ASKED, "fine.<|im_end|></s>"), (ASKED, "hello<|im_end|></s>")]


@pytest.mark.parametrize(
    "template, eos, before, end",
    [
        (
            "chatml",
            "<|im_end|>",
            "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nhello world<|im_end|>\n"
            "<|im_start|>user\nhow are you?<|im_end|>\n<|im_start|>assistant\n",
            "<|im_end|>",
        ),
        ("inst", "</s>", "<s>[INST] hello [/INST]hello world</s> [INST] how are you? [/INST]", "</s>"),
    ],
)
def test_whole_conversations_share_all_but_the_last_message(make_tokenizer, template, eos, before, end):
    tokenizer = make_tokenizer(template, eos)
    row = {"chosen": [*PROMPT, FINE], "rejected": [*PROMPT, HELLO]}
    pair = only(tokenizer, row, apply_chat_template=True, max_len=200)
    assert texts(tokenizer, pair) == [(before, "fine." + end), (before, "hello" + end)]


def test_one_prompt_may_be_written_in_two_ways(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    row = {
        "chosen": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "fine."}],
        "rejected": [{"role": "user", "content": "hello", "tool_calls": None}, HELLO],
    }
    pair = only(tokenizer, row, apply_chat_template=True)
    assert texts(tokenizer, pair) == [(ASKED, "fine.<|im_end|></s>"), (ASKED, "hello<|im_end|></s>")]


def test_different_prompts_are_dropped(make_tokenizer):
    rows = [
        {"chosen": [PROMPT[0], FINE], "rejected": [PROMPT[2], HELLO]},  # another question
        {"chosen": [*PROMPT, FINE], "rejected": [PROMPT[0], HELLO]},  # a shorter conversation
        {"chosen": [PROMPT[0], FINE], "rejected": [PROMPT[0], HELLO]},
    ]
    kept, report = build(make_tokenizer("chatml"), rows, apply_chat_template=True)
    assert [(chosen.group, rejected.group) for chosen, rejected in kept] == [(2, 2)]
    assert reasons(report) == {"chosen and rejected have different prompts": (2, 0)}


def test_odd_conversations_are_dropped(make_tokenizer):
    rows = [
        {"chosen": [FINE], "rejected": [HELLO]},
        {"chosen": [HELLO, PROMPT[0], FINE], "rejected": [HELLO, PROMPT[0], HELLO]},
        {"chosen": [PROMPT[0], FINE], "rejected": [PROMPT[0], PROMPT[2]]},
        {"chosen": [PROMPT[0], PROMPT[2]], "rejected": [PROMPT[0], FINE]},
        {"chosen": [PROMPT[0], FINE], "rejected": []},
        {"chosen": [PROMPT[0], {**FINE, "content": " "}], "rejected": [PROMPT[0], HELLO]},
        {"chosen": [PROMPT[0], FINE], "rejected": [PROMPT[0], HELLO]},
        {"chosen": [{**PROMPT[0], "content": ""}, FINE], "rejected": [{**PROMPT[0], "content": ""}, HELLO]},
    ]
    kept, report = build(make_tokenizer("chatml"), rows, apply_chat_template=True)
    assert [chosen.group for chosen, _ in kept] == [6]
    assert reasons(report) == {
        "answer without a prompt (where it has its own column, set --prompt_key)": (1, 0),
        "conversation that the assistant begins": (1, 1),
        "rejected that does not end with the assistant": (1, 2),
        "chosen that does not end with the assistant": (1, 3),
        "empty rejected": (1, 4),
        "empty chosen": (1, 5),
        "empty prompt": (1, 7),
    }


def test_empty_text_is_dropped_by_kind_with_the_first_row(make_tokenizer):
    rows = [
        {"p": "q", "chosen": "a", "rejected": "b"},
        {"p": "q", "chosen": "\n", "rejected": "b"},
        {"p": "q", "chosen": None, "rejected": "b"},
        {"p": "q", "chosen": "a", "rejected": ""},
        {"p": " ", "chosen": "a", "rejected": "b"},
    ]
    kept, report = build(make_tokenizer(), rows, prompt_key="p", input_template="Question: {}")
    assert [chosen.group for chosen, _ in kept] == [0]
    assert report.line() == (
        "1 of 5 rows kept; dropped: empty chosen 2 (first row 1: {'chosen': '\\n', 'p': 'q', 'rejected': "
        "'b'}), empty rejected 1 (first row 3: {'chosen': 'a', 'p': 'q', 'rejected': ''}), "
        "empty prompt 1 (first row 4: {'chosen': 'a', 'p': ' ', 'rejected': 'b'})"
    )


def test_each_side_is_cut_at_max_len_and_ends_in_eos(make_tokenizer):
    tokenizer = make_tokenizer()
    q, a, b, eos = tokenizer.convert_tokens_to_ids(["q", "a", "b", "</s>"])
    rows = [
        {"p": "q", "chosen": "aaaaaa", "rejected": "bbb"},
        {"p": "q", "chosen": "aaa", "rejected": "bbbb"},  # only the EOS is over
        {"p": "q", "chosen": "aaa", "rejected": "bbb"},  # exactly full
        {"p": "q", "chosen": "aaa", "rejected": "bbb</s>"},
    ]
    kept, report = build(tokenizer, rows, prompt_key="p", max_len=5)
    for chosen, rejected in kept:
        assert chosen.tokens.tolist() == [q, a, a, a, eos]
        assert rejected.tokens.tolist() == [q, b, b, b, eos]
        assert chosen.action_mask.tolist() == rejected.action_mask.tolist() == [False, True, True, True, True]
    assert report.line() == "4 of 4 rows kept; shortened: text over --max_len 2 (first row 0: 'qaaaaaa')"


def test_pairs_that_are_the_same_are_dropped_and_told_from_those_that_the_limit_makes_the_same(make_tokenizer):
    rows = [
        {"p": "q", "chosen": "aaab", "rejected": "aaac"},
        {"p": "q", "chosen": "aabb", "rejected": "aacb"},
        {"p": "q", "chosen": "a", "rejected": "a\n"},
        {"p": "q", "chosen": "a", "rejected": "a</s>"},
    ]
    kept, report = build(make_tokenizer(), rows, prompt_key="p", max_len=5)
    assert [chosen.group for chosen, _ in kept] == [1]
    assert reasons(report) == {
        "chosen and rejected that differ only beyond --max_len": (1, 0),
        "chosen and rejected are the same": (2, 2),
    }


def test_prompt_limit_is_max_len_minus_two(make_tokenizer):
    rows = [{"p": "q" * n, "chosen": "aa", "rejected": "bb"} for n in (5, 6, 7)]
    kept, report = build(make_tokenizer(), rows, prompt_key="p", max_len=8)
    assert [chosen.group for chosen, _ in kept] == [0]
    assert reasons(report) == {"prompt of --max_len - 2 tokens or more": (2, 1)}


def test_without_the_limit_long_prompts_stay_while_the_sides_differ(make_tokenizer):
    tokenizer = make_tokenizer()
    q, a, b, eos = tokenizer.convert_tokens_to_ids(["q", "a", "b", "</s>"])
    rows = [{"p": "q" * n, "chosen": "aa", "rejected": "bb"} for n in (5, 6, 7, 9)]
    kept, report = build(tokenizer, rows, drop_long_prompts=False, prompt_key="p", max_len=8)
    assert [chosen.group for chosen, _ in kept] == [0, 1]
    assert kept[1][0].tokens.tolist() == [q] * 6 + [a, eos]
    assert kept[1][1].tokens.tolist() == [q] * 6 + [b, eos]
    assert reasons(report) == {"chosen and rejected that differ only beyond --max_len": (2, 2)}


def test_the_margin_is_with_the_chosen_side(make_tokenizer):
    rows = [
        {"chosen": "a", "rejected": "b", "margin": 2},
        {"chosen": "a", "rejected": "b", "margin": None},
        {"chosen": "a", "rejected": "b", "margin": 0.0},
        {"chosen": "a", "rejected": "b"},
    ]
    kept, _ = build(make_tokenizer(), rows)
    assert [chosen.metrics for chosen, _ in kept] == [{"margin": 2.0}, {}, {"margin": 0.0}, {}]
    assert [rejected.metrics for _, rejected in kept] == [{}] * 4


@pytest.mark.parametrize("margin", ["large", float("nan"), [1.0]])
def test_a_margin_that_is_no_number_is_refused(make_tokenizer, margin):
    with pytest.raises(ValueError, match="--dataset row 0: the column 'margin' holds"):
        build(make_tokenizer(), [{"chosen": "a", "rejected": "b", "margin": margin}])


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"prompt_key": "q"}, "row 1: there is no column 'q'; set --prompt_key to one of: p, chosen, rejected"),
        ({"chosen_key": "q"}, "row 1: there is no column 'q'; set --chosen_key to one of: p, chosen, rejected"),
        ({"rejected_key": "q"}, "row 1: there is no column 'q'; set --rejected_key to one of: p, chosen, rejected"),
        ({"prompt_key": "p", "input_template": "Question:"}, r"row 1: --input_template 'Question:' has no \{\}"),
        ({"input_template": "Question: {}"}, "name its column with --prompt_key"),
        ({"apply_chat_template": True}, "row 1: the column of --chosen_key holds text, not messages"),
        ({"apply_chat_template": True, "prompt_key": "p"}, "row 1: .*--tokenizer_chat_template"),
    ],
)
def test_wrong_flags_are_named(make_tokenizer, flags, message):
    rows = [
        {"p": "", "q": "", "chosen": "", "rejected": ""},  # dropped; numbers count it
        {"p": "q", "chosen": "a", "rejected": "b"},
    ]
    with pytest.raises(ValueError, match=message):
        build(make_tokenizer(), rows, **flags)


def test_messages_without_the_chat_template_are_refused(make_tokenizer):
    with pytest.raises(ValueError, match="row 0: the column of --chosen_key holds messages.*add --apply_chat_template"):
        build(make_tokenizer(), [{"chosen": [*PROMPT, FINE], "rejected": [*PROMPT, HELLO]}])


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_whole_conversation_behind_a_prompt_column_is_refused(make_tokenizer, side):
    row = {"p": "hello", "chosen": FINE, "rejected": HELLO, side: [PROMPT[0], FINE]}
    message = f"row 0: .*--{side}_key begins with the role 'user'; .*leave out --prompt_key"
    with pytest.raises(ValueError, match=message):
        build(make_tokenizer("chatml"), [row], apply_chat_template=True, prompt_key="p")


@pytest.mark.parametrize("drop_long_prompts", [True, False])
def test_an_answer_that_the_template_leaves_out_is_empty(make_tokenizer, drop_long_prompts):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'].split('</think>')[-1] }}{% endfor %}"
    rows = [
        {"p": "q", "chosen": "<think>a</think>", "rejected": "b"},
        {"p": "q", "chosen": "a", "rejected": "<think>b</think>"},
        {"p": "q", "chosen": "a", "rejected": "b"},
    ]
    kept, report = build(tokenizer, rows, drop_long_prompts, apply_chat_template=True, prompt_key="p")
    assert [chosen.group for chosen, _ in kept] == [2]
    assert reasons(report) == {"empty chosen": (1, 0), "empty rejected": (1, 1)}


def test_when_nothing_is_left_the_report_is_the_error(make_tokenizer):
    message = "no row of --eval_dataset can be used: 0 of 1 rows kept; dropped: empty chosen 1"
    with pytest.raises(ValueError, match=message):
        paired_samples(
            [{"chosen": "", "rejected": "b"}],
            make_tokenizer(),
            DataConfig(),
            PairConfig(dataset="rows"),
            drop_long_prompts=False,
            flag="--eval_dataset",
        )


def test_a_tokenizer_without_eos_is_refused(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        build(tokenizer, [{"chosen": "a", "rejected": "b"}])


def test_order_and_sides_hold_over_chunks(make_tokenizer, monkeypatch):
    monkeypatch.setattr("openrlhf.data.paired.CHUNK", 2)
    rows = [{"chosen": "a" * n, "rejected": "b" * (n + 1)} for n in range(6)]
    kept, _ = build(make_tokenizer(), rows)
    assert [(chosen.group, rejected.group) for chosen, rejected in kept] == [(n, n) for n in range(1, 6)]
    assert [(len(chosen.tokens), len(rejected.tokens)) for chosen, rejected in kept] == [
        (n + 1, n + 2) for n in range(1, 6)
    ]


def test_each_side_has_a_mask_of_its_own(make_tokenizer):
    """The prompt's end merges with the chosen answer alone, so the two answers begin at different tokens."""
    tokenizer = make_tokenizer()
    row = {"p": "Answer: hel", "chosen": "lo", "rejected": "qq"}
    ((chosen, rejected),), _ = build(tokenizer, [row], prompt_key="p")
    assert texts(tokenizer, [chosen, rejected]) == [("Answer:", " hello</s>"), ("Answer: hel", "qq</s>")]
