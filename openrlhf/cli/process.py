"""What a command does first in its process: seeds, and quiet libraries."""

from __future__ import annotations

import os
import random

import datasets
import numpy
import torch
import transformers

from openrlhf.config.groups import TrainConfig


def prepare_process(train: TrainConfig) -> None:
    """``--seed`` and ``--full_determinism``; and no bars of other libraries between the lines of ours."""
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    random.seed(train.seed)
    numpy.random.seed(train.seed)
    torch.manual_seed(train.seed)
    if train.full_determinism:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a fixed buffer
        torch.use_deterministic_algorithms(True)
