"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685), by PEFT: small matrices that train beside a frozen model.

An adapter is put into the model in place. Whoever calls the model, or its head, does not know the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from peft import LoraConfig, TaskType, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from openrlhf.config.groups import ModelConfig
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.value_head import ScoreModel

ALL_LINEAR = "all-linear"
HEAD = "score"  # of a score model, which trains whole
WEIGHTS = "adapter_model.safetensors"

Model = TypeVar("Model", bound=CausalLM | ScoreModel)


def with_adapter(model: Model, config: ModelConfig) -> Model:
    """``model`` with the adapter of ``--lora_rank``, everything else frozen; with rank 0 the model as it is.

    The head of a score model trains whole and is saved with the adapter. Raises ValueError for ``--target_modules``
    that the model has not, and for what PEFT refuses.
    """
    if config.lora_rank == 0:
        return model
    hf: PreTrainedModel = model.hf
    scores = isinstance(model, ScoreModel)
    check_targets(hf, config.target_modules)
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS if scores else TaskType.CAUSAL_LM,
        base_model_name_or_path=hf.name_or_path,
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=ALL_LINEAR if config.target_modules == (ALL_LINEAR,) else list(config.target_modules),
        modules_to_save=[HEAD] if scores else None,
    )
    try:
        inject_adapter_in_model(lora, hf)
    except ValueError as error:
        raise ValueError(f"--lora_rank: PEFT cannot put this adapter into the model ({error})") from error
    if config.gradient_checkpointing and config.gradient_checkpointing_use_reentrant:
        hf.enable_input_require_grads()  # the reentrant form recomputes only what has an input that needs a gradient
    return model


def check_targets(hf: PreTrainedModel, targets: tuple[str, ...]) -> None:
    """Raise ValueError unless each of ``targets`` names a linear layer of the model, or all of them are meant."""
    if targets == (ALL_LINEAR,):
        return
    layers = [name for name, module in hf.named_modules() if isinstance(module, nn.Linear) and name != HEAD]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            names = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            raise ValueError(f"--target_modules {target}: the model has no such linear layer; it has {names}")


def is_adapted(hf: nn.Module) -> bool:
    """Whether ``with_adapter`` put an adapter into it."""
    return any(isinstance(module, BaseTunerLayer) for module in hf.modules())


def adapter_state(hf: PreTrainedModel) -> dict[str, nn.Parameter]:
    """What trains, by its name in the model; still sharded where the model is."""
    return {name: parameter for name, parameter in hf.named_parameters() if parameter.requires_grad}


def save_adapter(hf: PreTrainedModel, folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write the adapter as PEFT does. ``state`` is ``adapter_state`` with whole tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = get_peft_model_state_dict(hf, state_dict=dict(state), save_embedding_layers=False)
    whole = {f"base_model.model.{name}": tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
    (config,) = hf.peft_config.values()
    config.save_pretrained(folder)


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """The model as it was before it learned."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


class WithoutAdapter(nn.Module):
    """A trained model, with its wrappers, as the frozen one that it started from."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **how: Any) -> Any:
        with adapter_off(self.model):
            return self.model(*args, **how)
