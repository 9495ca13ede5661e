"""A ring of ranks computes what one rank does: outputs, and gradients once they are added up.

The ranks are gloo processes of plain torch in float64. Process starts are the cost here, so four ranks start once and
run every case, as two rings of two with rows of their own and as one ring of four; the tests read what they left.
"""

from __future__ import annotations

import json
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from openrlhf.models.attention import _mask_between, attend
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.ring_attention import Ring, Slice, cut
from openrlhf.models.step_model import StepModel
from openrlhf.models.teacher import Teacher
from openrlhf.models.value_head import ScoreModel
from openrlhf.types import Batch
from tests.models.helpers import VOCAB, build, build_scorer, make_batch

WORLD = 4
# Two data-parallel ranks: samples longer than a rank's slice, borders inside and between samples, an odd total;
# then rows that leave a rank of the ring with padding alone.
LENGTHS = {"ragged": [(9, 2, 6, 14, 1), (5, 5, 5)], "short": [(1,), (2, 1)]}
FAMILIES = ("qwen3", "qwen3 tied", "llama", "mistral, window 3", "gemma3, window 3, capped", "cohere")
CASES: dict[str, dict[str, Any]] = {
    **{f"{family}, ring of {size}": {"family": family, "size": size} for family in FAMILIES for size in (2, 4)},
    **{f"stride {n}": {"stride": n} for n in (2, 3)},
    **{f"stride {n}, window 3": {"stride": n, "family": "mistral, window 3"} for n in (2,)},
    "fewer tokens than ranks": {"lengths": "short", "size": 4},
    "recomputed": {"recompute": "plain"},
    "recomputed reentrantly": {"recompute": "reentrant"},
    **{f"{kind}, ring of {size}": {"kind": kind, "size": size} for size in (2, 4)
       for kind in ("scores", "values", "distillation", "steps", "all steps")},
    "scores, short": {"kind": "scores", "lengths": "short", "size": 4},
    "steps, short": {"kind": "steps", "lengths": "short", "size": 4},
}  # fmt: skip


class Judge(nn.Module):
    """What an objective asks of a model, as tensors: (everything that has a gradient)."""

    def __init__(self, kind: str, family: str, recompute: str) -> None:
        super().__init__()
        self.kind = kind
        hf = build_scorer() if kind in ("scores", "values") else build(family)
        if recompute:
            hf.gradient_checkpointing_enable({"use_reentrant": recompute == "reentrant"})
            hf.enable_input_require_grads()
        self.model: CausalLM | ScoreModel | StepModel = {
            "scores": ScoreModel, "values": ScoreModel, "steps": StepModel, "all steps": StepModel
        }.get(kind, CausalLM)(hf)  # fmt: skip
        self.teacher = Teacher(CausalLM(build(seed=1)), VOCAB - 3)

    def set_ring(self, ring: Ring) -> None:
        self.model.ring = self.teacher.ring = ring

    def forward(self, batch: Batch, packed: bool) -> list[Tensor]:
        if self.kind in ("scores", "values"):
            return [self.model(batch, self.kind, packed=packed)]
        if self.kind == "distillation":
            scores = self.model(batch, teaching=self.teacher(batch, packed=packed), packed=packed)
            return [scores.log_probs, scores.cross_entropy]
        if self.kind in ("steps", "all steps"):
            return [self.model(batch, (5, 7) if self.kind == "steps" else None, packed=packed)]
        scores = self.model(batch, temperature=0.7, entropy=True, packed=packed)
        return [scores.log_probs, scores.entropy]


def loss_of(outputs: list[Tensor], seed: int) -> Tensor:
    """A loss that is not linear, with weights of its own for each entry."""
    generator = torch.Generator().manual_seed(seed)
    return sum((x.square() * torch.rand(x.shape, generator=generator, dtype=x.dtype)).sum() + x.sum() for x in outputs)  # type: ignore[return-value]


def run_case(
    rings: dict[int, Any], rank: int, kind: str = "words", family: str = "qwen3", size: int = 2, stride: int = 1,
    lengths: str = "ragged", recompute: str = "",
) -> dict[str, float]:  # fmt: skip
    """The largest distance between this rank's outputs, or the sum of all ranks' gradients, and one rank's."""
    batches = [make_batch(rows, seed=i) for i, rows in enumerate(LENGTHS[lengths])]
    # Every ring of four sees the rows of both data-parallel ranks after each other.
    mine = [batches[rank // 2]] if size == 2 else batches
    alone = Judge(kind, family, "")
    wanted = [alone(batch, packed=False) for batch in batches]
    sum(loss_of(outputs, i) for i, outputs in enumerate(wanted)).backward()  # type: ignore[union-attr]

    judge = Judge(kind, family, recompute)
    judge.set_ring(Ring(rings[size], rank % size, size, stride, recomputed=recompute != ""))
    apart = 0.0
    for batch in mine:
        outputs = judge(batch, packed=True)
        i = next(i for i, other in enumerate(batches) if other is batch)
        loss_of(outputs, i).backward()
        apart = max(apart, *(distance(x, y) for x, y in zip(outputs, wanted[i], strict=True)))
    gradients = {"gradients": 0.0, "largest gradient": 0.0}
    for own, other in zip(judge.model.parameters(), alone.model.parameters(), strict=True):
        total = torch.zeros_like(own) if own.grad is None else own.grad
        dist.all_reduce(total)
        want = torch.zeros_like(other) if other.grad is None else other.grad
        gradients["gradients"] = max(gradients["gradients"], distance(total, want))
        gradients["largest gradient"] = max(gradients["largest gradient"], float(want.abs().max()))
    return {"outputs": apart, **gradients}


def distance(x: Tensor, y: Tensor) -> float:
    return float((x - y).detach().abs().max()) if x.numel() else 0.0


def kept_bytes(ring: Ring) -> dict[str, float]:
    """What a forward over two long samples keeps for the backward pass, parameters apart."""
    batch, kept = make_batch((150, 50)), {}
    for name, place in (("alone", None), ("ring", ring)):
        model = CausalLM(build(), chunk_elements=VOCAB)
        model.ring = place
        storages: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}

        def keep(x: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages.setdefault(x.untyped_storage().data_ptr(), x.untyped_storage().nbytes())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            model(batch, packed=True).log_probs.sum().backward()
        kept[name] = float(sum(storages.values()))
    return kept


def run_rank(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    rings = {2: dist.new_subgroups(2)[0], 4: dist.group.WORLD}
    results = {name: run_case(rings, rank, **case) for name, case in CASES.items()}
    results["memory"] = kept_bytes(Ring(dist.group.WORLD, rank, WORLD, head_stride=1))
    (folder / f"rank{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, float]]]:
    """What each rank found, by case."""
    folder = tmp_path_factory.mktemp("ring")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(run_rank, (port, folder), WORLD)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES)
def test_a_ring_computes_what_one_rank_does(results: list[dict[str, dict[str, float]]], case: str) -> None:
    for rank, found in enumerate(results):
        assert found[case]["outputs"] < 1e-10, rank
        # Gemma's norms compute in float32.
        assert found[case]["gradients"] < 1e-7 * max(1.0, found[case]["largest gradient"]), rank
        assert found[case]["largest gradient"] > 1e-3 or "short" in case or "fewer" in case


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_rank_keeps_the_activations_of_its_own_tokens(results: list[dict[str, dict[str, float]]]) -> None:
    for found in results:
        alone, ring = found["memory"]["alone"], found["memory"]["ring"]
        assert alone / WORLD * 0.8 < ring < alone / WORLD * 1.1


def slices(lengths: list[int], size: int) -> list[Slice]:
    return [cut(lengths, Ring(None, rank, size, 1)) for rank in range(size)]  # type: ignore[arg-type]


def test_slices_by_hand() -> None:
    first, second, third = slices([2, 7, 0, 3], 3)  # aabb bbbb bccc
    assert (first.start, first.size, first.lengths, first.before) == (0, 4, (2, 2), 0)
    assert (second.start, second.size, second.lengths, second.before) == (4, 4, (4,), 2)
    assert (third.start, third.size, third.lengths, third.before) == (8, 4, (1, 3), 6)
    assert [part.key_lengths for part in (first, second, third)] == [(2, 2), (6,), (7, 3)]


@pytest.mark.parametrize("lengths", [[6], [1, 1, 4], [3, 3], [5, 1], [2, 0, 4]])
def test_slices_hold_every_token_once(lengths: list[int]) -> None:
    parts = slices(lengths, 3)
    assert [part.start for part in parts] == [0, 2, 4]
    assert [sum(part.lengths) for part in parts] == [2, 2, 2]


@pytest.mark.parametrize("window", [None, 2, 4])
def test_queries_at_the_end_of_their_keys(window: int | None) -> None:
    """A first sample of which earlier ranks hold three tokens, then whole ones: attention written out."""
    torch.manual_seed(0)
    part = slices([7, 3, 2], 3)[1]  # tokens 4 … 7: three of the first sample, of which four came before, and one
    assert (part.lengths, part.key_lengths) == ((3, 1), (7, 1))
    q = torch.randn(1, 4, 4, 8, dtype=torch.float64)
    k, v = torch.randn(2, 1, 2, 8, 8, dtype=torch.float64)
    borders = [torch.tensor([0, *n]).cumsum(0).int() for n in (part.lengths, part.key_lengths)]
    got, _ = attend(
        nn.Identity(), q, k, v, None, scaling=0.3, sliding_window=window,
        cu_seq_lens_q=borders[0], cu_seq_lens_k=borders[1], max_length_q=3, max_length_k=7,
    )  # fmt: skip
    for query, (first, last) in enumerate([(0, 4), (0, 5), (0, 6), (7, 7)]):
        seen = slice(first if window is None else max(first, last - window + 1), last + 1)
        for head in range(4):
            weights = torch.softmax(k[0, head // 2, seen] @ q[0, head, query] * 0.3, dim=0)
            torch.testing.assert_close(got[0, query, head], weights @ v[0, head // 2, seen], rtol=0, atol=1e-12)


def test_masks_by_hand() -> None:
    assert _mask_between(2, 4, None, torch.device("cpu")).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert _mask_between(2, 4, 2, torch.device("cpu")).int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
