"""KTO against the paper's formula on full logits, token by token, and against TRL; the baseline is the mini-batch's."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from openrlhf.backends.local import LocalForward, LocalTrain
from openrlhf.config.groups import OptimConfig
from openrlhf.models.causal_lm import CausalLM, TokenScores
from openrlhf.objectives.unpaired import kto_loss
from openrlhf.training.baseline import with_kl_baseline
from openrlhf.types import Batch, Metrics
from tests.models.helpers import build
from tests.objectives.pairs import ANSWERS, PROMPTS, one_step, pair_batch
from tests.training.helpers import GradientEngine, gradient

BETA, DESIRABLE, UNDESIRABLE = 0.3, 1.5, 0.7
LABELS = (1, 0, 0, 1)  # of the even rows


def objective(packed: bool = False):
    return partial(kto_loss, beta=BETA, desirable_weight=DESIRABLE, undesirable_weight=UNDESIRABLE, packed=packed)


def model(seed: int = 0) -> CausalLM:
    return CausalLM(build(seed=seed))


def rows() -> Batch:
    """Four examples: even rows labelled, odd rows mismatched, without what is measured before the step."""
    rewards = torch.tensor([label for example in LABELS for label in (example, 0)], dtype=torch.float32)
    return pair_batch().fill(rewards=rewards, ref_log_probs=None)


@pytest.fixture
def reference() -> LocalForward:
    return LocalForward(near_model())


def near_model() -> CausalLM:
    """A little off the policy, and on the whole less sure of these rows: otherwise the KL would be cut at 0."""
    other = model()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for p in other.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return other


def step(batch: Batch, reference: LocalForward, micro: int = 99, packed: bool = False) -> tuple[Metrics, Tensor]:
    """Baseline, then metrics and gradient of one mini-batch, all in micro-batches of so many examples."""
    policy = model()
    ready = with_kl_baseline(batch, GradientEngine(policy), reference, micro, packed)
    return one_step(policy, ready, objective(packed), 2 * micro)


def paper(policy, reference, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """arXiv:2402.01306: L = E[λ_y − v(x, y)], z_0 from the mismatched rows, cut at 0 and without gradient."""
    ratios = []
    for row in range(len(batch)):
        length = PROMPTS[row] + ANSWERS[row]
        tokens = batch.tokens[row : row + 1, :length]
        pi, ref = (hf(tokens).logits[0].log_softmax(-1) for hf in (policy, reference))
        ratios.append(sum(pi[t - 1, tokens[0, t]] - ref[t - 1, tokens[0, t]] for t in range(PROMPTS[row], length)))
    mismatched = [ratio.item() for ratio in ratios[1::2]]
    z = max(0.0, sum(mismatched) / len(mismatched))
    losses, right, margins = [], [], []
    for ratio, label in zip(ratios[0::2], LABELS, strict=True):
        sign, weight = (1, DESIRABLE) if label else (-1, UNDESIRABLE)
        losses.append(weight - weight / (1 + torch.exp(-BETA * sign * (ratio - z))))
        margins.append(BETA * sign * (ratio.item() - z))
        right.append(margins[-1] > 0)
    n = len(losses)
    return sum(losses) / n, {"accuracy": sum(right) / n, "label_margin": sum(margins) / n, "kl_baseline": z}


def test_loss_gradient_and_metrics_equal_the_papers(reference: LocalForward) -> None:
    hf = build()
    loss, seen = paper(hf, reference.model.hf, rows())
    loss.backward()
    metrics, got = step(rows(), reference, micro=2)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert {
        name: metrics[name] for name in metrics.keys() - {"loss", "grad_norm", "lr", "skipped_steps"}
    } == pytest.approx(seen, rel=1e-5)
    assert 0 < metrics["accuracy"] < 1 and metrics["kl_baseline"] > 0.1  # otherwise it would prove little
    torch.testing.assert_close(got, gradient(hf), rtol=1e-5, atol=1e-6 * float(got.abs().max()))


def test_the_baseline_is_never_negative() -> None:
    """The reference prefers these rows: the mean is below 0, which no KL is."""
    surer = LocalTrain(near_model(), OptimConfig(lr_warmup_ratio=0), 1e-3, 1)
    ready = with_kl_baseline(rows(), surer, LocalForward(model()), 2, False)
    assert ready.kl_baseline.tolist() == [0.0] * 8


def test_a_policy_that_is_its_reference() -> None:
    metrics, slope = step(rows(), LocalForward(model()))
    assert metrics["loss"] == pytest.approx((2 * DESIRABLE + 2 * UNDESIRABLE) / 2 / 4, rel=1e-5)
    assert metrics["kl_baseline"] == pytest.approx(0, abs=1e-5)
    assert slope.any()


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_at_the_reference_no_answer_leans_to_a_side(micro: int, packed: bool) -> None:
    """Not even by rounding, in the float32 of training: an accuracy of chance would look like a result."""
    policy, reference = (CausalLM(build(dtype=torch.float32)) for _ in range(2))
    ready = with_kl_baseline(rows(), GradientEngine(policy), LocalForward(reference), micro, packed)
    metrics, _ = one_step(policy, ready, objective(packed), 2 * micro)
    assert metrics["accuracy"] == metrics["label_margin"] == metrics["kl_baseline"] == 0


def test_exactly_the_tokens_of_labelled_answers_learn(reference: LocalForward) -> None:
    """Even with a model that has log-probs of the others."""
    batch = with_kl_baseline(rows(), GradientEngine(model()), reference, 99, False)
    log_probs = (batch.ref_log_probs + 0.1).requires_grad_()
    loss = objective()(lambda given, **_: TokenScores(log_probs[0::2, : given.tokens.shape[1]], None), batch)
    loss.elements.sum().backward()
    learns = batch.action_mask.clone()
    learns[1::2] = False
    assert torch.equal(log_probs.grad != 0, learns)


def test_each_example_stands_on_its_first_row(reference: LocalForward) -> None:
    batch = with_kl_baseline(rows(), GradientEngine(model()), reference, 99, False)
    loss = objective()(model(), batch)
    for values in (loss.elements, *loss.metrics.values()):
        assert values.shape == (len(batch),)
        assert not values[1::2].any()
    assert not any(values.requires_grad for values in loss.metrics.values())


@pytest.mark.parametrize("field", ["ref_log_probs", "kl_baseline", "rewards"])
def test_a_missing_field_is_named(field: str, reference: LocalForward) -> None:
    batch = with_kl_baseline(rows(), GradientEngine(model()), reference, 99, False)
    with pytest.raises(ValueError, match=field):
        objective()(model(), batch.fill(**{field: None}))


def test_half_an_example_is_refused() -> None:
    with pytest.raises(ValueError, match="even number of rows, got 3"):
        objective()(model(), rows().select([0, 1, 2]))


@pytest.mark.slow
def test_kto_equals_trl(tmp_path, reference: LocalForward) -> None:
    pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import KTOConfig, KTOTrainer

    words = Tokenizer(WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w0")
    config = KTOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False,
        disable_dropout=True, beta=BETA, desirable_weight=DESIRABLE, undesirable_weight=UNDESIRABLE,
        per_device_train_batch_size=4,
    )  # fmt: skip
    data = Dataset.from_dict({"prompt": ["w2"] * 2, "completion": ["w3", "w4"], "label": [True, False]})
    trainer = KTOTrainer(build(), near_model().hf, args=config, train_dataset=data, processing_class=tokenizer)
    trainer.model.double(), trainer.ref_model.double()
    batch = rows()
    kinds = {"": batch.select(slice(0, None, 2)), "KL_": batch.select(slice(1, None, 2))}
    inputs = {"label": torch.tensor(LABELS, dtype=torch.bool)}
    for name, part in kinds.items():
        inputs[f"{name}input_ids"] = part.tokens
        inputs[f"{name}attention_mask"] = part.attention_mask.long()
        inputs[f"{name}completion_mask"] = part.action_mask.long()
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, inputs).item()
    assert step(batch, reference)[0]["loss"] == pytest.approx(theirs, rel=1e-5)
