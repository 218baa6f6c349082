"""Which backends a section asks, and what it asks of each."""

from __future__ import annotations

import torch

from fastops.backends import BACKENDS
from tests.conftest import SLOW  # (registers every backend that this machine can run)

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last")


def runnable() -> list[str]:
    """Those of this process, as the tests' fixture has them: on CPU tensors, and on a GPU's where one is."""
    return [
        name
        for name, one in BACKENDS.items()
        if one.device_type == "cpu" or (torch.cuda.is_available() and one.why_unavailable() is None)
    ]


def is_slow(backend: str) -> bool:
    """Whether it emulates or interprets a GPU: small shapes, fewer cases."""
    return backend in SLOW


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
