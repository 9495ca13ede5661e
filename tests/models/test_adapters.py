"""Adapters beside a frozen model, against PEFT's own loader."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from openrlhf.config.groups import ModelConfig
from openrlhf.models.adapters import WithoutAdapter, adapter_state, with_adapter
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.load import load_causal_lm, load_score_model, load_tokenizer, save_model
from openrlhf.models.tiny import build_model, build_tokenizer
from openrlhf.models.value_head import ScoreModel
from tests.models.helpers import make_batch

BATCH = make_batch()


def settings(folder: Path, **options: object) -> ModelConfig:
    return ModelConfig(pretrain=str(folder), **{"lora_rank": 4, **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build_model(folder, len(build_tokenizer(folder, vocab_size=300)), tied=request.param)
    return folder


def adapted(folder: Path, **options: object) -> CausalLM:
    """With matrices that do something: B starts at 0."""
    config = settings(folder, **options)
    model = with_adapter(load_causal_lm(str(folder), config), config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in adapter_state(model.hf).values():
            p.add_(0.05 * torch.randn_like(p))
    return model


pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
TARGETS = [("all-linear",), ("q_proj", "down_proj"), ("lm_head", "v_proj")]


@pytest.mark.parametrize("targets", TARGETS, ids=str)
@torch.no_grad()
def test_the_saved_adapter_is_one_that_peft_loads(folder: Path, tmp_path: Path, targets: tuple[str, ...]) -> None:
    model = adapted(folder, target_modules=targets, lora_alpha=6)
    save_model(model, tmp_path, load_tokenizer(str(folder), settings(folder)))
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".jinja", ".md"}
    plain = AutoModelForCausalLM.from_pretrained(folder)
    before = plain(BATCH.tokens).logits
    loaded = PeftModel.from_pretrained(plain, tmp_path).eval()
    after = loaded(BATCH.tokens).logits
    assert float((after - before).abs().max()) > 1e-3
    torch.testing.assert_close(after, model.hf(BATCH.tokens).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("targets", TARGETS, ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_log_probs_and_gradients_are_those_of_the_plain_forward(
    folder: Path, targets: tuple[str, ...], packed: bool
) -> None:
    """Through a head with an adapter too, a few tokens at a time."""
    model = adapted(folder, target_modules=targets)
    model.chunk_elements = 3 * 300
    table = model.hf(BATCH.tokens, attention_mask=BATCH.attention_mask).logits.log_softmax(-1)
    expected = torch.zeros(BATCH.tokens.shape)
    expected[:, 1:] = table[:, :-1].gather(2, BATCH.tokens[:, 1:, None])[..., 0]
    chosen = BATCH.action_mask & (torch.arange(BATCH.tokens.shape[1]) > 0)
    expected = torch.where(chosen, expected, 0.0)
    trained = list(adapter_state(model.hf).values())
    wanted = torch.autograd.grad(expected.sum(), trained)
    scores = model(BATCH, packed=packed)
    torch.testing.assert_close(scores.log_probs, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(scores.log_probs.sum(), trained), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_step_leaves_the_model_bit_for_bit_and_its_start_scores_as_before(folder: Path) -> None:
    config = settings(folder, gradient_checkpointing=True, gradient_checkpointing_use_reentrant=True)
    model = with_adapter(load_causal_lm(str(folder), config), config)
    plain = load_causal_lm(str(folder), config).eval()
    trained = list(adapter_state(model.hf).values())
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(2):  # the first moves B alone: A has no gradient while B is 0
        optimizer.zero_grad()
        (-model.train()(BATCH).log_probs).sum().backward()
        optimizer.step()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in trained)
    frozen = {name.replace(".base_layer", ""): p for name, p in model.hf.named_parameters() if not p.requires_grad}
    originals = dict(plain.hf.named_parameters())
    assert frozen.keys() == originals.keys()
    assert all(torch.equal(frozen[name], originals[name]) for name in frozen)
    with torch.no_grad():
        start = WithoutAdapter(model.eval())(BATCH).log_probs
        assert torch.equal(start, plain(BATCH).log_probs)
        assert float((model(BATCH).log_probs - start).abs().max()) > 1e-2
    assert all(p.requires_grad for p in trained)  # and it learns on


def scorer(folder: Path) -> ScoreModel:
    config = settings(folder)
    torch.manual_seed(1)
    model = with_adapter(load_score_model(str(folder), config, "value_head", new_head=True), config).eval()
    with torch.no_grad():
        for p in adapter_state(model.hf).values():
            p.add_(0.05 * torch.randn_like(p))
    model.set_statistics(0.5, 2.0)
    return model


def test_a_score_model_saves_its_head_and_statistics_with_the_adapter(folder: Path, tmp_path: Path) -> None:
    model = scorer(folder)
    save_model(model, tmp_path, load_tokenizer(str(folder), settings(folder)))
    torch.manual_seed(7)  # another random head, which the folder replaces
    loaded = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1), tmp_path
    ).eval()
    row = BATCH.select([0])
    hidden = loaded.base_model.model.model(row.tokens).last_hidden_state[:, -1]
    torch.testing.assert_close(loaded.base_model.model.score(hidden)[:, 0], model(row), rtol=0, atol=1e-6)
    assert (loaded.config.__class__.from_pretrained(tmp_path).mean) == 0.5


def test_only_the_adapter_and_the_head_of_a_score_model_train(folder: Path) -> None:
    names = adapter_state(scorer(folder).hf)
    assert {name for name in names if ".lora_" not in name} == {"score.modules_to_save.default.weight"}


@pytest.mark.parametrize("target", ["query", "score", "proj"])
def test_targets_that_the_model_has_not_are_refused(folder: Path, target: str) -> None:
    config = settings(folder, target_modules=("q_proj", target))
    with pytest.raises(ValueError, match=rf"^--target_modules {target}: .*it has down_proj, gate_proj, k_proj"):
        with_adapter(load_score_model(str(folder), config, "score", new_head=True), config)


def test_an_adapter_is_not_a_model(folder: Path, tmp_path: Path) -> None:
    config = settings(folder)
    save_model(adapted(folder), tmp_path, load_tokenizer(str(folder), config))
    for load in (load_causal_lm, lambda *a, **k: load_score_model(*a, "score", **k)):
        with pytest.raises(ValueError, match="^--ref_pretrain .* is a LoRA adapter without its model: .*lora_combiner"):
            load(str(tmp_path), config, flag="--ref_pretrain")


@pytest.mark.parametrize("bf16", [False, True])
def test_a_quantised_model_trains_its_adapter(folder: Path, bf16: bool) -> None:
    """Against Transformers' own forward of the same 4-bit weights."""
    pytest.importorskip("bitsandbytes")
    config = settings(folder, load_in_4bit=True, bf16=bf16, target_modules=("q_proj", "down_proj", "lm_head"))
    model = with_adapter(load_causal_lm(str(folder), config), config).train()
    model.chunk_elements = 3 * 300
    layer = model.hf.get_submodule("model.layers.0.self_attn.q_proj.base_layer")
    assert layer.weight.dtype == torch.uint8 and layer.weight.quant_type == "nf4"
    assert layer.compute_dtype == (torch.bfloat16 if bf16 else torch.float32)
    packed = layer.weight.data.clone()
    trained = list(adapter_state(model.hf).values())
    before = torch.autograd.grad(model(BATCH).log_probs.sum(), trained)
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses: list[float] = []
    with torch.no_grad():
        model.eval()(BATCH)  # as a reference would; it must not change how the layers learn
    model.train()
    after = torch.autograd.grad(model(BATCH).log_probs.sum(), trained)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for _ in range(5):
            optimizer.zero_grad()
            loss = -model(BATCH).log_probs.sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 1
        assert torch.equal(layer.weight.data, packed)
        table = model.hf(BATCH.tokens, attention_mask=BATCH.attention_mask).logits.float().log_softmax(-1)
        got = model(BATCH).log_probs
    expected = table[:, :-1].gather(2, BATCH.tokens[:, 1:, None])[..., 0]
    chosen = BATCH.action_mask[:, 1:]
    torch.testing.assert_close(got[:, 1:][chosen], expected[chosen], rtol=0, atol=0.05 if bf16 else 1e-4)
