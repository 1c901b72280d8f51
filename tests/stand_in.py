"""The backend "cuda" on the CPU: its ops are those of the kernels' stand-in for a GPU, all around them is as it is."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from cuda_check import host

from fusedrnn import _build, adjoint, autograd, backends, normed, ops, products


@contextmanager
def stand_in() -> Iterator[None]:
    """Layers on "cuda" take CPU tensors, and multiply float32 in full."""
    _formulas()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "layers_allow_tf32", lambda: False)
        for name in ("scan", "scan_backward", "norm_scan", "norm_scan_backward"):
            patch.setattr(ops, name, getattr(host(), name).default)
        patch.setattr(ops, "cuda_missing", None)
        patch.setattr(backends, "GPU", "cpu")
        backends._remembered.cache_clear()
        yield
    backends._remembered.cache_clear()


@functools.cache
def _formulas() -> None:
    """What the ops have in Python, for those under the other name: their formulas, and what they do without data."""
    if _build.compiler() is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no C++ compiler: the CUDA kernels do not run")
    host()
    torch.library.register_autograd("fusedrnn_host::scan", autograd._backward, setup_context=autograd._setup)
    torch.library.register_autograd("fusedrnn_host::scan_backward", adjoint._backward, setup_context=adjoint._setup)
    torch.library.register_autograd("fusedrnn_host::norm_scan", normed._backward, setup_context=normed._setup)
    torch.library.register_fake("fusedrnn_host::norm_scan", ops._norm_scan_fake)
    torch.library.register_fake("fusedrnn_host::norm_scan_backward", ops._norm_scan_backward_fake)
    torch.library.register_fake("fusedrnn_host::scan", ops._scan_fake)
    torch.library.register_fake("fusedrnn_host::scan_backward", ops._scan_backward_fake)
