"""The models of the text study, each recurrent one over either family of layers, with the arithmetic of what they cost.

Tokens come as [T, B] with `lengths` [B] (None: all rows are T long); logits go out as [B, classes].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import PAD
from .providers import FUSED as FUSED_PROVIDER
from .providers import NN, fused_module

RNN_DROPOUT, TEXTCNN_DROPOUT = 0.2, 0.5
RNN_HIDDEN = 128
BIRNN_HIDDEN = 100
CNN2_WIDTHS, CNN2_FILTERS = (2, 3, 4, 5), 16
TEXTCNN_WIDTHS, TEXTCNN_FILTERS = (3, 4, 5), 100


@dataclass(frozen=True)
class Table:
    """A pretrained embedding [V, E], or None for a random one, and the sizes that the models need."""

    words: int  # V
    width: int  # E
    classes: int
    pretrained: Tensor | None = None

    def embedding(self, *, frozen: bool = False, pretrained: bool = True) -> nn.Embedding:
        layer = nn.Embedding(self.words, self.width, padding_idx=PAD)
        if pretrained and self.pretrained is not None:
            with torch.no_grad():
                layer.weight.copy_(self.pretrained)
        layer.weight.requires_grad_(not frozen)
        return layer


def layers(provider: str) -> ModuleType:
    """Where a recurrent model takes its layers from."""
    return nn if provider == NN.name else fused_module()


class Recurrent(nn.Module):
    """Calls a layer of either family on padded rows."""

    def __init__(self, layer: nn.Module, provider: str) -> None:
        super().__init__()
        self.layer, self._forward = layer, (NN if provider == NN.name else FUSED_PROVIDER).forward

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        return self._forward(self.layer, x, lengths)


class TanhRNN(nn.Module):
    """Embeddings with dropout, a tanh RNN, a linear layer on its final state."""

    def __init__(self, table: Table, provider: str) -> None:
        super().__init__()
        self.embedding, self.dropout = table.embedding(), nn.Dropout(RNN_DROPOUT)
        self.encoder = Recurrent(layers(provider).RNN(table.width, RNN_HIDDEN), provider)
        self.head = nn.Linear(RNN_HIDDEN, table.classes)

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        return self.head(self.encoder(self.dropout(self.embedding(tokens)), lengths)[1][-1])


class BiRNN(nn.Module):
    """Two layers of bidirectional LSTM; the outputs of the first and of the last step, joined, go to a linear layer."""

    def __init__(self, table: Table, provider: str) -> None:
        super().__init__()
        self.embedding = table.embedding()
        lstm = layers(provider).LSTM(table.width, BIRNN_HIDDEN, num_layers=2, bidirectional=True)
        self.encoder = Recurrent(lstm, provider)
        self.head = nn.Linear(4 * BIRNN_HIDDEN, table.classes)

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        y, _ = self.encoder(self.embedding(tokens), lengths)
        last = y[-1] if lengths is None else y[lengths - 1, torch.arange(y.shape[1])]
        return self.head(torch.cat([y[0], last], dim=-1))


class CNN2(nn.Module):
    """A random trained and a pretrained frozen channel, windows of 2 to 5 words, the maximum over time."""

    def __init__(self, table: Table, provider: str) -> None:
        super().__init__()
        self.trained, self.frozen = table.embedding(pretrained=False), table.embedding(frozen=True)
        self.convolutions = nn.ModuleList(nn.Conv2d(2, CNN2_FILTERS, (width, table.width)) for width in CNN2_WIDTHS)
        self.head = nn.Linear(CNN2_FILTERS * len(CNN2_WIDTHS), table.classes)

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        tokens = at_least(tokens, max(CNN2_WIDTHS)).t()
        x = torch.stack([self.trained(tokens), self.frozen(tokens)], dim=1)  # [B, 2, T, E]
        return self.head(torch.cat([F.relu(layer(x)).amax(dim=(2, 3)) for layer in self.convolutions], dim=-1))


class TextCNN(nn.Module):
    """A trained and a frozen embedding side by side, 100 filters of each width, the maximum over time."""

    def __init__(self, table: Table, provider: str) -> None:
        super().__init__()
        self.trained, self.frozen = table.embedding(), table.embedding(frozen=True)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(2 * table.width, TEXTCNN_FILTERS, width) for width in TEXTCNN_WIDTHS
        )
        self.dropout = nn.Dropout(TEXTCNN_DROPOUT)
        self.head = nn.Linear(TEXTCNN_FILTERS * len(TEXTCNN_WIDTHS), table.classes)

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        tokens = at_least(tokens, max(TEXTCNN_WIDTHS)).t()
        x = torch.cat([self.trained(tokens), self.frozen(tokens)], dim=-1).transpose(1, 2)  # [B, 2E, T]
        pooled = [F.relu(layer(x)).amax(dim=-1) for layer in self.convolutions]
        return self.head(self.dropout(torch.cat(pooled, dim=-1)))


class SeriesClassifier(nn.Module):
    """A recurrent layer on the series; `readout` "last": out[:, -1] as published; "final": the states h_n."""

    def __init__(self, cell: str, directions: int, hidden: int, readout: str, provider: str) -> None:
        super().__init__()
        layer = getattr(layers(provider), cell)(1, hidden, batch_first=True, bidirectional=directions == 2)
        self.encoder, self.readout = Recurrent(layer, provider), readout
        self.head = nn.Linear(directions * hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, states = self.encoder(x, None)
        if self.readout == "last":
            return self.head(y[:, -1])
        h_n = states[0] if isinstance(states, tuple) else states
        return self.head(h_n.transpose(0, 1).flatten(1))


def at_least(tokens: Tensor, steps: int) -> Tensor:
    """Pads [T, B] so that the widest window fits."""
    return F.pad(tokens, (0, 0, 0, max(0, steps - tokens.shape[0])), value=PAD)


TEXT_MODELS: dict[str, Callable[[Table, str], nn.Module]] = {
    "RNN": TanhRNN,
    "CNN2": CNN2,
    "TextCNN": TextCNN,
    "BiRNN": BiRNN,
}
RECURRENT = ("RNN", "BiRNN")


def encoder_parameters(model: nn.Module) -> int:
    """Parameters between embedding and head."""
    parts = [model.encoder] if hasattr(model, "encoder") else [model.convolutions]
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def products(model: nn.Module, steps: int) -> int:
    """Multiplications of weights in one sentence of so many steps, forward, embedding look-up aside."""
    head = model.head.weight.numel()
    if hasattr(model, "convolutions"):
        widths = [layer.kernel_size[0] for layer in model.convolutions]
        steps = max(steps, *widths)
        return head + sum(
            layer.weight.numel() * (steps - width + 1) for layer, width in zip(model.convolutions, widths, strict=True)
        )
    return head + steps * sum(p.numel() for name, p in model.encoder.named_parameters() if ".weight" in f".{name}")


def serial_steps(model: nn.Module, steps: int) -> int:
    """Matrix products that must wait for one another in a forward pass (directions run side by side)."""
    return 2 if hasattr(model, "convolutions") else 1 + steps * model.encoder.layer.num_layers
