"""The suite of scaling: how times grow with images, their size, channels, the kernel, and on a CPU with
threads, the floor beside; a 3×3 convolution of 64 channels with one of them changed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch

from bench import contenders, layers, report
from bench.rows import BF16, CONV, FP32, Conv, Row


def points(device: str) -> list[tuple[str, int, Row]]:
    """(what grows, its value, the layer)."""
    dtype, more = (BF16, 32) if device == "cuda" else (FP32, 1)  # images, for a GPU to be busy

    def conv(n: int = more, c: int = 64, kernel: int = 3, size: int = 28, groups: int = 1) -> Row:
        return Conv("scaling", n, c, c, kernel, size, groups=groups, dtype=dtype).row()

    return [
        *(("images", n, conv(n=n)) for n in (1, 2, 4, 8, 16)),
        *(("rows and columns", size, conv(size=size)) for size in (7, 14, 28, 56, 112)),
        *(("channels", c, conv(c=c)) for c in (16, 32, 64, 128, 256)),
        *(("kernel", kernel, conv(kernel=kernel)) for kernel in (1, 3, 5, 7, 9)),
        *(("depthwise kernel", kernel, conv(kernel=kernel, groups=64)) for kernel in (3, 5, 7, 13, 31)),
    ]


def measured(
    device: str, threads: list[int], rounds: int, round_seconds: float, end: float = math.inf
) -> Iterator[dict[str, Any]]:
    """One record per point, pass and contender, in channels_last; none after `end` (monotonic)."""
    by = contenders.chosen(device, "")
    cases = [(axis, value, row, threads[-1]) for axis, value, row in points(device)]
    if device == "cpu":
        row = Conv("scaling", 4, 64, 64, 3, 56, dtype=FP32).row()
        cases += [("threads", n, row, n) for n in threads]
    for axis, value, row, count in cases:
        torch.set_num_threads(count)
        for name in CONV:
            if time.monotonic() > end:
                return
            for record in layers.measured(
                *(row, name, row.dtypes[0], "NHWC", device),
                by=by,
                rounds=rounds,
                round_seconds=round_seconds,
            ):
                yield {"suite": "scaling", "axis": axis, "value": value} | record


def table(first: dict[str, Any], records: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: one line per point and pass."""
    yield "| what grows | to | pass | fastops µs | torch µs | ratio | of the roof | torch's |"
    yield "|---" * 8 + "|"
    for axis in dict.fromkeys(r["axis"] for r in records):
        for ours, theirs, _ in report.pairs([r for r in records if r["axis"] == axis]):
            times = report.ratio(ours, theirs)
            head = f"| {axis} | {ours['value']} | {ours['pass']} |"
            if times is None:
                yield f"{head} {ours.get('error', '')[:80]} | {theirs.get('error', '')[:80]} | | | |"
                continue
            least = report.floor(ours, first["ceilings"])
            both = [r["seconds"] for r in (ours, theirs)]
            cells = [*(f"{s * 1e6:.1f}" for s in both), f"{times:.2f}"]
            yield f"{head} {' | '.join(cells + [f'{100 * least / s:.0f} %' for s in both])} |"
