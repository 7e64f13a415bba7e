"""Pictures of what the functions of ``fastrnn.diagnostics`` return.

Each draws into an ``Axes`` of matplotlib and returns it.

Raises (all functions):
    ImportError: matplotlib is missing and no ``Axes`` is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .gates import Saturation


def _axes(axes: Any) -> Any:
    if axes is not None:
        return axes
    from matplotlib.figure import Figure

    return Figure(layout="constrained").subplots()


def plot_norms(norms: Mapping[str, Tensor], axes: Any = None, *, title: str = "") -> Any:
    """Curves over steps on a logarithmic axis: ``StateGradients.norms``, Jacobian products.

    Args:
        norms: by name ``(T,)``, or ``(T, B)``, of which the mean over rows is drawn.
    """
    axes = _axes(axes)
    for name, values in norms.items():
        curve = values.detach().double()
        curve = curve.mean(1) if curve.dim() == 2 else curve
        # A logarithmic axis has no place for 0, where a gradient has vanished altogether.
        axes.plot(torch.where(curve > 0, curve, torch.nan).tolist(), label=name)
    axes.set(yscale="log", xlabel="step", title=title)
    axes.legend(fontsize="small")
    return axes


def plot_eigenvalues(values: Mapping[str, Tensor], axes: Any = None, *, title: str = "") -> Any:
    """Eigenvalues in the complex plane, with the unit circle.

    Args:
        values: by name, complex ``(H,)``, from ``eigenvalues``.
    """
    axes = _axes(axes)
    for name, each in values.items():
        each = each.detach().cpu()
        axes.plot(each.real.tolist(), each.imag.tolist(), ".", label=name)
    angles = torch.linspace(0, 2 * torch.pi, 200)
    axes.plot(angles.cos().tolist(), angles.sin().tolist(), color="black", linewidth=0.8)
    axes.set(aspect="equal", xlabel="real", ylabel="imaginary", title=title)
    axes.legend(fontsize="small")
    return axes


def plot_saturation(gates: Mapping[str, Saturation], axes: Any = None, *, title: str = "") -> Any:
    """Each unit as a dot: how often its gate is shut and how often open (Karpathy et al. 2015).

    Args:
        gates: from ``saturation``.
    """
    axes = _axes(axes)
    for name, (shut, opened) in gates.items():
        axes.plot(shut.tolist(), opened.tolist(), "o", alpha=0.5, label=name)
    axes.plot([0, 1], [1, 0], color="black", linewidth=0.8)
    axes.set(xlabel="fraction shut", ylabel="fraction open", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_title(title)
    axes.legend(fontsize="small")
    return axes


def plot_forgetting_times(times: Mapping[str, Tensor], axes: Any = None, *, title: str = "") -> Any:
    """Forgetting times of all units, sorted, on a logarithmic axis.

    Args:
        times: by name ``(H,)``, from ``forgetting_time``.
    """
    axes = _axes(axes)
    for name, each in times.items():
        axes.plot(each.detach().sort().values.tolist(), label=name)
    axes.set(yscale="log", xlabel="unit, by time", ylabel="steps", title=title)
    axes.legend(fontsize="small")
    return axes
