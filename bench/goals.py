"""What the CPU's kernels are to reach beside torch, and what they do: a line per goal, from the records of
the suites. A goal that is missed says why, with what was measured.

Figures are torch's time over fastops': geometric means over the cases of a goal, and the least of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Case(NamedTuple):
    """A row of the suite of layers that both have run."""

    op: str
    row: str
    what: str  # the pass
    dtype: str
    layout: str
    ratio: float
    roof: float  # the share of the roof that fastops reaches; 1: in the least time there is
    torch_roof: float
    speed: float | None  # of more than a billion operations: theirs a second, over what the roof has


class Goal(NamedTuple):
    """asked of the geometric mean over the cases, or of the least of them."""

    what: str
    asked: float
    of: Callable[[Case], bool]
    least: bool = False
    remark: str = ""  # on what it is missed by, where it is


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


SMALL = (
    "a step of 2048 × 7² is 280 to 320 µs, of which the host takes 80 (torch's 44, both in cpu-host.jsonl); "
    "its planes of 49 elements are three vectors and a sum across lanes each"
)
GOALS = [
    Goal(
        "pooling and adjoints, NCHW",
        3.0,
        pools("NCHW"),
        remark="of unpooling's 32 ms in fp32, one thread, 27 are page faults of a fresh result of 44 MB, "
        "which torch has too; max pooling's gradient takes a cycle an input (cpu-kernels-alone.txt)",
    ),
    Goal("pooling and adjoints, NHWC", 1.2, pools("NHWC")),
    Goal(
        "adaptive pooling, backward",
        3.0,
        lambda c: c.op == "adaptive_avg_pool2d" and c.what == "backward",
        remark="of 40 µs of 7² → 1 about 25 are autograd's; 60² ← 6 only writes",
    ),
    Goal("interpolation and adjoints", 1.5, lambda c: c.op == "interpolate" and alone(c)),
    Goal(
        "interpolation, every row",
        1.0,
        lambda c: c.op == "interpolate" and alone(c),
        least=True,
        remark="nearest × 2 copies, as torch's does",
    ),
    Goal(
        "interpolation with antialiasing",
        1.5,
        lambda c: c.op == "interpolate" and "antialias" in c.row and alone(c),
    ),
    Goal("batch norm, training step, NCHW", 1.3, batch_norm("NCHW"), remark=SMALL),
    Goal("batch norm, training step, NHWC", 1.3, batch_norm("NHWC"), remark=SMALL),
    Goal(
        "batch norm with ReLU (and add)",
        2.0,
        fused,
        remark="what fusing saves, torch reads from a cache of 32 MB",
    ),
    *(
        Goal(f"dense convolution, {layout}, {what}, fp32", asked, dense(layout, what, "fp32"))
        for layout, asked in (("NCHW", 1.2), ("NHWC", 1.0))
        for what in ("forward", "input_grad", "weight_grad")
    ),
    Goal(
        "dense convolution, 1×1, fp32",
        1.1,
        lambda c: any(dense(layout, "", "fp32")(c) for layout in ("NCHW", "NHWC")) and " 1×1" in c.row,
        remark="from the caches, one thread, both multiply at 88 to 91 % of what the core can "
        "(cpu-kernels-alone.txt); the rest is memory",
    ),
    Goal(
        "dense convolution, NCHW, bf16",
        1.2,
        dense("NCHW", "", "bf16"),
        remark="from the caches, one thread, both multiply at 195 to 229 GFLOP/s; NCHW is turned over "
        "by both (cpu-kernels-alone.txt)",
    ),
    Goal("dense convolution, NHWC, bf16", 1.0, dense("NHWC", "", "bf16")),
    Goal(
        "few channels in a group, forward",
        2.0,
        lambda c: few_channels(c) and c.what == "forward",
        remark="960 channels of 7² in NCHW cost a turn to channels_last and back; 7×7 and 31×31 multiply as "
        "fast as torch's",
    ),
    Goal("few channels in a group, weight_grad", 3.0, lambda c: few_channels(c) and c.what == "weight_grad"),
    Goal("all rows", 1.5, alone),
    Goal(
        "every row",
        1.0,
        alone,
        least=True,
        remark="rows of 25 to 200 µs lose to the host, unpooling to page faults, dense bf16 "
        "by a few per cent",
    ),
]


HOST = (
    "of 5.1 µs of an average pooling a look at the signature takes about 2.3 in Python, the result 1.0, "
    "pybind11 and the kernel 0.8; with a graph, `Function.apply` takes 3.1 (cpu-host-parts.txt)"
)


def calls_and_models(
    cases: list[Case], host: list[dict[str, Any]], models: list[dict[str, Any]]
) -> Iterator[str]:
    """Markdown: the goals of large cases, of calls on a tiny image, and of networks."""

    def ratios(records: list[dict[str, Any]], *key: str) -> list[float]:
        by: dict[tuple[str, ...], dict[str, float]] = {}
        for r in records:
            if "seconds" in r:
                by.setdefault(tuple(r[k] for k in key), {})[r["by"]] = r["seconds"]
        return [times["torch"] / times["fastops"] for times in by.values()]

    inference = [r for r in host if r["call"].endswith(", inference") or r["call"].endswith("()")]
    graphs = [r for r in host if r not in inference]

    def network(model: str, step: str) -> list[float]:
        return ratios([r for r in models if (r["model"], r["kind"]) == (model, step)], "layout")

    large = [c for c in cases if c.speed is not None]
    slow = sorted({c.row for c in large if c.speed is not None and c.speed < 0.8})
    yield "| goal | asked | mean (least; below) | met | missed because |"
    yield "|---|---|---|---|---|"
    for what, asked, found, missed in (
        (
            "operations of cases of more than a billion, over the roof",
            0.8,
            [c.speed for c in large if c.speed is not None],
            f"below are passes of {', '.join(slow)}",
        ),
        ("the host's part of a call without a graph", 1.0, ratios(inference, "call"), HOST),
        ("the host's part with a graph, and of its backward", 1.0, ratios(graphs, "call"), HOST),
        (
            "inference of ResNet-50, both layouts",
            1.0,
            network("ResNet-50", "inference"),
            "",
        ),
        (
            "training step of SegNet, the demo's kind",
            1.0,
            network("SegNet", "training"),
            "",
        ),
    ):
        mean, least = statistics.geometric_mean(found), min(found)
        figures = f"{mean:.2f} ({least:.2f}; {sum(r < asked for r in found)} of {len(found)})"
        verdict = ["yes", ""] if least >= asked else ["no", missed]
        yield f"| {' | '.join([what, f'each ≥ {asked}', figures, *verdict])} |"


def why(goal: Goal, cases: list[Case]) -> str:
    """By what a goal is missed: how near to the roof both are, and what is known beyond that."""
    own, theirs = (statistics.median(v) for v in ([c.roof for c in cases], [c.torch_roof for c in cases]))
    possible = statistics.geometric_mean([c.ratio / c.roof for c in cases])
    words = f"at {100 * own:.0f} % of the roof, torch at {100 * theirs:.0f} % (medians)"
    if not goal.least:
        words += f"; on the roof it would be {possible:.1f}"
    return f"{words}; {goal.remark}" if goal.remark else words


def table(runs: dict[str, list[Case]]) -> Iterator[str]:
    """Markdown: a line per goal, and of each run the mean, the least, and how many cases are below 1. Whether
    a goal is met, the first run says."""
    heads = ["goal", "asked", *(f"{name}: mean (least; below 1)" for name in runs), "met", "missed because"]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for goal in GOALS:
        cells: list[str] = []
        verdict: list[str] = []
        for cases in runs.values():
            own = [c for c in cases if goal.of(c)]
            ratios = [c.ratio for c in own]
            if not ratios:
                cells.append("")
                continue
            mean, least = statistics.geometric_mean(ratios), min(ratios)
            cells.append(f"{mean:.2f} ({least:.2f}; {sum(r < 1 for r in ratios)} of {len(ratios)})")
            met = (least if goal.least else mean) >= goal.asked
            verdict = verdict or (["yes", ""] if met else ["no", why(goal, own)])
        asked = f"{'each ' * goal.least}≥ {goal.asked}"
        yield f"| {' | '.join([goal.what, asked, *cells, *verdict])} |"
    for name, cases in runs.items():
        large = sorted(c.speed for c in cases if c.speed is not None)
        if large:
            yield ""
            yield (
                f"{name}: of {len(large)} cases of more than a billion operations, those of the plain sum, "
                f"{sum(s >= 0.8 for s in large)} are computed at 80 % of the roof of their dtype or more; "
                f"the median is {100 * statistics.median(large):.0f} %."
            )
