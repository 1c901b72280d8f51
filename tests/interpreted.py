"""Triton's interpreter in a third of its time. Only where TRITON_INTERPRET=1; nothing can be compiled afterwards."""

from __future__ import annotations

import dataclasses

import triton.language as tl
import triton.runtime.interpreter as interpreter

from fusedrnn.triton_kernels import walk


def hasten() -> None:
    """Triton's language is made the interpreter's for good, and integers are not asked whether they overflow.

    As it is, the language is changed for every launch and for every function that a kernel calls, and each sum and
    product of integers is made a second time, in 64 bits: no size of a test comes near that.
    """
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)
    for function in (tl.zeros, walk.rows):  # one that sees triton.language.core, one that sees triton.language
        interpreter._patch_lang(function.fn)
    interpreter._patch_lang = lambda fn: interpreter._LangPatchScope()
    interpreter.InterpretedFunction.__call__ = lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs)
