"""Folders in and out: tokenizers, causal models, refusals."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
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


def changed_json(name: str, **values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def changed_weight(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


NORM = "model.layers.1.input_layernorm.weight"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "config is no JSON": (lambda f: (f / "config.json").write_text("{nope"), "is not a valid JSON file"),
    "config is not UTF-8": (lambda f: (f / "config.json").write_bytes(b'{"a": "\xff"}'), "is not a valid JSON file"),
    "config is a list": (lambda f: (f / "config.json").write_text("[1]"), "Should have a `model_type` key"),
    "config says a size in words": (changed_json("config.json", hidden_size="big"), "hidden_size"),
    "config says what cannot be": (changed_json("config.json", num_hidden_layers=-3), "num_hidden_layers"),
    "config of no language model": (changed_json("config.json", model_type="clip"), "Unrecognized configuration class"),
    "another size": (changed_json("config.json", intermediate_size=48), "its weights have other shapes"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no file named model.safetensors"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "header too small"),
    "a part of the weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:3000]),
        "incomplete metadata",
    ),
    "a pointer to the weights": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 123\n"),
        "header",
    ),
    "a weight of another shape": (
        changed_weight(lambda w: w.update({NORM: w[NORM][:1].clone()})),
        "its weights have other shapes",
    ),
    "a weight less": (changed_weight(lambda w: w.pop(NORM)), f"its files lack 1 weights of the model, such as {NORM}"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_folder_is_one_sentence(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    breaks, said = BROKEN[name]
    breaks(folder)
    for load in (load_causal_lm, lambda *a: load_score_model(*a, "score", new_head=True)):
        with pytest.raises(ValueError, match=r"^--pretrain .*model") as refusal:
            load(str(folder), settings(folder))
        assert said in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"a": "\xff"}'])
def test_a_broken_tokenizer_is_one_sentence(tiny_folder: Path, tmp_path: Path, content: bytes) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"^--pretrain .*no tokenizer could be loaded from there"):
        load_tokenizer(str(folder), settings(folder))


def test_a_reward_model_is_no_language_model(tiny_folder: Path, tmp_path: Path) -> None:
    """Where the head of the language model is not the embedding, a reward model has none."""
    build_model(tmp_path / "untied", len(AutoTokenizer.from_pretrained(tiny_folder)), tied=False)
    config = settings(tmp_path / "untied")
    scorer = load_score_model(str(tmp_path / "untied"), config, "score", new_head=True)
    save_model(scorer, tmp_path / "rm", load_tokenizer(str(tiny_folder), config))
    with pytest.raises(ValueError, match="its files lack 1 weights of the model, such as lm_head.weight"):
        load_causal_lm(str(tmp_path / "rm"), config)


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
