"""The benchmark cases under pytest-benchmark: `pytest benchmarks`. Providers of one case stand beside each other."""

from __future__ import annotations

import pytest

from .cases import MODES, SMOKE, Case
from .measure import gate
from .providers import FUSED, NN, Call, Provider, inputs, twin

pytest.importorskip("pytest_benchmark")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("provider", [NN, FUSED], ids=lambda provider: provider.name)
@pytest.mark.parametrize("case", SMOKE, ids=lambda case: case.name)
def test_layer(benchmark, case: Case, provider: Provider, mode: str) -> None:
    if provider is not NN:
        reason = gate(provider, case)
        assert reason is None, reason
    call = Call(provider, provider.build(case, twin(case)), inputs(case))
    benchmark.group = f"{mode}: {case.name}"
    benchmark(getattr(call, mode))
