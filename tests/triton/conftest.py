"""Triton's kernels in Triton's interpreter: only where TRITON_INTERPRET=1, as tests/test_triton.py sets it."""

from __future__ import annotations

from typing import Any

from fusedrnn import triton_plan

collect_ignore_glob = [] if triton_plan.interpreting() else ["test_*.py"]

if triton_plan.interpreting():
    import triton.runtime.interpreter as interpreter

    def nested(self: Any, *args: Any, **kwargs: Any) -> Any:
        """A function that a kernel calls. Triton patches triton.language anew for each such call, a third of the run,
        and never undoes it. Ours need no patch of their own; Triton's do, for their own modules."""
        if not self.fn.__module__.startswith("triton."):
            return self.rewrite()(*args, **kwargs)
        scope = interpreter._patch_lang(self.fn)
        try:
            return self.rewrite()(*args, **kwargs)
        finally:
            scope.restore()

    interpreter.InterpretedFunction.__call__ = nested
