"""Scores and values, and the folders they travel in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch.nn.functional import pad
from transformers import AutoModelForSequenceClassification

from openrlhf.config.groups import ModelConfig
from openrlhf.models.load import load_score_model, load_tokenizer, save_model
from openrlhf.models.value_head import ScoreModel, init_head
from openrlhf.types import Batch
from tests.models.helpers import build_scorer, make_batch


def hidden_states(model: ScoreModel, batch: Batch, row: int) -> torch.Tensor:
    length = int(batch.lengths[row])
    return model.hf.model(batch.tokens[row : row + 1, :length], use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("what", ["scores", "values"])
def test_scores_and_values_and_their_gradients_row_by_row(what: Literal["scores", "values"], packed: bool) -> None:
    model, batch = ScoreModel(build_scorer()), make_batch()
    weight = model.hf.score.weight[0]
    scores = torch.zeros(len(batch), dtype=torch.float64)
    values = torch.zeros(batch.tokens.shape, dtype=torch.float64)
    for b, length in enumerate(batch.lengths.tolist()):
        states = hidden_states(model, batch, b)
        scores[b] = states[length - 1] @ weight
        for t in range(1, length):
            if batch.action_mask[b, t]:
                values[b, t] = states[t - 1] @ weight  # the state in which token t was chosen
    expected = scores if what == "scores" else values
    (expected**2).sum().backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    got = model(batch, what, packed)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    (got**2).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, want[name], rtol=0, atol=1e-10)


def test_normalisation_only_in_eval_mode_and_only_when_asked() -> None:
    batch = make_batch()
    plain, normal = ScoreModel(build_scorer()), ScoreModel(build_scorer(), normalize=True)
    for model in (plain, normal):
        model.set_statistics(mean=0.5, std=4.0)
    raw = plain.train()(batch)
    assert torch.equal(normal.train()(batch), raw) and torch.equal(plain.eval()(batch), raw)
    torch.testing.assert_close(normal.eval()(batch), (raw - 0.5) / 4.0)


def test_new_head_has_the_documented_spread() -> None:
    head = torch.nn.Linear(4095, 40, bias=False)
    init_head(head)
    assert float(head.weight.detach().std()) == pytest.approx(1 / 4096, rel=0.02)
    assert abs(float(head.weight.detach().mean())) < 1e-5


def test_a_head_that_a_language_model_cannot_have_is_not_complained_of(
    tiny_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    load_score_model(str(tiny_folder), ModelConfig(pretrain=str(tiny_folder)), "score", new_head=True)
    assert "score.weight" not in capfd.readouterr().err


def test_folder_loads_as_sequence_classifier_with_equal_scores(tiny_folder: Path, tmp_path: Path) -> None:
    config = ModelConfig(pretrain=str(tiny_folder))
    tokenizer = load_tokenizer(str(tiny_folder), config)
    model = load_score_model(str(tiny_folder), config, "score", new_head=True).eval()
    model.hf.score.weight.data.mul_(30)  # away from zero, so that equality means something
    model.set_statistics(0.25, 2.0)
    save_model(model, tmp_path, tokenizer)
    batch = make_batch()
    batch = batch.fill(tokens=torch.where(batch.attention_mask, batch.tokens, tokenizer.pad_token_id))
    ours = model(batch)
    assert float(ours.detach().std()) > 1e-2

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1).eval()
    theirs = plain(batch.tokens, attention_mask=batch.attention_mask.long()).logits[:, 0]
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)

    # The documented way to use it by hand, on left-padded tokens.
    width = batch.tokens.shape[1]
    rows = [(batch.tokens[b, :n], width - n) for b, n in enumerate(batch.lengths.tolist())]
    left = torch.stack([pad(row, (empty, 0), value=tokenizer.pad_token_id) for row, empty in rows])
    mask = torch.stack([pad(torch.ones_like(row), (empty, 0)) for row, empty in rows])
    reward = plain.model(left, mask).last_hidden_state
    torch.testing.assert_close(plain.score(reward)[:, -1, 0], ours, rtol=0, atol=1e-5)

    again = load_score_model(str(tmp_path), config, "score")
    assert (again.mean, again.std) == (0.25, 2.0)
    torch.testing.assert_close(again.eval()(batch), ours, rtol=0, atol=1e-6)


def test_prefix_names_the_weight_and_config_json_wins(tiny_folder: Path, tmp_path: Path) -> None:
    config = ModelConfig(pretrain=str(tiny_folder))
    model = load_score_model(str(tiny_folder), config, "value_head", new_head=True).eval()
    save_model(model, tmp_path, load_tokenizer(str(tiny_folder), config))
    assert json.loads((tmp_path / "config.json").read_text())["value_head_prefix"] == "value_head"
    again = load_score_model(str(tmp_path), config, "score").eval()
    assert again.prefix == "value_head"
    torch.testing.assert_close(again(make_batch()), model(make_batch()), rtol=0, atol=1e-6)
    save_model(again, tmp_path / "twice", load_tokenizer(str(tiny_folder), config))
    twice = load_score_model(str(tmp_path / "twice"), config, "score").eval()
    torch.testing.assert_close(twice(make_batch()), model(make_batch()), rtol=0, atol=1e-6)


def test_folder_of_a_plain_sequence_classifier_loads(tmp_path: Path) -> None:
    hf = build_scorer(torch.float32).eval()
    hf.save_pretrained(tmp_path)
    model = load_score_model(str(tmp_path), ModelConfig(pretrain=str(tmp_path)), "score").eval()
    torch.testing.assert_close(model(make_batch()), ScoreModel(hf)(make_batch()), rtol=0, atol=1e-6)


def test_folder_without_a_head_is_refused(tiny_folder: Path) -> None:
    config = ModelConfig(pretrain=str(tiny_folder))
    with pytest.raises(ValueError, match="--reward_pretrain .*no reward head named 'score'"):
        load_score_model(str(tiny_folder), config, "score", flag="--reward_pretrain")
