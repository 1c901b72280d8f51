"""The recurrence in Triton, for whoever has no CUDA compiler.

`config` decides in plain Python which kernel runs with which tiles; all other modules import Triton, so nothing here is
imported before the first call.
"""
