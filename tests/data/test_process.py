import pytest
import torch

from openrlhf.config.groups import DataConfig, ProcessConfig
from openrlhf.data.process import process_samples, read_labels


def read(tokenizer, rows, reward_tokens=("+", "-"), **flags):
    process = ProcessConfig(dataset="d", placeholder_token="#", reward_tokens=reward_tokens, **flags)
    labels = read_labels(rows, tokenizer, process)
    return process_samples(rows, tokenizer, DataConfig(), process, labels)


def test_each_label_goes_to_its_placeholder(make_tokenizer):
    tokenizer = make_tokenizer()
    (sample,), report = read(tokenizer, [{"input": "ab#c#", "label": ["-", "+"]}])
    marked = sample.action_mask.nonzero().squeeze(1)
    assert tokenizer.convert_ids_to_tokens(sample.tokens[marked].tolist()) == ["#", "#"]
    assert sample.labels[marked].tolist() == [1.0, 0.0]  # places among the reward tokens
    assert report.kept == 1


def test_without_reward_tokens_a_label_is_its_token(make_tokenizer):
    tokenizer = make_tokenizer()
    (sample,), _ = read(tokenizer, [{"input": "a#", "label": ["+"]}], reward_tokens=None)
    assert sample.labels[sample.action_mask].tolist() == tokenizer.convert_tokens_to_ids(["+"])


def test_numbers_are_soft_labels(make_tokenizer):
    (sample,), _ = read(make_tokenizer(), [{"input": "a#b#", "label": [0.25, 1]}])
    assert sample.labels[sample.action_mask].tolist() == [0.25, 1.0]


def test_labels_beyond_max_len_are_cut_with_their_text(make_tokenizer):
    rows = [{"input": "a#" + "b" * 20 + "#", "label": ["+", "-"]}, {"input": "c" * 20 + "#", "label": ["+"]}]
    (sample,), report = read(make_tokenizer(), rows, max_len=8)
    assert int(sample.action_mask.sum()) == 1
    assert len(sample.tokens) == 8
    assert report.dropped and report.shortened
    assert torch.equal(sample.labels[~sample.action_mask], torch.zeros(7))


@pytest.mark.parametrize(
    ("row", "flags", "message"),
    [
        ({"input": "a#", "label": ["+", "-"]}, {}, "row 0: 2 labels for 1 placeholders '#'"),
        ({"input": "a#", "label": ["x"]}, {}, "row 0: the label 'x' is not one of --reward_tokens"),
        ({"input": "a#b#", "label": ["+", 1]}, {}, "row 0: the label 1 is not a token"),
        ({"input": "a#b#", "label": [1, 7]}, {}, "row 0: the label 7 is not a number from 0 to 1"),
        ({"input": "a#", "label": [1]}, {"reward_tokens": None}, "labels that are numbers need two --reward_tokens"),
        ({"input": "a#", "label": ["+"]}, {"reward_tokens": ("+ -", "-")}, "--reward_tokens '\\+ -' is . tokens"),
        ({"input": "a#", "label": []}, {}, "no row has a label in 'label'"),
        ({"input": "a#", "marks": ["+"]}, {}, "there is no column 'label'; set --label_key"),
    ],
)
def test_what_does_not_fit_is_named(make_tokenizer, row, flags, message):
    with pytest.raises(ValueError, match=message):
        read(make_tokenizer(), [row], **flags)
