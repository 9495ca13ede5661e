"""What a model folder says of itself without being loaded: its size, its files, the names of its weights."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig

from openrlhf.config.groups import ModelConfig
from openrlhf.models.adapters import with_adapter
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.load import readable
from openrlhf.models.value_head import ScoreModel

INDEX = "model.safetensors.index.json"


def empty_model(config: PreTrainedConfig, scores: bool, trust_remote_code: bool = False) -> CausalLM | ScoreModel:
    """The model of a config.json on torch's meta device, which holds no memory: for counting.

    Raises ValueError when it is the config.json of another kind of model, or says what cannot be.
    """
    if scores:
        config = copy.deepcopy(config)
        config.num_labels = 1
    auto, wrap = (AutoModelForSequenceClassification, ScoreModel) if scores else (AutoModelForCausalLM, CausalLM)
    with readable("the model", str(config.name_or_path), "model"), torch.device("meta"):
        return wrap(auto.from_config(config, trust_remote_code=trust_remote_code))


@dataclass(frozen=True)
class Count:
    """Parameters of a model: all of them, those that learn, and those of experts. ``normed_heads`` is whether queries
    and keys have a norm of their own."""

    every: int
    learns: int
    experts: int
    normed_heads: bool


def count_parameters(config: PreTrainedConfig, scores: bool, settings: ModelConfig) -> Count:
    """With ``--lora_rank`` the adapter learns. Tied weights count once."""
    model = empty_model(config, scores, settings.trust_remote_code)
    named = {name: p.numel() for name, p in model.named_parameters()}
    every, learns = sum(named.values()), sum(named.values())
    experts = sum(size for name, size in named.items() if ".experts." in name)
    if settings.lora_rank > 0:
        with torch.device("meta"):
            adapted = with_adapter(model, settings)
        learns = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    return Count(every, learns, experts, any(name.endswith(".q_norm.weight") for name in named))


def weight_names(folder: Path, flag: str) -> set[str] | None:
    """The names of the weights in safetensors files, None where the folder has others.

    Raises ValueError naming ``flag`` when there are no weights, or a file of them is missing or broken.
    """
    files = sorted(folder.glob("*.safetensors"))
    index = folder / INDEX
    if index.is_file():
        wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(wanted - {path.name for path in files}):
            raise ValueError(
                f"{flag} {folder}: {missing[0]} of {INDEX} is not there ({len(missing)} of {len(wanted)} files are "
                "missing); download the rest"
            )
        files = [folder / name for name in sorted(wanted)]
    if not files:
        if any(folder.glob("*.bin")):
            return None
        raise ValueError(f"{flag} {folder}: the folder has no weights (*.safetensors or *.bin); download them too")
    names: set[str] = set()
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                names |= set(file.keys())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{flag} {path}: the file is broken ({error}); download it again") from error
    return names
