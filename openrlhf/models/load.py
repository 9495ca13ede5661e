"""Tokenizers and models from Hugging Face names or folders, and back into folders."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.peft_utils import find_adapter_config_file

from openrlhf.config.groups import ModelConfig
from openrlhf.models import attention
from openrlhf.models.adapters import adapter_state, is_adapted, save_adapter
from openrlhf.models.causal_lm import CausalLM
from openrlhf.models.four_bits import four_bits, keep_gradients
from openrlhf.models.hub import local_folder
from openrlhf.models.liger import use_liger
from openrlhf.models.replaced import replaced_model
from openrlhf.models.value_head import ScoreModel, init_head

log = logging.getLogger(__name__)


def load_tokenizer(path: str, config: ModelConfig, flag: str = "--pretrain") -> PreTrainedTokenizerBase:
    """The tokenizer at ``path``, with a pad token (its eos token when it has none).

    Raises ValueError naming ``flag`` when there is none, or it has neither pad nor eos token, or encodes text to
    nothing.
    """
    path = local_folder(path, config, flag)
    with readable(flag, path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            path, use_fast=not config.disable_fast_tokenizer, trust_remote_code=config.trust_remote_code
        )
    if not tokenizer.encode("Hello, world", add_special_tokens=False):
        raise ValueError(f"{flag} {path}: its tokenizer turns text into no tokens; check tokenizer.json in that folder")
    if config.tokenizer_chat_template:
        tokenizer.chat_template = config.tokenizer_chat_template
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"{flag} {path}: its tokenizer has neither a pad nor an eos token; set one of them")
        tokenizer.pad_token = tokenizer.eos_token
        log.info("%s has no pad token: padding with its eos token %r", path, tokenizer.eos_token)
    return tokenizer


def load_causal_lm(path: str, config: ModelConfig, flag: str = "--pretrain") -> CausalLM:
    """The causal language model at ``path``. Raises ValueError naming ``flag`` when there is none."""
    hf, missing = _load(AutoModelForCausalLM, path, config, flag)
    _refuse_missing(missing, path, flag)
    return CausalLM(hf)


def load_score_model(
    path: str,
    config: ModelConfig,
    prefix: str,
    new_head: bool = False,
    normalize: bool = False,
    flag: str = "--pretrain",
) -> ScoreModel:
    """Reward model or critic from a causal language model's folder or a reward model's.

    ``prefix`` names the head's weight in the folder; a ``value_head_prefix`` in its config.json wins. ``new_head``
    draws a fresh head; without it a folder that has no head is an error. ``normalize`` makes ``eval`` outputs
    (score − mean) / std with the statistics stored in config.json.
    """
    hf_config = load_config(path, config, flag)
    prefix = hf_config.to_dict().get("value_head_prefix") or prefix
    hf_config.value_head_prefix = prefix
    hf_config.num_labels = 1
    with _without_load_report():
        hf, missing = _load(
            AutoModelForSequenceClassification,
            path,
            config,
            flag,
            config=hf_config,
            key_mapping={rf"^{prefix}\.": "score."},
        )
    _refuse_missing(missing - {"score.weight"}, path, flag)
    if new_head:
        init_head(hf.score)
    elif "score.weight" in missing:
        raise ValueError(
            f"{flag} {path}: there is no reward head named {prefix!r} in that folder; "
            "name its head with --value_head_prefix or train a reward model first"
        )
    return ScoreModel(hf, prefix, normalize)


def is_score_model(path: str, config: ModelConfig, flag: str = "--pretrain") -> bool:
    """Whether the folder holds a reward model rather than a language model."""
    architectures = load_config(path, config, flag).architectures or []
    return any(name.endswith("ForSequenceClassification") for name in architectures)


def save_model(
    model: CausalLM | ScoreModel,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a Hugging Face folder: config, weights, tokenizer; or a PEFT folder when the model has an adapter. A model
    that is there already gives way once the new one is written. One process calls it.

    ``state_dict`` holds the full weights when the model's own are sharded: ``saved_tensors``, gathered.
    """
    with replaced_model(Path(folder)) as aside:
        _write_model(model, aside, tokenizer, state_dict)


def _write_model(
    model: CausalLM | ScoreModel, folder: Path, tokenizer: PreTrainedTokenizerBase, state: Mapping[str, Tensor] | None
) -> None:
    hf: PreTrainedModel = model.hf
    tokenizer.save_pretrained(folder)
    if is_adapted(hf):
        save_adapter(hf, folder, state or adapter_state(hf))
        if isinstance(model, ScoreModel):
            hf.config.save_pretrained(folder)  # the statistics of its scores
        return
    weights = {name.removeprefix("hf."): value for name, value in (state or model.state_dict()).items()}
    if hf.config.tie_word_embeddings:
        for name in hf.all_tied_weights_keys:
            weights.pop(name, None)
    if isinstance(model, ScoreModel):
        weights[f"{model.prefix}.weight"] = weights.pop("score.weight")
    if hf.config.pad_token_id is None:
        hf.config.pad_token_id = tokenizer.pad_token_id
    hf.save_pretrained(folder, state_dict=weights)


def saved_tensors(hf: PreTrainedModel) -> dict[str, Tensor]:
    """What ``save_model`` writes, by name; still sharded where the model is. Tied weights stand there twice."""
    return dict(adapter_state(hf)) if is_adapted(hf) else hf.state_dict(keep_vars=True)


def load_config(path: str, config: ModelConfig, flag: str) -> PreTrainedConfig:
    path = local_folder(path, config, flag)
    _refuse_adapter(path, flag)
    with readable(flag, path, "model"):
        return AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)


def _refuse_adapter(path: str, flag: str) -> None:
    try:
        found = find_adapter_config_file(path)
    except OSError as error:
        raise ValueError(_not_loadable(flag, path, "model", error)) from error
    if found is not None:
        raise ValueError(
            f"{flag} {path} is a LoRA adapter without its model: put them together with "
            f"`openrlhf lora_combiner --model_path MODEL --lora_path {path} --output_path FOLDER`"
        )


def _load(
    auto: Any, path: str, settings: ModelConfig, flag: str, config: PreTrainedConfig | None = None, **options: Any
) -> tuple[Any, set[str]]:
    """The model of Transformers, and the names of its weights that the folder does not have."""
    config = config or load_config(path, settings, flag)
    path = local_folder(path, settings, flag)
    if _use_flash_attn_package(settings):
        options["attn_implementation"] = "flash_attention_2"
    dtype = torch.bfloat16 if settings.bf16 else torch.float32
    if settings.load_in_4bit:
        options["quantization_config"] = four_bits(dtype)
    try:
        hf, report = auto.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            trust_remote_code=settings.trust_remote_code,
            output_loading_info=True,
            **options,
        )
    except UnpicklingError as error:
        raise ValueError(
            f"{flag} {path}: its pickled weights hold more than tensors, which could run code; have them as safetensors"
        ) from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"{flag} {path}: its weights have other shapes than its config.json says; take both from one model"
        ) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise ValueError(_not_loadable(flag, path, "model", error)) from error
    _choose_attention(hf, path, settings, flag)
    if settings.load_in_4bit:
        keep_gradients(hf)
    if settings.use_liger_kernel:
        use_liger(hf, flag)
    if settings.gradient_checkpointing:
        hf.gradient_checkpointing_enable({"use_reentrant": settings.gradient_checkpointing_use_reentrant})
    return hf, set(report["missing_keys"])


def _refuse_missing(missing: set[str], path: str, flag: str) -> None:
    """Transformers draws them at random, with a line that is easily overlooked."""
    if missing:
        raise ValueError(
            f"{flag} {path}: its files lack {len(missing)} weights of the model, such as {min(missing)}; take the "
            "whole folder of a model of this kind"
        )


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Transformers' table of missing and superfluous weights. A language model always lacks a reward head; what else is
    missing is refused."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)


def _use_flash_attn_package(config: ModelConfig) -> bool:
    if not config.flash_attn:
        return False
    if config.ring_attn_size > 1:
        log.info("--flash_attn: with --ring_attn_size torch's own FlashAttention does the work of the package")
        return False
    if find_spec("flash_attn") is not None and torch.cuda.is_available():
        return True
    log.info("--flash_attn: the flash-attn package or a GPU is missing here; torch's own attention does the same work")
    return False


def _choose_attention(hf: PreTrainedModel, path: str, config: ModelConfig, flag: str) -> None:
    """Our packed attention where the family allows it, else what Transformers chose; then packing is refused."""
    values = hf.config.get_text_config().to_dict()
    chosen = hf.config._attn_implementation
    if values.get("attn_logit_softcapping") is not None and chosen == "sdpa":
        hf.set_attn_implementation("eager")  # the one that caps attention logits without flash-attn
    elif chosen == "sdpa" and hf.is_backend_compatible():
        hf.set_attn_implementation(attention.NAME)
    kinds = set(values.get("layer_types") or []) - {"full_attention", "sliding_attention"}
    packs = hf.config._attn_implementation in (attention.NAME, "flash_attention_2") and not kinds
    if config.packing_samples and (hf._is_stateful or not packs):
        raise ValueError(
            f"--packing_samples: the layers of {flag} {path} ({values['model_type']}) would let packed samples see "
            "each other; leave --packing_samples out"
        )


@contextmanager
def readable(flag: str, path: str, what: str) -> Iterator[None]:
    """Inside, whatever a library says of a folder becomes one sentence that names ``flag``, a ValueError."""
    try:
        yield
    except Exception as error:  # those of Transformers, its tokenizers and strict fields have no common class
        raise ValueError(_not_loadable(flag, path, what, error)) from error


def _not_loadable(flag: str, path: str, what: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return f"{flag} {path}: this {what} comes with code; read it, then give --trust_remote_code to run it"
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    reason = f"{first} {more[0].strip()}" if more and first.endswith(":") else first
    if path.startswith(("/", "./", "../", "~")) and not Path(path).exists():
        reason = "no such folder"
    way = "give a Hugging Face name or a model folder"
    if "couldn't connect" in reason:
        way = "give a model folder, or HF_HUB_OFFLINE=1 where there is no network, so that nothing waits for it"
    return f"{flag} {path}: no {what} could be loaded from there ({reason}); {way}"
