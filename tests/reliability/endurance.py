"""Runs in processes of its own what goes on for long: training steps, ever new shapes, threads that come and
go. Used as tests/reliability/processes.py, which has the rest.
"""

from __future__ import annotations

import gc
import threading
from functools import _lru_cache_wrapper
from typing import Any

import torch
from torch import Tensor, nn

import fastops
import fastops.functional as G
from tests.reliability.telling import figure, memory, told


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
    found = [o for o in gc.get_objects() if isinstance(o, _lru_cache_wrapper)]
    return [o for o in found if str(getattr(o, "__module__", "")).startswith("fastops")]


def shapes(quick: bool) -> None:
    """Ever new sizes and options; fuller than full caches must not grow."""
    torch.set_num_threads(1)
    count = 400 if quick else 10_000
    half = 0
    with torch.no_grad():
        for i in range(count):
            if i == count - count // 4:
                gc.collect()
                half = memory()
            h, w = 4 + i % 97, 4 + i // 97
            x = torch.zeros(1, 2, h, w)
            y, indices = G.max_pool2d(x, 2, return_indices=True)
            G.max_unpool2d(y, indices, 2, output_size=(h, w))
            G.avg_pool2d(x, 3, 1 + i % 3, 1)
            G.adaptive_avg_pool2d(x, (1 + i % h, 2))
            G.adaptive_max_pool2d(x, (1 + i % h, 2))
            G.conv2d(x, torch.zeros(3, 2, 3, 3), padding=i % 5)
            G.conv_transpose2d(x, torch.zeros(2, 3, 2, 2), stride=1 + i % 3)
            G.batch_norm(x, None, None, training=True)
            G.interpolate(x, size=(1 + i % 50, 2 + i // 50), mode="bilinear")
    gc.collect()
    grown = (memory() - half) / 1024
    full = 0
    for cache in caches():
        info = cache.cache_info()
        full += info.maxsize is not None and info.currsize == info.maxsize
        with told(f"the cache of {cache.__module__}.{cache.__name__}"):
            # One for each of a few names is bounded by these.
            assert info.maxsize is not None or info.currsize < 64, f"{info.currsize} entries, no limit"
    with told(f"{count} shapes"):
        if not quick:
            figure(grown * 1000 / (count / 4), "kB per 1,000 shapes")
            assert full, "no cache was filled"
            assert grown < 4096, f"{grown:.0f} kB in {count // 4} shapes"


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
