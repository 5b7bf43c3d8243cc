"""How the engine's tests look at a PrivateStep: its clipped sums, and what a step takes from the parameters."""

import torch
from torch import nn

from dpcgan_fast.engine import PrivateStep
from tests.engine.nets import flat, row_losses


def sgd_step(module, max_grad_norm=1.0, noise_multiplier=0.0, expected_batch_size=1.0, lr=1.0, **kwargs):
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    return PrivateStep(module, optimizer, max_grad_norm, noise_multiplier, expected_batch_size, **kwargs)


def moved(module, step) -> dict[str, torch.Tensor]:
    """What step.step() takes from the parameters: with SGD at lr 1, the gradient."""
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    step.step()
    return {name: before[name].double() - p.detach().double() for name, p in module.named_parameters()}


def linear_critic(features=6):
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 1))


def assert_close(got, expected, rtol):
    assert (flat(got) - flat(expected)).norm() <= rtol * flat(expected).norm() + 1e-12


class Sum:
    """Clipped sums of one module, as its PrivateStep holds them before the noise."""

    def __init__(self, module, max_grad_norm, **kwargs):
        self.module = module
        self.step = PrivateStep(module, torch.optim.SGD(module.parameters()), max_grad_norm, 0.0, 1.0, **kwargs)

    def of(self, *batches, units=None, private=True):
        """The sum over the batches, one backward each, as one float64 vector."""
        for x in batches:
            self.step.backward(row_losses(self.step(x)), units, private)
        return self.take()

    def take(self, name="_private_sum"):
        """The sum so far, float64; the next one begins at zero."""
        total = getattr(self.step, name)
        flattened = torch.cat([total[p].flatten() for p in self.module.parameters()])
        self.step._reset()
        return flattened


def relative(got, expected):
    return float((got - expected).norm() / expected.norm().clamp(min=1e-30))
