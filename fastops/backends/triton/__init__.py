"""Triton kernels: a GPU backend that needs no compiler but Triton, which torch brings.

One file per family of ops, each with its kernels and, per raw op, a function that prepares a call: given
the params it returns what takes the tensors. What it returns is kept for as long as the params are.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastops.backends import native

# Raw op → the file that prepares it.
FILES = {
    "avg_pool": "pool",
    "avg_pool_adjoint": "pool",
    "max_pool": "pool",
    "gather": "pool",
    "scatter_add": "pool",
    "max_unpool": "max_unpool",
    "max_unpool_adjoint": "max_unpool",
    "batch_norm": "batch_norm",
    "batch_norm_stats": "batch_norm",
    "batch_norm_apply": "batch_norm",
    "batch_norm_backward": "batch_norm",
    "batch_norm_double_backward": "batch_norm_double_backward",
    "conv": "conv",
    "conv_input_grad": "conv",
    "conv_weight_grad": "conv",
    "conv_backward": "conv",
    "conv_bias_grad": "conv_bias_grad",
    "interpolate_nearest": "interpolate",
    "interpolate_nearest_adjoint": "interpolate",
    "interpolate_weighted": "interpolate",
    "interpolate_weighted_adjoint": "interpolate",
    "interpolate_weighted_u8": "interpolate",
}
# Those that get a word where kernels report an invalid index.
REPORTS = {"max_unpool"}
# The oldest Triton that the kernels work with: torch 2.7 brings it.
OLDEST = (3, 3)


@lru_cache(maxsize=1)
def why_unavailable() -> str | None:
    """Why there are no Triton kernels here; None where there are."""
    try:
        import triton
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    version = tuple(map(int, triton.__version__.split("+")[0].split(".")[:2]))
    if version < OLDEST:
        return f"Triton is {triton.__version__}; {'.'.join(map(str, OLDEST))} or later is needed"
    return None


def describe() -> str:
    """Why Triton serves a device, in a few words."""
    import triton

    return f"Triton {triton.__version__} kernels, which have run in its interpreter, not yet on a GPU"


def launcher(op: str) -> Callable[..., None] | None:
    """Runs the op's Triton kernels on the current stream of the tensors' device."""
    if op not in FILES or why_unavailable() is not None:
        return None
    prepare = getattr(importlib.import_module(f"{__name__}.{FILES[op]}"), op)
    # By params and device: GPUs may differ.
    prepared: dict[tuple[int, int], Callable[..., None]] = {}

    def run_of(index: int, params: Any) -> Callable[..., None]:
        key = id(params), index
        run = prepared.get(key)
        if run is None:
            run = prepared[key] = prepare(params)
            weakref.finalize(params, prepared.pop, key, None)
        return run

    def run(index: int, params: Any, *tensors: Tensor | None) -> None:
        if op in REPORTS:
            tensors = (*tensors, native.report_of(index))
        run_of(index, params)(*tensors)

    def launch(params: Any, *tensors: Tensor | None) -> None:
        index = tensors[0].get_device()  # type: ignore[union-attr]  (there always is a first one)
        native.raise_earlier(index)
        if index < 0 or index == torch._C._cuda_getDevice():
            run(index, params, *tensors)
        else:
            with torch.cuda.device(index):
                run(index, params, *tensors)
        native.raise_earlier(index)  # in the interpreter, and with CUDA_LAUNCH_BLOCKING=1

    return launch
