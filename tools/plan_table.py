"""The CUDA planner's choices on a GPU of the data sheets, as a Markdown table for docs/kernels.md. Needs no GPU.

python tools/plan_table.py h200
"""

from __future__ import annotations

import argparse
from typing import Any

from fusedrnn import _plan, gpu_plan

HIDDEN, ROWS = (64, 128, 256, 512, 768, 1024, 2048), (1, 16, 64, 256)
PASSES = (_plan.Pass.forward, _plan.Pass.backward)


def entry(device: _plan.Device, cell: _plan.Cell, H: int, B: int, precision: _plan.Precision) -> str:
    """Forward and backward: where W_hh lies, and microseconds a step."""
    shape = _plan.Shape(cell=cell, T=512, B=B, H=H)
    plans = [_plan.cuda_plan(shape, device, pass_=pass_, precision=precision) for pass_ in PASSES]
    return " / ".join(f"{short(plan)} {plan.us_per_step:.2f}" for plan in plans)


def short(plan: Any) -> str:
    if plan.regime in (_plan.Regime.step, _plan.Regime.cta):
        return str(plan.regime.name)
    return f"{'c' if plan.regime == _plan.Regime.cluster else 'g'}{plan.team}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", choices=gpu_plan.TABLE_DEVICES)
    parser.add_argument("--precision", choices=[*_plan.Precision.__members__], default="bf16")
    given = parser.parse_args()
    device, precision = gpu_plan.table_device(given.device), _plan.Precision.__members__[given.precision]
    print("Kernel and microseconds a step, forward / backward, by the planner's model; nothing here is measured.\n")
    print("| cell | H |", " | ".join(f"B = {B}" for B in ROWS), "|")
    print("|---|" + "---:|" * (1 + len(ROWS)))
    for cell in (_plan.Cell.gru, _plan.Cell.lstm):
        for H in HIDDEN:
            print(f"| {cell.name} | {H} |", " | ".join(entry(device, cell, H, B, precision) for B in ROWS), "|")


if __name__ == "__main__":
    main()
