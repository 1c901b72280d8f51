"""32 GRUs trained as one: members of `stack_module_state` run side by side in one call of the kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

import fusedrnn

MEMBERS, T, B, H = 32, 20, 16, 8


class Forecast(nn.Module):
    """The next value of a series."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = fusedrnn.GRU(1, H)
        self.head = nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0])


def waves(rows: int) -> Tensor:
    """[T+1, rows, 1]."""
    phase, speed = torch.rand(2, rows, 1)
    return (torch.arange(T + 1).view(-1, 1, 1) * (0.2 + 0.4 * speed) + 6.28 * phase).sin()


torch.manual_seed(0)
models = [Forecast() for _ in range(MEMBERS)]
weights, _ = stack_module_state(models)  # every weight with a first axis of 32


def member(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    return functional_call(models[0], weights, (x,))


ensemble = vmap(member, (0, None))
x = waves(B)
with torch.no_grad():  # what each member gives alone
    assert torch.allclose(ensemble(weights, x)[7], models[7](x), atol=1e-5)

optimizer, losses = torch.optim.Adam(weights.values(), lr=0.02), []
for _ in range(60):
    x = waves(B)
    error = (ensemble(weights, x[:-1]) - x[1:]).square().mean((1, 2, 3))  # one a member
    optimizer.zero_grad()
    error.sum().backward()
    optimizer.step()
    losses.append(error.mean().item())
with torch.no_grad():
    known, strange = (ensemble(weights, x).std(0).mean().item() for x in (waves(64), 3 * torch.randn(T, 64, 1)))
print(f"error {losses[0]:.3f} -> {losses[-1]:.4f}; members differ by {known:.3f} on waves, by {strange:.3f} on noise")
assert losses[-1] < 0.1 * losses[0]
assert strange > 2 * known
