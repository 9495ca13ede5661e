from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from openrlhf.config.groups import ModelConfig
from openrlhf.models.load import load_tokenizer
from openrlhf.models.tiny import build_tokenizer
from openrlhf.models.vocabulary import check_same_tokens


@pytest.fixture
def config(tiny_folder: Path) -> ModelConfig:
    return ModelConfig(pretrain=str(tiny_folder))


def check(config: ModelConfig, folder: Path) -> None:
    check_same_tokens(str(folder), "--ref_pretrain", load_tokenizer(config.pretrain, config), config)


def test_other_merges_are_refused_with_a_comparison(config: ModelConfig, tmp_path: Path) -> None:
    build_tokenizer(tmp_path / "other", ["quite another text, quite another vocabulary"] * 3, vocab_size=300)
    with pytest.raises(ValueError, match=r"^--ref_pretrain .*other: .*\(\d+ tokens, not 300; '.+' is \d+ here and is "):
        check(config, tmp_path / "other")


def test_a_smaller_vocabulary_is_refused(config: ModelConfig, tmp_path: Path) -> None:
    build_tokenizer(tmp_path / "bytes")
    with pytest.raises(ValueError, match=r"\(259 tokens, not 300; .* here and is not there\)"):
        check(config, tmp_path / "bytes")


def test_the_same_ids_in_another_order_are_refused(config: ModelConfig, tiny_folder: Path, tmp_path: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        text = (tiny_folder / file).read_text(encoding="utf-8")
        (tmp_path / file).write_text(text.replace('"a": ', '"swap": ').replace('"b": ', '"a": ').replace(
            '"swap": ', '"b": '), encoding="utf-8")  # fmt: skip
    with pytest.raises(ValueError, match=r"\(300 tokens, not 300; "):
        check(config, tmp_path)


def test_further_tokens_that_it_never_meets_are_no_matter(config: ModelConfig, tmp_path: Path) -> None:
    larger = AutoTokenizer.from_pretrained(config.pretrain)
    larger.add_tokens(["<another>"])
    larger.save_pretrained(tmp_path)
    check(config, tmp_path)
