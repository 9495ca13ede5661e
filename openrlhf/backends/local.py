"""Plain torch in one process, on a CPU or one GPU: the embedded default, and what a debugger steps through."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import get_scheduler

from openrlhf.backends.average import Average
from openrlhf.backends.pieces import Piece, load_pieces, load_schedule, save_pieces, whole_weights
from openrlhf.config.groups import OptimConfig
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.load import save_model
from openrlhf.models.merged import merged
from openrlhf.models.teacher import Teacher
from openrlhf.models.value_head import ScoreModel
from openrlhf.training.roles import StepStats

Model = TypeVar("Model", bound=CausalLM | ScoreModel | Teacher)


class LocalForward:
    """A frozen model in this process."""

    def __init__(self, model: CausalLM | ScoreModel | Teacher, bf16: bool = False) -> None:
        self.model = (in_bf16(model) if bf16 else model).eval().requires_grad_(False)
        self.device = next(model.parameters()).device

    def offload(self) -> None:
        self.model.to("cpu")

    def onload(self) -> None:
        self.model.to(self.device)

    def largest(self, number: int) -> int:
        return number


class LocalTrain:
    """A model in training in this process: AdamW on float32 weights; bf16 runs the forward under autocast."""

    rank = 0
    world = 1

    def __init__(
        self,
        model: CausalLM | ScoreModel,
        optim: OptimConfig,
        learning_rate: float,
        total_steps: int,
        bf16: bool = False,
        ema_beta: float | None = None,
    ) -> None:
        """With ``ema_beta`` it saves a moving average of its weights with this decay."""
        self.model = in_bf16(model) if bf16 else model
        self.device = next(model.parameters()).device
        self.max_norm = optim.max_norm
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        beta1, beta2 = optim.adam_betas
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, betas=(beta1, beta2), weight_decay=optim.l2, fused=True
        )
        self.scheduler = lr_schedule(self.optimizer, optim, total_steps)
        self.average = None if ema_beta is None else Average(ema_beta, self._pieces())

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()

    def step(self) -> StepStats:
        max_norm = self.max_norm if self.max_norm > 0 else math.inf
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, max_norm)
        lr = self.scheduler.get_last_lr()[0]
        skipped = not math.isfinite(norm := float(grad_norm))
        if not skipped:
            self.optimizer.step()
            self.scheduler.step()
            if self.average is not None:
                self.average.step(self._pieces())
        self.optimizer.zero_grad(set_to_none=True)
        return StepStats(norm, lr, skipped)

    def sum_over_ranks(self, x: Tensor) -> Tensor:
        return x

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, source in merged(self.model.hf).items():
            yield name, source.make(*(part.detach() for part in source.parts))

    def save(self, folder: Path, tokenizer: Any) -> None:
        with self.average.in_place_of(self._pieces()) if self.average else nullcontext():
            save_model(self.model, folder, tokenizer)

    def anywhere(self, here: bool) -> bool:
        return here

    def largest(self, number: int) -> int:
        return number

    def state(self) -> dict[str, Any]:
        return {
            "rank": 0,
            "tensor_parallel": 1,
            "layout": "one process without DeepSpeed",
            "pieces": save_pieces(self._pieces(), self.optimizer),
            "average": self.average.state() if self.average else {},
            "schedule": self.scheduler.state_dict(),
        }

    def load_state(self, saved: Sequence[Mapping[str, Any]]) -> None:
        load_pieces(self._pieces(), self.optimizer, [part["pieces"] for part in saved])
        if self.average is not None:
            self.average.load_state([part["average"] for part in saved])
        load_schedule(self.scheduler, self.optimizer, saved[0]["schedule"])

    def _pieces(self) -> list[Piece]:
        return whole_weights(self.model.named_parameters())

    def offload(self) -> None:
        """Nothing: one process keeps its model where it is."""

    def onload(self) -> None:
        """Nothing, as ``offload``."""


def in_bf16(model: Model) -> Model:
    """Float32 for the weights that train, in which AdamW's small steps are not rounded away, and forwards in bfloat16:
    training, scoring and generation alike."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in (model, model.hf):
        device = next(module.parameters()).device.type
        module.forward = torch.autocast(device, dtype=torch.bfloat16)(module.forward)  # type: ignore[method-assign]
    return model


def lr_schedule(optimizer: torch.optim.Optimizer, optim: OptimConfig, total_steps: int) -> Any:
    """``--lr_scheduler`` with ceil(``lr_warmup_ratio`` · steps) of warmup; a minimum, where there is one, of 10 %."""
    kwargs = {"min_lr_rate": 0.1} if optim.lr_scheduler.endswith("with_min_lr") else {}
    warmup = math.ceil(total_steps * optim.lr_warmup_ratio)
    end = max(total_steps, warmup + 1)  # "polynomial" divides by the steps after the warmup
    return get_scheduler(optim.lr_scheduler, optimizer, warmup, end, scheduler_specific_kwargs=kwargs)
