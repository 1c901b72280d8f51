"""Further models of the text study: self-attention, a light BiGRU over convolutions, residual convolutions, variants.

As in `models.py`, tokens come as [T, B] with `lengths` [B] and logits go out as [B, classes].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import PAD
from .encoders import positions
from .models import CNN2, RECURRENT, TEXT_MODELS, BiRNN, Recurrent, RecurrentClassifier, Table, TextCNN, final, layers

ATTENTION_WIDTH, HEADS, ATTENTION_DROPOUT = 128, 4, 0.1
FEATURES, LIGHT_HIDDEN = 64, 32
CELLS = ("RNN", "GRU", "LSTM")


class SelfAttention(nn.Module):
    """Embeddings with sinusoidal positions, one Transformer encoder layer, the mean over a row's words."""

    def __init__(self, table: Table, provider: str) -> None:
        super().__init__()
        self.embedding, self.widen = table.embedding(), nn.Linear(table.width, ATTENTION_WIDTH)
        self.encoder = nn.TransformerEncoderLayer(
            ATTENTION_WIDTH, HEADS, 2 * ATTENTION_WIDTH, ATTENTION_DROPOUT, batch_first=True
        )
        self.head = nn.Linear(ATTENTION_WIDTH, table.classes)

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        tokens = tokens.t()
        padding = tokens == PAD
        x = self.widen(self.embedding(tokens))
        y = self.encoder(x + positions(x.shape[1], x.shape[2])[:, 0].to(x), src_key_padding_mask=padding)
        real = (~padding).unsqueeze(-1)
        return self.head((y * real).sum(1) / real.sum(1))

    def serial(self, steps: int) -> int:
        return 8  # widening; queries with keys and values, scores, mixing, output, two of the feed-forward part; head


class ConvolutionBiGRU(nn.Module):
    """A narrow BiGRU over the features of a convolution; its final states and the features' maxima, joined."""

    def __init__(self, table: Table, provider: str) -> None:
        super().__init__()
        self.embedding, self.convolution = table.embedding(), nn.Conv1d(table.width, FEATURES, 3, padding=1)
        self.encoder = Recurrent(layers(provider).GRU(FEATURES, LIGHT_HIDDEN, bidirectional=True), provider)
        self.head = nn.Linear(FEATURES + 2 * LIGHT_HIDDEN, table.classes)

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        x = F.relu(self.convolution(self.embedding(tokens).permute(1, 2, 0)))  # [B, features, T]
        _, states = self.encoder(x.permute(2, 0, 1), lengths)
        return self.head(torch.cat([strongest(x, tokens), final(states)], dim=-1))

    def serial(self, steps: int) -> int:
        return 1 + steps + 1


class ResidualCNN(nn.Module):
    """Two embeddings side by side, a convolution, residual blocks of two more, of rising dilation; maxima over time."""

    def __init__(self, table: Table, provider: str, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.channels = nn.ModuleList([table.embedding(), table.embedding(frozen=table.published)])
        self.stem = nn.Conv1d(2 * table.width, FEATURES, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv1d(FEATURES, FEATURES, 3, padding=step, dilation=step) for _ in range(2))
            for step in dilations
        )
        self.head = nn.Linear(FEATURES, table.classes)

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        x = self.stem(torch.cat([channel(tokens) for channel in self.channels], dim=-1).permute(1, 2, 0))
        real = (tokens != PAD).t().unsqueeze(1)  # beyond a row's end stay zeros, as if it were alone
        for first, second in self.blocks:
            x = x + second(F.relu(first(F.relu(x) * real)) * real)
        return self.head(F.relu(strongest(x, tokens)))

    def serial(self, steps: int) -> int:
        return 1 + 2 * len(self.blocks) + 1


def strongest(x: Tensor, tokens: Tensor) -> Tensor:
    """The maxima of features [B, F, T] over the steps that hold a word."""
    return x.masked_fill((tokens == PAD).t().unsqueeze(1), -math.inf).amax(dim=-1)


def _recurrent() -> dict[str, Callable[[Table, str], nn.Module]]:
    found = {}
    for directions, prefix in ((1, ""), (2, "Bi")):
        for cell in CELLS:
            name = "RNN-both" if (cell, directions) == ("RNN", 2) else prefix + cell
            for readout, ending in (("final", ""), ("attention", "-attention")):
                found[name + ending] = partial(RecurrentClassifier, cell=cell, directions=directions, readout=readout)
    return {name: build for name, build in found.items() if name not in ("RNN", "RNN-both-attention")}


RECURRENT_ZOO: dict[str, Callable[[Table, str], nn.Module]] = {
    **_recurrent(),
    "BiRNN-last": partial(BiRNN, readout="last"),
    "BiRNN-final": partial(BiRNN, readout="final"),
    "CNN-BiGRU": ConvolutionBiGRU,
}
PARALLEL_ZOO: dict[str, Callable[[Table, str], nn.Module]] = {
    "SelfAttention": SelfAttention,
    "TextCNN-average": partial(TextCNN, pooling="average"),
    "CNN2-single": partial(CNN2, channels=1),
    "CNN2-64": partial(CNN2, filters=64),
    "CNN2-128": partial(CNN2, filters=128),
    "CNN2-dilated": partial(CNN2, dilation=2),
    "CNN2-residual": partial(ResidualCNN, dilations=(1, 1)),
    "TCN": partial(ResidualCNN, dilations=(1, 2, 4)),
}
ALL_RECURRENT = (*RECURRENT, *RECURRENT_ZOO)
ALL_MODELS = {**TEXT_MODELS, **RECURRENT_ZOO, **PARALLEL_ZOO}
