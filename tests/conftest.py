"""Fixtures that every part of the tests may use."""

from __future__ import annotations

import os

# Before torch is imported: two spinning threads on a busy machine are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")

from pathlib import Path

import pytest
import torch

from openrlhf.models.tiny import build_model, build_tokenizer

TEXTS = ["What is 2 + 3? The answer is 5.", "hello there, how are you?", "user assistant system the answer is 42"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: a 2-layer Qwen3 (hidden 64, head_dim 32, tied head) and its byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = build_tokenizer(folder, TEXTS, vocab_size=300)
    build_model(folder, vocab_size=len(tokenizer))
    return folder
