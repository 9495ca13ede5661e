"""Where the random numbers of a process begin."""

from __future__ import annotations

import os
import random

import numpy
import torch

from openrlhf.config.groups import TrainConfig


def seed_process(train: TrainConfig) -> None:
    """``--seed`` and ``--full_determinism``, in every process of a run alike."""
    random.seed(train.seed)
    numpy.random.seed(train.seed)
    torch.manual_seed(train.seed)
    if train.full_determinism:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a fixed buffer
        torch.use_deterministic_algorithms(True)
