"""The frozen start of a model that learns by an adapter: the same weights, with the adapter switched off."""

from __future__ import annotations

from openrlhf.models.adapters import WithoutAdapter
from openrlhf.training.roles import Engine


class SharedForward:
    """A frozen model that needs no memory of its own. It is where its ``engine`` is, asleep or awake."""

    def __init__(self, engine: Engine) -> None:
        self.model = WithoutAdapter(engine.model)
        self.device = engine.device
        self.largest = engine.largest

    def offload(self) -> None:
        """Nothing: the engine moves the weights."""

    def onload(self) -> None:
        """Nothing, as ``offload``."""
