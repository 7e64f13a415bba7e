"""fastrnn.diagnostics.plots: what is drawn is what was given, with its names and units."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fastrnn import diagnostics
from fastrnn.diagnostics import Saturation, plots

STYLES = {"a": {"color": "red", "linestyle": "--"}}


def curves(axes: Any) -> dict[str, list[float]]:
    return {
        line.get_label(): list(line.get_ydata())
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


def test_norms() -> None:
    rows = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    axes = plots.plot_norms(
        {"a": torch.tensor([0.0, 2.0]), "rows": rows}, title="a title", ylabel="size", styles=STYLES
    )
    drawn = curves(axes)
    assert math.isnan(drawn["a"][0])  # no place for 0 on a logarithmic axis
    assert drawn["a"][1] == 2
    assert drawn["rows"] == [2, 6]  # means over rows
    assert axes.get_yscale() == "log"
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("a title", "step t", "size")
    assert (axes.lines[0].get_color(), axes.lines[0].get_linestyle()) == ("red", "--")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "rows"]


def test_legend_stands_beside_the_axes_or_is_left_out() -> None:
    axes = plots.plot_norms({"a": torch.ones(2)})
    axes.figure.draw_without_rendering()
    assert axes.get_legend().get_window_extent().x0 > axes.get_window_extent().x1
    assert plots.plot_norms({"a": torch.ones(2)}, legend=False).get_legend() is None
    assert plots.plot_norms({}).get_legend() is None
    own = plots.plot_norms({"a": torch.ones(2)}, legend=False)
    assert plots.plot_norms({"b": torch.ones(2)}, own) is own
    assert list(curves(own)) == ["a", "b"]


def test_eigenvalues() -> None:
    values = torch.tensor([1 + 2j, 1 - 2j])
    axes = plots.plot_eigenvalues({"a": values})
    circle, points = axes.lines
    assert [math.hypot(*point) for point in zip(*circle.get_data(), strict=True)] == pytest.approx(
        [1.0] * 200
    )
    assert list(points.get_xdata()) == [1, 1]
    assert list(points.get_ydata()) == [2, -2]
    assert (points.get_label(), points.get_linestyle(), points.get_marker()) == ("a", "None", ".")
    assert axes.get_aspect() == 1


def test_power_iterations() -> None:
    run = diagnostics.power_iteration(torch.eye(2) * 0.5, 3)
    axes = plots.plot_power_iterations({"a": run}, radii={"a": 0.5}, styles=STYLES)
    line, radius = axes.lines
    assert list(line.get_xdata()) == [1, 2, 3]
    assert list(line.get_ydata()) == pytest.approx([0.5] * 3)
    assert list(radius.get_ydata()) == [0.5, 0.5]
    assert radius.get_color() == "red"
    assert len(plots.plot_power_iterations({"a": run}).lines) == 1


def test_saturation() -> None:
    gates = {
        "i": Saturation(torch.tensor([0.0, 0.5]), torch.tensor([0.5, 0.5])),
        "f": Saturation(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])),
    }
    axes = plots.plot_saturation(gates)
    widths = {
        bars.get_label(): [bar.get_width() for bar in bars.patches] for bars in axes.containers
    }
    assert widths == {
        "shut (near -1)": [0.25, 0],
        "in between": [0.25, 0],
        "open (near 1)": [0.5, 1],
    }
    begins = [bar.get_x() for bars in axes.containers for bar in bars.patches]
    assert begins == [0, 0, 0.25, 0, 0.5, 0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["i", "f"]
    assert axes.yaxis_inverted()  # the first on top
    assert axes.get_xlim() == (0, 1)


def test_forgetting_times() -> None:
    axes = plots.plot_forgetting_times({"a": torch.tensor([3.0, 1.0, torch.inf, 2.0])})
    assert curves(axes)["a"] == [1, 2, 3, math.inf]
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "steps"
