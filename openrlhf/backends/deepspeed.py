"""DeepSpeed as the training backend: ZeRO stages 0 to 3 behind ``TrainEngine``, and frozen models behind
``ForwardEngine``.

One process is one data-parallel rank, or shares the rows of one (``layout.py``). Everything that forwards, trains or
gathers is collective at stage 3: every rank must do the same number of forwards, backwards and steps, and call
``full_weights`` and ``save`` together. The loops give every rank the same number of micro-batches; an engine cannot
check it.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from packaging.version import Version
from torch import Tensor, nn

try:
    import deepspeed
except ImportError as error:
    raise ImportError('DeepSpeed is not installed: pip install "openrlhf[deepspeed]"') from error
from transformers import PreTrainedTokenizerBase

from openrlhf.backends import deepspeed_states
from openrlhf.backends.average import Average
from openrlhf.backends.deepspeed_config import clips_by_hand, frozen_config, train_config
from openrlhf.backends.deepspeed_gather import gathered
from openrlhf.backends.deepspeed_load import Wrapped, load
from openrlhf.backends.deepspeed_tensor_parallel import cut_dimensions, gradient_norm
from openrlhf.backends.layout import Layout
from openrlhf.backends.local import lr_schedule
from openrlhf.backends.meeting import agents_store, limit_waits
from openrlhf.backends.pieces import Piece, load_pieces, load_schedule, save_pieces
from openrlhf.config.groups import DeepSpeedConfig, ModelConfig, OptimConfig, TrainConfig
from openrlhf.models.load import save_model, saved_tensors
from openrlhf.models.merged import Source, merged
from openrlhf.models.ring_attention import Ring
from openrlhf.training.roles import StepStats

OLDEST = "0.19.8"


def check_version(installed: str) -> None:
    """Raise ImportError when this DeepSpeed is older than the oldest we know to work."""
    if Version(installed) < Version(OLDEST):
        raise ImportError(f'DeepSpeed {installed} is too old, {OLDEST} is needed: pip install "openrlhf[deepspeed]"')


check_version(deepspeed.__version__)


def init_distributed(timeout: timedelta) -> torch.device:
    """Join the process group and return this rank's device.

    Under ``torchrun``, ``deepspeed`` or a cluster worker the environment says who we are (RANK, WORLD_SIZE,
    LOCAL_RANK, MASTER_ADDR, MASTER_PORT); a plain ``python -m`` becomes a group of one without opening a port.
    Collectives that wait longer than ``timeout`` fail.
    """
    # Before the backend starts: otherwise a shared-memory op is compiled for a minute on CPU machines.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank)
    backend = "nccl" if on_gpu else "gloo"
    if not dist.is_initialized() and (store := agents_store(timeout)) is not None:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=world)
    elif not dist.is_initialized() and "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    elif not dist.is_initialized():
        dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
    atexit.register(leave_group)
    deepspeed.init_distributed(verbose=False)
    return torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")


def leave_group() -> None:
    """End the process group while the interpreter is whole: its threads, found at work at the very end, abort a process
    that has done everything right. After an error the group is left alone: other ranks may wait in it for this one."""
    if dist.is_initialized() and "last_value" not in vars(sys):
        dist.destroy_process_group()


class DeepSpeedForward:
    """A frozen model: partitioned at stage 3, whole on every rank otherwise."""

    def __init__(
        self, build: Callable[[], Wrapped], model: ModelConfig, sharding: DeepSpeedConfig, offload: bool
    ) -> None:
        """``build`` loads the model; at stage 3 it runs where Transformers partitions weights as they are loaded.

        ``offload`` keeps the weights in host memory and brings them to the device layer by layer.
        """
        self.device = init_distributed(timedelta(seconds=sharding.deadline))
        layout = layout_of(model, sharding)
        config = frozen_config(model.bf16, sharding.zero_stage, offload)
        module = load(lambda: _frozen(build()), config, layout.tensor, self.device)
        module.ring = ring_of(layout, model, sharding)
        self.model, *_ = deepspeed.initialize(model=module, config=config)
        limit_waits(timedelta(seconds=sharding.deadline))
        _skip_input_check(self.model)
        self.model.eval()
        self._asleep: list[deepspeed_states.HostCopy] = []

    def offload(self) -> None:
        if not self._asleep:
            self._asleep = deepspeed_states.offload(self.model, self.device)

    def onload(self) -> None:
        deepspeed_states.onload(self._asleep, self.device)
        self._asleep = []

    def largest(self, number: int) -> int:
        return largest(number, self.device)


class DeepSpeedTrain:
    """A model in training: AdamW, clipping by global norm, a learning-rate schedule.

    ``rank`` and ``world`` count data-parallel ranks; ``layout`` says who shares one.
    """

    def __init__(
        self,
        build: Callable[[], Wrapped],
        model: ModelConfig,
        optim: OptimConfig,
        train: TrainConfig,
        sharding: DeepSpeedConfig,
        learning_rate: float,
        total_steps: int,
        ema_beta: float | None = None,
    ) -> None:
        """``build`` loads the model; at stage 3 it runs where Transformers partitions weights as they are loaded. With
        ``ema_beta`` it saves a moving average of its weights with this decay.

        Raises ValueError for flags that the ZeRO stage has not.
        """
        self.device = init_distributed(timedelta(seconds=sharding.deadline))
        self.layout = layout_of(model, sharding)
        self.rank, self.world = self.layout.data_rank, self.layout.data_world
        self.max_norm = optim.max_norm
        self._clips = clips_by_hand(model, sharding)
        config = train_config(model, optim, train, sharding)
        module = load(build, config, self.layout.tensor, self.device)
        module.ring = ring_of(self.layout, model, sharding)
        beta1, beta2 = optim.adam_betas
        self.model, *_ = deepspeed.initialize(
            model=module,
            config=config,
            model_parameters=[p for p in module.parameters() if p.requires_grad],
            optimizer=partial(
                torch.optim.AdamW, lr=learning_rate, betas=(beta1, beta2), weight_decay=optim.l2, fused=True
            ),
            lr_scheduler=partial(lr_schedule, optim=optim, total_steps=total_steps),
        )
        limit_waits(timedelta(seconds=sharding.deadline))
        if sharding.deepcompile:
            self.model.compile()
        _skip_input_check(self.model)
        self._cut = cut_dimensions(module.hf)
        self._asleep: list[deepspeed_states.HostCopy] = []
        self.average = None if ema_beta is None else Average(ema_beta, self._pieces())

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate the gradient of ``loss``; the step sees the sum over ranks and micro-batches.

        Stages 0 and 1 reduce over ranks at the ``last`` micro-batch only, stages 2 and 3 at each one.
        """
        self.model.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over all ranks that hold the same weights. The weights in the loss sum to 1 over the
        # data-parallel ranks, and ranks that share a row each add their own part of its gradient.
        self.model.backward(loss * (self.layout.world // self.layout.tensor), scale_wrt_gas=False)

    def step(self) -> StepStats:
        """Clip, update, advance the schedule. A gradient that is not finite is reported as norm NaN.

        DeepSpeed's own optimizers leave such a step out. The bare one of stage 0 in float32 does not: there the
        gradient, the same on every rank, is thrown away here.
        """
        lr = self.model.get_lr()[0]
        norm = self._clip() if self._clips else None
        if norm is not None and not torch.isfinite(norm):
            self.model.optimizer.zero_grad()
            return StepStats(math.nan, lr, skipped=True)
        self.model.step()
        norm = self.model.get_global_grad_norm() if norm is None else norm
        skipped = not self.model.was_step_applied()
        if self.average is not None and not skipped:
            self.average.step(self._pieces())
        return StepStats(_finite_or_nan(float(norm)), lr, skipped)

    def sum_over_ranks(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over the data-parallel ranks, the same bits on every rank; ``x`` lies on ``device`` and is
        left alone. Ranks that share rows hold the same ``x``, which counts once."""
        total = x.detach().clone() if self.layout.speaks else torch.zeros_like(x)
        dist.all_reduce(total)
        return total

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Hugging Face names and whole tensors, with an adapter added into them, tied ones once. Collective: every rank
        exhausts it.

        At stage 3 a tensor is whole only until the next one is asked for: copy what must last.
        """
        yield from gathered(merged(self.model.module.hf), self._cut)

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a Hugging Face folder, or a PEFT folder for an adapter. Collective: rank 0 gathers what it writes in
        host memory."""
        weights: dict[str, Tensor] = {}
        with self._averaged():
            saved = saved_tensors(self.model.module.hf)
            for name, tensor in gathered({name: Source((tensor,)) for name, tensor in saved.items()}, self._cut):
                if self.layout.writes:
                    weights[name] = tensor.to("cpu", copy=True)
        try:
            if self.layout.writes:
                save_model(self.model.module, folder, tokenizer, weights)
        finally:
            dist.barrier()  # also when the disk is full: the others wait here

    def anywhere(self, here: bool) -> bool:
        """Whether any process says so. Collective."""
        return bool(self.largest(int(here)))

    def largest(self, number: int) -> int:
        return largest(number, self.device)

    def state(self) -> dict[str, Any]:
        """This process's pieces of the trained weights and moments, and the schedule."""
        layout = self.layout
        mine = deepspeed_states.pieces(self.model, layout)
        shared = f" in tensor-parallel groups of {layout.tensor}" if layout.tensor > 1 else ""
        return {
            "rank": layout.rank,
            "tensor_parallel": layout.tensor,
            "layout": f"{layout.world} processes at ZeRO stage {self.model.zero_optimization_stage()}{shared}",
            "pieces": save_pieces(mine, self.model.basic_optimizer),
            "average": self.average.state() if self.average and mine else {},
            "schedule": self.model.lr_scheduler.state_dict(),
        }

    def load_state(self, saved: Sequence[Mapping[str, Any]]) -> None:
        """Fill this process's pieces from those of all processes that saved, and renew the weights. Collective."""
        load_pieces(self._pieces(), self.model.basic_optimizer, [part["pieces"] for part in saved])
        if self.average is not None:
            self.average.load_state([part["average"] for part in saved])
        deepspeed_states.renew_weights(self.model)
        load_schedule(self.model.lr_scheduler, self.model.basic_optimizer, saved[0]["schedule"])

    def offload(self) -> None:
        """Weights, master weights and optimizer moments to host memory until ``onload``."""
        if not self._asleep:
            self._asleep = deepspeed_states.offload(self.model, self.device)

    def onload(self) -> None:
        deepspeed_states.onload(self._asleep, self.device)
        self._asleep = []

    def _pieces(self) -> list[Piece]:
        return deepspeed_states.own_pieces(self.model, self.layout)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the model has its average weights, where there is an average. Collective."""
        if self.average is None:
            yield
            return
        with self.average.in_place_of(self._pieces()):
            deepspeed_states.renew_weights(self.model)
            yield
        deepspeed_states.renew_weights(self.model)

    def _clip(self) -> Tensor:
        parameters = [p for p in self.model.module.parameters() if p.requires_grad]
        norm = gradient_norm(self.model.module.hf, self._cut)
        nn.utils.clip_grads_with_norm_(parameters, self.max_norm if self.max_norm > 0 else math.inf, norm)
        return norm


def largest(number: int, device: torch.device) -> int:
    """Of what all processes say. Collective."""
    said = torch.tensor(number, device=device)
    dist.all_reduce(said, dist.ReduceOp.MAX)
    return int(said.item())


def layout_of(model: ModelConfig, sharding: DeepSpeedConfig) -> Layout:
    """Raises ValueError when those who share rows do not divide the processes."""
    rank, world = dist.get_rank(), dist.get_world_size()
    return Layout(rank, world, ring=model.ring_attn_size, tensor=sharding.ds_tensor_parallel_size)


def ring_of(layout: Layout, model: ModelConfig, sharding: DeepSpeedConfig) -> Ring | None:
    """Collective: every process of the model asks."""
    if layout.ring == 1:
        return None
    return Ring(
        _ring_group(layout.ring, timedelta(seconds=sharding.deadline)),
        layout.rank % layout.ring,
        layout.ring,
        model.ring_head_stride,
        model.gradient_checkpointing,
    )


@cache
def _ring_group(size: int, timeout: timedelta) -> dist.ProcessGroup:
    """One for all models of the process: each group of NCCL holds memory of the device."""
    group: dist.ProcessGroup = dist.new_subgroups(size, timeout=timeout)[0]
    return group


def _frozen(module: Wrapped) -> Wrapped:
    return module.eval().requires_grad_(False)


def _skip_input_check(engine: deepspeed.DeepSpeedEngine) -> None:
    """DeepSpeed's own comparison of the first forward's arguments across a model's ranks knows no ``Batch``."""
    if engine.autotp_size() > 1:
        engine.first_dataloader_check.remove()


def _finite_or_nan(norm: float) -> float:
    """DeepSpeed reports a norm that is not finite as −1."""
    return norm if norm >= 0 and math.isfinite(norm) else math.nan
