"""The state of a training run: networks, optimizers, counters and public randomness, as named tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dpcgan_fast.errors import InputError
from dpcgan_fast.models.networks import Networks
from dpcgan_fast.train.plan import AUTOENCODER, CRITIC
from dpcgan_fast.train.settings import TrainSettings

Values = dict[str, Any]
RELEASED = "released."  # of the names of tensors of statistics, in a file


@dataclass
class TrainState:
    """What training changes. Nothing here holds an un-noised gradient or a record.

    rates:      (K,) class rates that fakes are drawn by: public or paid
    divisors:   expected batch sizes, by mechanism: public or paid
    steps:      private steps taken, by mechanism
    randomness: of latent codes, fake labels and draws from the decoder; public
    released:   of statistics that rows are drawn from, which training does not touch
    fitted:     whether the networks were fitted to statistics, where they are
    averaged:   running averages of what the generator's optimizer moves, in its order; empty if there are none
    """

    networks: Networks
    optimizers: dict[str, torch.optim.Optimizer]
    rates: Tensor
    divisors: dict[str, float]
    randomness: torch.Generator
    steps: dict[str, int] = field(default_factory=lambda: {AUTOENCODER: 0, CRITIC: 0})
    released: dict[str, Tensor] = field(default_factory=dict)
    fitted: bool = False
    averaged: list[Tensor] = field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        """Networks, optimizers and randomness, contiguous and on the CPU."""
        named = {f"networks.{name}": tensor for name, tensor in self.networks.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for index, values in optimizer.state_dict()["state"].items():
                named |= {f"optimizer.{name}.{index}.{key}": value for key, value in values.items()}
        named |= {f"averaged.{index}": average for index, average in enumerate(self.averaged)}
        named["randomness"] = self.randomness.get_state()
        named |= self.released_named()
        return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}

    def released_named(self) -> dict[str, Tensor]:
        """Tensors of released statistics, by the names that they have in a file; see `released_tensors`."""
        return {f"{RELEASED}{name}": tensor for name, tensor in self.released.items()}

    def values(self) -> Values:
        """Counters and released facts, as JSON values."""
        return {
            "steps": dict(self.steps), "rates": self.rates.tolist(), "divisors": dict(self.divisors),
            "fitted": self.fitted,
        }  # fmt: skip

    def generator_parameters(self) -> list[nn.Parameter]:
        """What the generator's optimizer moves: generator and decoder, in its order."""
        return [p for group in self.optimizers["generator"].param_groups for p in group["params"]]

    @torch.no_grad()
    def average(self, decay: float, count: int) -> None:
        """Takes the generator's parameters, after `count` of its steps, into their running averages.

        Of the first steps the average is an even one: it holds nothing of the weights at the start.
        """
        parameters = self.generator_parameters()
        if not self.averaged:
            self.averaged = [parameter.detach().clone() for parameter in parameters]
        for average, parameter in zip(self.averaged, parameters, strict=True):
            average.lerp_(parameter, 1 - min(decay, 1 - 1 / count))

    @torch.no_grad()
    def take_averages(self) -> None:
        """Gives the generator the running averages for its parameters, if there are any."""
        if self.averaged:
            for parameter, average in zip(self.generator_parameters(), self.averaged, strict=True):
                parameter.copy_(average)

    def restore(self, tensors: dict[str, Tensor], values: Values) -> None:
        """Takes over what `tensors` and `values` gave. Raises InputError if they belong to another model."""
        try:
            prefix = "networks."
            networks = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            self.networks.load_state_dict(networks)
            for name, optimizer in self.optimizers.items():
                state: dict[int, dict[str, Tensor]] = {}
                for key, tensor in tensors.items():
                    if key.startswith(f"optimizer.{name}."):
                        index, entry = key.removeprefix(f"optimizer.{name}.").split(".")
                        state.setdefault(int(index), {})[entry] = tensor
                optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
            self.randomness.set_state(tensors["randomness"])
            self.released = released_tensors(tensors)
            count = sum(name.startswith("averaged.") for name in tensors)
            self.averaged = [tensors[f"averaged.{index}"].to(self.rates.device) for index in range(count)]
            self.steps = {name: int(values["steps"][name]) for name in self.steps}
            self.rates = torch.tensor(values["rates"], device=self.rates.device)
            self.divisors = {name: float(divisor) for name, divisor in values["divisors"].items()}
            self.fitted = bool(values.get("fitted", False))
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise InputError(
                "The checkpoint does not fit the model", type(error).__name__, "Start a new run in a new folder."
            ) from None


def released_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of released statistics, by their own names."""
    return {name.removeprefix(RELEASED): own for name, own in tensors.items() if name.startswith(RELEASED)}


def make_optimizers(networks: Networks, settings: TrainSettings) -> dict[str, torch.optim.Optimizer]:
    """Adam for the autoencoder, the critic, and the generator with the decoder at its own small rate."""
    betas = (settings.beta1, settings.beta2)

    def adam(parameters: Any, lr: float, own_betas: tuple[float, float] = betas) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=lr, betas=own_betas)

    decoder = {"params": networks.decoder_parameters(), "lr": settings.decoder_lr}
    return {
        AUTOENCODER: adam(networks.autoencoder.parameters(), settings.autoencoder_lr, (0.9, 0.999)),
        CRITIC: adam(networks.critic.parameters(), settings.critic_lr),
        "generator": adam([{"params": networks.generator.parameters()}, decoder], settings.generator_lr),
    }


def scale_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group's learning rate to `factor` times its first one."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor
