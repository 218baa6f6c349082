"""The SIMT emulation: the CUDA kernels' own source, run on CPU tensors. See docs/emulation.md.

Which build of it the tests use, and how hostile it is, is said by environment variables:

  FASTOPS_SIMT          plain | asan | race          see build.py
  FASTOPS_SIMT_ORDER    forward | reverse | random   in which threads run (default: random)
  FASTOPS_SIMT_COPIES   lazy | eager | random        when asynchronous copies happen (default: random)
  FASTOPS_SIMT_SEED     a number                     for random
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from types import ModuleType
from typing import Any

import pytest
import torch

from fastops.backends import native
from tests.simt import build

NAME = "cuda-emulated"
MODE = os.environ.get("FASTOPS_SIMT", "plain")
# The race detector keeps some 100 bytes for each byte that a kernel touches.
RACE_LIMIT = 1 << 20


@lru_cache(maxsize=1)
def why_unavailable() -> str | None:
    """Why there is no emulation on this machine; None where there is one."""
    try:
        build.check()
    except build.Unavailable as reason:
        return str(reason)
    return None


@lru_cache
def load(mode: str = MODE) -> ModuleType:
    """The module of a mode, compiled now if it has to be."""
    name = f"emulated_{mode}"
    loader = ExtensionFileLoader(name, str(build.build(mode)))
    spec = spec_from_loader(name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    configure(module)
    return module


def configure(module: ModuleType) -> None:
    """Makes the module as hostile as the environment says."""
    module.configure(
        os.environ.get("FASTOPS_SIMT_ORDER", "random"),
        os.environ.get("FASTOPS_SIMT_COPIES", "random"),
        int(os.environ.get("FASTOPS_SIMT_SEED", "0")),
    )


def launcher(op: str) -> Callable[..., None] | None:
    """The backend: runs the op's CUDA kernel in the emulation, on CPU tensors. None: it has no kernel."""
    kernels = load().cuda
    kernel = getattr(kernels, op, None)
    workspace_bytes = getattr(kernels, f"{op}_workspace", None)
    report = torch.zeros(1, dtype=torch.int32) if hasattr(kernels, f"{op}_reports") else None
    if kernel is None:
        return None

    def launch(params: Any, *tensors: Any) -> None:
        if workspace_bytes is not None:
            # As empty as a GPU's memory: whoever reads what nobody has written gets a NaN, or -1.
            tensors = (*tensors, torch.full((workspace_bytes(params),), 0xFF, dtype=torch.uint8))
        if report is not None:
            tensors = (*tensors, report)
        size = sum(t.numel() * t.element_size() for t in tensors if t is not None)
        if MODE == "race" and size > RACE_LIMIT:
            pytest.skip("tensors too large for the race detector")
        native.run_cuda(kernel, params, *(0 if t is None else t.data_ptr() for t in tensors), 0)
        if report is not None:
            native.raise_reported(report)

    return launch
