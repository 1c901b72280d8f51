"""The models of claims 1, 2 and 3, each recurrent one over either family of layers; further ones are in `zoo.py`.

Tokens come as [T, B], PAD beyond a row's end, with `lengths` [B] (None: all rows are T long); logits go out as
[B, classes].
"""

from __future__ import annotations

import math
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
    """A pretrained embedding [V, E], or None for a random one, and the sizes that the models need.

    Every table of every model starts pretrained and is trained, but for `published`: then a convolution's second
    channel is frozen, and CNN2's first starts at random.
    """

    words: int  # V
    width: int  # E
    classes: int
    pretrained: Tensor | None = None
    published: bool = False

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


class RecurrentClassifier(nn.Module):
    """Embeddings with dropout, one recurrent layer, a linear layer on what is read out of it.

    `readout` "final": the final states of all directions; "attention": a mean over steps, weighted by learned scores.
    """

    def __init__(
        self, table: Table, provider: str, cell: str = "RNN", directions: int = 1, readout: str = "final"
    ) -> None:
        super().__init__()
        self.embedding, self.dropout = table.embedding(), nn.Dropout(RNN_DROPOUT)
        layer = getattr(layers(provider), cell)(table.width, RNN_HIDDEN, bidirectional=directions == 2)
        self.encoder = Recurrent(layer, provider)
        self.score = nn.Linear(directions * RNN_HIDDEN, 1) if readout == "attention" else None
        self.head = nn.Linear(directions * RNN_HIDDEN, table.classes)

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        y, states = self.encoder(self.dropout(self.embedding(tokens)), lengths)
        if self.score is None:
            return self.head(final(states))
        scores = self.score(y).squeeze(-1).masked_fill(tokens == PAD, -math.inf)
        return self.head((scores.softmax(0).unsqueeze(-1) * y).sum(0))

    def serial(self, steps: int) -> int:
        return steps + 1 + (self.score is not None)


def final(states: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """The final h of one layer [D, B, H] as [B, D*H]."""
    h_n = states[0] if isinstance(states, tuple) else states
    return h_n.transpose(0, 1).flatten(1)


class BiRNN(nn.Module):
    """Two layers of bidirectional LSTM and a linear layer.

    `readout` "ends": the outputs of the first and of the last step, joined; "last": that of the last step alone, where
    the reverse direction has read one word; "final": both directions' final states.
    """

    def __init__(self, table: Table, provider: str, readout: str = "ends") -> None:
        super().__init__()
        self.embedding, self.readout = table.embedding(), readout
        lstm = layers(provider).LSTM(table.width, BIRNN_HIDDEN, num_layers=2, bidirectional=True)
        self.encoder = Recurrent(lstm, provider)
        self.head = nn.Linear((4 if readout == "ends" else 2) * BIRNN_HIDDEN, table.classes)

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        y, states = self.encoder(self.embedding(tokens), lengths)
        if self.readout == "final":
            return self.head(final(states[0][-2:]))
        last = y[-1] if lengths is None else y[lengths - 1, torch.arange(y.shape[1])]
        return self.head(torch.cat([y[0], last], dim=-1) if self.readout == "ends" else last)

    def serial(self, steps: int) -> int:
        return 2 * steps + 1


class CNN2(nn.Module):
    """Up to two embeddings as channels, windows of 2 to 5 words, the maximum over time."""

    def __init__(
        self, table: Table, provider: str, channels: int = 2, filters: int = CNN2_FILTERS, dilation: int = 1
    ) -> None:
        super().__init__()
        trained, frozen = table.embedding(pretrained=not table.published), table.embedding(frozen=table.published)
        self.channels = nn.ModuleList([trained, frozen][:channels])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, filters, (width, table.width), dilation=(dilation, 1)) for width in CNN2_WIDTHS
        )
        self.steps = dilation * (max(CNN2_WIDTHS) - 1) + 1
        self.head = nn.Linear(filters * len(CNN2_WIDTHS), table.classes)

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        tokens = at_least(tokens, self.steps).t()
        x = torch.stack([channel(tokens) for channel in self.channels], dim=1)  # [B, channels, T, E]
        return self.head(torch.cat([F.relu(layer(x)).amax(dim=(2, 3)) for layer in self.convolutions], dim=-1))

    def serial(self, steps: int) -> int:
        return 2


class TextCNN(nn.Module):
    """Two embeddings side by side, 100 filters of each width, pooled over time, dropout.

    `pooling` "max": the maximum after the ReLU; "average": the mean before it, as a well-known program has it.
    """

    def __init__(self, table: Table, provider: str, pooling: str = "max") -> None:
        super().__init__()
        self.channels = nn.ModuleList([table.embedding(), table.embedding(frozen=table.published)])
        self.convolutions = nn.ModuleList(
            nn.Conv1d(2 * table.width, TEXTCNN_FILTERS, width) for width in TEXTCNN_WIDTHS
        )
        self.pooling, self.pool = pooling, nn.AdaptiveAvgPool1d(1)
        self.dropout = nn.Dropout(TEXTCNN_DROPOUT)
        self.head = nn.Linear(TEXTCNN_FILTERS * len(TEXTCNN_WIDTHS), table.classes)

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        tokens = at_least(tokens, max(TEXTCNN_WIDTHS)).t()
        x = torch.cat([channel(tokens) for channel in self.channels], dim=-1).transpose(1, 2)  # [B, 2E, T]
        pooled = [self._pooled(layer(x)) for layer in self.convolutions]
        return self.head(self.dropout(torch.cat(pooled, dim=-1)))

    def _pooled(self, x: Tensor) -> Tensor:
        return F.relu(x).amax(dim=-1) if self.pooling == "max" else F.relu(self.pool(x).squeeze(-1))

    def serial(self, steps: int) -> int:
        return 2


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
        return self.head(final(states))

    def serial(self, steps: int) -> int:
        return steps + 1


def at_least(tokens: Tensor, steps: int) -> Tensor:
    """Pads [T, B] so that the widest window fits."""
    return F.pad(tokens, (0, 0, 0, max(0, steps - tokens.shape[0])), value=PAD)


TEXT_MODELS: dict[str, Callable[[Table, str], nn.Module]] = {
    "RNN": RecurrentClassifier,
    "CNN2": CNN2,
    "TextCNN": TextCNN,
    "BiRNN": BiRNN,
}
RECURRENT = ("RNN", "BiRNN")


def beyond_embeddings(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters by name, without the tables."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return [(name, parameter) for name, parameter in model.named_parameters() if id(parameter) not in tables]


def encoder_parameters(model: nn.Module) -> int:
    """Parameters between embedding and head."""
    return sum(parameter.numel() for name, parameter in beyond_embeddings(model) if not name.startswith("head."))
