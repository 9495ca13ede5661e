"""The least that a reward file must hold: one number a sample. The numbers are drawn, so nothing is to be learnt.

queries: prompt and response with their special tokens; prompts; labels: the column of ``--label_key``. A list or a
tensor is returned, or a dict with ``rewards`` and, if wanted, ``scores`` and ``extra_logs``: see
examples/python/reward.py for one that means something.
"""

import torch


def reward_func(queries, prompts, labels):
    return torch.rand(len(queries))
