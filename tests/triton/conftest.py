"""Triton's kernels in Triton's interpreter: only where TRITON_INTERPRET=1, as tests/test_triton.py sets it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fusedrnn import triton_plan

collect_ignore_glob = [] if triton_plan.interpreting() else ["test_*.py"]


def pytest_report_header() -> str | None:
    return None if triton_plan.interpreting() else "tests/triton: nothing is collected, set TRITON_INTERPRET=1"


if triton_plan.interpreting():
    from interpreted import hasten, watched

    hasten()

    @pytest.fixture(scope="module")
    def memory() -> Iterator[None]:
        """Kernels stay within their tensors, and have the barriers that they need."""
        with watched():
            yield
