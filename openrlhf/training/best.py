"""The best model of a run by ``--best_metric_key``, as a Hugging Face folder beside the checkpoints."""

from __future__ import annotations

import math
from pathlib import Path

from openrlhf.config.commands import PPOConfig
from openrlhf.training import checkpoint_files as files
from openrlhf.training.roles import Actor, gather
from openrlhf.types import Metrics

FOLDER = "best"


def keep_best(metrics: Metrics, best: float | None, actor: Actor, config: PPOConfig, deadline_s: float) -> float | None:
    """The highest value so far, which was ``best``; where ``metrics`` raise it, the actor is saved.

    The folder is complete or absent. A disk that does not take it costs the folder and not the run.
    """
    root, name = Path(config.checkpoint.ckpt_path), config.evaluation.best_metric_key
    bar = -math.inf if best is None or not (root / FOLDER).is_dir() else best
    if name is None or name not in metrics or not metrics[name] > bar:
        return best
    if (failure := _saved(root, actor, deadline_s)) is not None:
        print(f"{name} is the best so far, {metrics[name]:.4g}, and --ckpt_path {root} did not take it: {failure}")
        return best
    print(f"{name} is the best so far, {metrics[name]:.4g}: saved the model to {root / FOLDER}")
    return metrics[name]


def _saved(root: Path, actor: Actor, deadline_s: float) -> str | None:
    """Why the disk did not take it, or None."""
    try:
        (failure,) = gather(actor.save_state(None, files.begin(root, FOLDER)), deadline_s=deadline_s)
        if failure is None:
            files.publish(root, FOLDER)
    except OSError as error:
        return str(error)
    return failure
