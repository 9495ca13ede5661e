"""Where the Liger kernels go, with a stand-in for the package, which needs a GPU to be imported."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from openrlhf.config.groups import ModelConfig
from openrlhf.models.load import load_causal_lm, load_score_model


def stand_in(monkeypatch: pytest.MonkeyPatch, families: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """What the package was asked for."""
    asked: list[tuple[str, dict[str, Any]]] = []
    patches: Any = ModuleType("liger_kernel.transformers.monkey_patch")
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = dict.fromkeys(families)
    patches._apply_liger_kernel_to_instance = lambda model, **how: asked.append((type(model).__name__, how))
    for name in ("liger_kernel", "liger_kernel.transformers"):
        package = ModuleType(name)
        package.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, patches.__name__, patches)
    return asked


def test_every_model_gets_the_kernels_but_not_their_losses(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stand_in(monkeypatch, ["qwen3"])
    config = ModelConfig(pretrain=str(tiny_folder), use_liger_kernel=True)
    load_causal_lm(str(tiny_folder), config)
    load_score_model(str(tiny_folder), config, "score", new_head=True)
    how = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    assert asked == [("Qwen3ForCausalLM", how), ("Qwen3ForSequenceClassification", how)]


def test_a_family_without_kernels_is_refused(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, ["llama"])
    with pytest.raises(ValueError, match=r"^--use_liger_kernel: .* --pretrain \(qwen3\)"):
        load_causal_lm(str(tiny_folder), ModelConfig(pretrain=str(tiny_folder), use_liger_kernel=True))


def test_a_package_that_cannot_be_imported_is_named(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(ImportError, match=r"pip install 'openrlhf\[liger\]'"):
        load_causal_lm(str(tiny_folder), ModelConfig(pretrain=str(tiny_folder), use_liger_kernel=True))
