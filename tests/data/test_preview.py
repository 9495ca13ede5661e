from __future__ import annotations

import io
import re

import pytest
import torch
from rich.console import Console

from openrlhf.config.groups import DataConfig, DatasetConfig, PairConfig, ProcessConfig, UnpairedConfig
from openrlhf.data import paired, unpaired
from openrlhf.data.preview import print_lengths, print_samples
from openrlhf.data.process import StepLabels, label_name
from openrlhf.data.sft import sft_samples
from openrlhf.types import Sample

SGR = re.compile(r"\x1b\[([\d;]*)m")


def console(**how):
    return Console(file=io.StringIO(), highlight=False, markup=False, soft_wrap=True, **how)


def shown(samples, tokenizer, out=None, **how):
    out = out or console()
    print_samples(out, tokenizer, samples, **how)
    return out.file.getvalue()


def sft(tokenizer, rows, **data):
    data = {"apply_chat_template": True, "input_key": "m"} | data
    return sft_samples(rows, tokenizer, DataConfig(**data), DatasetConfig(dataset="d", multiturn=True))[0]


TURNS = [
    {"role": "user", "content": "hello [there]"},
    {"role": "assistant", "content": "fine."},
    {"role": "user", "content": "how"},
    {"role": "assistant", "content": "世界"},
]


def test_a_pipe_shows_what_carries_loss_in_text_and_ids(make_tokenizer):
    tokenizer = make_tokenizer("chatml", eos="<|im_end|>")
    samples = sft(tokenizer, [{"m": TURNS}])
    text = shown(samples, tokenizer)
    assert (
        "<|im_start|>user\nhello [there]<|im_end|>\n<|im_start|>assistant\n⟦fine.<|im_end|>⟧\n<|im_start|>user\nhow"
        "<|im_end|>\n<|im_start|>assistant\n⟦世界<|im_end|>⟧\n"
    ) in text
    assert f"row 0 · {len(samples[0].tokens)} tokens, {int(samples[0].action_mask.sum())} carry loss" in text
    (ids,) = re.findall(r"^ids (.*)$", text, re.MULTILINE)
    inside = [int(i) for part in re.findall("⟦(.*?)⟧", ids) for i in part.split()]
    assert inside == samples[0].tokens[samples[0].action_mask].tolist()
    assert [int(i) for i in re.findall(r"\d+", ids)] == samples[0].tokens.tolist()
    assert "\x1b" not in text


def test_a_terminal_shows_it_in_colour(make_tokenizer):
    tokenizer = make_tokenizer("chatml", eos="<|im_end|>")
    text = shown(sft(tokenizer, [{"m": TURNS}]), tokenizer, console(force_terminal=True, color_system="standard"))
    assert "⟦" not in text
    pieces = SGR.split(text)  # text, code, text, code, …: the code before a text is its colour
    coloured = [text for code, text in zip(pieces[1::2], pieces[2::2], strict=True) if code == "1;32"]
    assert "fine.<|im_end|>" in coloured and "世界<|im_end|>" in coloured
    assert not any("hello" in piece for piece in coloured)


def test_no_color_is_respected_on_a_terminal(make_tokenizer, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    tokenizer = make_tokenizer("chatml", eos="<|im_end|>")
    text = shown(sft(tokenizer, [{"m": TURNS}]), tokenizer, console(force_terminal=True, color_system="standard"))
    assert "⟦fine.<|im_end|>⟧" in text
    assert not any("3" in code for code in SGR.findall(text))


def test_both_sides_of_a_pair_and_its_margin(make_tokenizer):
    tokenizer = make_tokenizer()
    rows = [{"p": "hello", "chosen": "aa", "rejected": "b", "margin": 2}]
    samples, _ = paired.paired_samples(rows, tokenizer, DataConfig(), PairConfig(dataset="d", prompt_key="p"), True)
    text = shown([*samples[0]], tokenizer, titles=paired.TITLES)
    assert re.findall(r"^row 0 · (.*?) ·.*\n(.*)$", text, re.MULTILINE) == [
        ("chosen by a margin of 2", "hello⟦aa</s>⟧"),
        ("rejected", "hello⟦b</s>⟧"),
    ]


def test_kto_shows_the_label(make_tokenizer):
    tokenizer = make_tokenizer()
    rows = [{"input": "q", "o": "a", "label": True}, {"input": "p", "o": "b", "label": "false"}]
    config = UnpairedConfig(dataset="d", output_key="o")
    samples, _ = unpaired.unpaired_samples(rows, tokenizer, DataConfig(), config)
    text = shown([s for pair in samples for s in pair], tokenizer, titles=unpaired.TITLES)
    assert re.findall(r"^row (\d) · (\w+).*\n(.*)$", text, re.MULTILINE) == [
        ("0", "desirable", "q⟦a</s>⟧"),
        ("0", "for", "q⟦b</s>⟧"),
        ("1", "undesirable", "p⟦b</s>⟧"),
        ("1", "for", "p⟦a</s>⟧"),
    ]


@pytest.mark.parametrize(
    ("reward_tokens", "given", "names"),
    [(("+", "-"), ["+", "-"], "=+ =-"), (None, ["-", "+"], "=- =+"), (("+", "-"), [0.25, 1.0], "=0.25 =1")],
)
def test_a_placeholder_shows_its_label(make_tokenizer, reward_tokens, given, names):
    from openrlhf.data.process import process_samples, read_labels

    tokenizer = make_tokenizer()
    process = ProcessConfig(dataset="d", placeholder_token="</s>", reward_tokens=reward_tokens)
    rows = [{"input": "q</s></s>", "label": given}]
    labels = read_labels(rows, tokenizer, process)
    assert isinstance(labels, StepLabels)
    samples, _ = process_samples(rows, tokenizer, DataConfig(), process, labels)
    text = shown(samples, tokenizer, note=lambda sample, t: label_name(tokenizer, labels, sample, t))
    first, second = names.split()
    assert f"q⟦</s>⟧{first}⟦</s>⟧{second}\n" in text


def test_text_cannot_steer_the_terminal_and_fits_its_encoding(make_tokenizer):
    tokenizer = make_tokenizer()
    ids = tokenizer.encode("a\x1b[2J\x07é", add_special_tokens=False)
    sample = Sample(torch.tensor(ids), torch.zeros(len(ids), dtype=torch.bool))
    out = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), highlight=False, markup=False)
    print_samples(out, tokenizer, [sample])
    out.file.seek(0)
    assert "a\\x1b[2J\\x07\\xe9\n" in out.file.read()


def test_lengths_fill_the_bins_and_meet_the_limit():
    lengths = [1, 8, 9, 64, 64]
    samples = [Sample(torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.bool)) for n in lengths]
    out = console()
    print_lengths(out, samples, "--max_len", 64)
    lines = out.file.getvalue().splitlines()
    bins = {tuple(map(int, re.findall(r"\d+", line)))[:2]: int(line.split()[-1]) for line in lines if " to " in line}
    assert sum(bins.values()) == 5
    assert (bins[1, 8], bins[9, 16], bins[57, 64]) == (2, 1, 2)
    assert lines[-1] == "shortest 1, median 9, longest 64; --max_len is 64, reached by 2"


@pytest.mark.parametrize("length", [1, 7, 8, 9, 100])
def test_every_length_falls_into_a_bin_that_names_it(length):
    samples = [Sample(torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.bool)) for n in range(1, length + 1)]
    out = console()
    print_lengths(out, samples, "--max_len", 200)
    lines = [line for line in out.file.getvalue().splitlines() if " to " in line]
    spans = [tuple(map(int, re.findall(r"\d+", line)))[:2] for line in lines]
    assert spans[0][0] == 1 and spans[-1][1] == length
    assert all(int(line.split()[-1]) == b - a + 1 for line, (a, b) in zip(lines, spans, strict=True))
