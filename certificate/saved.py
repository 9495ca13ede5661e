"""What is saved is what Transformers loads: the same logits, outside our code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from certificate.material import POLICY, SCORER, disturb, ragged
from certificate.methods import adapted
from openrlhf.config.groups import CombineConfig, ModelConfig
from openrlhf.models.combine import combined
from openrlhf.models.load import load_causal_lm, load_score_model, save_model
from openrlhf.models.tiny import build_tokenizer

TEXT = "saved → loaded by Transformers: the same logits"
TOLERANCE = 1e-5


def language_model(source: Path, target: Path, tokenizer: Any) -> tuple[Tensor, Tensor]:
    model = load_causal_lm(str(source / POLICY), ModelConfig(pretrain=str(source)))
    disturb(model.hf)  # what it has learned since
    save_model(model, target, tokenizer)
    return logits(model.hf), logits(AutoModelForCausalLM.from_pretrained(target))


def score_model(head: str) -> Callable[[Path, Path, Any], tuple[Tensor, Tensor]]:
    def check(source: Path, target: Path, tokenizer: Any) -> tuple[Tensor, Tensor]:
        model = load_score_model(str(source / SCORER), ModelConfig(pretrain=str(source)), head)
        disturb(model.hf)
        save_model(model, target, tokenizer)
        plain = AutoModelForSequenceClassification.from_pretrained(
            target, num_labels=1, key_mapping={rf"^{head}\.": "score."}
        )
        return logits(model.hf), logits(plain)

    return check


def adapter(source: Path, target: Path, tokenizer: Any) -> tuple[Tensor, Tensor]:
    model = adapted("all-linear")(source, ModelConfig(pretrain=str(source / POLICY)))
    save_model(model, target, tokenizer)
    plain = AutoModelForCausalLM.from_pretrained(source / POLICY)
    return logits(model.hf), logits(PeftModel.from_pretrained(plain, target))


def merged(source: Path, target: Path, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """What ``openrlhf lora_combiner`` makes of a folder and its adapter."""
    base, adapter_folder = source / POLICY, target / "adapter"
    model = adapted("all-linear")(source, ModelConfig(pretrain=str(base)))
    save_model(model, adapter_folder, tokenizer)
    whole = combined(CombineConfig(str(base), str(adapter_folder), str(target / "merged")))
    save_model(whole, target / "merged", tokenizer)
    return logits(model.hf), logits(AutoModelForCausalLM.from_pretrained(target / "merged"))


SAVED: dict[str, Callable[[Path, Path, Any], tuple[Tensor, Tensor]]] = {
    "language model": language_model,
    "LoRA adapter, loaded by PEFT": adapter,
    "LoRA adapter, merged": merged,
    "reward model": score_model("score"),
    "critic with a head named value_head": score_model("value_head"),
}


def error(check: Callable[[Path, Path, Any], tuple[Tensor, Tensor]], models: Path, target: Path) -> float:
    """The largest difference of a logit."""
    expected, got = check(models, target, build_tokenizer(target))
    return float((got - expected).abs().max())


@torch.no_grad()
def logits(hf: nn.Module) -> Tensor:
    batch = ragged(seed=0, rows=4)
    return hf.eval()(batch.tokens, attention_mask=batch.attention_mask.long(), use_cache=False).logits
