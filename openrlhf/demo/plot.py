"""A picture of a run: its reward curve from ``metrics.jsonl``."""

from __future__ import annotations

from pathlib import Path

from openrlhf.demo.task import read_rows


def plot_metric(path: Path, metric: str, picture: Path, title: str) -> None:
    """Draw ``metric`` over the steps of the ``metrics.jsonl`` at ``path`` into a PNG."""
    import matplotlib

    matplotlib.use("Agg")  # no screen is needed
    from matplotlib import pyplot

    rows = [row for row in read_rows(path) if metric in row]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot([row["step"] for row in rows], [row[metric] for row in rows], marker=".")
    axes.set(xlabel="step", ylabel=metric, title=title)
    axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
