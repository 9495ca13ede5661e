"""One process's part of a checkpoint: its engine's state and its random numbers."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError

from openrlhf.training.checkpoint_files import Damaged, read_tensors, write_tensors
from openrlhf.training.roles import TrainEngine, done


def save_part(engine: TrainEngine, tokenizer: Any, state: Path | None, weights: Path | None) -> str | None:
    """Write this process's state into the folder ``state`` and a Hugging Face folder at ``weights``, where given.

    Collective. Returns why the disk did not take it, or None.
    """
    try:
        if weights is not None:
            engine.save(weights, tokenizer)
        if state is not None:
            content = {**engine.state(), "random": random_state()}
            write_tensors(state / rank_file(content["rank"]), content)
    except (OSError, SafetensorError) as error:
        return str(error)
    return None


def load_part(engine: TrainEngine, state: Path, redistribute: bool) -> str | None:
    """Bring the engine and the random numbers of this process to the saved state. Collective.

    ``redistribute`` allows another number of processes, or another ZeRO stage, than those that saved. Returns why the
    state does not fit, or None.
    """
    try:
        saved = [read_tensors(path) for path in sorted(state.glob("rank*.pt"))]
    except Damaged as damage:
        return str(damage)
    if not saved:
        return f"{state} holds no state of this model"
    mine = engine.state()
    if (there := saved[0]["tensor_parallel"]) != (here := mine["tensor_parallel"]):
        return (
            f"the checkpoint {state} holds parts of --ds_tensor_parallel_size {there}, which one of {here} cannot "
            "use: give the same"
        )
    if saved[0]["layout"] != mine["layout"] and not redistribute:
        return (
            f"the checkpoint {state} was written by {saved[0]['layout']}, and this run is {mine['layout']}: give "
            "--use_ds_universal_ckpt to divide it anew"
        )
    try:
        engine.load_state(saved)
    except ValueError as error:
        return f"the checkpoint {state} is of another model: {error}"
    if mine["rank"] < len(saved):
        set_random_state(saved[mine["rank"]]["random"])
    return None


class EnginePart:
    """The part of a process whose engine is here."""

    def __init__(self, engine: TrainEngine, tokenizer: Any) -> None:
        self.engine = engine
        self.tokenizer = tokenizer

    def save_state(self, state: Path | None, weights: Path | None) -> Future[str | None]:
        return done(save_part(self.engine, self.tokenizer, state, weights))

    def load_state(self, state: Path, redistribute: bool) -> Future[str | None]:
        return done(load_part(self.engine, state, redistribute))


class EngineTeam:
    """The processes of one model, started by a launcher, or one alone."""

    def __init__(self, engine: TrainEngine) -> None:
        self.engine = engine
        self.first = os.environ.get("RANK", "0") == "0"
        self.size = int(os.environ.get("WORLD_SIZE", "1"))

    def anywhere(self, here: bool) -> bool:
        return self.engine.anywhere(here)

    def from_first(self, number: int) -> int:
        mine = torch.tensor(float(number if self.first else 0), dtype=torch.float64, device=self.engine.device)
        return int(self.engine.sum_over_ranks(mine))


class RandomPart:
    """The part of a driver, whose engines are elsewhere: the random numbers that its reward function draws."""

    def save_state(self, state: Path | None, weights: Path | None) -> Future[str | None]:
        try:
            if state is not None:
                write_tensors(state / rank_file(0), {"random": random_state()})
        except OSError as error:
            return done(str(error))
        return done(None)

    def load_state(self, state: Path, redistribute: bool) -> Future[str | None]:
        try:
            set_random_state(read_tensors(state / rank_file(0))["random"])
        except Damaged as damage:
            return done(str(damage))
        return done(None)


class Driver:
    """A process that runs the loop alone; ``size`` processes write parts."""

    first = True

    def __init__(self, size: int) -> None:
        self.size = size

    def anywhere(self, here: bool) -> bool:
        return here

    def from_first(self, number: int) -> int:
        return number


def rank_file(rank: int) -> str:
    return f"rank{rank:05d}.pt"


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """Whatever is drawn inside, it goes on outside as if nothing had been."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)


def random_state() -> dict[str, Any]:
    """Of Python, NumPy, and torch on every device that this process uses."""
    name, keys, position, has_gauss, gauss = numpy.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(numpy.asarray(keys).astype(numpy.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, keys.numpy().astype(numpy.uint32), *rest))
    torch.set_rng_state(state["torch"].clone())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([device.clone() for device in state["cuda"]])
