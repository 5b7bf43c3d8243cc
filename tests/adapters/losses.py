"""Losses of one row, and the oracle that the adapters' tests share: unit gradients by autograd in float64."""

import math

import torch
from torch.func import functional_call

from tests.engine.nets import CLIP_SHRINK, flat, row_losses


def values_of(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def loss_of(module):
    """The loss of one row, as people write it for vmap(grad)."""

    def loss_fn(params, x):
        return row_losses(functional_call(module, params, (x.unsqueeze(0),)))[0]

    return loss_fn


def squared_error(params, x, y):
    return (torch.tanh(x @ params["weight"] + params["bias"]) - y).square().sum()


def clipped_by_rows(fn, params, rows, max_grad_norm, units=None):
    """sum of clipped unit gradients, one unit at a time by autograd in float64; rows: argument tuples."""
    params = {name: p.double().requires_grad_() for name, p in params.items()}
    units = list(range(len(rows))) if units is None else units.tolist()
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    norms = []
    for unit in sorted(set(units)):
        loss = sum(fn(params, *(x.double() for x in row)) for row, u in zip(rows, units, strict=True) if u == unit)
        grads = torch.autograd.grad(loss, list(params.values()))
        norms.append(math.sqrt(sum(float(g.square().sum()) for g in grads)))
        for name, g in zip(params, grads, strict=True):
            total[name] = total[name] + min(1.0, max_grad_norm * CLIP_SHRINK / norms[-1]) * g
    return {name: t.detach() for name, t in total.items()}, norms


def assert_near(got, expected, tolerance=1e-5):
    assert list(got) == list(expected)
    assert (flat(got) - flat(expected)).norm() <= tolerance * flat(expected).norm()
