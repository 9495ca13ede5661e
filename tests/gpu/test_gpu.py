"""What only a GPU can show. Skipped without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from openrlhf.cli.train_ppo_ray import main
from openrlhf.config.groups import ModelConfig
from openrlhf.models.attention import attend
from openrlhf.models.head import LogitMap, score_tokens
from openrlhf.models.load import load_causal_lm
from openrlhf.types import Batch, Sample, collate

pytestmark = pytest.mark.gpu


def ragged_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    samples = []
    for length in (70, 3, 41, 128):
        mask = torch.arange(length) >= 2
        samples.append(Sample(torch.randint(5, 250, (length,), generator=generator), mask))
    return collate(samples, pad_token_id=0)


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-4), (True, 0.1)])
def test_packed_log_probs_are_the_padded_ones(tiny_folder: Path, bf16: bool, tolerance: float) -> None:
    """In bfloat16 packed rows go through torch's variable-length FlashAttention, padded ones through sdpa."""
    model = load_causal_lm(str(tiny_folder), ModelConfig(pretrain=str(tiny_folder), bf16=bf16)).cuda()
    batch = ragged_batch().to("cuda")
    with torch.no_grad():
        padded, packed = model(batch).log_probs, model(batch, packed=True).log_probs
    assert (padded - packed).abs().max() < tolerance
    assert padded.abs().max() > 1  # the numbers are not all zero


def test_packed_samples_do_not_see_each_other(tiny_folder: Path) -> None:
    model = load_causal_lm(str(tiny_folder), ModelConfig(pretrain=str(tiny_folder), bf16=True)).cuda()
    batch = ragged_batch().to("cuda")
    tokens = batch.tokens.clone()
    tokens[0, :70] = 9
    with torch.no_grad():
        before = model(batch, packed=True).log_probs
        after = model(batch.fill(tokens=tokens), packed=True).log_probs
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1:], after[1:])


@pytest.mark.parametrize("window", [None, 40])
def test_queries_of_a_ring_stand_at_the_end_of_their_keys(window: int | None) -> None:
    """FlashAttention in bfloat16 against attention on the CPU, where 60 keys of the first sample are on other ranks."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = (30, 20), (90, 20)
    q = torch.randn(1, 4, sum(queries), 64, generator=generator)
    k, v = torch.randn(2, 1, 2, sum(keys), 64, generator=generator)
    results = []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        borders = [torch.tensor([0, *lengths], device=device).cumsum(0).int() for lengths in (queries, keys)]
        inputs = [x.to(torch.bfloat16).to(device, dtype).requires_grad_() for x in (q, k, v)]
        out, _ = attend(
            torch.nn.Identity(), *inputs, None, sliding_window=window, cu_seq_lens_q=borders[0],
            cu_seq_lens_k=borders[1], max_length_q=max(queries), max_length_k=max(keys),
        )  # fmt: skip
        out.square().sum().backward()
        results.append([x.detach().float().cpu() for x in (out, *(x.grad for x in inputs))])
    for expected, got in zip(*results, strict=True):
        assert (expected - got).abs().max() < 0.03 * expected.abs().max()


def test_the_head_needs_half_a_gigabyte_at_a_large_vocabulary() -> None:
    head = torch.nn.Linear(1024, 152_000, bias=False, device="cuda", dtype=torch.bfloat16)
    states = torch.randn(16_384, 1024, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(0, 152_000, (16_384,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    log_probs, _ = score_tokens(
        head, states, targets, logit_map=LogitMap(), temperature=1.0, entropy=False, chunk_elements=2**25
    )
    forward = torch.cuda.max_memory_allocated() - before
    assert forward < 0.5 * 2**30
    log_probs.sum().backward()
    assert states.grad is not None


@pytest.mark.parametrize("bf16", [[], ["--bf16"]], ids=["fp32", "bf16"])
def test_rl_in_one_process_on_the_gpu(tiny_folder: Path, tmp_path: Path, bf16: list[str]) -> None:
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"input": f"What is {i}?"}) + "\n" for i in range(8)))
    (tmp_path / "reward.py").write_text(
        "def reward_func(queries, prompts, labels):\n    return [len(q) for q in queries]\n"
    )
    main(
        f"--local --pretrain {tiny_folder} --remote_rm_url {tmp_path}/reward.py --prompt_data {tmp_path}/prompts.jsonl "
        "--advantage_estimator rloo --n_samples_per_prompt 4 --rollout_batch_size 4 --train_batch_size 16 "
        f"--generate_max_len 16 --packing_samples --save_path {tmp_path}/out".split()
        + bf16
    )
    steps = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 2
    assert all(step["engine_log_prob_diff"] < (0.1 if bf16 else 1e-3) for step in steps)
