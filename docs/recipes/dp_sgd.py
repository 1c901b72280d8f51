"""DP-SGD: a gradient for each sequence, each clipped, then their sum with noise. torch.func does it in one pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import fusedrnn

T, B, I, H, CLIP, NOISE = 10, 32, 3, 12, 1.0, 0.02


class Model(nn.Module):
    """Does the sequence rise?"""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = fusedrnn.LSTM(I, H)
        self.head = nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][-1]).squeeze(-1)


def loss(weights: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
    """Of one sequence x [T, I]; a batch of one inside."""
    score = functional_call(model, weights, (x.unsqueeze(1),))
    return nn.functional.binary_cross_entropy_with_logits(score, target.unsqueeze(0))


torch.manual_seed(0)
model = Model()
x = torch.randn(B, T, I).cumsum(1)
target = (x[:, -1].sum(1) > x[:, 0].sum(1)).float()
per_sample = vmap(grad(loss), (None, 0, 0))

weights = {name: p.detach() for name, p in model.named_parameters()}
found = per_sample(weights, x, target)
for b in (0, B - 1):  # what a loop over the sequences gives
    alone = torch.autograd.grad(loss(dict(model.named_parameters()), x[b], target[b]), list(model.parameters()))
    assert all(torch.allclose(found[name][b], g, atol=1e-5) for name, g in zip(weights, alone, strict=True))

losses = []
for _ in range(150):
    grads = per_sample(weights, x, target)
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads.values()]).norm(dim=0)  # [B]
    scale = (CLIP / norms).clamp(max=1)
    for name, g in grads.items():
        total = torch.tensordot(scale, g, 1) + NOISE * CLIP * torch.randn_like(weights[name])
        weights[name] = weights[name] - 0.5 * total / B
    losses.append(vmap(loss, (None, 0, 0))(weights, x, target).mean().item())
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; no sequence moves the sum by more than {(scale * norms).max():.2f}")
assert (scale * norms).max() <= CLIP + 1e-5
assert losses[-1] < 0.7 * losses[0]
