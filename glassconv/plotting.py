"""Figures of training and evaluation, drawn without a display (matplotlib, extra ``train``).

Every function returns a `matplotlib.figure.Figure`, which belongs to no window and no global state: change
it, or write it with `save`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glassconv._files import write_bytes
from glassconv.training.metrics import GroupScore, TypeScore, type_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["correlation_against_time", "learning_curve", "save"]

_COLORS = ("#c0392b", "#2471a3", "#1e8449", "#7d3c98")


def correlation_against_time(groups: Sequence[GroupScore]) -> Figure:
    """Pearson correlation against time, one panel per temperature, with the noise ceiling where it is known.

    Args:
        groups: what `glassconv.training.metrics.score` returns.

    Returns:
        The figure. Filled circles: mean over configurations; crosses: pooled; gray line: noise ceiling per
        configuration.

    Raises:
        ValueError: if there is nothing to draw.
    """
    if not groups:
        raise ValueError("groups: expected at least one group of scores, got none")
    figure = _figure(4.6 * len(groups) + 0.6, 3.8)
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, group in zip(panels, groups, strict=True):
        times = group.times.tolist()
        for scores in group.types:
            _draw_type(axes, times, scores)
        axes.set_xscale("log" if min(times) > 0 else "symlog")
        axes.set_xlabel(r"time ($\sigma_{AA}\sqrt{m/\epsilon_{AA}}$)")
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.02)
        axes.grid(alpha=0.3)
        known = "" if group.temperature is None else f"T = {group.temperature:g}, "
        count = len(group.names)
        axes.set_title(f"{known}{count} configuration{'s' if count > 1 else ''}", fontsize=10)
    panels[0].set_ylabel("Pearson correlation")
    panels[0].legend(fontsize=7)
    return figure


def _draw_type(axes: Axes, times: list[float], scores: TypeScore) -> None:
    label, color = type_label(scores.type), _COLORS[scores.type % len(_COLORS)]
    axes.plot(
        times, scores.per_configuration.tolist(), "o-", color=color, label=f"{label}, per configuration"
    )
    axes.plot(times, scores.pooled.tolist(), "x--", color=color, alpha=0.7, label=f"{label}, pooled")
    if scores.ceiling_per_configuration is not None:
        # a marker too: with a single time a line alone would be invisible
        ceiling = scores.ceiling_per_configuration.tolist()
        style = "-" if scores.type == 0 else ":"
        axes.plot(times, ceiling, style, marker="_", color="gray", label=f"{label}, noise ceiling")


def learning_curve(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Training and validation loss, and the validation correlation, against the epoch.

    Args:
        rows: one mapping per epoch with ``epoch`` and ``train_loss``, and with ``validation_loss`` and
            ``validation_pearson`` where there was a validation set (the columns of ``log.csv``).

    Returns:
        The figure; its second panel is present only with a validation set.

    Raises:
        ValueError: if there is no epoch to draw.
    """
    if not rows:
        raise ValueError("rows: expected at least one epoch, got none")
    epochs = [int(row["epoch"]) for row in rows]
    validated = all(row.get("validation_loss") not in (None, "") for row in rows)
    figure = _figure(9.0 if validated else 5.0, 3.6)
    panels = figure.subplots(1, 2 if validated else 1, squeeze=False)[0]
    panels[0].plot(epochs, [float(row["train_loss"]) for row in rows], color=_COLORS[1], label="training")
    if validated:
        panels[0].plot(
            epochs, [float(row["validation_loss"]) for row in rows], color=_COLORS[0], label="validation"
        )
        panels[1].plot(epochs, [float(row["validation_pearson"]) for row in rows], color=_COLORS[0])
        panels[1].set_ylabel("Pearson correlation, validation")
        panels[1].set_xlabel("epoch")
        panels[1].grid(alpha=0.3)
    panels[0].set_ylabel("mean squared error (standardized)")
    panels[0].set_xlabel("epoch")
    panels[0].grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG at 150 dots per inch, atomically: the file is complete or the old one stays."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_bytes(path, content.getvalue())


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
