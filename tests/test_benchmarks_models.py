"""The models of the text study: their formulas, their arithmetic, what padding may not change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import arithmetic, models, zoo
from benchmarks.data import PAD

TABLE = models.Table(30, 50, 5)
E, H = 50, 128


def _row(steps: int) -> tuple[torch.Tensor, None]:
    return torch.ones(steps, 1, dtype=torch.long), None


def _counts(name: str, steps: int = 7) -> dict[str, int]:
    return arithmetic.counts(zoo.ALL_MODELS[name](TABLE, "nn"), _row, steps)


def _layer(gates: int, width: int, hidden: int) -> tuple[int, int]:
    """Parameters and products a step of one direction of one layer."""
    return gates * hidden * (width + hidden + 2), gates * hidden * (width + hidden)


RNN, GRU, LSTM = (_layer(gates, E, H) for gates in (1, 3, 4))


@pytest.mark.parametrize(
    ("name", "encoder", "products_a_step"),
    [
        ("RNN", *RNN),
        ("CNN2", 2 * 16 * E * (2 + 3 + 4 + 5) + 64, 22_400),
        ("TextCNN", 100 * 2 * E * (3 + 4 + 5) + 300, 120_000),
        ("BiRNN", 2 * (_layer(4, E, 100)[0] + _layer(4, 200, 100)[0]), 2 * 400 * (E + 100 + 200 + 100)),
        ("GRU", *GRU),
        ("LSTM", *LSTM),
        ("RNN-both", 2 * RNN[0], 2 * RNN[1]),
        ("BiGRU", 2 * GRU[0], 2 * GRU[1]),
        ("BiLSTM", 2 * LSTM[0], 2 * LSTM[1]),
        ("GRU-attention", GRU[0] + H + 1, GRU[1] + H),
        ("BiLSTM-attention", 2 * LSTM[0] + 2 * H + 1, 2 * LSTM[1] + 2 * H),
        ("CNN2-single", 16 * E * 14 + 64, 11_200),
        ("CNN2-128", 2 * 128 * E * 14 + 4 * 128, 179_200),
        ("CNN2-dilated", 2 * 16 * E * 14 + 64, 22_400),
        ("CNN2-residual", 64 * 100 * 3 + 64 + 4 * (64 * 64 * 3 + 64), 64 * 100 * 3 + 4 * 64 * 64 * 3),
        ("CNN-BiGRU", 64 * E * 3 + 64 + 2 * _layer(3, 64, 32)[0], 64 * E * 3 + 2 * _layer(3, 64, 32)[1]),
    ],
)
def test_the_counts_are_the_formulas(name, encoder, products_a_step):
    found = _counts(name)
    head = zoo.ALL_MODELS[name](TABLE, "nn").head
    assert found["parameters_encoder"] == encoder
    assert found["parameters"] == encoder + head.weight.numel() + 5
    assert found["products_a_step"] == products_a_step
    assert found["flop"] == 2 * found["products"]


def test_self_attention_costs_the_square_of_the_length():
    width, steps = zoo.ATTENTION_WIDTH, 7
    a_step = width * E + 4 * width**2 + 2 * width * 2 * width
    assert _counts("SelfAttention", steps)["products"] == steps * a_step + 2 * steps**2 * width + 5 * width


def test_the_traffic_is_weights_inputs_and_outputs():
    words = RNN[0] + 5 * H + 5 + 7 * E + 7 * E + 7 * H + H + 5  # weights, head, the rows looked up, in, out, head
    assert _counts("RNN")["bytes"] == 4 * words


@pytest.mark.parametrize("name", zoo.ALL_MODELS)
def test_what_waits_for_what_is_counted(name):
    serial = [zoo.ALL_MODELS[name](TABLE, "nn").serial(steps) for steps in (10, 20)]
    layers = 2 if name.startswith("BiRNN") else 1 if name in zoo.ALL_RECURRENT else 0
    assert serial[1] - serial[0] == 10 * layers


WINDOWS = [name for name in zoo.ALL_MODELS if name.startswith(("CNN2", "TextCNN")) and name != "CNN2-residual"]
"""They read padding, whose words are zero: as published."""


@pytest.mark.parametrize("name", [name for name in zoo.ALL_MODELS if name not in WINDOWS])
def test_padding_changes_nothing(name):
    """A row's answer is the same alone and in a batch of longer rows."""
    torch.manual_seed(0)
    model = zoo.ALL_MODELS[name](TABLE, "nn").double().eval()
    lengths = torch.tensor([14, 9, 11])
    tokens = torch.randint(2, 30, (14, 3))
    for row, length in enumerate(lengths):
        tokens[length:, row] = PAD
    alone = [model(tokens[:length, row : row + 1], None) for row, length in enumerate(lengths)]
    torch.testing.assert_close(model(tokens, lengths), torch.cat(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", zoo.ALL_RECURRENT)
def test_fused_and_torch_models_agree_in_answers_and_gradients(name):
    tokens, lengths = torch.randint(2, 30, (6, 3)), torch.tensor([6, 2, 4])
    for row, length in enumerate(lengths):
        tokens[length:, row] = PAD
    both = []
    for provider in ("fusedrnn", "nn"):
        torch.manual_seed(0)
        both.append(zoo.ALL_MODELS[name](TABLE, provider).eval())
    ours, theirs = both
    for (first, a), (second, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert first == second
        assert torch.equal(a, b)
    for model in both:
        model(tokens, lengths).square().sum().backward()
    torch.testing.assert_close(ours(tokens, lengths), theirs(tokens, lengths), rtol=1e-5, atol=1e-6)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_tables_are_trained_from_the_same_words_but_for_those_published():
    pretrained = torch.randn(30, 50)
    tokens = torch.randint(2, 30, (3, 2))
    same, published = (models.CNN2(models.Table(30, 50, 5, pretrained, flag), "nn") for flag in (False, True))
    for model in (same, published):
        model(tokens, None).sum().backward()
    assert [torch.equal(channel.weight, pretrained) for channel in same.channels] == [True, True]
    assert [channel.weight.grad is None for channel in same.channels] == [False, False]
    assert [torch.equal(channel.weight, pretrained) for channel in published.channels] == [False, True]
    assert [channel.weight.grad is None for channel in published.channels] == [False, True]


def test_what_is_read_out_of_the_two_layers():
    torch.manual_seed(0)
    model = models.BiRNN(TABLE, "nn")
    states = {}
    for readout in ("ends", "last", "final"):
        other = models.BiRNN(TABLE, "nn", readout)
        other.embedding, other.encoder, other.head = model.embedding, model.encoder, nn.Identity()
        states[readout] = other(torch.arange(2, 9).unsqueeze(1), None)[0]
    ends, H2 = states["ends"], models.BIRNN_HIDDEN
    assert torch.equal(states["last"], ends[2 * H2 :])
    assert torch.equal(states["final"], torch.cat([ends[2 * H2 : 3 * H2], ends[H2 : 2 * H2]]))


def test_the_average_is_taken_before_the_relu():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9)
    mean = x.mean(-1)
    assert (mean < 0).any()
    model = models.TextCNN(TABLE, "nn", "average")
    torch.testing.assert_close(model._pooled(x), mean.clamp(min=0))
    assert torch.equal(models.TextCNN(TABLE, "nn")._pooled(x), x.amax(-1).clamp(min=0))


def test_attention_pooling_weighs_real_steps_alone():
    torch.manual_seed(0)
    model = models.RecurrentClassifier(TABLE, "nn", "GRU", 1, "attention").eval()
    model.head = nn.Identity()
    tokens = torch.tensor([[3, 3], [4, PAD], [5, PAD]])
    found = model(tokens, torch.tensor([3, 1]))
    y, _ = model.encoder(model.embedding(tokens[:, :1]), None)
    torch.testing.assert_close(found[1], y[0, 0])
    weights = model.score(y[:, 0]).softmax(0)
    torch.testing.assert_close(found[0], (weights * y[:, 0]).sum(0))
