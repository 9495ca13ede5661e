"""What runs inside each vLLM worker process: take new weights into the running model.

vLLM mixes `WeightWorker` into its own worker class (``worker_extension_cls``). This, and vLLM's layer-wise reload, are
the same from vLLM 0.20 to 0.32, while its weight-transfer classes changed shape in between. The layer-wise reload is
needed because a running model no longer holds checkpoint-shaped parameters (on CPU they are packed and emptied).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from openrlhf.backends.vllm_store import TransferGroup
from openrlhf.backends.vllm_transfer import Bucket, WeightReceiver

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class WeightWorker:
    rank: int  # these four are the vLLM worker's own
    device: torch.device
    vllm_config: VllmConfig
    model_runner: Any

    weight_receiver: WeightReceiver

    def join_weight_transfer(self, group: dict[str, Any], first_worker: int) -> None:
        """Meet the trainer; ``first_worker`` is the number of this engine's first worker among all engines' workers."""
        self.weight_receiver = WeightReceiver(TransferGroup(**group), first_worker + self.rank, self.device)

    def receive_sent_weights(self, version: int) -> None:
        buckets = self.weight_receiver.receive(version)
        try:
            replace_weights(self.model_runner.get_model(), self.vllm_config, self.device, buckets)
        except Exception as error:
            self.weight_receiver.refuse(buckets, error)
            raise
        self.weight_receiver.acknowledge()

    def take_weights(self, weights: list[tuple[str, Tensor]]) -> None:
        replace_weights(self.model_runner.get_model(), self.vllm_config, self.device, [weights])


def replace_weights(model: Any, vllm_config: VllmConfig, device: torch.device, buckets: Iterable[Bucket]) -> None:
    """Load full tensors under Hugging Face names into a running vLLM model, all of them or an error.

    Raises:
        ValueError: a parameter of the model got no weights.
    """
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    missing = {name for name, _ in model.named_parameters()}
    with torch.device(device), set_current_vllm_config(vllm_config):
        initialize_layerwise_reload(model)
        try:
            for bucket in buckets:
                missing -= model.load_weights(bucket)
        finally:  # also after an error: a half-filled layer would count its old half into the next sync
            finalize_layerwise_reload(model, vllm_config.model_config)
        if device.type == "cpu":
            _pack_output_heads(model)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise ValueError(f"The trainer sent no weights for {len(missing)} of the engine's parameters, such as {some}.")


def _pack_output_heads(model: Any) -> None:
    """On CPU the output head multiplies by a packed copy, which the reload leaves stale when the head is tied."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
