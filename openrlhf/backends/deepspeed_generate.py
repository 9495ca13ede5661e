"""Generation by a model that DeepSpeed trains (``--vllm_num_engines 0``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from openrlhf.backends.deepspeed import DeepSpeedTrain
from openrlhf.backends.deepspeed_load import skeleton


@contextmanager
def whole_model(engine: DeepSpeedTrain) -> Iterator[PreTrainedModel]:
    """The policy, for forwards of this process alone, as many as it likes. Collective at its beginning.

    Where weights are partitioned or layers cut it is a copy, which takes memory until the end: the trained model would
    gather each layer anew for each token, and have every process wait for the one with the longest response.
    """
    hf = engine.model.module.hf
    if engine.model.zero_optimization_stage() < 3 and engine.layout.tensor == 1:
        yield hf
        return
    copy = skeleton(hf)
    weights = {name: weight.detach().to(hf.dtype, copy=True) for name, weight in engine.full_weights()}
    copy.load_state_dict(weights, strict=False, assign=True)
    copy.tie_weights()  # a tied one comes once
    nn.Module.to(copy, engine.device)
    yield copy
