"""Folders in and out: tokenizers, causal models, refusals."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.gemma2 import Gemma2Config, Gemma2ForCausalLM

from openrlhf.config.groups import ModelConfig
from openrlhf.models import attention
from openrlhf.models.load import load_causal_lm, load_score_model, load_tokenizer, save_model
from openrlhf.models.tiny import build_model, build_tokenizer
from tests.models.helpers import SIZES, make_batch


def settings(folder: Path, **options: object) -> ModelConfig:
    return ModelConfig(pretrain=str(folder), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["plain", "  spaces\n\tand tabs ", "héllo 你好 🙂", "<|im_start|>user\nhi<|im_end|>"])
def test_tiny_tokenizer_survives_every_text(tiny_folder: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tiny_tokenizer_ends_messages_with_eos(tiny_folder: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_folder), settings(tiny_folder))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode("hi<|im_end|>")[-1] == tokenizer.eos_token_id == 1
    assert tokenizer.pad_token_id == 0


def test_vocabulary_too_small_for_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 259"):
        build_tokenizer(tmp_path, vocab_size=100)


def test_missing_pad_becomes_eos_with_a_line(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, logger="openrlhf.models.load"):
        loaded = load_tokenizer(str(tmp_path), settings(tmp_path))
    assert loaded.pad_token_id == loaded.eos_token_id
    assert "no pad token" in caplog.text


def test_tokenizer_without_eos_and_pad_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="neither a pad nor an eos token"):
        load_tokenizer(str(tmp_path), settings(tmp_path))


def test_tokenizer_that_encodes_to_nothing_is_refused(tmp_path: Path) -> None:
    core = Tokenizer(models.BPE())
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="turns text into no tokens"):
        load_tokenizer(str(tmp_path), settings(tmp_path))


def test_chat_template_override(tiny_folder: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_folder), settings(tiny_folder, tokenizer_chat_template="{{ messages|length }}"))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "1"


def test_missing_folders_are_one_sentence(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    for load in (load_tokenizer, load_causal_lm, lambda *a: load_score_model(*a, "score")):
        with pytest.raises(ValueError, match=r"^--pretrain .*nowhere: no \w+ could be loaded .* \(no such folder"):
            load(missing, settings(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="^--critic_pretrain .*no model could be loaded"):
        load_causal_lm(str(tmp_path / "empty"), settings(tmp_path), flag="--critic_pretrain")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("own_state", [True, False])
def test_saved_folder_gives_equal_logits(tiny_folder: Path, tmp_path: Path, tied: bool, own_state: bool) -> None:
    vocab = len(AutoTokenizer.from_pretrained(tiny_folder))
    build_model(tmp_path, vocab, tied=tied, seed=3)
    config = settings(tmp_path)
    model = load_causal_lm(str(tmp_path), config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)  # as training would
    state = None if own_state else {name: value.clone() for name, value in model.state_dict().items()}
    save_model(model, tmp_path / "out", load_tokenizer(str(tiny_folder), config), state)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = make_batch().tokens
    assert again.config.tie_word_embeddings is tied
    torch.testing.assert_close(again(tokens).logits, model.hf(tokens).logits, rtol=0, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("hi") == AutoTokenizer.from_pretrained(
        tiny_folder
    ).encode("hi")


def test_bf16_flag_and_default_dtype(tiny_folder: Path) -> None:
    assert load_causal_lm(str(tiny_folder), settings(tiny_folder)).hf.dtype == torch.float32
    half = load_causal_lm(str(tiny_folder), settings(tiny_folder, bf16=True))
    assert half.hf.dtype == torch.bfloat16
    assert half(make_batch(), packed=True).log_probs.dtype == torch.float32


def test_flash_attn_without_the_package_uses_our_attention(
    tiny_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openrlhf.models.load.find_spec", lambda name: None)
    with caplog.at_level(logging.INFO, logger="openrlhf.models.load"):
        model = load_causal_lm(str(tiny_folder), settings(tiny_folder, flash_attn=True))
    assert model.hf.config._attn_implementation == attention.NAME
    assert caplog.text.count("--flash_attn") == 1


def test_gradient_checkpointing_flag(tiny_folder: Path) -> None:
    model = load_causal_lm(str(tiny_folder), settings(tiny_folder, gradient_checkpointing=True))
    assert model.hf.is_gradient_checkpointing


def test_packing_is_refused_for_attention_it_does_not_know(tmp_path: Path) -> None:
    Gemma2ForCausalLM(Gemma2Config(**SIZES, attn_logit_softcapping=50.0)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="--packing_samples: the layers of --pretrain"):
        load_causal_lm(str(tmp_path), settings(tmp_path, packing_samples=True))
    assert load_causal_lm(str(tmp_path), settings(tmp_path)).hf.config._attn_implementation == "eager"
