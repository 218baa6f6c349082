"""What the CPU's kernels are to reach beside torch, and what they do: a line per goal, from the records of the
layers, calls and models in bench/data. A goal that is missed says why, with what was measured.

Figures are torch's time over fastops': geometric means over the cases of a goal, and the least of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Record = dict[str, Any]


class Case(NamedTuple):
    """A row of the suite of layers that both have run."""

    op: str
    row: str
    what: str  # the pass
    dtype: str
    layout: str
    ratio: float
    roof: float  # the share of the roof that fastops reaches
    large: bool  # more than a billion operations, each byte for many


class Goal(NamedTuple):
    """asked of the geometric mean over the cases, or of the least of them."""

    what: str
    asked: float
    of: Callable[[Case], bool]
    least: bool = False
    missed: str = ""  # why, where it is


def _pools(c: Case) -> bool:
    return "pool" in c.op and c.what != "training"


def _single(c: Case) -> bool:
    """One pass alone, not a training step."""
    return c.what != "training"


def kind(c: Case) -> str:
    """Of a convolution: dense, or with few channels in a group."""
    if c.op != "conv2d":
        return ""
    few = any(name in c.row for name in ("MobileNet", "ConvNeXt", "RepLKNet", "ResNeXt"))
    return "few" if few else "dense"


def _dense(layout: str, what: str) -> Callable[[Case], bool]:
    return lambda c: kind(c) == "dense" and c.layout == layout and c.what == what


def _fused(c: Case) -> bool:
    return c.op == "batch_norm" and "ReLU" in c.row


def _statistics(layout: str) -> Callable[[Case], bool]:
    return lambda c: c.op == "batch_norm" and not _fused(c) and c.layout == layout and c.what == "training"


BF16 = (
    "oneDNN multiplies bf16 at 190 to 225 GFLOP/s a core of the about 200 to 227 that a core reaches here at all: "
    "what is left to win is what it loses on reordering NCHW"
)
GOALS = [
    Goal("pooling and adjoints, NCHW", 3.0, lambda c: _pools(c) and c.layout == "NCHW"),
    Goal("pooling and adjoints, channels_last", 1.2, lambda c: _pools(c) and c.layout == "NHWC"),
    Goal(
        "adaptive pooling, backward",
        3.0,
        lambda c: c.op == "adaptive_avg_pool2d" and c.what == "backward",
    ),
    Goal("interpolation and adjoints", 1.5, lambda c: c.op == "interpolate" and _single(c)),
    Goal("interpolation, every row", 1.0, lambda c: c.op == "interpolate" and _single(c), least=True),
    Goal(
        "interpolation with antialiasing",
        1.5,
        lambda c: c.op == "interpolate" and "antialias" in c.row and _single(c),
    ),
    Goal("batch norm, training step, NCHW", 1.3, _statistics("NCHW")),
    Goal("batch norm, training step, channels_last", 1.3, _statistics("NHWC")),
    Goal("batch norm with ReLU (and add)", 2.0, _fused),
    *(
        Goal(
            f"dense convolution, NCHW, {what}, fp32",
            1.2,
            lambda c, f=_dense("NCHW", what): f(c) and c.dtype == "fp32",
        )
        for what in ("forward", "input_grad", "weight_grad")
    ),
    *(
        Goal(
            f"dense convolution, channels_last, {what}, fp32",
            1.0,
            lambda c, f=_dense("NHWC", what): f(c) and c.dtype == "fp32",
        )
        for what in ("forward", "input_grad", "weight_grad")
    ),
    Goal(
        "dense convolution, 1×1, fp32",
        1.1,
        lambda c: kind(c) == "dense" and " 1×1" in c.row and _single(c) and c.dtype == "fp32",
    ),
    Goal(
        "dense convolution, NCHW, bf16",
        1.2,
        lambda c: kind(c) == "dense" and c.layout == "NCHW" and _single(c) and c.dtype == "bf16",
        missed=BF16,
    ),
    Goal(
        "dense convolution, channels_last, bf16",
        1.0,
        lambda c: kind(c) == "dense" and c.layout == "NHWC" and _single(c) and c.dtype == "bf16",
        missed=BF16,
    ),
    Goal("few channels in a group, forward", 2.0, lambda c: kind(c) == "few" and c.what == "forward"),
    Goal("few channels in a group, weight_grad", 3.0, lambda c: kind(c) == "few" and c.what == "weight_grad"),
    Goal("all rows", 1.5, _single),
    Goal("every row", 1.0, _single, least=True),
]


def _mean(ratios: list[float]) -> float:
    return statistics.geometric_mean(ratios)


def table(runs: dict[str, list[Case]]) -> Iterator[str]:
    """Markdown: a line per goal, columns per run: mean, least, and how many are below what every row is asked."""
    heads = ["goal", "asked", *(f"{name}: mean (least; below 1)" for name in runs), "met", "missed because"]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for goal in GOALS:
        cells, met = [], True
        for i, cases in enumerate(runs.values()):
            ratios = [c.ratio for c in cases if goal.of(c)]
            if not ratios:
                cells.append("")
                continue
            mean, least = _mean(ratios), min(ratios)
            cells.append(f"{mean:.2f} ({least:.2f}; {sum(r < 1 for r in ratios)} of {len(ratios)})")
            if i == 0:
                met = (least if goal.least else mean) >= goal.asked
        asked = f"{'each ' if goal.least else ''}≥ {goal.asked}"
        yield f"| {' | '.join([goal.what, asked, *cells, 'yes' if met else 'no', '' if met else goal.missed])} |"
    for name, cases in runs.items():
        large = sorted(c.roof for c in cases if c.large)
        if large:
            yield ""
            yield (
                f"{name}: of {len(large)} rows of more than a billion operations {sum(r >= 0.8 for r in large)} reach "
                f"80 % of the roof of their dtype that was measured in the same run; the median is "
                f"{100 * statistics.median(large):.0f} %, the least {100 * large[0]:.0f} %."
            )
