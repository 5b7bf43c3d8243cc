"""Layer rule of LSTM, GRU and RNN: run again step by step, each of their weights is a linear layer on a sequence.

The gradients of what the two products of each step give, W_ih x_t + b_ih and W_hh h_(t-1) + b_hh, are taken for all
rows in one backward. A row's gradient of a weight is then one product over the steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpcgan_fast import ops
from dpcgan_fast.engine.layer_gradients import LayerGradient, MaterialisedGradient
from dpcgan_fast.engine.recorder import LayerUse
from dpcgan_fast.ops import ConvProblem

_Cell = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # both products, h, c -> h, c


def _lstm_cell(of_input: Tensor, of_state: Tensor, _h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    into, forget, new, out = (of_input + of_state).chunk(4, 1)
    c = torch.sigmoid(forget) * c + torch.sigmoid(into) * torch.tanh(new)
    return torch.sigmoid(out) * torch.tanh(c), c


def _gru_cell(of_input: Tensor, of_state: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    (reset_x, update_x, new_x), (reset_h, update_h, new_h) = of_input.chunk(3, 1), of_state.chunk(3, 1)
    update = torch.sigmoid(update_x + update_h)
    new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
    return (1 - update) * new + update * h, c


def _tanh_cell(of_input: Tensor, of_state: Tensor, _h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return torch.tanh(of_input + of_state), c


def _relu_cell(of_input: Tensor, of_state: Tensor, _h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return torch.relu(of_input + of_state), c


_CELLS: dict[str, _Cell] = {"LSTM": _lstm_cell, "GRU": _gru_cell, "RNN_TANH": _tanh_cell, "RNN_RELU": _relu_cell}


@dataclass
class _Products:
    """The steps of one direction of one layer: what its two products took and gave, each (B, features)."""

    names: str  # suffix of the names of its parameters
    inputs: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    of_inputs: list[Tensor] = field(default_factory=list)
    of_states: list[Tensor] = field(default_factory=list)


def _direction(module: nn.RNNBase, x: Tensor, suffix: str) -> tuple[Tensor, _Products]:
    """One direction of one layer, step by step; x: (B, T, I) in the order of its steps, out: (B, T, H)."""
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if module.bias else ("weight_ih", "weight_hh")
    weights = {kind: getattr(module, f"{kind}{suffix}").detach().to(x.dtype) for kind in kinds}
    bias_ih, bias_hh = weights.get("bias_ih"), weights.get("bias_hh")
    h = c = x.new_zeros(x.shape[0], module.hidden_size)
    taken, outputs = _Products(suffix), []
    for step in x.unbind(1):
        of_input = F.linear(step, weights["weight_ih"], bias_ih)
        of_state = F.linear(h, weights["weight_hh"], bias_hh)
        for product in (of_input, of_state):
            if not product.requires_grad:
                product.requires_grad_()
        taken.inputs.append(step)
        taken.states.append(h)
        taken.of_inputs.append(of_input)
        taken.of_states.append(of_state)
        h, c = _CELLS[module.mode](of_input, of_state, h, c)
        outputs.append(h)
    return torch.stack(outputs, 1), taken


def _all_layers(module: nn.RNNBase, x: Tensor) -> tuple[Tensor, list[_Products]]:
    """The output (B, T, directions H), and the products of each direction of each layer."""
    products: list[_Products] = []
    for layer in range(module.num_layers):
        directions = []
        for reverse in ("", "_reverse") if module.bidirectional else ("",):
            steps = x.flip(1) if reverse else x
            output, taken = _direction(module, steps, f"_l{layer}{reverse}")
            directions.append(output.flip(1) if reverse else output)
            products.append(taken)
        x = torch.cat(directions, 2)
    return x, products


def recurrent(use: LayerUse, grads: tuple[Tensor | None, ...], own: dict[str, nn.Parameter]) -> LayerGradient | None:
    """LSTM, GRU and RNN that begin at a zero state; losses depend on the output alone, no dropout, no projection."""
    module = use.module
    assert isinstance(module, nn.RNNBase)
    drops = module.dropout > 0 and module.training and module.num_layers > 1
    x, grad_out = use.args[0].detach(), grads[0]
    if not set(own) <= set(module._flat_weights_names):  # weight norm, say, has parameters of its own
        return None
    if x.dim() != 3 or drops or module.proj_size > 0 or grad_out is None or any(g is not None for g in grads[1:]):
        return None
    dtype = torch.promote_types(x.dtype, module.weight_ih_l0.dtype)  # type: ignore[arg-type]
    dtype = torch.promote_types(dtype, torch.float32)
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        output, products = _all_layers(module, x.to(dtype))
        wanted = [each for taken in products for each in (*taken.of_inputs, *taken.of_states)]
        found = iter(torch.autograd.grad(output, wanted, grad_out.to(dtype)))
    by_name: dict[str, Tensor] = {}
    for taken in products:
        for kind, sides in (("ih", taken.inputs), ("hh", taken.states)):
            of_steps = torch.stack([next(found) for _ in sides], 1).transpose(1, 2)  # (B, gates H, T)
            sides = torch.stack([side.detach() for side in sides], 1).transpose(1, 2)  # (B, I or H, T)
            if f"weight_{kind}{taken.names}" in own:
                by_name[f"weight_{kind}{taken.names}"] = ConvProblem(1).per_sample_grad(sides, of_steps)[0].squeeze(3)
            if f"bias_{kind}{taken.names}" in own:
                by_name[f"bias_{kind}{taken.names}"] = ops.sum_positions(of_steps)
    reason = "its steps are run again; each weight's gradient is a product over them"
    return MaterialisedGradient(module.mode.partition("_")[0].lower(), reason, {own[n]: g for n, g in by_name.items()})
