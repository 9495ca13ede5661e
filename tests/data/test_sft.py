from __future__ import annotations

from itertools import groupby

import pytest
import torch

from openrlhf.config.groups import DataConfig, DatasetConfig
from openrlhf.data.sft import sft_samples

CONVERSATION = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hello world"},
    {"role": "user", "content": "how are you?"},
    {"role": "assistant", "content": "fine."},
]


def build(tokenizer, rows, **flags):
    data_flags = {k: flags.pop(k) for k in ("input_template", "apply_chat_template", "input_key") if k in flags}
    dataset = DatasetConfig(**{"dataset": "rows", "output_key": "output", "max_len": 64, **flags})
    return sft_samples(rows, tokenizer, DataConfig(**data_flags), dataset)


def only(tokenizer, row, **flags):
    samples, _ = build(tokenizer, [row], **flags)
    assert samples[0].tokens.dtype == torch.int64
    assert samples[0].action_mask.dtype == torch.bool
    assert samples[0].tokens.shape == samples[0].action_mask.shape
    return samples[0]


def spoken(tokenizer, sample):
    """The runs of tokens that carry loss, as text."""
    pairs = zip(sample.tokens.tolist(), sample.action_mask.tolist(), strict=True)
    runs = groupby(pairs, key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for marked, run in runs if marked]


def test_prompt_and_answer_by_hand(make_tokenizer):
    tokenizer = make_tokenizer()
    q, a, eos = tokenizer.convert_tokens_to_ids(["q", "a", "</s>"])
    sample = only(tokenizer, {"input": "qq", "output": "aaa"})
    assert sample.tokens.tolist() == [q, q, a, a, a, eos]
    assert sample.action_mask.tolist() == [False, False, True, True, True, True]


def test_the_first_answer_token_carries_loss_although_it_merges_with_the_prompt(make_tokenizer):
    tokenizer = make_tokenizer()
    sample = only(tokenizer, {"input": "hello", "output": "hello world"}, input_template="Question: {}\nAnswer: ")
    assert spoken(tokenizer, sample) == [" hello world</s>"]
    assert tokenizer.decode(sample.tokens) == "Question: hello\nAnswer: hello world</s>"


def test_other_braces_of_the_template_stay(make_tokenizer):
    tokenizer = make_tokenizer()
    sample = only(tokenizer, {"input": "q", "output": "a"}, input_template='{"x": {}}')
    assert tokenizer.decode(sample.tokens) == '{"x": q}a</s>'


def test_a_template_around_nothing_is_an_empty_prompt(make_tokenizer):
    rows = [{"input": "", "output": "a"}, {"input": "q", "output": "a"}]
    _, report = build(make_tokenizer(), rows, input_template="Question: {}")
    assert report.dropped["empty prompt"].rows[0] == 0


@pytest.mark.parametrize("answer", ["fine.", "fine.\n\n", "fine.</s>", "fine.</s>\n"])
def test_text_ends_in_one_eos(make_tokenizer, answer):
    tokenizer = make_tokenizer()
    sample = only(tokenizer, {"input": "hello", "output": answer})
    assert spoken(tokenizer, sample) == ["fine.</s>"]


@pytest.mark.parametrize(
    "template, expected",
    [
        ("chatml", ["fine.<|im_end|></s>"]),
        ("inst", ["fine.</s>"]),
        ("llama3", ["fine.<|eot_id|></s>"]),
        ("strips_reasoning", ["fine.<|im_end|></s>"]),
    ],
)
def test_chat_learns_the_last_answer(make_tokenizer, template, expected):
    tokenizer = make_tokenizer(template)
    sample = only(tokenizer, {"input": CONVERSATION}, apply_chat_template=True, output_key=None)
    assert spoken(tokenizer, sample) == expected


@pytest.mark.parametrize(
    "template, eos, expected",
    [
        ("chatml", "<|im_end|>", ["hello world<|im_end|>", "fine.<|im_end|>"]),
        ("inst", "</s>", ["hello world</s>", "fine.</s>"]),
        ("llama3", "<|eot_id|>", ["hello world<|eot_id|>", "fine.<|eot_id|>"]),
    ],
)
def test_multiturn_learns_every_answer(make_tokenizer, template, eos, expected):
    tokenizer = make_tokenizer(template, eos)
    sample = only(tokenizer, {"input": CONVERSATION}, apply_chat_template=True, output_key=None, multiturn=True)
    assert spoken(tokenizer, sample) == expected
    split = only(
        tokenizer,
        {"input": CONVERSATION[:3], "output": CONVERSATION[3:]},
        apply_chat_template=True,
        multiturn=True,
    )
    assert split.tokens.tolist() == sample.tokens.tolist()
    assert split.action_mask.tolist() == sample.action_mask.tolist()


def test_the_whole_chat_text_by_hand(make_tokenizer):
    tokenizer = make_tokenizer("llama3", "<|eot_id|>")
    sample = only(tokenizer, {"input": "hello", "output": "fine."}, apply_chat_template=True)
    prompt = (
        "<s><|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    before = tokenizer.encode(prompt, add_special_tokens=False)
    answer = tokenizer.encode("fine.<|eot_id|>", add_special_tokens=False)
    assert sample.tokens.tolist() == before + answer
    assert sample.action_mask.tolist() == [False] * len(before) + [True] * len(answer)


def test_a_template_that_rewrites_earlier_turns_is_refused_by_row(make_tokenizer):
    thinking = [CONVERSATION[0], {"role": "assistant", "content": "<think>so</think>hello"}, *CONVERSATION[2:]]
    with pytest.raises(ValueError, match="--dataset row 1: this chat template does not keep its prefix"):
        build(
            make_tokenizer("strips_reasoning"),
            [{"input": CONVERSATION}, {"input": thinking}],
            apply_chat_template=True,
            multiturn=True,
            output_key=None,
        )


def test_an_answer_over_max_len_ends_in_eos(make_tokenizer):
    tokenizer = make_tokenizer()
    q, a, eos = tokenizer.convert_tokens_to_ids(["q", "a", "</s>"])
    samples, report = build(
        tokenizer, [{"input": "qq", "output": "a" * 4}, {"input": "qq", "output": "aaa"}], max_len=5
    )
    assert samples[0].tokens.tolist() == [q, q, a, a, eos]
    assert samples[1].tokens.tolist() == [q, q, a, a, eos]
    assert samples[0].action_mask.tolist() == [False, False, True, True, True]
    assert report.line() == "2 of 2 rows kept; shortened: text over --max_len 2 (first row 0: 'qqaaaa')"


def test_a_conversation_cut_in_a_users_turn_ends_with_the_turn_before(make_tokenizer):
    tokenizer = make_tokenizer("chatml", "<|im_end|>")
    row = {"input": CONVERSATION}
    flags = {"apply_chat_template": True, "output_key": None, "multiturn": True}
    whole = only(tokenizer, row, **flags).tokens.tolist()
    second_user = [i for i, token in enumerate(tokenizer.convert_ids_to_tokens(whole)) if token == "<|im_start|>"][2]
    sample = only(tokenizer, row, max_len=second_user + 3, **flags)
    assert spoken(tokenizer, sample) == ["hello world<|im_end|>"]
    assert sample.action_mask[-1]


def test_prompt_limit_is_max_len_minus_two(make_tokenizer):
    tokenizer = make_tokenizer()
    samples, report = build(tokenizer, [{"input": "q" * n, "output": "aa"} for n in (5, 6, 7)], max_len=8)
    assert [sample.group for sample in samples] == [0]
    assert report.dropped["prompt of --max_len - 2 tokens or more"].count == 2
    assert report.dropped["prompt of --max_len - 2 tokens or more"].rows[0] == 1


def test_drops_are_counted_by_kind_with_the_first_row(make_tokenizer):
    rows = [
        {"input": "", "output": "a"},
        {"input": "q", "output": "a"},
        {"input": "q", "output": "\n"},
        {"input": "q", "output": None},
        {"input": None, "output": "a"},
    ]
    samples, report = build(make_tokenizer(), rows)
    assert len(samples) == 1
    assert samples[0].group == 1
    assert report.line() == (
        "1 of 5 rows kept; dropped: empty prompt 2 (first row 0: {'input': '', 'output': 'a'}), "
        "empty response 2 (first row 2: {'input': 'q', 'output': '\\n'})"
    )


def test_conversations_without_a_last_answer_are_dropped(make_tokenizer):
    rows = [{"input": c} for c in (CONVERSATION, CONVERSATION[:3], CONVERSATION[1:], [], CONVERSATION[:1])]
    _, report = build(make_tokenizer("chatml"), rows, apply_chat_template=True, output_key=None)
    assert {kind: tally.rows[0] for kind, tally in report.dropped.items()} == {
        "conversation that does not end with the assistant": 1,
        "conversation that the assistant begins": 2,
        "empty prompt": 3,
    }


def test_an_empty_chat_answer_is_dropped(make_tokenizer):
    rows = [{"input": "hello", "output": " "}, {"input": "hello", "output": "fine."}]
    samples, _ = build(make_tokenizer("chatml"), rows, apply_chat_template=True)
    assert [sample.group for sample in samples] == [1]


@pytest.mark.parametrize("multiturn", [False, True])
def test_when_nothing_is_left_the_report_is_the_error(make_tokenizer, multiturn):
    with pytest.raises(ValueError, match="no row of --eval_dataset can be used: 0 of 1 rows kept; dropped: empty"):
        sft_samples(
            [{"input": "hello", "output": ""}],
            make_tokenizer("chatml"),
            DataConfig(apply_chat_template=True),
            DatasetConfig(dataset="rows", output_key="output", multiturn=multiturn),
            flag="--eval_dataset",
        )


def test_pretraining_takes_the_text_as_it_is(make_tokenizer):
    tokenizer = make_tokenizer()
    flags = {"pretrain_mode": True, "input_template": "Question: {}", "output_key": None}
    sample = only(tokenizer, {"input": "hello world\n"}, **flags)
    assert tokenizer.decode(sample.tokens) == "hello world\n"
    assert sample.action_mask.tolist() == [False] + [True] * (len(sample.tokens) - 1)
    assert len(only(tokenizer, {"input": "q" * 9}, **flags, max_len=4).tokens) == 4


def test_pretraining_drops_what_has_nothing_to_predict(make_tokenizer):
    samples, report = build(make_tokenizer(), [{"input": t} for t in ("", "q", "qq")], pretrain_mode=True)
    assert [sample.group for sample in samples] == [2]
    assert set(report.dropped) == {"empty text", "text of fewer than two tokens"}


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            {"input_key": "question"},
            r"--dataset row 0: there is no column 'question'; set --input_key to one of: input, o",
        ),
        (
            {"output_key": "answer"},
            r"--dataset row 0: there is no column 'answer'; set --output_key to one of: input, ou",
        ),
        ({"input_template": "Question:"}, r"--input_template 'Question:' has no \{\}"),
        ({"multiturn": True}, "--multiturn needs --apply_chat_template"),
        ({"apply_chat_template": True}, "--tokenizer_chat_template"),
        ({"apply_chat_template": True, "output_key": None}, "name the answer with --output_key"),
    ],
)
def test_wrong_flags_are_named(make_tokenizer, flags, message):
    with pytest.raises(ValueError, match=message):
        build(make_tokenizer(), [{"input": "q", "output": "a"}], **flags)


def test_messages_without_the_chat_template_are_refused(make_tokenizer):
    with pytest.raises(ValueError, match="add --apply_chat_template"):
        build(make_tokenizer(), [{"input": CONVERSATION, "output": "a"}])


def test_a_tokenizer_without_eos_is_refused(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        build(tokenizer, [{"input": "q", "output": "a"}])


def test_order_holds_over_chunks(make_tokenizer, monkeypatch):
    monkeypatch.setattr("openrlhf.data.sft.CHUNK", 2)
    tokenizer = make_tokenizer()
    samples, _ = build(tokenizer, [{"input": "q", "output": "a" * n} for n in range(6)])
    assert [sample.group for sample in samples] == [1, 2, 3, 4, 5]
    assert [int(sample.action_mask.sum()) for sample in samples] == [2, 3, 4, 5, 6]
