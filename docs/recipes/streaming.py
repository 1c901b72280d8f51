"""Speech-like streaming: frames come one by one, each is answered at once, the state is carried on."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

import fusedrnn

FRAMES, FEATURES, H, CLASSES = 300, 40, 128, 30  # 3 seconds of 10 ms


class Recogniser(nn.Module):
    """A score for each class and frame."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(FEATURES)
        self.lstm = fusedrnn.LSTM(FEATURES, H, num_layers=2)
        self.out = nn.Linear(H, CLASSES)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, state = self.lstm(self.norm(x), state)
        return self.out(y), state


torch.manual_seed(0)
model = Recogniser().eval()
frames = torch.randn(FRAMES, 1, FEATURES).cumsum(0) / 8
with torch.inference_mode():
    whole = model(frames)[0].cpu()
    # frozen: weights are held once, and calls of a known shape go straight to the kernel; training inside is refused
    with fusedrnn.frozen(model):
        state, scores, seconds = None, [], []
        for frame in frames.split(1):
            begin = time.perf_counter()
            y, state = model(frame, state)
            scores.append(y.cpu())  # an answer is there when the host has it
            seconds.append(time.perf_counter() - begin)
streamed = torch.cat(scores)
late = sorted(seconds)[int(0.95 * FRAMES)]
print(f"largest difference from the whole run {(streamed - whole).abs().max():.1e}; 95% of frames in {late:.1e} s")
assert torch.allclose(streamed, whole, atol=1e-5)

try:
    with fusedrnn.frozen(model):
        model(frames)
except RuntimeError as refused:
    print("training:", refused)
else:
    raise AssertionError("frozen weights would not have been trained")
model.train()(frames)[0].sum().backward()
assert all(p.grad is not None for p in model.parameters())
