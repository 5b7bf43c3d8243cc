"""Records where no gradient passes through them.

On the CPU those of `AutoNetworks` come from the same networks and distributions by other means, several times as fast:
convolutions take one native call with a row in each lane of a vector, a cell is drawn where its logits lie by one
uniform number in place of one for each cell of its block, and a few rows at a time stay in the caches.
"""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dpcgan_fast import ops
from dpcgan_fast.engine.fused_forms import fused_net
from dpcgan_fast.models.auto import AutoNetworks
from dpcgan_fast.models.networks import Networks
from dpcgan_fast.ops import FusedNet

_ROWS_AT_A_TIME, _FLOATS_AT_A_TIME = 512, 1 << 19  # that pass through the networks together; fewer if records are wide

Draw = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]  # of codes, labels, classes

# The form of a stack of convolutions, as long as there is the stack; its weights are read every time.
_NETS: WeakKeyDictionary[nn.Sequential, FusedNet] = WeakKeyDictionary()


def _net(stack: nn.Sequential, x: Tensor) -> tuple[FusedNet, list[Tensor]]:
    """A stack's form for inputs like x, (B, C, L), and its parameters."""
    if stack not in _NETS:
        _NETS[stack] = fused_net(list(stack.named_children()), (x.shape[1], x.shape[2]))
    return _NETS[stack], [p.detach().contiguous() for p in stack.parameters()]


def _convolve(stack: nn.Sequential, x: Tensor) -> Tensor:
    """The output of a stack, (B, C, L) -> (B, C', L'), by the fused kernels."""
    net, parameters = _net(stack, x)
    return net.infer(x, parameters)


@torch.no_grad()
def sample_records(networks: Networks, labels: Tensor, randomness: torch.Generator) -> Tensor:
    """Synthetic records (B, F) for rows of labels (B, K) one-hot, on their device; NaN where the networks give NaN.

    randomness: a generator on that device
    """
    if isinstance(networks, AutoNetworks) and labels.device.type == "cpu" and ops.backend() == "native":
        return _sample_auto(networks, labels, randomness)
    return networks.generate(labels, randomness)


def _sample_auto(networks: AutoNetworks, labels: Tensor, randomness: torch.Generator) -> Tensor:
    generator = networks.generator
    records = torch.empty(len(labels), sum(head.width for head in networks.heads))
    together = max(1, min(_ROWS_AT_A_TIME, _FLOATS_AT_A_TIME // records.shape[1]))
    ways = _column_draws(networks), _wide_draws(networks), _code_draws(networks)
    draws = [draw for draw in ways if draw is not None]
    classes, order = labels.argmax(1).sort(stable=True)  # a vector of rows of one class has one prior
    parts = (tensor.split(together) for tensor in (order, labels[order], classes))
    for rows, own, own_classes in zip(*parts, strict=True):
        latent = networks.latent(len(own), randomness)
        codes = latent + _convolve(generator.moves, generator.hidden(latent, own)).squeeze(1)
        drawn = [draw(codes, own, own_classes, randomness) for draw in draws]
        made = drawn[0] if len(drawn) == 1 else torch.cat(drawn, 1)
        if networks.codes_head is not None and networks.codes_head.has_flags:
            made[:, -networks.codes_head.width :] *= networks.codes_head.there(made)
        records.index_copy_(0, rows, made)
    return records


def _column_draws(networks: AutoNetworks) -> Draw | None:
    """Draws the columns' positions, (B, D), for latent codes and labels."""
    decoder, head = networks.autoencoder.decoder, networks.columns_head
    if decoder is None or head is None:
        return None
    prior = decoder.of_label().masked_fill(head.unused, -torch.inf)  # (K, n_blocks, cells)

    def draw(codes: Tensor, labels: Tensor, classes: Tensor, randomness: torch.Generator) -> Tensor:
        hidden = decoder.hidden(codes, labels)
        chosen = ops.uniform(len(labels), head.n_blocks, randomness=randomness)
        within = ops.uniform(len(labels), len(head.numbers), randomness=randomness)
        net, parameters = _net(decoder.columns, hidden)
        return head.records_of(net.draw(hidden, parameters, prior, classes, chosen, head.last_cells), within)

    return draw


def _wide_draws(networks: AutoNetworks) -> Draw | None:
    """Draws the positions of columns of many categories, (B, W), for latent codes and labels."""
    decoder, head = networks.autoencoder.wide, networks.wide_head
    if decoder is None or head is None:
        return None
    prior = decoder.of_label().masked_fill(head.unused, -torch.inf)  # (K, n_blocks, cells)

    def draw(codes: Tensor, labels: Tensor, classes: Tensor, randomness: torch.Generator) -> Tensor:
        ends = (decoder.of_codes(codes, labels) + prior[classes]).softmax(2).cumsum_(2)  # by inversion
        chosen = ops.uniform(len(labels), head.n_blocks, randomness=randomness)
        cells = torch.minimum(torch.searchsorted(ends, chosen.unsqueeze(2), right=True).squeeze(2), head.last_cells)
        whole = ends[:, :, -1]
        # The difference is zero, or NaN; and there are no numbers among the columns.
        return head.records_of(cells + (whole - whole), chosen[:, :0])

    return draw


def _code_draws(networks: AutoNetworks) -> Draw | None:
    """Draws the medical codes' positions, (B, V), for latent codes and labels."""
    decoder, head = networks.autoencoder.codes, networks.codes_head
    if decoder is None or head is None:
        return None

    def draw(codes: Tensor, labels: Tensor, _classes: Tensor, randomness: torch.Generator) -> Tensor:
        logits = _convolve(decoder.along, decoder.hidden(codes, labels)).squeeze(1)[:, : decoder.width]
        chance = torch.add(logits, decoder.bias).sigmoid_()
        drawn = ops.uniform(*chance.shape, randomness=randomness) < chance
        return chance.sub_(chance).add_(drawn)  # the difference is zero, or NaN

    return draw
