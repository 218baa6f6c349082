"""Runs in processes of its own what goes on for long: training steps, ever new shapes, threads that come and
go. Used as tests/reliability/processes.py, which has the rest.
"""

from __future__ import annotations

import ctypes
import gc
import inspect
import sys
import threading
from functools import _lru_cache_wrapper
from typing import Any

import torch
from torch import Tensor, nn

import fastops
import fastops.functional as G
from fastops.ops import max_pool, replay
from tests.reliability.telling import figure, memory, note, told


class Net(nn.Module):
    """Every layer once."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            fastops.Conv2d(3, 8, 3, padding=1), fastops.BatchNorm2d(8), nn.ReLU(), fastops.AvgPool2d(2)
        )
        self.pool = fastops.MaxPool2d(2, return_indices=True)
        self.unpool = fastops.MaxUnpool2d(2)
        self.up = nn.Sequential(
            fastops.ConvTranspose2d(8, 8, 2, stride=2),
            fastops.Upsample(scale_factor=2, mode="bilinear"),
            fastops.AdaptiveAvgPool2d(4),
            fastops.AdaptiveMaxPool2d(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y, indices = self.pool(self.down(x))
        return self.up(self.unpool(y, indices))


def soak(quick: bool) -> None:
    """The growth of resident memory over the second half of the steps."""
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    steps = 200 if quick else 10_000
    x = torch.randn(4, 3, 32, 32)
    half = 0
    for step in range(steps):
        if step == steps // 2:
            gc.collect()
            half = memory()
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    gc.collect()
    grown = (memory() - half) / 1024
    with told(f"{steps} steps"):
        if not quick:  # there it is noise
            figure(grown * 1000 / (steps / 2), "kB per 1,000 steps")
        assert grown < (1024 if quick else 2048), f"{grown:.0f} kB in {steps // 2} steps"
        assert all(p.isfinite().all() for p in net.parameters())


def caches() -> list[Any]:
    gc.collect()
    found = [o for o in gc.get_objects() if type(o) is _lru_cache_wrapper]
    return [o for o in found if str(getattr(o, "__module__", "")).startswith("fastops")]


# Holds by the name of an op, of a device and of a backend: no shape fills it.
BY_NAME = {"fastops.backends._choose"}
MEGABYTE = 1 << 20
KEPT = 1025  # recipes of one function, where replay.py keeps 4096


class _Malloc(ctypes.Structure):
    """mallinfo2 of malloc.h."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks")),
        *((name, ctypes.c_size_t) for name in ("fsmblks", "uordblks", "fordblks", "keepcost")),
    ]


def in_use() -> tuple[int, int]:
    """Python's small objects, and the bytes that malloc has given out for all else. Not what is free but kept
    for later, which resident memory has, too: that still grew, 6 MB in 4,000 shapes, where this did not.
    """
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Malloc
    found = mallinfo()
    return sys.getallocatedblocks(), found.uordblks + found.hblkhd


def recipes() -> list[dict[Any, Any]]:
    """Those of each function of fastops.functional; of the two names of a max pooling one."""
    functions = [f for name, f in vars(G).items() if inspect.isfunction(f) and "with_indices" not in name]
    found = [inspect.getclosurevars(f).nonlocals.get("recipes") for f in functions]
    return [r for r in found if r is not None]


def new_shape(i: int) -> None:
    """Every op, with sizes and options that no other i below 2^15 has; every second i with gradients. Twice:
    what comes only once has no recipe."""
    k = i * 12345 % 2**15  # small and large ones in turn
    n, c, h, w = 2 + k // 2048, 1 + k // 256 % 8, 3 + k // 16 % 16, 3 + k % 16
    apart, size = (1 + i % 37, 1 + i // 37 % 37), (1 + i % 33, 1 + i // 33 % 33)
    x = torch.zeros(n, c, h, w, requires_grad=i % 2 == 1)
    for _ in range(2):
        pooled, indices = G.max_pool2d(x, 2, apart, return_indices=True)
        found = [
            G.max_unpool2d(pooled, indices, 2, apart, output_size=(n, c, h, w)),
            G.avg_pool2d(x, 3, 2, 1, divisor_override=1 + i),
            G.adaptive_avg_pool2d(x, size),
            G.adaptive_max_pool2d(x, size),
            G.conv2d(x, torch.zeros(3, c, 3, 3), None, apart),
            G.conv_transpose2d(x, torch.zeros(c, 3, 2, 2), stride=1 + i % 3),
            G.batch_norm(x, None, None, training=True),
            G.interpolate(x, size=size, mode="bilinear"),
        ]
        if x.requires_grad:
            torch.autograd.backward(found, [torch.zeros_like(y) for y in found])
    # Only GPUs' kernels ask that of themselves.
    max_pool.narrowest(max_pool.MaxPoolSpec((2, 2), apart, (0, 0), (1, 1), False), h, w, True)


def shapes(quick: bool) -> None:
    """In the last quarter every cache is full, and memory in use stays. The quick form asks only that caches
    have limits.

    A quarter is two rounds of recipes (a function has one per signature, and drops them all when there are
    KEPT, which the next is the first to follow): at its ends the same number of them is there.
    """
    torch.set_num_threads(1)
    replay.KEPT = KEPT
    for known in recipes():
        known.clear()
    quarter = 50 if quick else 2 * (KEPT - 1)
    measured: list[tuple[int, int, int]] = []
    for i in range(4 * quarter):
        new_shape(i)
        if i + 1 in (3 * quarter, 4 * quarter) and not quick:
            measured.append((*in_use(), memory()))
            with told(f"recipes after {i + 1} shapes"):
                there = [len(r) for r in recipes()]
                assert there == [KEPT - 1] * len(there), f"{there}, not {KEPT - 1} of each function"
            for cache in caches():
                info, name = cache.cache_info(), f"{cache.__module__}.{cache.__name__}"
                with told(f"full after {i + 1} shapes: {name}"):
                    # One that keeps a single entry, or that has no limit, see below, is not meant.
                    full = info.currsize == info.maxsize or (info.maxsize or 0) <= 1 or name in BY_NAME
                    assert full, f"{info.currsize} of {info.maxsize}"
    for cache in caches():
        info = cache.cache_info()
        with told(f"the limit of {cache.__module__}.{cache.__name__}"):
            # One for each of a few names is bounded by these.
            assert info.maxsize is not None or info.currsize < 64, f"{info.currsize} entries, no limit"
    if quick:
        return
    objects, size, resident = (after - before for before, after in zip(*measured, strict=True))
    figure(size / 1024 * 1000 / quarter, "kB per 1,000 shapes")
    note(
        f"last {quarter:,} shapes: {objects:+,} small objects, malloc {size / 1024:+.0f} kB, "
        f"resident {resident / 1024:+.0f} kB"
    )
    with told(f"small objects of the last {quarter} shapes"):
        assert objects < quarter / 2, f"{objects} more"
    with told(f"bytes of the last {quarter} shapes"):
        # Two of the larger dicts' tables, which have 0.3 MB, may be made twice as large meanwhile.
        assert size < MEGABYTE, f"{size} more"


def threads_come_and_go(quick: bool) -> None:
    """Each has scratch memory of its own while it lives."""
    x, w = torch.randn(1, 64, 56, 56), torch.randn(128, 64, 3, 3)
    count = 40 if quick else 1000
    half = 0
    for i in range(count):
        if i == count // 2:
            gc.collect()
            half = memory()
        thread = threading.Thread(target=G.conv2d, args=(x, w))
        thread.start()
        thread.join()
    gc.collect()
    grown = (memory() - half) / 1024
    with told(f"{count} threads"):
        if not quick:
            figure(grown * 1000 / (count / 2), "kB per 1,000 threads")
        assert grown < 16 * 1024, f"{grown:.0f} kB in {count // 2} threads"
