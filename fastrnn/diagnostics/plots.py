"""Pictures of what the functions of ``fastrnn.diagnostics`` return.

Each draws into an ``Axes`` of matplotlib and returns it.

Args (all functions):
    axes: where to draw; None for a new figure.
    title: of the axes.
    styles: by the names of what is drawn, keyword arguments of matplotlib: colours, line styles.
    legend: False leaves it to the caller; else it stands beside the axes, where no data are.

Raises (all functions):
    ImportError: matplotlib is missing and no ``Axes`` is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .gates import Saturation
from .spectrum import PowerIteration

Styles = Mapping[str, Mapping[str, Any]]


def plot_norms(
    norms: Mapping[str, Tensor],
    axes: Any = None,
    *,
    title: str = "",
    ylabel: str = "norm",
    styles: Styles | None = None,
    legend: bool = True,
) -> Any:
    """Curves over steps on a logarithmic axis: ``StateGradients.norms``, Jacobian products.

    Args:
        norms: by name ``(T,)``, or ``(T, B)``, of which the mean over rows is drawn.
    """
    axes = _axes(axes)
    for name, values in norms.items():
        curve = values.detach().double()
        curve = curve.mean(1) if curve.dim() == 2 else curve
        # A logarithmic axis has no place for 0, where a gradient has vanished altogether.
        axes.plot(torch.where(curve > 0, curve, torch.nan).tolist(), **_style(styles, name))
    axes.set(yscale="log", xlabel="step t", ylabel=ylabel, title=title)
    return _with_legend(axes, legend)


def plot_eigenvalues(
    values: Mapping[str, Tensor],
    axes: Any = None,
    *,
    title: str = "",
    styles: Styles | None = None,
    legend: bool = True,
) -> Any:
    """Eigenvalues in the complex plane, with the unit circle.

    Args:
        values: by name, complex ``(H,)``, from ``eigenvalues``.
    """
    axes = _axes(axes)
    angles = torch.linspace(0, 2 * torch.pi, 200)
    axes.plot(angles.cos().tolist(), angles.sin().tolist(), color="black", linewidth=0.8)
    for name, each in values.items():
        each = each.detach().cpu()
        style = {"marker": ".", "linestyle": "", **_style(styles, name)}
        axes.plot(each.real.tolist(), each.imag.tolist(), **style)
    axes.set(aspect="equal", xlabel="real part", ylabel="imaginary part", title=title)
    return _with_legend(axes, legend)


def plot_power_iterations(
    runs: Mapping[str, PowerIteration],
    axes: Any = None,
    *,
    radii: Mapping[str, float] | None = None,
    title: str = "",
    styles: Styles | None = None,
    legend: bool = True,
) -> Any:
    """Growth of a vector per multiplication, which comes to the spectral radius.

    Args:
        runs: by name, from ``power_iteration``.
        radii: by name the spectral radius, a line across.
    """
    axes = _axes(axes)
    for name, run in runs.items():
        (line,) = axes.plot(
            range(1, len(run.rates) + 1), run.rates.tolist(), **_style(styles, name)
        )
        if radii is not None:
            axes.axhline(radii[name], color=line.get_color(), linestyle=":", linewidth=1)
    axes.set(xscale="log", xlabel="multiplications k", title=title)
    axes.set_ylabel(r"$\Vert W^k v \Vert^{1/k}$")
    return _with_legend(axes, legend)


def plot_saturation(
    gates: Mapping[str, Saturation],
    axes: Any = None,
    *,
    title: str = "",
    legend: bool = True,
) -> Any:
    """For each gate the part of all units and steps in which it is shut, in between, and open.

    Args:
        gates: from ``saturation``, the first on top.
    """
    axes = _axes(axes)
    names = list(gates)
    shut = [each.shut.mean().item() for each in gates.values()]
    opened = [each.open.mean().item() for each in gates.values()]
    between = [1 - low - high for low, high in zip(shut, opened, strict=True)]
    left = [0.0] * len(names)
    for label, parts, color in (
        ("shut (near -1)", shut, "#30323d"),
        ("in between", between, "#d5d8de"),
        ("open (near 1)", opened, "#f0b429"),
    ):
        axes.barh(names, parts, left=left, color=color, label=label, height=0.7)
        left = [low + part for low, part in zip(left, parts, strict=True)]
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of units and steps", title=title)
    return _with_legend(axes, legend)


def plot_forgetting_times(
    times: Mapping[str, Tensor],
    axes: Any = None,
    *,
    title: str = "",
    styles: Styles | None = None,
    legend: bool = True,
) -> Any:
    """Forgetting times of all units, sorted, on a logarithmic axis.

    Args:
        times: by name ``(H,)``, from ``forgetting_time``.
    """
    axes = _axes(axes)
    for name, each in times.items():
        axes.plot(each.detach().sort().values.tolist(), **_style(styles, name))
    axes.set(yscale="log", xlabel="units, sorted", ylabel="steps", title=title)
    from matplotlib.ticker import LogLocator

    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")  # 20 steps, not 2 times a power of ten
    axes.yaxis.set_minor_formatter("{x:g}")
    return _with_legend(axes, legend)


def _axes(axes: Any) -> Any:
    if axes is not None:
        return axes
    from matplotlib.figure import Figure

    return Figure(layout="constrained").subplots()


def _style(styles: Styles | None, name: str) -> dict[str, Any]:
    return {"label": name, **(styles or {}).get(name, {})}


def _with_legend(axes: Any, legend: bool) -> Any:
    if legend and axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return axes
