"""The weights that engines are given of a model with an adapter, against PEFT's own merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from openrlhf.backends.local import LocalTrain
from openrlhf.config.groups import ModelConfig, OptimConfig
from openrlhf.models.adapters import adapter_state, save_adapter, with_adapter
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.load import load_causal_lm, load_score_model
from openrlhf.models.merged import check_syncs
from openrlhf.models.tiny import build_model, build_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
RANK, ALPHA = 4, 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    size = len(build_tokenizer(folder, vocab_size=300))
    for kind in ("tied", "untied"):
        build_model(folder / kind, size, tied=kind == "tied")
    torch.manual_seed(0)
    mixture = MixtralConfig(
        vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, initializer_range=0.1,
    )  # fmt: skip
    MixtralForCausalLM(mixture).save_pretrained(folder / "mixture")
    return {kind: folder / kind for kind in ("tied", "untied", "mixture")}


def settings(folder: Path, targets: tuple[str, ...] = ("all-linear",), **options: Any) -> ModelConfig:
    return ModelConfig(str(folder), lora_rank=RANK, lora_alpha=ALPHA, target_modules=targets, **options)


def adapted(folder: Path, targets: tuple[str, ...] = ("all-linear",), **options: Any) -> CausalLM:
    """With matrices that do something: B starts at 0."""
    config = settings(folder, targets, **options)
    return stirred(with_adapter(load_causal_lm(str(folder), config), config))


@torch.no_grad()
def stirred(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in adapter_state(model.hf).values():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def engine(model: Any) -> LocalTrain:
    return LocalTrain(model, OptimConfig(), 1e-3, 10)


CASES = [
    ("tied", ("all-linear",)),
    ("untied", ("q_proj", "down_proj", "lm_head")),
    ("mixture", ("all-linear",)),
]


@pytest.mark.parametrize(("kind", "targets"), CASES)
def test_merged_weights_are_those_of_peft(
    kind: str, targets: tuple[str, ...], folders: dict[str, Path], tmp_path: Path
) -> None:
    model = adapted(folders[kind], targets)
    save_adapter(model.hf, tmp_path, adapter_state(model.hf))
    plain = AutoModelForCausalLM.from_pretrained(folders[kind])
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    expected = PeftModel.from_pretrained(plain, tmp_path).merge_and_unload(safe_merge=True).state_dict()
    weights = dict(engine(model).full_weights())
    assert list(weights) == list(expected) == list(before)
    changed = {name for name, value in expected.items() if (value - before[name]).abs().max() > 1e-3}
    assert len(changed) >= 4
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_model_is_bit_for_bit_the_same_after_a_hundred_merges(folders: dict[str, Path], bf16: bool) -> None:
    model = adapted(folders["tied"], bf16=bf16)
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    trained = engine(model)
    first = {name: value.clone() for name, value in trained.full_weights()}
    for _ in range(99):
        last = dict(trained.full_weights())
    assert all(torch.equal(value, before[name]) for name, value in model.hf.state_dict().items())
    assert all(torch.equal(value, first[name]) for name, value in last.items())


def test_bfloat16_weights_are_added_in_float32(folders: dict[str, Path]) -> None:
    model = adapted(folders["tied"], bf16=True)
    layer = model.hf.get_submodule("model.layers.1.mlp.up_proj")
    a, b, base = (
        weight.detach().double()
        for weight in (layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.base_layer.weight)
    )
    weights = dict(engine(model).full_weights())
    merged = weights["model.layers.1.mlp.up_proj.weight"]
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged.double(), base + ALPHA / RANK * b @ a, rtol=0, atol=1e-6)
    assert weights["model.norm.weight"].dtype == torch.bfloat16


@torch.no_grad()
def test_4_bit_weights_are_the_numbers_that_the_layers_multiply_by(folders: dict[str, Path]) -> None:
    pytest.importorskip("bitsandbytes")
    model = adapted(folders["untied"], ("q_proj", "down_proj"), load_in_4bit=True).eval()
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    plain = load_causal_lm(str(folders["untied"]), ModelConfig(str(folders["untied"])))
    weights = dict(engine(model).full_weights())
    assert list(weights) == list(plain.hf.state_dict())
    for name in ("q_proj", "k_proj", "o_proj"):  # the first has an adapter
        layer = model.hf.get_submodule(f"model.layers.0.self_attn.{name}")
        weight = weights[f"model.layers.0.self_attn.{name}.weight"]
        product = layer(torch.eye(weight.shape[1])).T
        torch.testing.assert_close(weight, product, rtol=0, atol=1e-5)
        assert float((weight - plain.hf.state_dict()[f"model.layers.0.self_attn.{name}.weight"]).abs().max()) > 1e-3
    assert all(torch.equal(value, before[name]) for name, value in model.hf.state_dict().items())


def test_the_head_of_a_score_model_is_the_one_that_trains(folders: dict[str, Path]) -> None:
    config = settings(folders["tied"])
    model = load_score_model(str(folders["tied"]), config, "score", new_head=True)
    names = list(model.hf.state_dict())
    model = stirred(with_adapter(model, config))
    weights = dict(engine(model).full_weights())
    assert list(weights) == names
    assert torch.equal(weights["score.weight"], model.hf.score.modules_to_save["default"].weight)


def test_an_adapter_on_a_tied_head_cannot_reach_an_engine(folders: dict[str, Path]) -> None:
    check_syncs(adapted(folders["tied"]).hf)
    check_syncs(adapted(folders["untied"], ("lm_head",)).hf)
    with pytest.raises(ValueError, match="^--target_modules.*leave the head out$"):
        check_syncs(adapted(folders["tied"], ("q_proj", "lm_head")).hf)
