"""What was measured on a GPU: which fused kernels or torch's own op are the fastest there, for the choice of "auto".

A table is a JSON file a GPU model. The package brings some (`tables/`, made from the benchmark grid's CSV);
`python -m fusedrnn tune` measures the user's own GPU and keeps its table in the user's cache, where it goes before the
package's. Nothing here asks a GPU anything.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from .spec import Problem

SHIPPED = Path(__file__).parent / "tables"
FORMAT = 2
REACH = 4.0
"""A measured point speaks for a call whose H and B differ from its own by at most this factor."""
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}


@dataclass(frozen=True)
class Point:
    """One measurement: `ratio` is the time of torch's own op over that of the fused kernels, for the whole call.

    Attributes:
        cell: the cell's name.
        dtype: bf16, fp16, fp32 (products as torch's RNNs take them by default, in TF32) or fp64.
        L: layers.
        D: directions.
        grad: whether forward and backward were timed, else forward alone.
        H: hidden size.
        B: batch rows.
        ratio: above 1 the fused kernels are faster; 0 where they failed.
        backend: the fused kernels, "cuda" or "triton".
    """

    cell: str
    dtype: str
    L: int
    D: int
    grad: bool
    H: int
    B: int
    ratio: float
    backend: str = "cuda"


FUSED = ("cuda", "triton")
"""The backends of which a table speaks, against torch's own op."""


def faster(problem: Problem, device_name: str, among: Sequence[str] = FUSED, *, tf32: bool = True) -> str | None:
    """Which of the fused kernels and "aten" (torch's own op) was measured fastest for calls like this one.

    The answer is that of the nearest sizes, in log H and log B, among those of the same cell, dtype, number of
    directions and kind of pass, so that forward and backward of one call never part ways. Only backends measured at
    those very sizes are compared. Points of as many layers go first, then those of one layer.

    Args:
        problem: the call; T, I, lengths and the rest play no part.
        device_name: as `torch.cuda.get_device_name()` gives it.
        among: the backends with fused kernels that can take the call.
        tf32: whether products of float32 are taken in TF32; tables know no other.

    Returns:
        None where nothing near was measured: then the planner's cost model decides.
    """
    if problem.traced or (problem.dtype is torch.float32 and not tf32):  # traced: B may be a symbol
        return None
    alike = defaultdict[Point, list[Point]](list)
    for point in points(device_name):
        if point.backend in among:
            alike[replace(point, backend="", ratio=0.0)].append(point)
    here = nearest(alike, problem)
    if here is None:
        return None
    best = max(alike[here], key=lambda p: p.ratio)
    return best.backend if best.ratio >= 1 else "aten"


def nearest(among: Iterable[Point], problem: Problem) -> Point | None:
    """The point that speaks for a call, None if there is none within `REACH`."""
    kind = (problem.cell.name, DTYPES.get(problem.dtype), problem.D, problem.grad)
    alike = [p for p in among if (p.cell, p.dtype, p.D, p.grad) == kind]
    for layers in dict.fromkeys((problem.L, 1)):
        near = [(_distance(p, problem), p) for p in alike if layers == p.L and _within(p, problem)]
        if near:
            return min(near, key=lambda pair: (pair[0], pair[1].H, pair[1].B))[1]
    return None


def _distance(point: Point, problem: Problem) -> float:
    return math.hypot(math.log(point.H / problem.H), math.log(point.B / problem.B))


def _within(point: Point, problem: Problem) -> bool:
    pairs = ((point.H, problem.H), (point.B, problem.B))
    return all(b > 0 and 1 / REACH <= a / b <= REACH for a, b in pairs)


@lru_cache(maxsize=16)
def points(device_name: str) -> tuple[Point, ...]:
    """The table of a GPU model: the user's own, else the package's, else empty. Read once a process."""
    for path, version in ((own_path(device_name), package_version()), (SHIPPED / file_name(device_name), None)):
        found = read(path, version)
        if found is not None:
            return found
    return ()


def read(path: Path, version: str | None = None) -> tuple[Point, ...] | None:
    """The points of a file; None if there is none, if it is no table, or if another `version` of fusedrnn made it.

    A table that cannot be read is no reason to stop: the choice is a matter of speed alone.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["format"] != FORMAT or version not in (None, table["fusedrnn"]):
            return None
        found = tuple(Point(**point) for point in table["points"])
        return found if all(p.H > 0 and p.B > 0 and p.ratio >= 0 for p in found) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(path: Path, device_name: str, among: Iterable[Point], facts: Mapping[str, Any]) -> None:
    """Writes a table, by way of a temporary file: a reader sees the old or the new one, never a part."""
    lines = ",\n".join("    " + json.dumps(asdict(point)) for point in among)
    head = {"format": FORMAT, "device": device_name, "fusedrnn": package_version(), **facts}
    text = json.dumps(head, indent=2, ensure_ascii=False).removesuffix("\n}") + f',\n  "points": [\n{lines}\n  ]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    points.cache_clear()


def own_path(device_name: str) -> Path:
    """Where the user's own table of a GPU model is kept."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # the specification of XDG has relative paths ignored
    root = Path(cache) if os.path.isabs(cache) else Path(os.path.expanduser("~"), ".cache")
    return root / "fusedrnn" / file_name(device_name)


def file_name(device_name: str) -> str:
    """ "NVIDIA H100 80GB HBM3" is nvidia-h100-80gb-hbm3.json."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-") + ".json"


def package_version() -> str:
    """Of fusedrnn, as the package that stands above this module says."""
    return str(getattr(sys.modules.get("fusedrnn"), "__version__", ""))
