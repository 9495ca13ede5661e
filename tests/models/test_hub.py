"""``--use_ms`` for models, against a stand-in for ModelScope's package."""

from __future__ import annotations

from pathlib import Path

import pytest

from openrlhf.config.groups import ModelConfig
from openrlhf.models.hub import local_folder
from openrlhf.models.load import is_score_model, load_causal_lm, load_score_model, load_tokenizer
from tests.modelscope import offer, take_away

NAME = "somebody/tiny"
CONFIG = ModelConfig(pretrain=NAME, use_ms=True)


def test_every_loader_takes_the_downloaded_folder(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = offer(monkeypatch, {NAME: tiny_folder}, {})
    assert load_tokenizer(NAME, CONFIG).get_vocab() == load_tokenizer(str(tiny_folder), CONFIG).get_vocab()
    ours, direct = load_causal_lm(NAME, CONFIG).state_dict(), load_causal_lm(str(tiny_folder), CONFIG).state_dict()
    assert all(ours[name].equal(weight) for name, weight in direct.items())
    assert not is_score_model(NAME, CONFIG)
    load_score_model(NAME, CONFIG, "score", new_head=True)
    assert set(asked) == {NAME}


def test_a_folder_and_a_run_without_the_flag_ask_nobody(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = offer(monkeypatch, {}, {})
    assert local_folder(str(tiny_folder), CONFIG, "--pretrain") == str(tiny_folder)
    assert local_folder(NAME, ModelConfig(pretrain=NAME), "--pretrain") == NAME
    assert not asked


def test_what_modelscope_does_not_give_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, {}, {})
    with pytest.raises(ValueError, match=r"^--ref_pretrain a/b: ModelScope does not .*\(no repository a/b\); check"):
        load_causal_lm("a/b", CONFIG, "--ref_pretrain")


def test_without_the_package_the_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    take_away(monkeypatch)
    with pytest.raises(ValueError, match=r'^--use_ms needs ModelScope: pip install "openrlhf\[modelscope\]"$'):
        load_tokenizer(NAME, CONFIG)
