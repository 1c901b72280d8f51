"""An actor steps through episodes; the learner takes the whole window in one call, with `reset` where episodes begin.

The off-by-one: a step returns `done` *with* the action that ended the episode; the state starts anew *before the next*.
"""

import torch
from torch import Tensor, nn

import fusedrnn

T, B, H = 24, 16, 16  # steps of a window, environments


class Policy(nn.Module):
    """Logits of two actions."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = fusedrnn.GRU(2, H)
        self.logits = nn.Linear(H, 2)

    def forward(self, x: Tensor, h: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.gru(x, h, reset=reset)
        return self.logits(y), h


def rollout(h: Tensor, first: Tensor) -> tuple[Tensor, ...]:
    """Remember a cue: it is shown at the first step of an episode, asked for at the last."""
    cue, left, kept = torch.randint(2, (B,)), torch.randint(1, 4, (B,)), []
    for _ in range(T):
        shown = torch.where(first, cue * 2.0 - 1, torch.zeros(B))
        x = torch.stack([shown, (left == 0).float()], 1)
        with torch.no_grad():
            logits, h = policy(x.unsqueeze(0), h, first.unsqueeze(0))
        action = torch.distributions.Categorical(logits=logits[0]).sample()
        done = left == 0
        kept.append((x, first, action, done.float() * ((action == cue) * 2.0 - 1), logits[0]))
        first, left = done, torch.where(done, torch.randint(1, 4, (B,)), left - 1)
        cue = torch.where(done, torch.randint(2, (B,)), cue)
    return (*(torch.stack(t) for t in zip(*kept, strict=True)), h, first)


torch.manual_seed(0)
policy = Policy()
optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
h, first, won = torch.zeros(1, B, H), torch.ones(B, dtype=torch.bool), []
for _ in range(100):
    start = h
    x, reset, action, reward, acted, h, first = rollout(h, first)
    logits, _ = policy(x, start, reset)  # [T, B, 2]: all steps of all episodes in one call
    assert torch.allclose(logits, acted, atol=1e-4), "the learner sees what the actor saw"
    chosen = torch.distributions.Categorical(logits=logits).log_prob(action)
    policy.zero_grad()
    (-(chosen * reward).sum() / reward.abs().sum()).backward()
    optimizer.step()
    won.append(((reward > 0).sum() / reward.abs().sum()).item())
print(f"answers right: {sum(won[:10]) / 10:.0%} -> {sum(won[-10:]) / 10:.0%}")
assert sum(won[-10:]) / 10 > 0.9
