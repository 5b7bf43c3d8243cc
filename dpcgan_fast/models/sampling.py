"""Records where no gradient passes through them.

On the CPU those of `AutoNetworks` come from the same networks and distributions by other means, several times as fast:
convolutions take one native call with a row in each lane of a vector, logits stay as the convolution leaves them (cells
before blocks), a cell is drawn by one uniform number in place of one for each cell of its block, and a few rows at a
time stay in the caches.
"""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dpcgan_fast import ops
from dpcgan_fast.engine.fused_forms import fused_net
from dpcgan_fast.models.auto import PRIOR_SCALE, AutoNetworks
from dpcgan_fast.models.networks import Networks
from dpcgan_fast.ops import FusedNet

_ROWS_AT_A_TIME = 256

Draw = Callable[[Tensor, Tensor, torch.Generator], Tensor]

# The form of a stack of convolutions, with its memory, as long as there is the stack; its weights are read every time.
_NETS: WeakKeyDictionary[nn.Sequential, FusedNet] = WeakKeyDictionary()


def _convolve(stack: nn.Sequential, x: Tensor) -> Tensor:
    """The output of a stack, (B, C, L) -> (B, C', L'), by the fused kernels."""
    if stack not in _NETS:
        _NETS[stack] = fused_net(list(stack.named_children()), (x.shape[1], x.shape[2]))
    out, workspace = _NETS[stack].forward(x, [p.detach().contiguous() for p in stack.parameters()])
    _NETS[stack].release(workspace)
    return out


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
    draws = [draw for draw in (_column_draws(networks), _code_draws(networks)) if draw is not None]
    for part, own in zip(records.split(_ROWS_AT_A_TIME), labels.split(_ROWS_AT_A_TIME), strict=True):
        latent = networks.latent(len(own), randomness)
        codes = latent + _convolve(generator.moves, generator.hidden(latent, own)).squeeze(1)
        first = 0
        for draw, head in zip(draws, networks.heads, strict=True):
            part[:, first : first + head.width] = draw(codes, own, randomness)
            first += head.width
        if networks.codes_head is not None and networks.codes_head.has_flags:
            part[:, -networks.codes_head.width :] *= networks.codes_head.there(part)
    return records


def _column_draws(networks: AutoNetworks) -> Draw | None:
    """Draws the columns' positions, (B, D), for latent codes and labels."""
    decoder, head = networks.autoencoder.decoder, networks.columns_head
    if decoder is None or head is None:
        return None
    prior = PRIOR_SCALE * decoder.prior.weight.t().unflatten(1, (head.n_blocks, head.max_cells))
    prior = prior.masked_fill(head.unused, -torch.inf).transpose(1, 2).contiguous()  # (K, cells, n_blocks)

    def draw(codes: Tensor, labels: Tensor, randomness: torch.Generator) -> Tensor:
        logits = _convolve(decoder.columns, decoder.hidden(codes, labels))
        uniform = torch.rand(len(labels), head.n_blocks, generator=randomness)
        within = torch.rand(len(labels), len(head.numbers), generator=randomness)
        return head.records_of(ops.draw_cells(logits, prior, labels.argmax(1), uniform, head.last_cells), within)

    return draw


def _code_draws(networks: AutoNetworks) -> Draw | None:
    """Draws the medical codes' positions, (B, V), for latent codes and labels."""
    decoder, head = networks.autoencoder.codes, networks.codes_head
    if decoder is None or head is None:
        return None

    def draw(codes: Tensor, labels: Tensor, randomness: torch.Generator) -> Tensor:
        logits = _convolve(decoder.along, decoder.hidden(codes, labels)).squeeze(1)[:, : decoder.width] + decoder.bias
        return head.draw(logits, randomness)

    return draw
