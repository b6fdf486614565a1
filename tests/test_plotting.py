"""Figures: right labels and content, files that are complete."""

from __future__ import annotations

import pytest
import torch

from glassconv import plotting
from glassconv.training.metrics import GroupScore, TypeScore


def group(times, *, types=(0, 1), ceiling=True, temperature=0.56):
    n = len(times)
    line = torch.linspace(0.5, 0.8, n, dtype=torch.float64)
    known = line + 0.1 if ceiling else None
    scores = tuple(TypeScore(t, 10, line, line - 0.1, torch.stack([line, line]), known, known) for t in types)
    return GroupScore(temperature, torch.tensor(times, dtype=torch.float64), ("a", "b"), scores)


def test_correlation_against_time():
    figure = plotting.correlation_against_time(
        [group([0.1, 1.0, 10.0]), group([1.0, 10.0], temperature=0.64)]
    )
    first, second = figure.axes
    assert first.get_ylabel() == "Pearson correlation"
    assert first.get_xlabel().startswith("time")
    assert first.get_xscale() == "log"
    assert "T = 0.56" in first.get_title()
    assert "T = 0.64" in second.get_title()
    labels = [text.get_text() for text in first.get_legend().get_texts()]
    expected = [f"{t}, {kind}" for t in "AB" for kind in ("per configuration", "pooled", "noise ceiling")]
    assert labels == expected
    drawn = first.get_lines()[0]
    assert list(drawn.get_xdata()) == [0.1, 1.0, 10.0]
    assert drawn.get_ydata()[-1] == pytest.approx(0.7)


@pytest.mark.parametrize("times", [[4120.0], [0.0, 1.0]])
def test_single_time_and_time_zero(times, tmp_path):
    figure = plotting.correlation_against_time([group(times, types=(0,), ceiling=False)])
    assert len(figure.axes[0].get_lines()) == 2
    plotting.save(figure, tmp_path / "plot.png")


def test_undefined_values_leave_gaps(tmp_path):
    broken = group([1.0, 10.0])
    broken.types[0].per_configuration[0] = torch.nan
    plotting.save(plotting.correlation_against_time([broken]), tmp_path / "plot.png")


def test_saved_file_is_a_png_of_the_figure(tmp_path):
    path = tmp_path / "plot.png"
    path.write_text("old")
    plotting.save(plotting.correlation_against_time([group([0.1, 1.0, 10.0])]), path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    # a blank page of this size compresses to about 3 kB
    assert len(content) > 15_000
    assert [p.name for p in tmp_path.iterdir()] == ["plot.png"]


def test_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "plot.png"
    path.write_text("old")
    figure = plotting.correlation_against_time([group([1.0])])
    figure.savefig = lambda *_, **__: (_ for _ in ()).throw(OSError("disk full"))
    with pytest.raises(OSError, match="disk full"):
        plotting.save(figure, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["plot.png"]


def test_learning_curve():
    rows = [{"epoch": str(k), "train_loss": str(1 / (k + 1))} for k in range(3)]
    figure = plotting.learning_curve(rows)
    assert len(figure.axes) == 1
    assert figure.axes[0].get_xlabel() == "epoch"
    validated = [row | {"validation_loss": "1.0", "validation_pearson": "0.5"} for row in rows]
    figure = plotting.learning_curve(validated)
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "mean squared error (standardized)",
        "Pearson correlation, validation",
    ]


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="groups: expected at least one group of scores, got none"):
        plotting.correlation_against_time([])
    with pytest.raises(ValueError, match="rows: expected at least one epoch, got none"):
        plotting.learning_curve([])
