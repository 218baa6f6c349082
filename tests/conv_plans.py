"""How the convolutions of well-known networks would be planned on an H200: one row each.

``python -m tests.conv_plans > docs/conv_plans.md`` writes the table that tests/test_conv_plans.py checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from bench.rows import CONVS, Conv
from fastops import _C
from fastops.explain import GPUS
from fastops.ops import layout
from fastops.ops.conv import ConvSpec, conv_params


def params(row: Conv, memory_format: torch.memory_format) -> Any:
    """The kernels' params of a row of the benchmark."""
    spec = ConvSpec(*((v, v) for v in (row.stride, row.before, row.dilation)), row.groups)
    return conv_params(
        spec,
        (row.n, row.c, row.size, row.size),
        (row.k, row.c // row.groups, row.kernel, row.kernel),
        (row.n, row.k, row.out, row.out),
        row.dtype,
        memory_format,
        memory_format,
        row.tf32,
    )


PASSES = {"forward": "y", "input_grad": "dx", "weight_grad": "dw"}
LAYOUTS = {"NCHW": layout.CONTIGUOUS, "NHWC": layout.CHANNELS_LAST}


def plans(row: Conv, memory_format: torch.memory_format, device: Any = None) -> dict[str, Any]:
    """The plan of each pass."""
    on = device or GPUS["H200"]
    return {name: _C.conv_plan(params(row, memory_format), getattr(_C.ConvPass, name), on) for name in PASSES}


def describe(plan: Any) -> str:
    tile = plan.tile
    stages = f" ×{tile.stages}" if tile.stages > 1 else ""
    splits = f", {plan.splits} parts" if plan.splits > 1 else ""
    return f"{plan.kernel.name} {tile.m}×{tile.n}×{tile.k}{stages}{splits}, {100 * plan.roof:.0f} %"


def table() -> Iterator[str]:
    """Markdown."""
    yield "# How convolutions are planned"
    yield ""
    yield (
        "For an H200, by the model of `csrc/conv_cost.h`: the kernels, their tile (rows × columns × products "
        "a step, × stages of tiles in shared memory), the parts of the weight gradient's sum, and the time "
        "at the device's ceilings over the plan's time. These are predictions by which plans are chosen, not "
        "measurements. In bf16 where nothing else is said. Written by `python -m tests.conv_plans`, checked "
        'by `tests/test_conv_plans.py`; `fastops.explain(layer, x, gpu="H200")` says the same of any layer.'
    )
    yield ""
    yield "| row | layout | forward | input gradient | weight gradient |"
    yield "|---|---|---|---|---|"
    for row in CONVS:
        for name, memory_format in LAYOUTS.items():
            cells = [describe(plan) for plan in plans(row, memory_format).values()]
            yield f"| {row} | {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join(table()))
