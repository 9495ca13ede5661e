"""The gate in a TRL trainer's own loop."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Trainer, TrainerCallback

from benchmarks.gate import Gate


class GateCallback(TrainerCallback):
    """A step lasts from the end of the one before, so loading the batch belongs to it."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.gate.opens()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.gate.opens():
            control.should_training_stop = True


def record_losses(trainer: Trainer, gate: Gate) -> None:
    """Hand the loss of every step to the gate, without the cost of the trainer's logging."""
    step = trainer.training_step

    def recorded(*args: Any, **kwargs: Any) -> Tensor:
        loss = step(*args, **kwargs)
        gate.record(loss=loss.item())
        return loss

    trainer.training_step = recorded  # type: ignore[method-assign]
