"""What stands in the place of a recurrent layer: convolutions and self-attention, [T, B, I] to features [T, B, H].

Each is written twice: by torch's own layers, as users would, and `plain`, by its definition. The gate compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import DTYPES, Case
from .measure import compare
from .providers import Call, Provider, inputs

HEADS = 4
TCN_WINDOW = 3


def windows(x: Tensor, layer: nn.Conv1d, dilation: int, before: int) -> Tensor:
    """A convolution over time by its definition: one product for each place of the window, added up.

    Args:
        x: [T, B, I].
        before: steps of the window before the one that it writes.
    """
    T, places = x.shape[0], layer.kernel_size[0]
    padded = F.pad(x, (0, 0, 0, 0, dilation * before, dilation * (places - 1 - before)))
    total = layer.bias.expand(T, x.shape[1], -1)
    for place in range(places):
        total = total + padded[place * dilation : place * dilation + T] @ layer.weight[:, :, place].t()
    return total


class Windows(nn.Module):
    """Filters of several widths beside each other, and ReLU: TextCNN (Kim 2014) before it takes the maximum over time.

    The H filters are shared out among the widths; steps before the first and behind the last are zero. CNN2's two
    channels are the halves of the input.
    """

    def __init__(self, I: int, H: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        shares = [H // len(widths) + (index < H % len(widths)) for index in range(len(widths))]
        self.convolutions = nn.ModuleList(nn.Conv1d(I, n, w) for n, w in zip(shares, widths, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(1, 2, 0)
        sides = [(layer, layer.kernel_size[0] - 1) for layer in self.convolutions]
        found = [layer(F.pad(rows, (width // 2, width - width // 2))) for layer, width in sides]
        return F.relu(torch.cat(found, dim=1)).permute(2, 0, 1)

    def plain(self, x: Tensor) -> Tensor:
        found = [windows(x, layer, 1, (layer.kernel_size[0] - 1) // 2) for layer in self.convolutions]
        return F.relu(torch.cat(found, dim=-1))


class TCN(nn.Module):
    """Residual blocks of two causal convolutions each, the dilation doubled from block to block (Bai et al. 2018).

    As many blocks as the last step needs to see the first. Without weight norm and dropout.
    """

    def __init__(self, I: int, H: int, T: int) -> None:
        super().__init__()
        blocks = max(1, math.ceil(math.log2((T - 1) / (2 * (TCN_WINDOW - 1)) + 1)))
        sizes = [(I if index == 0 else H, 2**index) for index in range(blocks)]
        self.first = nn.ModuleList(nn.Conv1d(size, H, TCN_WINDOW, dilation=step) for size, step in sizes)
        self.second = nn.ModuleList(nn.Conv1d(H, H, TCN_WINDOW, dilation=step) for _, step in sizes)
        self.across = nn.Conv1d(I, H, 1) if I != H else None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(1, 2, 0)
        return self._blocks(rows, _causal, lambda layer, value: layer(value)).permute(2, 0, 1)

    def plain(self, x: Tensor) -> Tensor:
        return self._blocks(x, _causal_plain, lambda layer, value: windows(value, layer, 1, 0))

    def _blocks(self, x: Tensor, convolve: Callable, across: Callable) -> Tensor:
        for index, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            kept = across(self.across, x) if index == 0 and self.across is not None else x
            x = F.relu(kept + F.relu(convolve(second, F.relu(convolve(first, x)))))
        return x


def _causal(layer: nn.Conv1d, x: Tensor) -> Tensor:
    return layer(F.pad(x, ((layer.kernel_size[0] - 1) * layer.dilation[0], 0)))


def _causal_plain(layer: nn.Conv1d, x: Tensor) -> Tensor:
    return windows(x, layer, layer.dilation[0], layer.kernel_size[0] - 1)


class SelfAttention(nn.Module):
    """One layer of a transformer's encoder: every step looks at every other, no step waits for another.

    Sinusoidal positions are added to the input, which is as wide as the output.
    """

    def __init__(self, H: int, T: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(H, HEADS, 4 * H, dropout=0.0)
        self.register_buffer("positions", positions(T, H))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + self.positions)

    def plain(self, x: Tensor) -> Tensor:
        x, layer, own = x + self.positions, self.layer, self.layer.self_attn
        T, B, H = x.shape
        q, k, v = (
            (x @ weight.t() + bias).view(T, B, HEADS, H // HEADS)
            for weight, bias in zip(own.in_proj_weight.chunk(3), own.in_proj_bias.chunk(3), strict=True)
        )
        scores = torch.einsum("ibhd,jbhd->bhij", q, k) / math.sqrt(H // HEADS)
        read = torch.einsum("bhij,jbhd->ibhd", scores.softmax(-1), v).reshape(T, B, H)
        x = layer.norm1(x + read @ own.out_proj.weight.t() + own.out_proj.bias)
        hidden = F.relu(x @ layer.linear1.weight.t() + layer.linear1.bias)
        return layer.norm2(x + hidden @ layer.linear2.weight.t() + layer.linear2.bias)


def positions(T: int, H: int) -> Tensor:
    """Sines and cosines of the step (Vaswani et al. 2017) [T, 1, H]."""
    angles = torch.arange(T)[:, None] * torch.exp(torch.arange(0, H, 2) * (-math.log(1e4) / H))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, None, :H]


def _made(build: Callable[[Case], nn.Module]) -> Callable[[Case, nn.RNNBase], nn.Module]:
    def seeded(case: Case, _: nn.RNNBase) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(case).to(DTYPES[case.dtype])

    return seeded


def _called(layer: nn.Module, x: Tensor, _: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    return layer(x), ()


def _called_plain(layer: nn.Module, x: Tensor, _: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    return layer.plain(x), ()


ENCODERS = (
    Provider("textcnn", _made(lambda case: Windows(case.I, case.H, (3, 4, 5))), _called),
    Provider("cnn2", _made(lambda case: Windows(case.I, case.H, (2, 3, 4, 5))), _called),
    Provider("tcn", _made(lambda case: TCN(case.I, case.H, case.T)), _called),
    Provider("attention", _made(lambda case: SelfAttention(case.H, case.T)), _called),
)
PLAIN = Provider("plain", lambda case, source: source, _called_plain)


def wrong(encoder: Provider, case: Case, device: str = "cpu") -> str | None:
    """Why outputs and gradients are not those of the definition, by the gate's rule, or None.

    In float64: in float32 every product is torch's own.
    """
    layer, data = encoder.build(case, nn.RNN(1, 1)).double(), inputs(case).to(torch.float64)
    truth = Call(PLAIN, layer, data).results()
    found = Call(encoder, layer.to(device), data.to(device)).results()
    return compare({name: value.cpu() for name, value in found.items()}, truth, truth)
