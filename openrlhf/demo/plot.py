"""A picture of a run: its reward curve from ``metrics.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path


def read_metrics(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def plot_metric(path: Path, metric: str, picture: Path, title: str) -> None:
    """Draw ``metric`` over the steps of the ``metrics.jsonl`` at ``path`` into a PNG."""
    import matplotlib

    matplotlib.use("Agg")  # no screen is needed
    from matplotlib import pyplot

    rows = [row for row in read_metrics(path) if metric in row]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot([row["step"] for row in rows], [row[metric] for row in rows], marker=".")
    axes.set(xlabel="step", ylabel=metric, title=title)
    axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
