"""The decode loop against Transformers' own generate and against the model's forward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from openrlhf.backends import hf_generate
from openrlhf.backends.hf_generate import HFGenerate, penalize, top_p_cut
from openrlhf.config.groups import ModelConfig
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.load import load_causal_lm
from openrlhf.rollout.collect import make_sample
from openrlhf.rollout.engine import Completion, SamplingParams
from openrlhf.types import Prompt, collate
from tests.models.helpers import VOCAB, build

PROMPTS = [[5, 9, 40], [7], [5, 9, 40], [11, 12, 13, 14, 15, 16, 17], [7], [33, 2]]


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(build(dtype=torch.float32))


def generate(model: CausalLM, prompts: list[list[int]] = PROMPTS, **params) -> list[Completion]:
    return HFGenerate(model.hf).generate(prompts, SamplingParams(**{"max_new_tokens": 12, "seed": 0, **params}))


def scored(
    model: CausalLM, prompts: list[list[int]], answers: list[Completion], temperature: float
) -> list[list[float]]:
    """The log-probs of the answers by the forward that training uses."""
    samples = [make_sample(Prompt(i, "", p), a, i) for i, (p, a) in enumerate(zip(prompts, answers, strict=True))]
    batch = collate(samples, 0)
    with torch.no_grad():
        log_probs = model(batch, temperature=temperature).log_probs
    return [row[mask].tolist() for row, mask in zip(log_probs, batch.action_mask, strict=True)]


@pytest.mark.parametrize("family", ["qwen3", "llama", "mistral, window 3", "gemma3, window 3, capped", "granite"])
def test_greedy_equals_transformers_token_for_token(family: str) -> None:
    check_greedy(build(family, torch.float32).eval())


def test_greedy_with_absolute_positions_too() -> None:
    """Rotary positions forgive a shift of the whole prompt; GPT-2's do not."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.5}
    torch.manual_seed(0)
    check_greedy(GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, bos_token_id=None, eos_token_id=1, **sizes)).eval())


@pytest.mark.parametrize("penalty", [0.6, 1.3, 5.0])
def test_a_repetition_penalty_equals_transformers_too(penalty: float) -> None:
    """Also among rows of other lengths, where padding must not count as a token that was there."""
    model = build(dtype=torch.float32).eval()
    answers = check_greedy(model, repetition_penalty=penalty)
    plain = check_greedy(model)
    assert [a.token_ids for a in answers] != [a.token_ids for a in plain]


def test_the_penalty_divides_positive_logits_and_multiplies_negative_ones() -> None:
    logits, seen = torch.tensor([[3.0, -3.0, 3.0, -3.0]]), torch.tensor([[True, True, False, False]])
    assert penalize(logits, seen, 1.5).tolist() == [[2.0, -4.5, 3.0, -3.0]]


def check_greedy(hf: PreTrainedModel, **params) -> list[Completion]:
    stops = (1, 30, 31)  # some rows end early and leave the batch
    answers = HFGenerate(hf).generate(
        PROMPTS, SamplingParams(temperature=0, max_new_tokens=10, stop_token_ids=stops, **params)
    )
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        expected = hf.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), do_sample=False,
            max_new_tokens=10, eos_token_id=list(stops), pad_token_id=0, **params,
        )  # fmt: skip
        assert answer.token_ids == expected[0, len(prompt) :].tolist()
    return answers


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_log_probs_are_those_of_the_forward_at_the_temperature(
    model: CausalLM, temperature: float, top_p: float
) -> None:
    """Also with top-p: the policy is the whole softmax, the cut only narrows the draw."""
    answers = generate(model, temperature=temperature, top_p=top_p)
    for answer, expected in zip(answers, scored(model, PROMPTS, answers, temperature), strict=True):
        assert answer.log_probs == pytest.approx(expected, abs=1e-5)
        assert len(answer.log_probs) == len(answer.token_ids)


def test_samples_follow_the_softmax(model: CausalLM) -> None:
    """20,000 first tokens of one prompt: frequencies within 5 standard deviations of the probabilities."""
    count = 20_000
    answers = HFGenerate(model.hf).generate([[7]] * count, SamplingParams(temperature=1.3, max_new_tokens=1, seed=1))
    drawn = torch.bincount(torch.tensor([a.token_ids[0] for a in answers]), minlength=VOCAB) / count
    with torch.no_grad():
        p = (model.hf(torch.tensor([[7]])).logits[0, -1] / 1.3).softmax(0)
    assert ((drawn - p).abs() < 5 * (p * (1 - p) / count).sqrt() + 1e-9).all()


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9])
def test_top_p_never_leaves_the_nucleus_and_reaches_all_of_it(model: CausalLM, top_p: float) -> None:
    count = 3000
    answers = HFGenerate(model.hf).generate([[7]] * count, SamplingParams(top_p=top_p, max_new_tokens=1, seed=1))
    with torch.no_grad():
        p = model.hf(torch.tensor([[7]])).logits[0, -1].softmax(0).tolist()
    nucleus: set[int] = set()
    for token in sorted(range(VOCAB), key=lambda t: -p[t]):
        nucleus.add(token)
        if sum(p[t] for t in nucleus) >= top_p:
            break
    drawn = {a.token_ids[0] for a in answers}
    assert drawn <= nucleus
    assert {t for t in nucleus if p[t] > 0.01} <= drawn


def test_the_cut_keeps_the_token_that_reaches_the_share() -> None:
    log_probs = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.97, 0.01, 0.01, 0.01]]).log()
    kept = top_p_cut(log_probs, 0.6).isfinite()
    assert kept.tolist() == [[False, True, False, True], [True, False, False, False]]


def test_a_seed_repeats_and_another_does_not(model: CausalLM) -> None:
    assert generate(model, seed=3) == generate(model, seed=3)
    assert generate(model, seed=3) != generate(model, seed=4)
    assert generate(model, seed=None) != generate(model, seed=None)


def test_equal_prompts_get_samples_of_their_own(model: CausalLM) -> None:
    answers = generate(model, [[7]] * 8)
    assert len({tuple(a.token_ids) for a in answers}) == 8


@pytest.mark.parametrize("rows", [1, 2, 4, 256])
def test_neither_neighbours_nor_shared_prompts_change_a_greedy_answer(
    model: CausalLM, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_generate, "ROWS_AT_ONCE", rows)
    together = generate(model, temperature=0, stop_token_ids=(1, 30, 31, 32))
    alone = [generate(model, [prompt], temperature=0, stop_token_ids=(1, 30, 31, 32))[0] for prompt in PROMPTS]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)


def test_each_distinct_prompt_is_read_once(model: CausalLM) -> None:
    shapes = []
    hook = model.hf.get_input_embeddings().register_forward_hook(lambda m, i, out: shapes.append(tuple(out.shape[:2])))
    generate(model, max_new_tokens=2)
    hook.remove()
    assert shapes == [(4, 7), (6, 1)]


def test_rows_that_ended_leave_the_batch(model: CausalLM) -> None:
    """Many stop tokens: the rows end one after another, and what is computed shrinks with them."""
    stops = tuple(range(0, VOCAB, 4))
    rows = []
    hook = model.hf.get_input_embeddings().register_forward_hook(lambda m, i, out: rows.append(out.shape[0]))
    answers = generate(model, stop_token_ids=stops)
    hook.remove()
    lengths = [len(a.token_ids) for a in answers]
    assert len(set(lengths)) > 2
    assert rows[1:] == [sum(n > step for n in lengths) for step in range(1, max(lengths))]
    for answer, expected in zip(answers, scored(model, PROMPTS, answers, 1.0), strict=True):
        assert answer.log_probs == pytest.approx(expected, abs=1e-5)


def test_a_stop_token_stays_and_is_no_truncation(model: CausalLM) -> None:
    stops = tuple(range(0, VOCAB, 3))
    for answer in generate(model, stop_token_ids=stops, max_new_tokens=4):
        ended = answer.token_ids[-1] in stops
        assert not any(token in stops for token in answer.token_ids[:-1])
        assert answer.truncated is not ended
        assert ended or len(answer.token_ids) == 4


def test_a_stop_string_ends_its_own_response_and_stays_in_it(model: CausalLM) -> None:
    def decode(token_ids: list[int]) -> str:
        return "".join(chr(ord("a") + token % 26) for token in token_ids)

    free = generate(model, temperature=0)
    stop = decode(free[0].token_ids)[3:6]
    stopped = HFGenerate(model.hf, decode).generate(
        PROMPTS, SamplingParams(temperature=0, max_new_tokens=12, stop_strings=("never said", stop))
    )
    for whole, answer in zip(free, stopped, strict=True):
        place = decode(whole.token_ids).find(stop)
        count = 12 if place < 0 else place + 3
        assert (answer.token_ids, answer.truncated) == (whole.token_ids[:count], place < 0)
        assert len(answer.log_probs) == len(answer.weight_versions) == count
    assert {answer.truncated for answer in stopped} == {True, False}


def test_a_stop_string_needs_a_tokenizer(model: CausalLM) -> None:
    with pytest.raises(ValueError, match="this engine was given no tokenizer"):
        generate(model, stop_strings=("a",))


def test_a_stop_token_at_the_very_limit_is_no_truncation(model: CausalLM) -> None:
    greedy = generate(model, [[7]], temperature=0, max_new_tokens=5)[0]
    last = greedy.token_ids[-1]
    assert last not in greedy.token_ids[:-1]
    again = generate(model, [[7]], temperature=0, max_new_tokens=5, stop_token_ids=(last,))[0]
    assert again.token_ids == greedy.token_ids
    assert (greedy.truncated, again.truncated) == (True, False)


def test_what_a_prompt_with_its_own_parameters_gets_does_not_depend_on_the_others(model: CausalLM) -> None:
    each = [
        SamplingParams(
            temperature=1.0 + 0.5 * (i % 2),
            top_p=(1.0, 0.8)[i == 3],
            max_new_tokens=4 + i,
            stop_token_ids=(1,),
            seed=i,
        )
        for i in range(len(PROMPTS))
    ]
    engine = HFGenerate(model.hf)
    together = engine.generate(PROMPTS, each)
    assert all(len(a.token_ids) == own.max_new_tokens for a, own in zip(together, each, strict=True) if a.truncated)
    assert len({len(a.token_ids) for a in together}) > 3
    alone = [engine.generate([prompt], [own])[0] for prompt, own in zip(PROMPTS, each, strict=True)]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert together[0].token_ids != together[2].token_ids[:4]  # the same prompt with another seed
    back = engine.generate(PROMPTS[::-1], each[::-1])
    assert [a.token_ids for a in back] == [a.token_ids for a in together[::-1]]
    for answer, own, prompt in zip(together, each, PROMPTS, strict=True):
        assert answer.log_probs == pytest.approx(scored(model, [prompt], [answer], own.temperature)[0], abs=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_is_as_it_was(model: CausalLM, training: bool) -> None:
    model.train(training)
    generate(model, max_new_tokens=2)
    assert {m.training for m in model.hf.modules()} == {training}


def test_the_version_of_the_weights_is_in_every_answer(model: CausalLM) -> None:
    engine = HFGenerate(model.hf)
    engine.load_weights([], version=7)
    answers = engine.generate(PROMPTS, SamplingParams(max_new_tokens=2))
    assert [a.weight_versions for a in answers] == [[7] * len(a.token_ids) for a in answers]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_model_loaded_for_packed_training_generates_as_well(tiny_folder: Path, reentrant: bool) -> None:
    plain = load_causal_lm(str(tiny_folder), ModelConfig(pretrain=str(tiny_folder)))
    trainable = load_causal_lm(
        str(tiny_folder),
        ModelConfig(
            pretrain=str(tiny_folder), packing_samples=True, gradient_checkpointing=True,
            gradient_checkpointing_use_reentrant=reentrant,
        ),
    ).train()  # fmt: skip
    assert trainable.hf.is_gradient_checkpointing
    assert [a.token_ids for a in generate(trainable)] == [a.token_ids for a in generate(plain)]
    # And it still trains: a forward with gradients right after.
    samples = [make_sample(Prompt(0, "", [5, 6]), generate(trainable, [[5, 6]])[0], 0)]
    trainable(collate(samples, 0), packed=True).log_probs.sum().backward()
    assert trainable.hf.get_input_embeddings().weight.grad.abs().sum() > 0


def test_new_weights_are_sampled_from_at_once(model: CausalLM) -> None:
    changed = CausalLM(build(dtype=torch.float32))
    engine = HFGenerate(changed.hf)
    params = SamplingParams(temperature=0, max_new_tokens=6)
    before = engine.generate(PROMPTS, params)
    with torch.no_grad():
        for p in changed.parameters():
            p += 0.1
    after = engine.generate(PROMPTS, params)
    assert [a.token_ids for a in before] != [a.token_ids for a in after]
    assert scored(changed, PROMPTS, after, 1.0)[0] == pytest.approx(after[0].log_probs, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_are_no_numbers_are_a_sentence(temperature: float) -> None:
    broken = CausalLM(build(dtype=torch.float32))
    with torch.no_grad():
        broken.hf.model.norm.weight[0] = torch.nan
    with pytest.raises(ValueError, match="gives NaN instead of logits: its weights hold NaN or infinity"):
        generate(broken, temperature=temperature)
