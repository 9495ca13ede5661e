"""A model with an adapter's weights added into its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedModel

from openrlhf.config.groups import CombineConfig, ModelConfig
from openrlhf.models.adapters import WEIGHTS
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.load import load_causal_lm, load_score_model, readable
from openrlhf.models.value_head import ScoreModel


def combined(config: CombineConfig) -> CausalLM | ScoreModel:
    """The model at ``model_path`` with the adapter at ``lora_path`` in it, added in float32.

    A reward model takes the name of its head and the statistics of its scores from the adapter's folder. Raises
    ValueError when ``lora_path`` is no LoRA adapter, or one of another model.
    """
    adapter = read_adapter_config(config)
    base = ModelConfig(pretrain=config.model_path, trust_remote_code=config.trust_remote_code)
    if not config.is_rm:
        policy = load_causal_lm(config.model_path, base, "--model_path")
        return CausalLM(_added(policy.hf, adapter, config))
    trained = _statistics(Path(config.lora_path))
    prefix = str(trained.get("value_head_prefix", "score"))
    scorer = load_score_model(config.model_path, base, prefix, new_head=True, flag="--model_path")
    model = ScoreModel(_added(scorer.hf, adapter, config), prefix)
    model.hf.config.value_head_prefix = prefix
    if "mean" in trained:
        model.set_statistics(trained["mean"], trained["std"])
    return model


def read_adapter_config(config: CombineConfig) -> LoraConfig:
    """Raises ValueError when ``lora_path`` is no folder of a LoRA adapter, or of the other kind of model."""
    folder = Path(config.lora_path)
    if not (folder / "adapter_config.json").is_file() or not (folder / WEIGHTS).is_file():
        raise ValueError(
            f"--lora_path {folder} has no adapter_config.json and {WEIGHTS}: it is no folder that training with "
            "--lora_rank wrote"
        )
    with readable("--lora_path", str(folder), "adapter"):
        adapter = PeftConfig.from_pretrained(str(folder))
    if not isinstance(adapter, LoraConfig):
        raise ValueError(f"--lora_path {folder} is an adapter of the kind {adapter.peft_type}, not LoRA")
    if (adapter.task_type == TaskType.SEQ_CLS) != config.is_rm:
        raise ValueError(
            f"--lora_path {folder} is of a reward model: give --is_rm"
            if not config.is_rm
            else f"--lora_path {folder} is of a language model: leave --is_rm out"
        )
    return adapter


def _statistics(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        return {}
    with readable("--lora_path", str(folder), "configuration of a reward model"):
        return AutoConfig.from_pretrained(folder).to_dict()


def _added(hf: PreTrainedModel, adapter: LoraConfig, config: CombineConfig) -> PreTrainedModel:
    folder = config.lora_path
    try:
        model = PeftModel.from_pretrained(hf, folder, config=adapter)
        with safe_open(Path(folder) / WEIGHTS, framework="pt") as file:
            stored = set(file.keys())
        placed = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
        if alone := (placed - stored) | {name for name in stored - placed if ".lora_" in name}:
            raise ValueError(f"{len(alone)} weights are on one side only, such as {min(alone)}")
    except (ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"--lora_path {folder} does not fit --model_path {config.model_path}, it was trained on "
            f"{adapter.base_model_name_or_path} ({reason})"
        ) from error
    merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    return merged
