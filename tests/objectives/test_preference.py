"""DPO, cDPO and IPO against the papers' formulas on full logits, token by token in float64, and against TRL."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from openrlhf.backends.local import LocalTrain
from openrlhf.config.groups import OptimConfig
from openrlhf.models.causal_lm import CausalLM, TokenScores
from openrlhf.objectives.preference import preference_loss
from openrlhf.training.update import optimizer_step, pair_mean
from openrlhf.types import Batch
from tests.models.helpers import build
from tests.objectives.pairs import ANSWERS, PROMPTS, one_step, pair_batch
from tests.training.helpers import assert_same_gradient, gradient

DPO = {"beta": 0.3, "label_smoothing": 0.0, "ipo": False, "nll_loss_coef": 0.0}
CASES = {
    "dpo": DPO,
    "cdpo": {**DPO, "label_smoothing": 0.2},
    "ipo": {**DPO, "ipo": True},
    "dpo and nll": {**DPO, "nll_loss_coef": 0.7},
}


def objective(settings: dict, packed: bool = False):
    return partial(preference_loss, **settings, packed=packed)


def model(seed: int = 0) -> CausalLM:
    return CausalLM(build(seed=seed))


@pytest.fixture
def batch() -> Batch:
    """Reference log-probs a little off those of the model."""
    rows = pair_batch()
    with torch.no_grad():
        return rows.fill(ref_log_probs=model()(rows).log_probs + 0.5 * (rows.ref_log_probs + 5))


def paper(hf, batch: Batch, settings: dict) -> tuple[Tensor, dict[str, float]]:
    """arXiv:2305.18290 eq. 7, arXiv:2310.12036 eq. 17, over the answers' tokens alone; means over the pairs."""
    beta, epsilon = settings["beta"], settings["label_smoothing"]
    losses, seen = [], []
    for pair in range(len(batch) // 2):
        ratios, answer_nll = [], []
        for row in (2 * pair, 2 * pair + 1):
            length = PROMPTS[row] + ANSWERS[row]
            distribution = hf(batch.tokens[row : row + 1, :length]).logits[0].log_softmax(-1)
            answer = range(PROMPTS[row], length)
            log_probs = [distribution[t - 1, batch.tokens[row, t]] for t in answer]
            ratios.append(sum(log_probs) - sum(batch.ref_log_probs[row, t] for t in answer))
            answer_nll.append(-sum(log_probs) / len(log_probs))
        h = ratios[0] - ratios[1]
        if settings["ipo"]:
            loss = (h - 1 / (2 * beta)) ** 2
        else:
            right, wrong = 1 / (1 + torch.exp(-beta * h)), 1 / (1 + torch.exp(beta * h))
            loss = -(1 - epsilon) * torch.log(right) - epsilon * torch.log(wrong)
        losses.append(loss + settings["nll_loss_coef"] * answer_nll[0])
        chosen, rejected = beta * ratios[0].item(), beta * ratios[1].item()
        shown = {"chosen_reward": chosen, "rejected_reward": rejected, "reward_margin": chosen - rejected}
        seen.append({**shown, "accuracy": float(chosen > rejected), "nll": answer_nll[0].item()})
    return sum(losses) / len(losses), {name: sum(s[name] for s in seen) / len(seen) for name in seen[0]}


@pytest.mark.parametrize("case", CASES)
def test_loss_gradient_and_metrics_equal_the_papers(case: str, batch: Batch) -> None:
    hf, settings = build(), CASES[case]
    loss, seen = paper(hf, batch, settings)
    loss.backward()
    metrics, got = one_step(model(), batch, objective(settings), rows=4)
    if settings["nll_loss_coef"] == 0:
        del seen["nll"]
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert {
        name: metrics[name] for name in metrics.keys() - {"loss", "grad_norm", "lr", "skipped_steps"}
    } == pytest.approx(seen)
    assert 0 < metrics["accuracy"] < 1  # otherwise it would prove little
    assert_same_gradient(got, gradient(hf))


@pytest.mark.parametrize("case", CASES)
def test_prompt_tokens_of_both_sides_carry_no_loss(case: str, batch: Batch) -> None:
    """Even with a model that has log-probs of them: exactly the answers' tokens get a gradient, on both sides."""
    log_probs = (batch.ref_log_probs + 0.1).requires_grad_()
    loss = objective(CASES[case])(lambda *_, **__: TokenScores(log_probs, None), batch)
    loss.elements.sum().backward()
    assert torch.equal(log_probs.grad != 0, batch.action_mask)


def test_each_pair_stands_on_its_chosen_row(batch: Batch) -> None:
    loss = objective(CASES["dpo and nll"])(model(), batch)
    for values in (loss.elements, *loss.metrics.values()):
        assert values.shape == (len(batch),)
        assert not values[1::2].any() and not values.isnan().any()
    assert all(loss.elements[0::2] > 0)
    assert not any(values.requires_grad for values in loss.metrics.values())


@pytest.mark.parametrize(("case", "expected"), [("dpo", math.log(2)), ("cdpo", math.log(2)), ("ipo", 1 / 0.6**2)])
def test_a_policy_that_is_its_reference(case: str, expected: float, batch: Batch) -> None:
    with torch.no_grad():
        batch = batch.fill(ref_log_probs=model()(batch).log_probs)
    metrics, slope = one_step(model(), batch, objective(CASES[case]))
    assert metrics["loss"] == pytest.approx(expected, rel=1e-6)
    assert metrics["reward_margin"] == metrics["accuracy"] == 0
    assert slope.any()


@pytest.mark.parametrize("case", CASES)
def test_one_step_raises_the_margin(case: str, batch: Batch) -> None:
    with torch.no_grad():
        batch = batch.fill(ref_log_probs=model()(batch).log_probs)
    engine = LocalTrain(model(), OptimConfig(lr_warmup_ratio=0), 1e-4, total_steps=2)
    before = optimizer_step(engine, batch, objective(CASES[case]), 4, pair_mean)
    after = optimizer_step(engine, batch, objective(CASES[case]), 4, pair_mean)
    assert after["reward_margin"] > before["reward_margin"] == 0
    assert after["accuracy"] > before["accuracy"]
    assert after["loss"] < before["loss"]


def test_missing_reference_log_probs_are_named(batch: Batch) -> None:
    with pytest.raises(ValueError, match="ref_log_probs"):
        objective(DPO)(model(), batch.fill(ref_log_probs=None))


def test_half_a_pair_is_refused(batch: Batch) -> None:
    with pytest.raises(ValueError, match="even number of rows, got 3"):
        objective(DPO)(model(), batch.select([0, 1, 2]))


@pytest.fixture(scope="module")
def trl_trainer(tmp_path_factory):
    pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    words = Tokenizer(WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w0")
    config = DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), use_cpu=True, bf16=False, report_to=[],
        gradient_checkpointing=False, disable_dropout=True, beta=DPO["beta"],
    )  # fmt: skip
    rows = Dataset.from_dict({"prompt": ["w2"], "chosen": ["w3"], "rejected": ["w4"]})
    trainer = DPOTrainer(build(), build(seed=1), args=config, train_dataset=rows, processing_class=tokenizer)
    trainer.model.double(), trainer.ref_model.double()
    return trainer


@pytest.mark.slow
def test_dpo_equals_trl(trl_trainer) -> None:
    trl_trainer.loss_types, trl_trainer.beta = ["sigmoid"], DPO["beta"]
    batch = referred(pair_batch())
    assert ours(batch, DPO) == pytest.approx(trl(trl_trainer, batch), rel=1e-5)


@pytest.mark.slow
def test_cdpo_is_trl_on_labels_of_which_some_are_wrong(trl_trainer) -> None:
    """TRL has no cDPO; it is DPO's expected loss when a share ε of the pairs has its labels swapped."""
    trl_trainer.loss_types, trl_trainer.beta = ["sigmoid"], DPO["beta"]
    batch, epsilon = referred(pair_batch()), CASES["cdpo"]["label_smoothing"]
    swapped = batch.select([1, 0, 3, 2, 5, 4, 7, 6])
    theirs = (1 - epsilon) * trl(trl_trainer, batch) + epsilon * trl(trl_trainer, swapped)
    assert ours(batch, CASES["cdpo"]) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
def test_ipo_equals_trl(trl_trainer) -> None:
    """TRL averages over the tokens of an answer. Where all have n, its h is h/n, so its β is nβ and its loss 1/n²."""
    n, batch = 3, pair_batch()
    columns = torch.arange(batch.tokens.shape[1])
    batch = referred(batch.fill(action_mask=((columns >= 1) & (columns <= n)).expand(batch.tokens.shape)))
    trl_trainer.loss_types, trl_trainer.beta = ["ipo"], n * DPO["beta"]
    assert ours(batch, CASES["ipo"]) == pytest.approx(n**2 * trl(trl_trainer, batch), rel=1e-5)


def referred(batch: Batch) -> Batch:
    """With the log-probs of the model that the trainer has as its reference."""
    with torch.no_grad():
        return batch.fill(ref_log_probs=model(seed=1)(batch).log_probs)


def ours(batch: Batch, settings: dict) -> float:
    return one_step(model(), batch, objective(settings))[0]["loss"]


def trl(trainer, batch: Batch) -> float:
    """TRL puts all chosen rows before all rejected ones."""
    order = [*range(0, len(batch), 2), *range(1, len(batch), 2)]
    inputs = {
        "input_ids": batch.tokens[order],
        "attention_mask": batch.attention_mask[order].long(),
        "completion_mask": batch.action_mask[order].long(),
    }
    with torch.no_grad():
        return trainer.compute_loss(trainer.model, inputs).item()
