"""The planner's arithmetic against figures that were computed by hand from the models' published sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from openrlhf.config.groups import DeepSpeedConfig, ModelConfig
from openrlhf.plan.cluster import parse_cluster
from openrlhf.plan.memory import (
    busiest,
    in_host_memory,
    kv_slots,
    layer_parameters,
    states,
    step_set,
    total,
    working_set,
)
from openrlhf.plan.seconds import break_even, decode_step, forward, gathering, generate, train
from openrlhf.plan.shape import NAMED, Shape, find_shape, frozen, shape_of

MODEL = ModelConfig(pretrain="m", bf16=True, gradient_checkpointing=True)
H200_MEASURED, H200_COPY = 790e12, 4.3e12  # matmuls and copies on one card
# Qwen3-1.7B and Llama-3.2-3B, which are no named sizes.
QWEN3 = Shape(1_720_574_976, 1_720_574_976, 28, 2048, 16, 8, 128, 151936, 6144)
LLAMA3 = Shape(3_212_749_824, 3_212_749_824, 28, 3072, 24, 8, 128, 128256, 8192)


def shape(name: str) -> Shape:
    return {"1.7B": QWEN3, "3B": LLAMA3}.get(name) or find_shape(name, "--model", MODEL)


# As their model cards say.
CARDS = {
    "0.5B": 0.494,
    "1.5B": 1.54,
    "3B": 3.09,
    "7B": 7.62,
    "8B": 8.03,
    "14B": 14.8,
    "32B": 32.8,
    "70B": 70.6,
    "405B": 405.9,
}


@pytest.mark.parametrize(("name", "billions"), CARDS.items())
def test_named_sizes(name: str, billions: float) -> None:
    assert name in NAMED
    assert find_shape(name, "--model", MODEL).parameters / 1e9 == pytest.approx(billions, rel=5e-3)


@pytest.mark.parametrize(
    ("name", "kv", "measured", "parity", "decode_ms", "logits", "states_gb"),
    [
        ("0.5B", 12_288, 226e3, 127e3, 0.98, 10.0, 7.9),
        ("1.7B", 114_688, 67e3, 38e3, 7.8, 10.0, 27.5),
        ("3B", 114_688, 37e3, 21e3, 8.5, 8.4, 51),
        ("8B", 131_072, 15.4e3, 8.7e3, 11.7, 8.4, 128),
        ("70B", 327_680, 1.8e3, 1.0e3, None, 8.4, 1130),
    ],
)
def test_a_table_of_limits(
    name: str, kv: int, measured: float, parity: float, decode_ms: float | None, logits: float, states_gb: float
) -> None:
    """Tokens a second in training at 4k: of the measured 790 TFLOP/s, and at 45 % of the sheet's 989."""
    found = shape(name)
    assert found.kv_bytes == kv
    assert H200_MEASURED / found.train_flops(4096) == pytest.approx(measured, rel=0.02)
    assert 0.45 * 989e12 / found.train_flops(4096) == pytest.approx(parity, rel=0.02)
    assert 16384 * found.vocabulary * 4 / 1e9 == pytest.approx(logits, rel=0.01)
    alone = states(found, MODEL, DeepSpeedConfig(zero_stage=0), 1)
    assert total(alone) / 1e9 == pytest.approx(states_gb, rel=0.01)
    assert total(alone) == 16 * found.parameters
    if decode_ms is not None:
        assert 1000 * decode_step(found, 1, 256, 1024, H200_COPY) == pytest.approx(decode_ms, rel=0.01)


@pytest.mark.parametrize(
    ("context", "slots", "filled", "microseconds"), [(512, 256, 256, 30), (2048, 256, 205, 96), (8192, 128, 64, 558)]
)
def test_the_floor_of_a_sampled_token(context: int, slots: int, filled: int, microseconds: float) -> None:
    """8B on one H200; a slot that is empty costs as one that is full."""
    assert 1e6 * decode_step(shape("8B"), 1, slots, context, H200_COPY) / filled == pytest.approx(
        microseconds, rel=0.02
    )


@pytest.mark.parametrize(
    ("gpus", "gigabytes", "training", "scoring", "generating"),
    [(32, 35, 154, 46, 70), (64, 18, 77, 23, 53), (128, 9, 39, 11, 45), (256, 4, 19, 6, 41), (512, 2, 10, 3, 39)],
)
def test_seventy_billion_on_a_growing_cluster(
    gpus: int, gigabytes: float, training: float, scoring: float, generating: float
) -> None:
    """1,024 samples of 4k tokens on H100-80G with engines of 8, against another author's seconds, which are rounded.

    Generation stops scaling: every token reads all weights, however few texts an engine has.
    """
    found, cluster = shape("70B"), parse_cluster(f"{gpus // 8}x8xH100-80G", "--cluster")
    held = total(states(found, MODEL, DeepSpeedConfig(zero_stage=3), gpus)) / 1e9
    assert abs(held - gigabytes) <= 0.5
    tokens = 1024 * 4096
    # The difference between their rows is that of a context of 1,500 tokens on average.
    step = decode_step(found, 8, 1024 / (gpus // 8), 1500, 0.6 * 3.35e12)
    ours = (train(found, cluster, gpus, tokens, 4096), forward(found, cluster, gpus, tokens, 4096), 4096 * step)
    for mine, theirs in zip(ours, (training, scoring, generating), strict=True):
        assert abs(mine - theirs) <= 0.5 + 0.07 * theirs


@pytest.mark.parametrize(("words", "tokens"), [("8xH100", 880), ("2x8xH100", 7_900)])
def test_tokens_that_hide_the_sending_of_stage_3(words: str, tokens: float) -> None:
    """At 40 %: 450 GB/s in a machine, 400 Gb/s between them; independent of the model."""
    cluster = parse_cluster(words, "--cluster")
    assert break_even(cluster, cluster.gpus) == pytest.approx(tokens, rel=0.01)
    found = shape("8B")
    micro = break_even(cluster, cluster.gpus)
    working = 6 * found.parameters * micro / (0.4 * 989e12)
    assert gathering(found, cluster, cluster.gpus, 1) == pytest.approx(working, rel=1e-6)


@pytest.mark.parametrize(
    ("stage", "workers", "per_weight"), [(0, 8, 16), (1, 8, 2 + 2 + 12 / 8), (2, 8, 2 + 14 / 8), (3, 8, 16 / 8)]
)
def test_what_each_stage_divides(stage: int, workers: int, per_weight: float) -> None:
    found = shape("0.5B")
    held = states(found, MODEL, DeepSpeedConfig(zero_stage=stage), workers)
    assert total(held) == pytest.approx(per_weight * found.parameters)


def test_float32_adapters_and_offload() -> None:
    found = find_shape("0.5B", "--model", ModelConfig(pretrain="m", lora_rank=8))
    assert found.learns < found.parameters / 50
    held = states(found, ModelConfig(pretrain="m", lora_rank=8), DeepSpeedConfig(zero_stage=0), 1)
    assert total(held) == 4 * found.parameters + 12 * found.learns
    small, offloads = shape("0.5B"), DeepSpeedConfig(zero_stage=2, adam_offload=True)
    assert total(states(small, MODEL, offloads, 8)) == 2 * small.parameters
    # In host memory: master copy and two moments, the gradient in float32, and a copy that travels.
    assert in_host_memory(small, MODEL, offloads, 8) == (12 + 4 + 2) * small.parameters / 8
    # In float32 ZeRO keeps a master copy too; a single process has none.
    wide = ModelConfig(pretrain="m")
    assert total(states(small, wide, DeepSpeedConfig(zero_stage=0), 1)) == 16 * small.parameters
    assert total(states(small, wide, DeepSpeedConfig(zero_stage=1), 4)) == (4 + 4 + 12 / 4) * small.parameters


def test_activations_with_and_without_recomputation() -> None:
    """Of Llama 8B: two norms' inputs in float32, and two bytes for the rest."""
    found, tokens, sharding = shape("8B"), 4096, DeepSpeedConfig(zero_stage=2)
    hidden, inner, layers = 4096, 14336, 32
    layer = 2 * (4 * hidden + 4 * inner + 2 * 4096 + 2 * 1024) + 4 * 2 * hidden
    back = 2 * 2 * inner  # the gradients of gate and up
    kept = working_set(found, MODEL, sharding, tokens)["activations"]
    assert kept == (2 * layers * hidden + layer + back) * tokens
    every = working_set(found, ModelConfig(pretrain="m", bf16=True), sharding, tokens)["activations"]
    assert every == (layers * layer + back) * tokens
    ring = ModelConfig(pretrain="m", bf16=True, gradient_checkpointing=True, ring_attn_size=4)
    assert working_set(found, ring, sharding, tokens)["activations"] == kept / 4
    reads = working_set(frozen(found), MODEL, sharding, tokens)["activations"]
    assert reads == layer * tokens


def test_the_gradient_of_a_head_is_float32_first() -> None:
    """At few tokens it is more than what a layer works with."""
    found, sharding = shape("8B"), DeepSpeedConfig(zero_stage=2)
    layer = 2 * (4 * 4096 + 4 * 14336 + 2 * 4096 + 2 * 1024) + 4 * 2 * 4096 + 2 * 2 * 14336
    logits = working_set(found, MODEL, sharding, 100)["logits"]
    assert logits == 4 * (3 + 1) * 100 * 128256 + (4 + 2) * 128256 * 4096 - layer * 100
    adapter = replace(found, learns=1_000_000)
    assert working_set(adapter, MODEL, sharding, 100)["logits"] == 4 * (3 + 1) * 100 * 128256


def test_a_step_may_take_more_than_a_micro_batch() -> None:
    """Stage 2 flattens its part of the gradients, then makes it float32; stage 3 does so a billion at a time."""
    found = shape("8B")
    few = busiest(found, MODEL, DeepSpeedConfig(zero_stage=2), 2, 256)
    assert few == {"gradients for the step": (2 + 4) * found.parameters / 2}
    assert "activations" in busiest(found, MODEL, DeepSpeedConfig(zero_stage=2), 64, 8192)
    assert step_set(found, MODEL, DeepSpeedConfig(zero_stage=3), 2) == {"gradients for the step": 6e9}
    assert step_set(found, MODEL, DeepSpeedConfig(zero_stage=3, adam_offload=True), 2) == {}
    added = DeepSpeedConfig(zero_stage=2, grad_accum_dtype="fp32")
    assert states(found, MODEL, added, 2)["gradients"] == 4 * found.parameters / 2
    assert step_set(found, MODEL, added, 2) == {"gradients for the step": 2 * found.parameters / 2}


def test_a_token_passes_few_experts() -> None:
    """Qwen3-30B-A3B by its config.json: 30.5B parameters, 3.3B of which a token passes."""
    from transformers import AutoConfig

    sizes = {
        "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "vocab_size": 151936, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768, "intermediate_size": 6144, "tie_word_embeddings": False,
    }  # fmt: skip
    found = shape_of(AutoConfig.for_model("qwen3_moe", **sizes), MODEL)
    assert found.parameters / 1e9 == pytest.approx(30.5, rel=5e-3)
    assert (found.parameters - found.idle) / 1e9 == pytest.approx(3.3, rel=0.02)
    assert found.forward_flops(0) == 2 * (found.parameters - found.idle)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "qwen3_moe", "mixtral"])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("lora_rank", [0, 8])
def test_what_a_layer_keeps_is_what_autograd_saves(kind: str, bf16: bool, lora_rank: int) -> None:
    """Counted by torch in a real forward pass: of five layers less three, so that the rest of the model falls out."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from openrlhf.models.adapters import with_adapter
    from openrlhf.models.causal_lm import CausalLM

    if lora_rank and kind in ("qwen3_moe", "mixtral"):
        pytest.skip("adapters leave the experts out, or not, by a flag")
    settings, wide = ModelConfig(pretrain="m", bf16=bf16, lora_rank=lora_rank), 2 if bf16 else 4

    def saved(layers: int) -> tuple[float, Shape]:
        sizes = {"hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 4, "num_key_value_heads": 2}
        sizes |= {"head_dim": 32, "moe_intermediate_size": 96} if kind.startswith("qwen3") else {}
        sizes |= {"num_experts": 8, "num_experts_per_tok": 2} if kind == "qwen3_moe" else {}
        config = AutoConfig.for_model(kind, num_hidden_layers=layers, vocab_size=256, **sizes)
        model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16 if bf16 else torch.float32)
        if lora_rank:
            with_adapter(CausalLM(model), settings)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        inputs = torch.randn(1, 64, 128, dtype=next(model.parameters()).dtype, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.model(inputs_embeds=inputs).last_hidden_state.sum()
        every = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in weights)
        return every / 64, shape_of(config, settings)

    (few, _), (many, found) = saved(3), saved(5)
    assert (many - few) / 2 - lora_rank * 7 * wide == pytest.approx(found.kept_bytes(wide), rel=0.03)


def test_stage_3_holds_whole_layers() -> None:
    """A layer of Llama 8B: attention of 4096 × (4096 + 1024 + 1024 + 4096), three matrices of 4096 × 14336."""
    layer = 4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336
    # The estimate spreads the second embedding over the layers.
    assert layer_parameters(shape("8B")) == pytest.approx(layer + 128256 * 4096 / 32, rel=1e-3)
    gathered = working_set(shape("8B"), MODEL, DeepSpeedConfig(zero_stage=3), 4096)["gathered layers"]
    assert gathered == pytest.approx(2 * (2 * layer_parameters(shape("8B")) + 128256 * 4096))


def test_slots_of_an_engine() -> None:
    """80 GB × 0.9 less 16.06 GB of weights and 2 of scratch, at 2048 × 131,072 bytes a text."""
    assert kv_slots(shape("8B"), 80e9, 0.9, 1, 2048) == int((72e9 - 16.06e9 - 2e9) / (2048 * 131072))
    assert kv_slots(shape("70B"), 80e9, 0.9, 1, 2048) == 0
    assert kv_slots(shape("70B"), 80e9, 0.9, 4, 2048) > 0


def test_a_small_model_waits_for_its_scheduler() -> None:
    cluster = parse_cluster("1xH200", "--cluster")
    took, slow_host = generate(shape("0.5B"), cluster, 1, 64, 256, 512, 512)
    assert slow_host and took == pytest.approx(512 * 0.004)
    twice, _ = generate(shape("0.5B"), cluster, 1, 512, 256, 512, 512)
    assert twice > 1.9 * took


@pytest.mark.parametrize(
    ("model", "told"), [("9B", "no such folder; give one, a size"), ("./nowhere", "--model ./nowhere")]
)
def test_a_model_that_is_none(model: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        find_shape(model, "--model", MODEL)


def test_a_free_size() -> None:
    found = find_shape("4096x32", "--model", MODEL)
    assert (found.hidden, found.layers, found.heads, found.kv_heads) == (4096, 32, 32, 8)
