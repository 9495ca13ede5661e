"""``openrlhf lora_combiner``: adapters of PEFT and of our own training into models that Transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from openrlhf.cli import lora_combiner, train_rm, train_sft
from openrlhf.models.tiny import build_model
from tests.recipes.helpers import run, words, write_rows
from tests.recipes.test_refusals import refused

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.fixture
def combine(tiny_folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {"model_path": tiny_folder, "lora_path": tmp_path / "adapter", "output_path": tmp_path / "whole"}


def peft_adapter(base: Path, folder: Path, **how: Any) -> None:
    """By PEFT alone, with matrices that do something."""
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, **how))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(std=0.1)
    model.save_pretrained(folder)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]], ids=str)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@torch.no_grad()
def test_the_model_scores_like_base_and_adapter(combine: dict[str, Any], targets: Any, tmp_path: Path) -> None:
    untied = tmp_path / "untied"
    vocabulary = len(AutoTokenizer.from_pretrained(combine["model_path"]))
    build_model(untied, vocabulary, tied=False)
    AutoTokenizer.from_pretrained(combine["model_path"]).save_pretrained(untied)
    base = combine["model_path"] if targets == "all-linear" else untied
    peft_adapter(base, combine["lora_path"], target_modules=targets, task_type="CAUSAL_LM")
    lora_combiner.main(words(combine | {"model_path": base}))
    plain = AutoModelForCausalLM.from_pretrained(base)
    before = plain(TOKENS).logits
    expected = PeftModel.from_pretrained(plain, combine["lora_path"])(TOKENS).logits
    got = AutoModelForCausalLM.from_pretrained(combine["output_path"])(TOKENS).logits
    assert float((expected - before).abs().max()) > 0.01
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert AutoTokenizer.from_pretrained(combine["output_path"]).encode("abc")


def test_in_bfloat16_the_sum_is_rounded_once(combine: dict[str, Any]) -> None:
    peft_adapter(combine["model_path"], combine["lora_path"], target_modules="all-linear", task_type="CAUSAL_LM")
    lora_combiner.main(words(combine | {"bf16": True}))
    plain = AutoModelForCausalLM.from_pretrained(combine["model_path"])
    merged = PeftModel.from_pretrained(plain, combine["lora_path"]).merge_and_unload().state_dict()
    saved = AutoModelForCausalLM.from_pretrained(combine["output_path"], dtype="auto").state_dict()
    assert all(torch.equal(saved[name], value.bfloat16()) for name, value in merged.items())


def test_a_reward_model_keeps_its_head_and_statistics(combine: dict[str, Any], tmp_path: Path) -> None:
    pairs = [{"chosen": f"{i} yes", "rejected": f"{i} no"} for i in range(4)]
    run(
        train_rm.main,
        {
            "pretrain": combine["model_path"], "dataset": write_rows(tmp_path / "pairs.jsonl", pairs), "max_len": 32,
            "train_batch_size": 4, "max_epochs": 4, "learning_rate": 1e-2, "lora_rank": 4,
            "value_head_prefix": "value_head", "save_path": combine["lora_path"],
        },
    )  # fmt: skip
    lora_combiner.main(words(combine | {"is_rm": True}))
    # Our folders hold the head under the name that was asked for.
    whole, report = AutoModelForSequenceClassification.from_pretrained(
        combine["output_path"], num_labels=1, key_mapping={r"^value_head\.": "score."}, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    base = AutoModelForSequenceClassification.from_pretrained(combine["model_path"], num_labels=1)
    expected = PeftModel.from_pretrained(base, combine["lora_path"]).eval()
    with torch.no_grad():
        torch.testing.assert_close(whole(TOKENS).logits, expected(TOKENS).logits, rtol=0, atol=1e-6)
    assert whole.config.mean != 0.0 and whole.config.std > 0


def test_what_training_wrote_is_ready_for_more_training(combine: dict[str, Any], tmp_path: Path) -> None:
    flags = {
        "pretrain": combine["model_path"], "dataset": write_rows(tmp_path / "rows.jsonl", [{"q": "a", "a": "b"}] * 4),
        "input_key": "q", "output_key": "a", "max_len": 32, "train_batch_size": 4, "micro_train_batch_size": 4,
        "lora_rank": 4, "save_path": combine["lora_path"],
    }  # fmt: skip
    run(train_sft.main, flags)
    lora_combiner.main(words(combine))
    run(train_sft.main, flags | {"pretrain": combine["output_path"], "save_path": tmp_path / "more"})


def test_folders_that_do_not_fit_are_one_sentence(
    combine: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sentence(**changed: Any) -> str:
        return refused(lora_combiner.main, combine | changed, capsys)

    assert sentence().startswith(f"--lora_path {combine['lora_path']} has no adapter_config.json")
    peft_adapter(combine["model_path"], combine["lora_path"], target_modules="all-linear", task_type="CAUSAL_LM")
    vocabulary = len(AutoTokenizer.from_pretrained(combine["model_path"]))
    for number, size in enumerate([{"hidden": 32}, {"layers": 1}]):
        other = tmp_path / str(number)
        build_model(other, vocabulary, **size)
        assert sentence(model_path=other).startswith(
            f"--lora_path {combine['lora_path']} does not fit --model_path {other}, it was trained on"
        )
    assert sentence(is_rm=True).endswith("is of a language model: leave --is_rm out")
    assert sentence(output_path=tmp_path / "0") == f"--output_path {tmp_path}/0 is not empty: name a new folder"
    assert sentence(model_path=tmp_path / "nowhere").startswith(f"--model_path {tmp_path}/nowhere: no model could")
    (tmp_path / "file").write_text("")
    assert sentence(output_path=tmp_path / "file" / "whole").startswith(
        f"--output_path {tmp_path}/file/whole cannot be written (Not a directory)"
    )
    for content in (b"{nope", b"[]", b'{"peft_type": "NOPE"}', b'{"a": "\xff"}'):
        (combine["lora_path"] / "adapter_config.json").write_bytes(content)
        assert sentence().startswith(f"--lora_path {combine['lora_path']}: no adapter could be loaded from there (")
