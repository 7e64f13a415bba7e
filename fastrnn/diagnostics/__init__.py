"""What happens inside a recurrent network: gradients over time, gates, spectra, memory.

Every function takes a trained or fresh ``RNN``, ``LSTM``, ``GRU`` of fastrnn or of torch.nn, or one
of their cells as a layer of its own, and returns tensors; ``fastrnn.diagnostics.plots`` draws them
(it needs matplotlib). Of a model pass the recurrent layer.

Shapes: T steps, B batch rows, I input features, H hidden units, R output features (H, or
``proj_size``). A *pass* is one direction of one layer.
"""

from .gates import Saturation, forgetting_time, saturation
from .gradients import StateGradients, state_gradients
from .jacobians import influence, jacobian_bound, jacobian_products, state_jacobians
from .passes import Pass, trace
from .spectrum import (
    PowerIteration,
    eigenvalues,
    power_iteration,
    recurrent_weight,
    spectral_radius,
)

__all__ = [
    "Pass",
    "PowerIteration",
    "Saturation",
    "StateGradients",
    "eigenvalues",
    "forgetting_time",
    "influence",
    "jacobian_bound",
    "jacobian_products",
    "power_iteration",
    "recurrent_weight",
    "saturation",
    "spectral_radius",
    "state_gradients",
    "state_jacobians",
    "trace",
]
