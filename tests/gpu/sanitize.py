"""A few calls of every regime, forward and backward, for `compute-sanitizer --tool X python tests/gpu/sanitize.py`."""

from __future__ import annotations

import argparse
import sys
from itertools import product

import torch
from problems import DEVICE

import fusedrnn
from fusedrnn.errors import UnsupportedProblem

WIDTH = {"cuda:step": 24, "cuda:cta": 64, "cuda:cluster": 256, "cuda:grid": 768}
T, B = 5, 9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="list the calls")
    dry = parser.parse_args().dry_run
    for (backend, H), cell, dtype in product(WIDTH.items(), ("GRU", "LSTM"), (torch.bfloat16, torch.float32)):
        print(backend, cell, dtype, f"H={H}", flush=True)
        if not dry:
            call(backend, H, cell, dtype)
    return 0


def call(backend: str, H: int, cell: str, dtype: torch.dtype) -> None:
    layer = getattr(fusedrnn, cell)(8, H, bidirectional=H <= 256, backend=backend, device=DEVICE, dtype=dtype)
    x = torch.randn(T, B, 8, device=DEVICE, dtype=dtype, requires_grad=True)
    lengths = torch.arange(B, device=DEVICE) % (T + 1)
    reset = torch.zeros(T, B, dtype=torch.bool, device=DEVICE)
    reset[2, ::2] = True
    for masks in ({}, {"lengths": lengths, "reset": reset}):
        try:
            layer(x, **masks)[0].sum().backward()
        except UnsupportedProblem as refusal:
            print("  left out:", refusal)
    if DEVICE == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
