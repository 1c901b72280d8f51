"""Triton's kernels in Triton's interpreter: only where TRITON_INTERPRET=1, as tests/test_triton.py sets it."""

from __future__ import annotations

from fusedrnn import triton_plan

collect_ignore_glob = [] if triton_plan.interpreting() else ["test_*.py"]

if triton_plan.interpreting():
    from interpreted import hasten

    hasten()
