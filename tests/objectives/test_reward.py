"""The reward model's loss against Bradley–Terry on Transformers' own hidden states in float64, and against TRL."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from openrlhf.backends.local import LocalTrain
from openrlhf.config.groups import OptimConfig
from openrlhf.models.value_head import ScoreModel
from openrlhf.objectives.reward import pair_loss
from openrlhf.training.update import optimizer_step, pair_mean
from openrlhf.types import Batch
from tests.models.helpers import build_scorer
from tests.objectives.pairs import one_step, pair_batch
from tests.training.helpers import assert_same_gradient, gradient

CASES = {
    "sigmoid": {"loss": "sigmoid", "margin": False},
    "sigmoid with margin": {"loss": "sigmoid", "margin": True},
    "logexp": {"loss": "logexp", "margin": False},
}


def objective(case: str, packed: bool = False, fp32: bool = False):
    return partial(pair_loss, **CASES[case], fp32=fp32, packed=packed)


def model() -> ScoreModel:
    return ScoreModel(build_scorer())


@pytest.fixture
def batch() -> Batch:
    return pair_batch()


def paper(hf, batch: Batch, margin: bool) -> tuple[Tensor, dict[str, float]]:
    """−log of the Bradley–Terry probability (arXiv:2307.09288, eq. 2 with the margin), row by row."""
    scores = []
    for row, length in enumerate(batch.lengths.tolist()):
        states = hf.model(batch.tokens[row : row + 1, :length]).last_hidden_state[0]
        scores.append(hf.score.weight[0] @ states[-1])
    chosen, rejected = scores[0::2], scores[1::2]
    margins = batch.rewards[0::2].tolist() if margin else [0.0] * len(chosen)
    pairs = list(zip(chosen, rejected, margins, strict=True))
    wins = [torch.exp(c - m) / (torch.exp(c - m) + torch.exp(r)) for c, r, m in pairs]
    seen = {
        "accuracy": sum(c.item() > r.item() for c, r, _ in pairs) / len(pairs),
        "chosen_reward": sum(c.item() for c in chosen) / len(pairs),
        "rejected_reward": sum(r.item() for r in rejected) / len(pairs),
    }
    return sum(-torch.log(w) for w in wins) / len(wins), seen


@pytest.mark.parametrize("case", CASES)
def test_loss_gradient_and_metrics_equal_the_paper(case: str, batch: Batch) -> None:
    hf = build_scorer()
    loss, seen = paper(hf, batch, CASES[case]["margin"])
    loss.backward()
    metrics, got = one_step(model(), batch, objective(case), rows=4)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert {
        name: metrics[name] for name in metrics.keys() - {"loss", "grad_norm", "lr", "skipped_steps"}
    } == pytest.approx(seen)
    assert 0 < metrics["accuracy"] < 1  # otherwise it would prove little
    assert_same_gradient(got, gradient(hf))


def test_each_pair_stands_on_its_chosen_row(batch: Batch) -> None:
    loss = objective("sigmoid with margin")(model(), batch)
    for values in (loss.elements, *loss.metrics.values()):
        assert values.shape == (len(batch),)
        assert not values[1::2].any()
        assert values[0::2].any()
    assert not any(values.requires_grad for values in loss.metrics.values())


def test_the_margin_is_taken_only_when_asked_for(batch: Batch) -> None:
    without = batch.fill(rewards=None)
    (metrics, got), (same_metrics, same) = (one_step(model(), rows, objective("sigmoid")) for rows in (batch, without))
    assert torch.equal(got, same) and metrics == same_metrics
    with pytest.raises(ValueError, match="rewards"):
        objective("sigmoid with margin")(model(), without)


@pytest.mark.parametrize("case", CASES)
def test_one_step_raises_the_margin(case: str, batch: Batch) -> None:
    engine = LocalTrain(model(), OptimConfig(lr_warmup_ratio=0), 1e-4, total_steps=2)
    first, second = (optimizer_step(engine, batch, objective(case), 4, pair_mean) for _ in range(2))
    difference = [step["chosen_reward"] - step["rejected_reward"] for step in (first, second)]
    assert difference[1] > difference[0]
    assert second["loss"] < first["loss"]


@pytest.mark.parametrize(("fp32", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_scores_of_low_precision_are_cast_when_asked(fp32: bool, dtype: torch.dtype, batch: Batch) -> None:
    scores = torch.linspace(-2, 3, len(batch), dtype=torch.bfloat16)
    loss = objective("sigmoid", fp32=fp32)(lambda *_, **__: scores, batch)
    exact = (scores.double()[1::2] - scores.double()[0::2]).exp().log1p()
    assert loss.elements.dtype == dtype
    error = (loss.elements[0::2].double() - exact).abs().max()
    assert (error < 1e-6) == fp32


def test_float64_is_not_cast_down(batch: Batch) -> None:
    assert objective("sigmoid", fp32=True)(model(), batch).elements.dtype == torch.float64


def test_half_a_pair_is_refused(batch: Batch) -> None:
    with pytest.raises(ValueError, match="even number of rows, got 3"):
        objective("sigmoid")(model(), batch.select([0, 1, 2]))


@pytest.fixture(scope="module")
def trl_trainer(tmp_path_factory):
    pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import RewardConfig, RewardTrainer

    words = Tokenizer(WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w0")
    config = RewardConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), use_cpu=True, bf16=False, report_to=[],
        gradient_checkpointing=False, disable_dropout=True,
    )  # fmt: skip
    rows = Dataset.from_dict({"chosen": ["w3"], "rejected": ["w4"]})
    trainer = RewardTrainer(build_scorer(), args=config, train_dataset=rows, processing_class=tokenizer)
    trainer.model.double()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_loss_equals_trl(trl_trainer, batch: Batch, case: str) -> None:
    """TRL puts all chosen rows before all rejected ones, and finds the last token by the padding token."""
    order = [*range(0, len(batch), 2), *range(1, len(batch), 2)]
    inputs = {
        "input_ids": batch.tokens.masked_fill(~batch.attention_mask, 0)[order],
        "attention_mask": batch.attention_mask[order].long(),
    }
    if CASES[case]["margin"]:
        inputs["margin"] = batch.rewards[0::2]
    with torch.no_grad():
        theirs = trl_trainer.compute_loss(trl_trainer.model, inputs)
    assert one_step(model(), batch, objective(case))[0]["loss"] == pytest.approx(theirs.item(), rel=1e-5)
