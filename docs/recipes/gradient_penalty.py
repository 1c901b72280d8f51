"""A critic with a gradient penalty (WGAN-GP), on any device.

torch's layers do this on the CPU alone: cuDNN's backward has no derivative. So on a GPU the backend is named.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fusedrnn

T, B, I, H = 12, 16, 4, 16
BACKEND = "cuda" if torch.get_default_device().type == "cuda" else "auto"  # which might choose cuDNN


class Critic(nn.Module):
    """One number for a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = fusedrnn.GRU(I, H, backend=BACKEND)
        self.score = nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.gru(x)[0].mean(0)).squeeze(1)


def slopes(critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
    """The norm of the critic's gradient between real and made sequences, one a row."""
    mix = torch.rand(1, real.shape[1], 1)
    x = (mix * real + (1 - mix) * fake).requires_grad_()
    (g,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return g.transpose(0, 1).flatten(1).norm(dim=1)


torch.manual_seed(0)
critic = Critic()
optimizer = torch.optim.Adam(critic.parameters(), lr=0.02)
real, fake = torch.randn(T, B, I).cumsum(0) / 4, torch.randn(T, B, I)
first = slopes(critic, real, fake).mean().item()
for _ in range(60):
    penalty = (slopes(critic, real, fake) - 1).square().mean()
    loss = critic(fake).mean() - critic(real).mean() + 10 * penalty
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
last = slopes(critic, real, fake).mean().item()
gap = (critic(real).mean() - critic(fake).mean()).item()
print(f"slope of the critic {first:.2f} -> {last:.2f}, to be 1; real scores {gap:.2f} above made ones")
assert abs(last - 1) < 0.3 < abs(first - 1)
assert gap > 0
