"""What `describe` tells of the CUDA planner's choice, without a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fusedrnn import gpu_plan, spec

pytest.importorskip("fusedrnn._plan", reason="the planner's module is not built")

H200 = gpu_plan.table_device("h200")
CALL = spec.Problem(spec.GRU, 512, 64, 80, 512, dtype=torch.bfloat16, device="cuda", grad=True)
PROPERTIES = SimpleNamespace(
    major=9,
    minor=0,
    multi_processor_count=132,
    L2_cache_size=50 << 20,
    clock_rate=1830000,
    memory_clock_rate=3201000,
    memory_bus_width=6144,
    shared_memory_per_multiprocessor=228 << 10,
)


def lines(problem: spec.Problem, device: object = H200, **asked: object) -> list[str]:
    text = gpu_plan.describe(problem, device, **asked)
    assert text is not None
    return text.split("\n")


def test_a_line_for_each_pass() -> None:
    forward, backward = lines(CALL)
    assert forward.startswith("forward   cluster of ")
    assert backward.startswith("backward  cluster of ")
    assert forward.endswith(" us/step")
    assert lines(CALL._replace(grad=False)) == [forward]


def test_layers_share_their_plan() -> None:
    assert lines(CALL._replace(L=3)) == ["each of 3 layers:", *lines(CALL)]


def test_directions_are_streams() -> None:
    one, both = (lines(CALL._replace(B=512, D=D))[0] for D in (1, 2))
    us = [float(line.split(", ")[-1].removesuffix(" us/step")) for line in (one, both)]
    assert us[1] > us[0]


def test_sizes_are_padded_as_the_ops_pad_them() -> None:
    assert lines(CALL._replace(H=509)) == lines(CALL)
    assert lines(CALL._replace(H=513)) != lines(CALL)


def test_masks_count() -> None:
    wide = CALL._replace(H=1024)
    masked = lines(wide._replace(lengths=True))
    assert masked == lines(wide._replace(reset=True)) != lines(wide)


def test_layer_norm_is_the_time_step_kernels() -> None:
    normed, plain = lines(CALL._replace(layer_norm=True)), lines(CALL, regime="step")
    assert all(line.split()[1] == "time-step" for line in normed)
    two, one = (float(line.split()[-2]) for line in (normed[0], plain[0]))
    assert two > one  # launches a step
    for regime in ("cta", "cluster", "grid"):
        for line in lines(CALL._replace(layer_norm=True), regime=regime):
            assert line.endswith(f"no: {regime}: layer normalisation is the time-step kernel's, expected none")


def test_reset_state_is_the_time_step_kernels() -> None:
    call = CALL._replace(reset=True, reset_state=True)
    assert lines(call) == lines(call._replace(reset_state=False), regime="step") != lines(CALL)
    for line in lines(call, regime="grid"):
        assert line.endswith("no: grid: reset_state is the time-step kernel's, expected none")


def test_float32_follows_the_setting_of_recurrent_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    call = CALL._replace(dtype=torch.float32)
    assert lines(call, tf32=True) != lines(call, tf32=False)
    for setting, tf32 in (("tf32", True), ("ieee", False)):
        monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", setting)
        assert lines(call) == lines(call, tf32=tf32)


def test_a_forced_regime_or_its_reason() -> None:
    assert lines(CALL, regime="step")[0].startswith("forward   time-step kernel, ")
    assert lines(CALL, gpu_plan.table_device("a100"), regime="cluster")[0].startswith(
        "forward   no: cluster: sm_80 has no thread block clusters"
    )
    with pytest.raises(ValueError, match="Unknown regime 'warp'; expected one of 'automatic', 'step', 'cta'"):
        gpu_plan.describe(CALL, H200, regime="warp")


def test_a_refusal_is_the_reason_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_plan, "_current_device", lambda: H200)
    assert gpu_plan.refusal(CALL, "cluster") is None
    assert gpu_plan.refusal(CALL, "step") is None
    assert str(gpu_plan.refusal(CALL._replace(dtype=torch.float64), "grid")).startswith("grid: got fp64, expected")
    monkeypatch.setattr(gpu_plan, "_current_device", lambda: gpu_plan.table_device("a100"))
    assert gpu_plan.refusal(CALL, "cluster") == "cluster: sm_80 has no thread block clusters, expected sm_90 or later"
    assert str(gpu_plan.refusal(CALL._replace(H=2048), "cta")).startswith("cta: W_hh of H = 2048 does not fit one SM")


@pytest.mark.parametrize("changes", [{"proj_size": 8}, {"dtype": torch.int8}, {"T": 0}, {"B": 0}, {"B": "symbol"}])
def test_what_has_no_plan(changes: dict[str, object]) -> None:
    assert gpu_plan.describe(CALL._replace(**changes), H200) is None


def test_without_the_planner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_plan, "_planner", lambda: None)
    assert gpu_plan.describe(CALL, H200) is None
    assert gpu_plan.refusal(CALL, "cta") is None
    with pytest.raises(RuntimeError, match=r"planner's module fusedrnn\._plan is missing"):
        gpu_plan.table_device("h200")


def test_torchs_properties_of_a_gpu_are_enough() -> None:
    assert lines(CALL, PROPERTIES) == lines(CALL)
    ampere = SimpleNamespace(**vars(PROPERTIES) | {"major": 8})
    assert "cluster" not in "".join(lines(CALL, ampere))


def test_every_gpu_of_the_table_has_a_plan_for_every_cell() -> None:
    for name in gpu_plan.TABLE_DEVICES:
        for cell in spec.CELLS:
            assert len(lines(CALL._replace(cell=cell), gpu_plan.table_device(name))) == 2
    with pytest.raises(ValueError, match="Unknown GPU 'v100'; expected one of 'h100', 'h200'"):
        gpu_plan.table_device("v100")


def test_packed_rows_need_masks() -> None:
    call = CALL._replace(cell=spec.LSTM, H=192)
    assert not any(isinstance(plan, str) for plan in gpu_plan.plans(call, H200, "cta").values())
    assert any(isinstance(plan, str) for plan in gpu_plan.plans(call._replace(packed=True), H200, "cta").values())
