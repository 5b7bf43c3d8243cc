"""Small nets, data and training loops, for Opacus's engine and ours alike."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ROWS, BATCH, CLASSES = 48, 16, 3


class Tied(nn.Module):
    """A weight that two layers share, in a net that is no nn.Sequential."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x.flatten(1))))))


class Affine(nn.Module):
    """A layer of one's own, without a rule, and a parameter that the root owns."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(10, CLASSES)
        self.scale = nn.Parameter(torch.ones(CLASSES))

    def forward(self, x):
        return self.inner(x.flatten(1)) * self.scale


NETS = {
    "fused": lambda: nn.Sequential(
        nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(32, CLASSES)
    ),
    "layerwise": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(10, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, CLASSES)
    ),
    "tied": Tied,
    "own layer": Affine,
}


def net(name="fused"):
    torch.manual_seed(1)
    return NETS[name]()


def data(rows=ROWS):
    randomness = torch.Generator().manual_seed(2)
    x = torch.randn(rows, 1, 10, generator=randomness)
    return TensorDataset(x, torch.randint(0, CLASSES, (rows,), generator=randomness))


def private(engine, module, optimizer=None, *, batch=BATCH, noise_multiplier=0.0, max_grad_norm=0.3, **settings):
    """What `make_private` of an engine gives for a module."""
    optimizer = optimizer if optimizer is not None else torch.optim.SGD(module.parameters(), lr=1.0)
    settings = {"poisson_sampling": False, **settings}
    return engine.make_private(
        module=module, optimizer=optimizer, data_loader=DataLoader(data(), batch_size=batch),
        noise_multiplier=noise_multiplier, max_grad_norm=max_grad_norm, **settings,
    )  # fmt: skip


def train(module, optimizer, loader, reduction="mean"):
    """One epoch, as anybody writes it."""
    criterion = nn.CrossEntropyLoss(reduction=reduction)
    for x, y in loader:
        optimizer.zero_grad()
        criterion(module(x), y).backward()
        optimizer.step()


def vector(module):
    """All parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])
