"""Records where no gradient passes through them.

On the CPU those of `AutoNetworks` come from the same networks and distributions by other means, several times as fast:
convolutions take one native call with a row in each lane of a vector, logits stay as the convolution leaves them (cells
before blocks), a cell is drawn by one uniform number in place of one for each cell of its block, and a few rows at a
time stay in the caches.
"""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dpcgan_fast import ops
from dpcgan_fast.engine.fused_forms import fused_net
from dpcgan_fast.models.auto import PRIOR_SCALE, AutoNetworks
from dpcgan_fast.models.networks import Networks
from dpcgan_fast.ops import FusedNet

_ROWS_AT_A_TIME = 256

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
    decoder, generator, head = networks.autoencoder.decoder, networks.generator, networks.head
    prior = PRIOR_SCALE * decoder.prior.weight.t().unflatten(1, (head.n_blocks, head.max_cells))
    prior = prior.masked_fill(head.unused, -torch.inf).transpose(1, 2).contiguous()  # (K, cells, n_blocks)
    records = torch.empty(len(labels), head.width)
    for part, own in zip(records.split(_ROWS_AT_A_TIME), labels.split(_ROWS_AT_A_TIME), strict=True):
        latent = networks.latent(len(own), randomness)
        codes = latent + _convolve(generator.moves, generator.hidden(latent, own)).squeeze(1)
        logits = _convolve(decoder.columns, decoder.hidden(codes, own))
        uniform = torch.rand(len(own), head.n_blocks, generator=randomness)
        within = torch.rand(len(own), len(head.numbers), generator=randomness)
        cells = ops.draw_cells(logits, prior, own.argmax(1), uniform, head.last_cells)
        part.copy_(head.records_of(cells, within))
    return records
