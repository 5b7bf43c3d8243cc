"""Small nets with the layers that have a rule of their own, beyond those of `nets.NETS`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.engine.nets import sequential

VOCABULARY = 7


class Ids(nn.Module):
    """(B, ...) floats to ids below VOCABULARY; rows of a few positions hold some of them more than once."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.abs() * VOCABULARY).long() % VOCABULARY


class Bag(nn.Module):
    """An EmbeddingBag, with weights of its tokens if asked for."""

    def __init__(self, weighted: bool = False, **kwargs):
        super().__init__()
        self.ids, self.bag, self.weighted = Ids(), nn.EmbeddingBag(VOCABULARY, 3, **kwargs), weighted

    def forward(self, x: Tensor) -> Tensor:
        return self.bag(self.ids(x), per_sample_weights=torch.sin(x) if self.weighted else None)


class Tied(nn.Module):
    """An embedding whose weight is that of the output layer."""

    def __init__(self):
        super().__init__()
        self.ids, self.embedding, self.mix = Ids(), nn.Embedding(VOCABULARY, 4), nn.Linear(4, 4)
        self.out = nn.Linear(4, VOCABULARY, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.mix(self.embedding(self.ids(x)))))


class Lora(nn.Module):
    """A frozen linear layer and a low-rank change to it."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down, self.up = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * self.up(self.down(x))


class Output(nn.Module):
    """The output of a recurrent layer, without its final state."""

    def __init__(self, recurrent: nn.Module):
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x: Tensor) -> Tensor:
        return self.recurrent(x)[0]


class Attention(nn.Module):
    """Self-attention, with other keys and values and a mask of keys, or without; its weights may count."""

    def __init__(self, others: bool = False, weights: bool = False):
        super().__init__()
        sizes = {"kdim": 3, "vdim": 2, "bias": False} if others else {}
        self.attention, self.others = nn.MultiheadAttention(4, 2, batch_first=True, **sizes), others
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        if self.others:
            mask = torch.zeros(x.shape[:2], dtype=torch.bool)
            mask[:, 0] = True
            return self.attention(x, x[..., :3], value=x[..., 1:3], key_padding_mask=mask)[0]
        output, weights = self.attention(x, x, x, need_weights=self.weights)
        return torch.cat([output, weights], 2) if self.weights else output


def frozen(net: nn.Sequential, name: str) -> nn.Sequential:
    """The net without gradients of all parameters of that name."""
    for layer in net:
        if getattr(layer, name, None) is not None:
            getattr(layer, name).requires_grad_(False)
    return net


def small_mixture() -> nn.Sequential:
    return sequential(nn.Conv2d(1, 4, 3, stride=2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(36, 2))


# Name, module, shape of one row, rules of its layers.
LAYER_NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "images": (
        lambda: sequential(
            nn.Conv2d(1, 4, 5, stride=2, padding=2), nn.GroupNorm(2, 4), nn.Tanh(),
            nn.Conv2d(4, 6, (3, 2), stride=(1, 2), dilation=(2, 1), groups=2, bias=False),
            nn.InstanceNorm2d(6, affine=True), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2),
        ),
        (1, 9, 9),
        ["conv2d", "group_norm", "conv2d", "instance_norm2d", "linear"],
    ),
    "padded images": (
        lambda: sequential(
            nn.Conv2d(2, 3, (4, 3), padding="same", dilation=(1, 2)), nn.Tanh(),
            nn.Conv2d(3, 3, 3, padding=(1, 2), padding_mode="reflect"), nn.Tanh(), nn.Conv2d(3, 8, 5, padding="valid"),
        ),
        (2, 6, 5),
        ["conv2d", "conv2d", "conv2d"],
    ),
    "transposed images": (
        lambda: sequential(
            nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2), nn.RMSNorm((8, 6)), nn.Tanh(),
            nn.ConvTranspose2d(4, 1, (2, 3), dilation=(2, 1)),
        ),
        (2, 4, 3),
        ["conv_transpose2d", "rms_norm", "conv_transpose2d"],
    ),
    "volumes": (
        lambda: sequential(
            nn.Conv3d(1, 4, 2, stride=(1, 2, 1)), nn.InstanceNorm3d(4, affine=True), nn.Tanh(),
            nn.ConvTranspose3d(4, 1, 2, groups=1),
        ),
        (1, 3, 4, 3),
        ["conv3d", "instance_norm3d", "conv_transpose3d"],
    ),
    "tokens": (
        lambda: sequential(
            Ids(), nn.Embedding(VOCABULARY, 4, padding_idx=2), nn.LayerNorm((6, 4)), nn.Tanh(), nn.Linear(4, 3)
        ),
        (6,),
        ["embedding", "layer_norm", "linear"],
    ),
    "bags": (lambda: sequential(Bag(mode="sum"), nn.Linear(3, 2)), (5,), ["embedding_bag", "linear"]),
    "mean bags": (lambda: Bag(mode="mean", padding_idx=3), (5,), ["embedding_bag"]),
    "weighted bags": (lambda: Bag(weighted=True, mode="sum"), (5,), ["embedding_bag"]),
    "tied": (Tied, (6,), ["linear", "shared"]),
    "lora": (lambda: sequential(Lora(5, 4), nn.Tanh(), Lora(4, 3)), (3, 5), ["linear"] * 4),
    "bias alone": (lambda: frozen(small_mixture(), "weight"), (1, 7, 7), ["conv2d", "group_norm", "linear"]),
    "bias frozen": (lambda: frozen(small_mixture(), "bias"), (1, 7, 7), ["conv2d", "group_norm", "linear"]),
    "lstm": (lambda: Output(nn.LSTM(3, 2, 2, batch_first=True, bidirectional=True)), (4, 3), ["lstm"]),
    "gru": (lambda: Output(nn.GRU(3, 4, batch_first=True, bias=False)), (4, 3), ["gru"]),
    "rnn": (lambda: Output(nn.RNN(3, 4, batch_first=True)), (4, 3), ["rnn"]),
    "relu rnn": (lambda: Output(nn.RNN(3, 16, nonlinearity="relu", batch_first=True)), (4, 3), ["rnn"]),
    "attention": (Attention, (3, 4), ["attention"]),
    "attention to others": (lambda: Attention(others=True), (3, 4), ["attention"]),
    "attention and its weights": (lambda: Attention(weights=True), (3, 4), ["torch.func"]),
}  # fmt: skip
