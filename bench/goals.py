"""What the CPU's kernels are to reach beside torch, and what they do: a line per goal, from the records of
the suite of layers. A goal that is missed says why, with what was measured.

Figures are torch's time over fastops': geometric means over the cases of a goal, and the least of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Case(NamedTuple):
    """A row of the suite of layers that both have run."""

    op: str
    row: str
    what: str  # the pass
    dtype: str
    layout: str
    ratio: float
    roof: float  # the share of the roof that fastops reaches
    large: bool  # more than a billion operations


class Goal(NamedTuple):
    """asked of the geometric mean over the cases, or of the least of them."""

    what: str
    asked: float
    of: Callable[[Case], bool]
    least: bool = False
    missed: str = ""  # why, where it is


def alone(c: Case) -> bool:
    """One pass, not a training step."""
    return c.what != "training"


def pools(layout: str) -> Callable[[Case], bool]:
    return lambda c: "pool" in c.op and alone(c) and c.layout == layout


def few_channels(c: Case) -> bool:
    """A convolution with few channels in a group."""
    return c.op == "conv2d" and any(n in c.row for n in ("MobileNet", "ConvNeXt", "RepLKNet", "ResNeXt"))


def dense(layout: str, what: str, dtype: str) -> Callable[[Case], bool]:
    """Of a pass; of all if it is empty."""
    return lambda c: (
        c.op == "conv2d"
        and not few_channels(c)
        and (c.layout, c.dtype) == (layout, dtype)
        and (c.what == what if what else alone(c))
    )


def fused(c: Case) -> bool:
    return c.op == "batch_norm" and "ReLU" in c.row


def batch_norm(layout: str) -> Callable[[Case], bool]:
    return lambda c: c.op == "batch_norm" and not fused(c) and c.layout == layout and c.what == "training"


GOALS = [
    Goal("pooling and adjoints, NCHW", 3.0, pools("NCHW")),
    Goal("pooling and adjoints, NHWC", 1.2, pools("NHWC")),
    Goal(
        "adaptive pooling, backward",
        3.0,
        lambda c: c.op == "adaptive_avg_pool2d" and c.what == "backward",
    ),
    Goal("interpolation and adjoints", 1.5, lambda c: c.op == "interpolate" and alone(c)),
    Goal("interpolation, every row", 1.0, lambda c: c.op == "interpolate" and alone(c), least=True),
    Goal(
        "interpolation with antialiasing",
        1.5,
        lambda c: c.op == "interpolate" and "antialias" in c.row and alone(c),
    ),
    Goal("batch norm, training step, NCHW", 1.3, batch_norm("NCHW")),
    Goal("batch norm, training step, NHWC", 1.3, batch_norm("NHWC")),
    Goal("batch norm with ReLU (and add)", 2.0, fused),
    *(
        Goal(f"dense convolution, {layout}, {what}, fp32", asked, dense(layout, what, "fp32"))
        for layout, asked in (("NCHW", 1.2), ("NHWC", 1.0))
        for what in ("forward", "input_grad", "weight_grad")
    ),
    Goal(
        "dense convolution, 1×1, fp32",
        1.1,
        lambda c: any(dense(layout, "", "fp32")(c) for layout in ("NCHW", "NHWC")) and " 1×1" in c.row,
    ),
    Goal("dense convolution, NCHW, bf16", 1.2, dense("NCHW", "", "bf16")),
    Goal("dense convolution, NHWC, bf16", 1.0, dense("NHWC", "", "bf16")),
    Goal("few channels in a group, forward", 2.0, lambda c: few_channels(c) and c.what == "forward"),
    Goal("few channels in a group, weight_grad", 3.0, lambda c: few_channels(c) and c.what == "weight_grad"),
    Goal("all rows", 1.5, alone),
    Goal("every row", 1.0, alone, least=True),
]


def table(runs: dict[str, list[Case]]) -> Iterator[str]:
    """Markdown: a line per goal, and of each run the mean, the least, and how many cases are below 1. Whether
    a goal is met, the first run says."""
    heads = ["goal", "asked", *(f"{name}: mean (least; below 1)" for name in runs), "met", "missed because"]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for goal in GOALS:
        cells, met = [], []
        for cases in runs.values():
            ratios = [c.ratio for c in cases if goal.of(c)]
            if not ratios:
                cells.append("")
                continue
            mean, least = statistics.geometric_mean(ratios), min(ratios)
            cells.append(f"{mean:.2f} ({least:.2f}; {sum(r < 1 for r in ratios)} of {len(ratios)})")
            met.append((least if goal.least else mean) >= goal.asked)
        asked = f"{'each ' * goal.least}≥ {goal.asked}"
        verdict = ["yes", ""] if met and met[0] else ["no", goal.missed]
        yield f"| {' | '.join([goal.what, asked, *cells, *verdict])} |"
    for name, cases in runs.items():
        large = sorted(c.roof for c in cases if c.large)
        if large:
            yield ""
            yield (
                f"{name}: of {len(large)} cases of more than a billion operations "
                f"{sum(r >= 0.8 for r in large)} reach 80 % of the roof of their dtype in the same run; "
                f"the median is {100 * statistics.median(large):.0f} %."
            )
