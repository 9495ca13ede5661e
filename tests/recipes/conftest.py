"""Models that several recipes start from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Qwen3Config


@pytest.fixture(scope="session")
def reward_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random reward model with stored statistics, saved by Transformers."""
    folder = tmp_path_factory.mktemp("reward")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    torch.manual_seed(3)
    config = Qwen3Config.from_pretrained(tiny_folder, num_labels=1, initializer_range=0.3)
    config.mean, config.std = 0.5, 4.0
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
