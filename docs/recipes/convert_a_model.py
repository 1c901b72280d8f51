"""A model as papers publish them (convolution, BatchNorm, bidirectional LSTMs, CTC), converted in one line."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import fusedrnn


class Recogniser(nn.Module):
    """Log probabilities of characters, in the manner of DeepSpeech 2; nothing in it knows of fusedrnn."""

    def __init__(self, features: int = 16, hidden: int = 24, characters: int = 12) -> None:
        super().__init__()
        self.conv = nn.Conv1d(features, hidden, 5, stride=2, padding=2)
        self.norm = nn.BatchNorm1d(hidden)
        self.rnn = nn.LSTM(hidden, hidden, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.post = weight_norm(nn.GRU(2 * hidden, hidden, batch_first=True), "weight_hh_l0")
        self.out = nn.Linear(hidden, characters)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().transpose(1, 2)
        return self.out(self.post(self.rnn(x)[0])[0]).log_softmax(-1)


torch.manual_seed(0)
model = Recogniser()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
published = copy.deepcopy(model)
x, text = torch.randn(4, 16, 60), torch.randint(1, 12, (4, 8))

fusedrnn.convert(model, report=print)  # the one line: in place, the same Parameters: the optimizer stays valid

assert list(model.state_dict()) == list(published.state_dict())
assert torch.allclose(model.eval()(x), published.eval()(x), atol=1e-5)
losses = []
for _ in range(30):
    scores = model.train()(x).transpose(0, 1)
    lengths = torch.full((4,), len(scores)), torch.full((4,), 8)
    loss = nn.functional.ctc_loss(scores, text, *lengths)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"CTC loss {losses[0]:.2f} -> {losses[-1]:.2f}")
assert losses[-1] < 0.8 * losses[0]

trained = model.eval()(x)
fusedrnn.revert(model)  # and back, for whatever tool wants torch's own layers
assert isinstance(model.rnn, nn.LSTM)
assert torch.allclose(model(x), trained, atol=1e-5)
