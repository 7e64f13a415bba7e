"""The pictures of ``why_gates``: what is measured of a network, and how it is drawn."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import diagnostics
from ..diagnostics import plots
from ..nn import init
from .long_memory import Outcome, Problem, Reader, TemporalOrder
from .program import pyplot

#: Multiplications of the power iteration, and those after which its growth is stored.
MULTIPLICATIONS = 1000
STORED = (1, 10, 100, 1000)
#: Where the pictures of networks end: what is less would leave no room for the rest.
FAINTEST = 1e-15

Batch = tuple[Tensor, Tensor]


class Mechanism(NamedTuple):
    """What the weights of a vanilla layer do to gradients, and the bound of it.

    The layer's W is orthogonal but for its radius, so that any vector grows by just that. Beside it
    stands a random W scaled to the same radius, which growth only comes to.
    """

    radius: float
    eigenvalues: Tensor  # (H,)
    random_eigenvalues: Tensor  # (H,)
    random_power: diagnostics.PowerIteration
    bound: Tensor  # (T,) of the product
    product: Tensor  # (T,) norm of dh_T / dh_t, the largest of the rows
    gradient: Tensor  # (T,) norm of dL/dh_t, of that at the last step

    def summary(self) -> dict[str, Any]:
        """In numbers; of curves over time what is left at the first step."""
        return {
            "spectral_radius": self.radius,
            "growth_of_random": {str(k): self.random_power.rates[k - 1].item() for k in STORED},
            "bound": self.bound[0].item(),
            "product": self.product[0].item(),
            "gradient": self.gradient[0].item(),
        }


class Picture(NamedTuple):
    """What becomes of gradients and inputs in a network."""

    gradient: Tensor  # (T,) norm of dL/dh_t, of that at the last step
    influence: Tensor  # (T,) mean over rows
    radius: float  # of the weights through which the state feeds itself
    forgetting: Tensor | None  # (H,) of a gated cell
    gates: dict[str, diagnostics.Saturation]  # of a gated cell

    def summary(self) -> dict[str, Any]:
        """In numbers; of curves over time what is left at the first step."""
        return {
            "spectral_radius": self.radius,
            "gradient": self.gradient[0].item(),
            "influence": self.influence[0].item(),
            "median_forgetting_time": None
            if self.forgetting is None
            else self.forgetting.median().item(),
        }


def _double(model: Reader) -> Reader:
    """A copy in float64: what fades in a picture is then the gradient, and not the digits."""
    return copy.deepcopy(model).double()


def _gradient(model: Reader, batch: Batch, problem: Problem) -> Tensor:
    inputs, target = batch

    def loss(output: Tensor, state: Any) -> Tensor:
        return problem.loss(model.head(output[-1]), target)

    norms = diagnostics.state_gradients(model.layers, inputs, loss)[0].norms()
    return norms / norms[-1]


def mechanism(model: Reader, batch: Batch, problem: Problem) -> Mechanism:
    """Of a model with a vanilla layer; ``batch`` is one of the problem."""
    layers = _double(model).layers
    radius = diagnostics.spectral_radius(layers)
    one = diagnostics.trace(layers, batch[0])[0]
    random = init.recurrent_scaled_(torch.nn.RNN(1, layers.hidden_size).double(), radius)
    weight = diagnostics.recurrent_weight(random)
    return Mechanism(
        radius,
        diagnostics.eigenvalues(layers),
        diagnostics.eigenvalues(random),
        diagnostics.power_iteration(weight, MULTIPLICATIONS),
        diagnostics.jacobian_bound(one),
        diagnostics.jacobian_products(diagnostics.state_jacobians(one)).amax(1),
        _gradient(_double(model), batch, problem),
    )


def picture(model: Reader, batch: Batch, problem: Problem) -> Picture:
    """Of any model; ``batch`` is one of the problem."""
    model = _double(model)
    forgetting, gates = None, {}
    if not model.layers.mode.startswith("RNN"):
        one = diagnostics.trace(model.layers, batch[0])[0]
        forgetting, gates = diagnostics.forgetting_time(one), diagnostics.saturation(one)
    return Picture(
        _gradient(model, batch, problem),
        diagnostics.influence(model.layers, batch[0]).mean(1),
        diagnostics.spectral_radius(model.layers),
        forgetting,
        gates,
    )


# Drawing.

#: By network: a hue for each kind of layer, dashes where gradients are not clipped.
STYLES: dict[str, dict[str, Any]] = {
    "vanilla, radius 0.5": {"color": "#7cc4ea"},
    "vanilla, radius 1": {"color": "#2f7fc1"},
    "vanilla, radius 1.5": {"color": "#173f73"},
    "vanilla, radius 1.5, unclipped": {"color": "#173f73", "linestyle": "--"},
    "relu, identity": {"color": "#e69f00"},
    "relu, identity, unclipped": {"color": "#e69f00", "linestyle": "--"},
    "GRU": {"color": "#009e73"},
    "LSTM": {"color": "#c8372d"},
}
RELATIVE_GRADIENT = r"$\Vert\partial L/\partial h_t\Vert \; / \; \Vert\partial L/\partial h_T\Vert$"
#: Of a mechanism, by line style: what is drawn, and its name in the legend.
NORMS = {
    ":": ("bound", r"$(\gamma \Vert W \Vert)^{T-t}$"),
    "--": ("product", r"$\Vert\partial h_T/\partial h_t\Vert$"),
    "-": ("gradient", RELATIVE_GRADIENT),
}
BELOW: dict[str, Any] = {
    "loc": "upper center",
    "bbox_to_anchor": (0.5, -0.14),
    "ncols": 3,
    "frameon": False,
}
Outcomes = Mapping[str, Mapping[str, Mapping[int, Outcome]]]


def draw(
    path: Path,
    mechanisms: Mapping[str, Mechanism],
    fresh: Mapping[str, Picture],
    trained: Mapping[str, Picture],
    outcomes: Outcomes,
) -> None:
    """How gradients vanish, what becomes of them in each network, and what is learned."""
    plt = pyplot()
    figure = plt.figure(figsize=(16, 14), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    # Rows of their own, so that long labels in one do not push the panels of another.
    head, *rows = figure.subfigures(4, 1, height_ratios=[0.12, 1, 1, 1])
    panels = [axes for row in rows for axes in row.subplots(1, 3)]
    a, b, c, d, e, f, g, h, i = panels
    _draw_mechanisms(mechanisms, a, b, c)
    _draw_gradients(fresh, trained, d, e)
    _draw_influence(trained, f)
    _mark_places(len(next(iter(mechanisms.values())).bound), f)
    _draw_gates(fresh, trained, g, h)
    _draw_outcomes(outcomes, i)
    for letter, axes in zip("abcdefghi", panels, strict=True):
        title = axes.get_title()
        axes.set_title("")
        axes.set_title(f"{letter}   {title}", loc="left", fontsize=11, weight="bold")
        axes.spines[["top", "right"]].set_visible(False)
    names = dict.fromkeys([*mechanisms, *fresh])
    lines = [plt.Line2D([], [], linewidth=2.5, label=name, **STYLES[name]) for name in names]
    head.legend(handles=lines, loc="center", ncols=4, frameon=False, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=85)
    plt.close(figure)


def _draw_mechanisms(mechanisms: Mapping[str, Mechanism], a: Any, b: Any, c: Any) -> None:
    line = pyplot().Line2D
    layers = {"marker": "o", "markersize": 5, "linestyle": ""}
    random = {**layers, "markersize": 4, "fillstyle": "none"}
    for which, style in (("random_eigenvalues", random), ("eigenvalues", layers)):
        plots.plot_eigenvalues(
            {name: getattr(each, which) for name, each in mechanisms.items()},
            a,
            title="Eigenvalues of W and the unit circle",
            styles={name: {**STYLES[name], **style} for name in mechanisms},
            legend=False,
        )
    dots = [line([], [], color="black", **style) for style in (layers, random)]
    a.legend(dots, ["orthogonal: the layers", "random, scaled to the radius"], **BELOW)
    plots.plot_power_iterations(
        {name: each.random_power for name, each in mechanisms.items()},
        b,
        radii={name: each.radius for name, each in mechanisms.items()},
        title="Power iteration: growth per multiplication",
        styles=STYLES,
        legend=False,
    )
    b.set_ylim(bottom=0)
    lines = [line([], [], color="black", linestyle=dashes) for dashes in (":", "-")]
    b.legend(lines, ["spectral radius, orthogonal W", "random W"], **BELOW)
    for dashes, (what, _) in NORMS.items():
        plots.plot_norms(
            {name: getattr(each, what) for name, each in mechanisms.items()},
            c,
            title="Products of Jacobians of fresh layers",
            styles={name: {**STYLES[name], "linestyle": dashes} for name in mechanisms},
            legend=False,
        )
    lines = [line([], [], color="black", linestyle=dashes) for dashes in NORMS]
    c.legend(lines, [label for _, label in NORMS.values()], **BELOW)


def _draw_gradients(
    fresh: Mapping[str, Picture], trained: Mapping[str, Picture], d: Any, e: Any
) -> None:
    for axes, pictures, when in ((d, fresh, "fresh"), (e, trained, "trained")):
        plots.plot_norms(
            {name: each.gradient for name, each in pictures.items()},
            axes,
            title=f"Gradient at each step, {when} networks",
            ylabel=RELATIVE_GRADIENT,
            styles=STYLES,
            legend=False,
        )
    limits = [*d.get_ylim(), *e.get_ylim()]
    for axes in (d, e):
        axes.set_ylim(max(min(limits), FAINTEST), max(limits))


def _draw_influence(trained: Mapping[str, Picture], axes: Any) -> None:
    plots.plot_norms(
        {name: each.influence for name, each in trained.items()},
        axes,
        title="Influence of each input, trained networks",
        ylabel="change of the last state, of its norm",
        styles=STYLES,
        legend=False,
    )
    axes.set_ylim(bottom=max(axes.get_ylim()[0], FAINTEST))


def _mark_places(steps: int, axes: Any) -> None:
    for begin, end in TemporalOrder.places(steps):
        axes.axvspan(begin - 0.5, end - 0.5, color="#f0b429", alpha=0.25, linewidth=0)
    patch = pyplot().Rectangle((0, 0), 1, 1, color="#f0b429", alpha=0.25)
    axes.legend([patch], ["where the two symbols stand"], **BELOW)


def _draw_gates(
    fresh: Mapping[str, Picture], trained: Mapping[str, Picture], g: Any, h: Any
) -> None:
    times: dict[str, Tensor] = {}
    styles: dict[str, dict[str, Any]] = {}
    gates: dict[str, diagnostics.Saturation] = {}
    for when, line, pictures in (("fresh", ":", fresh), ("trained", "-", trained)):
        for name, each in pictures.items():
            if each.forgetting is not None:
                times[f"{name}, {when}"] = each.forgetting
                styles[f"{name}, {when}"] = {**STYLES[name], "linestyle": line}
            if when == "trained":
                gates |= {f"{name}: {gate}": value for gate, value in each.gates.items()}
    if not times:
        for axes in (g, h):
            axes.set(title="(no network with gates)")
            axes.set_axis_off()
        return
    plots.plot_forgetting_times(
        times, g, title="Forgetting times of the units", styles=styles, legend=False
    )
    g.legend(**{**BELOW, "ncols": 2})
    plots.plot_saturation(gates, h, title="Gates of the trained networks", legend=False)
    h.legend(**BELOW)


def _draw_outcomes(outcomes: Outcomes, axes: Any) -> None:
    """A grid, a block of columns for each problem: green where it was solved."""
    networks = list(next(iter(outcomes.values())))
    columns: list[tuple[str, int] | None] = []
    for problem, rows in outcomes.items():
        lengths = max(rows.values(), key=len)
        columns += [*([None] if columns else []), *((problem, length) for length in lengths)]
        middle = len(columns) - (len(lengths) + 1) / 2
        place = axes.get_xaxis_transform()  # below the numbers, in the middle of the block
        axes.text(middle, -0.09, f"T, {problem}", ha="center", va="top", transform=place)
    steps = torch.full((len(networks), len(columns)), torch.nan)
    for (row, name), (k, column) in itertools.product(enumerate(networks), enumerate(columns)):
        if column is not None and (each := outcomes[column[0]][name].get(column[1])) is not None:
            if each.solved:
                steps[row, k] = each.steps
            text, color = (f"{each.steps:,}", "black") if each.solved else ("not", "#8a8f98")
            axes.text(k, row, text, color=color, ha="center", va="center", size=9)
    # Few steps in a darker green, none so dark that the numbers could not be read.
    most = steps.nan_to_num(1.0).max().item()
    axes.imshow(steps.tolist(), cmap="Greens_r", vmin=-1.5 * most, vmax=1.2 * most, aspect="auto")
    labels = {k: str(column[1]) for k, column in enumerate(columns) if column is not None}
    axes.set_xticks(list(labels), labels.values())
    axes.set_yticks(range(len(networks)), networks)
    axes.tick_params(length=0)
    axes.set(xlabel=" ", title="Steps of training until solved")
