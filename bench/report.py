"""Tables and a picture from records: ``python -m bench.report`` makes docs/performance.md of bench/data."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
DATA, DOCS = ROOT / "bench" / "data", ROOT / "docs"


def floor(record: Record, ceilings: dict[str, Any]) -> float:
    """The seconds that no kernel can go below on this machine."""
    if "threads" in record:
        ceilings = ceilings[str(record["threads"])]
    return max(record["bytes"] / ceilings["copy"], record["flops"] / ceilings[record["dtype"]])


def pairs(records: list[Record]) -> Iterator[tuple[Record, Record, float | None]]:
    """fastops' and torch's record of each case, and torch's best time over the layouts."""
    by: dict[tuple[str, ...], dict[str, Record]] = {}
    for r in records:
        threads = str(r.get("threads", ""))
        by.setdefault((r["row"], r["pass"], r["dtype"], threads, r["layout"]), {})[r["by"]] = r
    best: dict[tuple[str, ...], float] = {}
    for key, both in by.items():
        seconds = both.get("torch", {}).get("seconds")
        if seconds:
            best[key[:4]] = min(seconds, best.get(key[:4], math.inf))
    for key, both in by.items():
        if len(both) == 2:
            yield both["fastops"], both["torch"], best.get(key[:4])


def mean(ratios: list[float]) -> float:
    """The geometric one."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def ratio(ours: Record, theirs: Record) -> float | None:
    """torch's time over fastops'."""
    return theirs["seconds"] / ours["seconds"] if "seconds" in ours and "seconds" in theirs else None


def roofs(ceilings: dict[str, Any]) -> str:
    """The ceilings in words; on a CPU by the number of threads."""
    if any(isinstance(v, dict) for v in ceilings.values()):
        counts = ((n, "thread" if n == "1" else "threads") for n in ceilings)
        return "; ".join(f"{n} {word}: {roofs(ceilings[n])}" for n, word in counts)
    large = max(ceilings.values()) > 1e13
    scale, prefix = (1e12, "T") if large else (1e9, "G")
    digits = 2 if large else 0
    return ", ".join(
        f"{name} {v / scale:.{digits}f} {prefix}{'B/s' if name == 'copy' else 'FLOP/s'}"
        for name, v in ceilings.items()
    )


def table(first: Record, records: list[Record]) -> Iterator[str]:
    """Markdown: one line per case."""
    ceilings = first["ceilings"]
    made = f"{first['device']}, torch {first['torch']}, commit {first['commit'][:12]}"
    yield f"{made}; measured: {roofs(ceilings)}."
    yield ""
    heads = ["row", "pass", "dtype", "layout", "fastops µs", "torch µs", "ratio", "to best layout"]
    heads += ["of the roof", "torch's", "differ"]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    ratios = []
    for ours, theirs, best in pairs(records):
        head = f"| {ours['row']} | {ours['pass']} | {ours['dtype']} | {ours['layout']} |"
        times = ratio(ours, theirs)
        if times is None:
            yield f"{head} {ours.get('error', 'ok')[:80]} | {theirs.get('error', 'ok')[:80]} | | | | | |"
            continue
        a, b, least = ours["seconds"], theirs["seconds"], floor(ours, ceilings)
        ratios.append(times)
        to_best = f"{best / a:.2f}" if best else ""
        differ = f"{ours['difference']:.0e}" if "difference" in ours else ""
        yield (
            f"{head} {a * 1e6:.1f} | {b * 1e6:.1f} | {times:.2f} | {to_best} | {100 * least / a:.0f} % | "
            f"{100 * least / b:.0f} % | {differ} |"
        )
    if ratios:
        yield ""
        below = sum(r < 1 for r in ratios)
        yield f"{len(ratios)} cases, geometric mean of the ratios {mean(ratios):.2f}, {below} below 1."


def summary(records: list[Record]) -> Iterator[str]:
    """Markdown: a line per op, layout and pass."""
    groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for ours, theirs, _ in pairs(records):
        r, op = ratio(ours, theirs), ours["op"]
        if op == "conv2d":
            depthwise = any(n in ours["row"] for n in ("MobileNet", "ConvNeXt", "RepLKNet"))
            op = "conv2d, depthwise" if depthwise else f"conv2d, {ours['dtype']}"
        if r is not None:
            groups[op, ours["layout"], ours["pass"]].append(r)
    yield "| op | layout | pass | cases | geometric mean | least | most |"
    yield "|---|---|---|---|---|---|---|"
    for key, r in sorted(groups.items()):
        yield f"| {' | '.join(key)} | {len(r)} | {mean(r):.2f} | {min(r):.2f} | {max(r):.2f} |"


def read(name: str) -> tuple[Record, list[Record]]:
    lines = [json.loads(line) for line in (DATA / name).read_text().splitlines()]
    return lines[0], lines[1:]


INTRODUCTION = """# Performance

Measured on hardware, side by side with torch in one run: `python -m bench` (or `tests/gpu.sh`, stage
`benchmark`). Times are medians of rounds in which both take turns, of calls captured in CUDA graphs, so
without the host, on random data; enough sets of operands take turns that the L2 cache does not hold them.
torch has `cudnn.benchmark` on. *ratio* is torch's time over fastops': above 1 fastops is faster. *of the
roof*: the time of the least bytes and operations at the ceilings measured in the same run, over the time;
more than 100 % means that the least was overestimated (a stride leaves elements unread). *differ*:
‖fastops − torch‖ / ‖torch‖ of the results; where it is 1 one of the two is wrong, and comparing both with
torch's CPU kernels, as the tests do, says that it is torch 2.11's (max_unpool2d's gradient in channels_last).

Since then, by what these figures showed and without another measurement, the plan gives other kernels to the
weight gradients of two contiguous rows (64→256 1×1 and N1 64→64 3×3: hopper through copies, not gemm) and of
128→3 (direct, not gemm), and 5 × 5 depthwise convolutions of stride 2 in 16 bits run with more blocks;
31×31 has got kernels on tensor cores ([tuning-log.md](tuning-log.md)).

![The ratio of every case](performance.png)
"""


def document() -> Iterator[str]:
    """docs/performance.md."""
    from bench import host, models

    first, layers = read("h200-layers.jsonl")
    sections = {
        "Models": [
            "Training step (forward, backward) and inference in bf16, by `fastops.convert` and nothing else.",
            "",
            *models.table(read("h200-models.jsonl")[1]),
        ],
        "Layers, in short": summary(layers),
        "The host's cost": [
            "Microseconds until a call returns, on an image of a few elements.",
            "",
            *host.table(read("h200-host.jsonl")[1]),
        ],
        "Layers": table(first, layers),
    }
    yield INTRODUCTION.rstrip()
    for title, lines in sections.items():
        yield from ("", f"## {title}", "", *lines)


def draw(records: list[Record], path: Path) -> None:
    """A bar per case, from the best to the worst."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = sorted(
        (r, f"{ours['row']} {ours['pass']} {ours['layout']}")
        for ours, theirs, _ in pairs(records)
        if (r := ratio(ours, theirs)) is not None
    )
    figure, axes = pyplot.subplots(figsize=(11, 4.5))
    colours = ["tab:green" if r >= 1 else "tab:red" for r, _ in cases]
    axes.bar(range(len(cases)), [math.log2(r) for r, _ in cases], color=colours, width=1.0)
    ticks = range(math.floor(math.log2(cases[0][0])), math.ceil(math.log2(cases[-1][0])) + 1)
    axes.set_yticks(ticks, [f"{2**t}" if t >= 0 else f"1/{2**-t}" for t in ticks])
    axes.set_ylabel("torch's time / fastops' time")
    axes.set_xlabel(f"{len(cases)} cases: row, pass, layout")
    axes.set_title("NVIDIA H200: each case beside torch in the same layout")
    axes.axhline(0, color="black", linewidth=0.8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    (DOCS / "performance.md").write_text("\n".join(document()) + "\n")
    draw(read("h200-layers.jsonl")[1], DOCS / "performance.png")


if __name__ == "__main__":
    main()
