"""Each op once, forward and backward, against torch: ``python -m tests.smoke [device]``.

What gpu.sh tries first, and runs under compute-sanitizer.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F

import fastops.functional as G


def calls(device: str) -> dict[str, Any]:
    w = torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(1)).to(device)
    ones, zeros = torch.ones(8, device=device), torch.zeros(8, device=device)
    return {
        "conv2d": lambda f, x: f.conv2d(x, w, ones, padding=1),
        "conv2d, bf16": lambda f, x: f.conv2d(x.bfloat16(), w.bfloat16(), padding=1).float(),
        "conv2d, bf16, channels_last": lambda f, x: f.conv2d(
            x.bfloat16().contiguous(memory_format=torch.channels_last), w.bfloat16(), padding=1
        ).float(),
        "conv2d, strided": lambda f, x: f.conv2d(x, w, stride=2, padding=1),
        "conv2d, depthwise": lambda f, x: f.conv2d(x, w[:, :1], padding=1, groups=8),
        "conv2d, grouped": lambda f, x: f.conv2d(x, w[:, :4], padding=1, groups=2),
        "conv2d, an image's": lambda f, x: f.conv2d(x[:, :3], w[:, :3], stride=2, padding=1),
        "conv_transpose2d": lambda f, x: f.conv_transpose2d(x, w, stride=2),
        "max_pool2d": lambda f, x: f.max_pool2d(x, 2),
        "avg_pool2d": lambda f, x: f.avg_pool2d(x, 2),
        "adaptive_avg_pool2d": lambda f, x: f.adaptive_avg_pool2d(x, 3),
        "adaptive_max_pool2d": lambda f, x: f.adaptive_max_pool2d(x, 3),
        "max_unpool2d": lambda f, x: f.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
        "batch_norm": lambda f, x: f.batch_norm(x, zeros.clone(), ones.clone(), ones, zeros, True),
        "interpolate, nearest": lambda f, x: f.interpolate(x, scale_factor=2.0),
        "interpolate, bilinear": lambda f, x: f.interpolate(x, scale_factor=2.0, mode="bilinear"),
        "interpolate, antialias": lambda f, x: f.interpolate(x, (5, 7), mode="bicubic", antialias=True),
    }


def main(device: str = "cuda") -> int:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    start = torch.randn(2, 8, 12, 12, generator=torch.Generator().manual_seed(0)).to(device)
    failed = 0
    for name, call in calls(device).items():
        try:
            results = []
            for f in (G, F):
                x = start.clone().requires_grad_()
                y = call(f, x)
                dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(device)
                results.append((y.detach(), *torch.autograd.grad(y, x, dy)))
            for ours, theirs in zip(*results, strict=True):
                allowed = (theirs.abs().max() * (2e-2 if "bf16" in name else 1e-4)).item()
                torch.testing.assert_close(ours, theirs, rtol=0, atol=allowed)
        except Exception as error:  # all are told
            failed += 1
            print(f"{name}: {type(error).__name__}: {error}")
    print(f"{failed} ops fail" if failed else "every op agrees with torch")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
