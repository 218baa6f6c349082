"""Tables and a picture from records: ``python -m bench.report`` makes docs/performance.md of bench/data."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import goals

Record = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
DATA, DOCS = ROOT / "bench" / "data", ROOT / "docs"


def floor(record: Record, ceilings: dict[str, Any]) -> float:
    """The seconds that no kernel can go below on this machine. Of 3 × 3 convolutions with stride 1 the
    multiplications of Winograd's F(2 × 2, 3 × 3) count, which are fewer than the plain sum's."""
    if "threads" in record:
        ceilings = ceilings[str(record["threads"])]
    operations = record.get("least_flops", record["flops"])
    return max(record["bytes"] / ceilings["copy"], operations / ceilings[record["dtype"]])


# The ceilings are those of one copy and one product; what is above them by more than this is not believed.
BELIEVED = 1.1


def believed(ours: Record, theirs: Record, ceilings: dict[str, Any]) -> bool:
    """Whether a case may count: a win is none when it goes beyond what the machine can do."""
    r = ratio(ours, theirs)
    return r is None or r <= 1 or floor(ours, ceilings) <= BELIEVED * ours["seconds"]


def pairs(records: list[Record]) -> Iterator[tuple[Record, Record, float | None]]:
    """fastops' and torch's record of each case, and torch's best time over the layouts."""
    by: dict[tuple[Any, ...], dict[str, Record]] = {}
    for r in records:
        by.setdefault(case_of(r), {})[r["by"]] = r
    best: dict[tuple[Any, ...], float] = {}
    for key, both in by.items():
        seconds = both.get("torch", {}).get("seconds")
        if seconds:
            best[key[:4]] = min(seconds, best.get(key[:4], math.inf))
    for key, both in by.items():
        if {"fastops", "torch"} <= {*both}:
            yield both["fastops"], both["torch"], best.get(key[:4])


def others(records: list[Record]) -> dict[str, dict[tuple[Any, ...], Record]]:
    """The records of the contenders beside fastops and torch, by name and case."""
    found: dict[str, dict[tuple[Any, ...], Record]] = {}
    for r in records:
        if r["by"] not in ("fastops", "torch"):
            found.setdefault(r["by"], {})[case_of(r)] = r
    return found


def case_of(r: Record) -> tuple[Any, ...]:
    return r["row"], r["pass"], r["dtype"], r.get("threads"), r["layout"]


def cold(records: list[Record]) -> str:
    """What the first calls took, in words."""
    by: dict[str, list[float]] = {}
    for r in records:
        if "cold" in r:
            by.setdefault(r["by"], []).append(r["cold"])
    each = (f"{name} {statistics.median(t) * 1e3:.1f} (at most {max(t) * 1e3:.0f})" for name, t in by.items())
    return f"A case's first call with what prepares it, ms, the median: {', '.join(each)}." if by else ""


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
    threaded = any("threads" in r for r in records)
    heads = ["row", "pass", "dtype", "layout", *(["threads"] if threaded else [])]
    heads += ["fastops µs", "torch µs", "ratio", "to best layout"]
    heads += ["GB/s", "GFLOP/s", "of the roof", "torch's", "differ"]
    precise = any("error_fp64" in r for r in records)
    heads += ["error", "torch's error", "workspace MB", "torch's"] if precise else []
    hosts = any("host_seconds" in r for r in records)
    heads += ["host µs", "torch's"] if hosts else []
    more = others(records)
    heads += [f"{name} µs" for name in more]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    ratios = []
    for ours, theirs, best in pairs(records):
        head = f"| {ours['row']} | {ours['pass']} | {ours['dtype']} | {ours['layout']} |"
        head += f" {ours['threads']} |" if threaded else ""
        times = ratio(ours, theirs)
        if times is None:
            failed = [ours.get("error", "ok")[:80], theirs.get("error", "ok")[:80]]
            yield f"{head} {' | '.join(failed)} |" + " |" * (len(heads) - 6 - threaded)
            continue
        a, b, least = ours["seconds"], theirs["seconds"], floor(ours, ceilings)
        if believed(ours, theirs, ceilings):
            ratios.append(times)
        to_best = f"{best / a:.2f}" if best else ""
        differ = f"{ours['difference']:.0e}" if "difference" in ours else ""
        parts = [f"{'wrong: ' * (least > BELIEVED * s)}{100 * least / s:.0f} %" for s in (a, b)]
        cells = [f"{a * 1e6:.1f}", f"{b * 1e6:.1f}", f"{times:.2f}", to_best]
        cells += [f"{ours['bytes'] / a / 1e9:.1f}", f"{ours['flops'] / a / 1e9:.0f}" if ours["flops"] else ""]
        cells += [*parts, differ]
        if precise:
            cells += [f"{r['error_fp64']:.1e}" if "error_fp64" in r else "" for r in (ours, theirs)]
            cells += [f"{r['workspace'] / 1e6:.1f}" if "workspace" in r else "" for r in (ours, theirs)]
        if hosts:
            cells += [f"{r['host_seconds'] * 1e6:.1f}" if "host_seconds" in r else "" for r in (ours, theirs)]
        for found in more.values():
            other = found.get(case_of(ours), {})
            cells.append(
                f"{other['seconds'] * 1e6:.1f}" if "seconds" in other else other.get("error", "")[:40]
            )
        yield f"{head} {' | '.join(cells)} |"
    if ratios:
        yield ""
        below = sum(r < 1 for r in ratios)
        yield f"{len(ratios)} cases, geometric mean of the ratios {mean(ratios):.2f}, {below} below 1."
    if line := cold(records):
        yield ""
        yield line


def summary(first: Record, records: list[Record], by_dtype: bool = False) -> Iterator[str]:
    """Markdown: a line per op, layout and pass; and dtype."""
    groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for ours, theirs, _ in pairs(records):
        r, op = ratio(ours, theirs), ours["op"]
        if op == "conv2d":
            depthwise = any(n in ours["row"] for n in ("MobileNet", "ConvNeXt", "RepLKNet"))
            op = "conv2d, depthwise" if depthwise else "conv2d" if by_dtype else f"conv2d, {ours['dtype']}"
        if by_dtype:
            op += f", {ours['dtype']}"
        if r is not None and believed(ours, theirs, first["ceilings"]):
            groups[op, ours["layout"], ours["pass"]].append(r)
    yield "| op | layout | pass | cases | geometric mean | least | most |"
    yield "|---|---|---|---|---|---|---|"
    for key, r in sorted(groups.items()):
        yield f"| {' | '.join(key)} | {len(r)} | {mean(r):.2f} | {min(r):.2f} | {max(r):.2f} |"


def read(name: str) -> tuple[Record, list[Record]]:
    lines = [json.loads(line) for line in (DATA / name).read_text().splitlines()]
    return lines[0], lines[1:]


def goal_cases(first: Record, records: list[Record]) -> list[goals.Case]:
    """The cases that goals are asked of."""
    found = []
    for ours, theirs, _ in pairs(records):
        r = ratio(ours, theirs)
        if r is not None and believed(ours, theirs, first["ceilings"]):
            least = floor(ours, first["ceilings"])
            roofs_reached = least / ours["seconds"], least / theirs["seconds"]
            names = [ours[key] for key in ("op", "row", "pass", "dtype", "layout")]
            top = first["ceilings"].get(str(ours.get("threads")), first["ceilings"])[ours["dtype"]]
            speed = ours["flops"] / ours["seconds"] / top if ours["flops"] > 1e9 else None
            found.append(goals.Case(*names, r, *roofs_reached, speed))
    return found


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

![Every case under the roofs](performance-roofline.png)
"""


ON_A_CPU = """One image, two threads, on two cores of an AMD Zen 4 with AVX-512 that other machines share
(one thread: below, some of the rows, at random); torch with the oneDNN that it brings. The wall clock;
data that the caches do not hold. *error*: ‖y − y64‖ / ‖y64‖ against fp64; *workspace*: of torch's
allocator, beside the results, without what oneDNN takes from malloc. *wrong*: more than 10 % beyond what
this run's copy or products reached; such a case does not count as a win. *GFLOP/s* counts the plain sum's
operations also where Winograd needs 16 of 36; the roof counts the fewer.

![The ratio of every case on the CPU](performance-cpu.png)

![Every case with two threads under the roofs](performance-roofline-cpu.png)""".splitlines()


GOALS_OF_THE_CPU = """What was to be reached (`bench/goals.py`), with two threads: torch's time over fastops',
geometric means. *AVX2*: both without AVX-512 (`FASTOPS_ISA=avx2`, `ONEDNN_MAX_CPU_ISA=AVX2`,
`ATEN_CPU_CAPABILITY=avx2`), some of the rows, at random, as with eight images.""".splitlines()


def document() -> Iterator[str]:
    """docs/performance.md."""
    from bench import host, models, scaling

    first, layers = read("h200-layers.jsonl")
    cpu, on_cpu = read("cpu-layers.jsonl")
    one_thread = read("cpu-layers-one-thread.jsonl")
    cpu_runs = {
        "one image": goal_cases(cpu, on_cpu),
        "eight images": goal_cases(*read("cpu-layers-eight-images.jsonl")),
        "one image, AVX2": goal_cases(*read("cpu-layers-avx2.jsonl")),
    }
    sections = {
        "Models": [
            "Training step (forward, backward) and inference in bf16, by `fastops.convert` and nothing else.",
            "",
            *models.table(read("h200-models.jsonl")[1]),
        ],
        "Layers, in short": summary(first, layers),
        "The host's cost": [
            "Microseconds until a call returns, on an image of a few elements.",
            "",
            *host.table(read("h200-host.jsonl")[1]),
            "",
            "On the CPU of the section below, computing included:",
            "",
            *host.table(read("cpu-host.jsonl")[1]),
        ],
        "On a CPU, in short": [*ON_A_CPU, "", *summary(cpu, on_cpu, by_dtype=True)],
        "On a CPU: goals": [
            *GOALS_OF_THE_CPU,
            "",
            *goals.table(cpu_runs),
            "",
            *goals.calls_and_models(
                cpu_runs["one image"], read("cpu-host.jsonl")[1], read("cpu-models.jsonl")[1]
            ),
        ],
        "On a CPU, one thread, in short": summary(*one_thread, by_dtype=True),
        "On a CPU: models": [
            "Training step and inference in fp32, two threads, two images (SegNet and U-Net: one of 64²).",
            "",
            *models.table(read("cpu-models.jsonl")[1]),
        ],
        "On a CPU: growth": [
            "![Times over what grows](performance-scaling.png)",
            "",
            *scaling.table(*read("cpu-scaling.jsonl")),
        ],
        "Layers": table(first, layers),
        "On a CPU": table(cpu, on_cpu),
        "On a CPU, one thread": table(*one_thread),
    }
    yield INTRODUCTION.rstrip()
    for title, lines in sections.items():
        yield from ("", f"## {title}", "", *lines)


def draw(first: Record, records: list[Record], path: Path, where: str) -> None:
    """A bar per case, from the best to the worst."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = sorted(
        (r, ours["row"])
        for ours, theirs, _ in pairs(records)
        if (r := ratio(ours, theirs)) is not None and believed(ours, theirs, first["ceilings"])
    )
    figure, axes = pyplot.subplots(figsize=(11, 4.5))
    colours = ["tab:green" if r >= 1 else "tab:red" for r, _ in cases]
    axes.bar(range(len(cases)), [math.log2(r) for r, _ in cases], color=colours, width=1.0)
    ticks = range(math.floor(math.log2(cases[0][0])), math.ceil(math.log2(cases[-1][0])) + 1)
    axes.set_yticks(ticks, [f"{2**t}" if t >= 0 else f"1/{2**-t}" for t in ticks])
    axes.set_ylabel("torch's time / fastops' time")
    axes.set_xlabel(f"{len(cases)} cases: row, pass, layout, dtype")
    axes.set_title(f"{where}: each case beside torch in the same layout")
    axes.axhline(0, color="black", linewidth=0.8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def draw_roofline(first: Record, records: list[Record], path: Path) -> None:
    """Operations a second over operations a byte under the roofs, and bytes a second of what only moves
    bytes, of both contenders; on a CPU with the most threads."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [r for r in records if "seconds" in r]
    ceilings = first["ceilings"]
    if any("threads" in r for r in records):
        most = max(r["threads"] for r in records)
        records, ceilings = [r for r in records if r["threads"] == most], ceilings[str(most)]
    figure, (products, moves) = pyplot.subplots(1, 2, figsize=(11, 4.5))
    for by, colour, marker in (("torch", "tab:orange", "x"), ("fastops", "tab:green", ".")):
        own = [r for r in records if r["by"] == by]
        worked, moved = ([r for r in own if bool(r["flops"]) == wanted] for wanted in (True, False))
        style = dict(color=colour, marker=marker, s=18, linewidths=0.8, label=by)
        products.scatter(
            [r["flops"] / r["bytes"] for r in worked],
            [r["flops"] / r["seconds"] / 1e9 for r in worked],
            **style,
        )
        moves.scatter(
            [r["bytes"] / 1e6 for r in moved], [r["bytes"] / r["seconds"] / 1e9 for r in moved], **style
        )
    reach = [r["flops"] / r["bytes"] for r in records if r["flops"]]
    for dtype in dict.fromkeys(r["dtype"] for r in records):
        corner = ceilings[dtype] / ceilings["copy"]
        x = sorted({min(reach), min(max(corner, min(reach)), max(reach)), max(reach)})
        y = [min(ceilings["copy"] * v, ceilings[dtype]) / 1e9 for v in x]
        products.plot(x, y, linewidth=0.8, label=f"roof, {dtype}")
    moves.axhline(ceilings["copy"] / 1e9, color="black", linewidth=0.8, label="copy")
    products.set_xlabel("operations / byte, at least")
    products.set_ylabel("GFLOP/s")
    products.set_title("convolution")
    moves.set_xlabel("MB moved, at least")
    moves.set_ylabel("GB/s")
    moves.set_title("what only moves bytes")
    for axes in (products, moves):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def draw_scaling(first: Record, records: list[Record], path: Path) -> None:
    """A field per pass and thing that grows: both contenders, and the floor."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes_of = [*dict.fromkeys(r["axis"] for r in records)]
    passes = [*dict.fromkeys(r["pass"] for r in records)]
    figure, fields = pyplot.subplots(
        len(passes), len(axes_of), figsize=(2.6 * len(axes_of), 7), squeeze=False
    )
    for (i, name), (j, axis) in itertools.product(enumerate(passes), enumerate(axes_of)):
        field = fields[i][j]
        cases = [r for r in records if r["axis"] == axis and r["pass"] == name and "seconds" in r]
        for by, colour in (("fastops", "tab:green"), ("torch", "tab:orange")):
            own = [r for r in cases if r["by"] == by]
            field.plot(
                [r["value"] for r in own], [r["seconds"] * 1e6 for r in own], "o-", color=colour, label=by
            )
        own = [r for r in cases if r["by"] == "fastops"]
        least = [floor(r, first["ceilings"]) * 1e6 for r in own]
        field.plot([r["value"] for r in own], least, "k--", linewidth=0.8, label="floor")
        field.set_xscale("log", base=2)
        field.set_yscale("log")
        field.set_title(f"{name}, µs over {axis}", fontsize=8)
        field.tick_params(labelsize=7)
    fields[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    (DOCS / "performance.md").write_text("\n".join(document()) + "\n")
    draw(*read("h200-layers.jsonl"), DOCS / "performance.png", "NVIDIA H200")
    draw(*read("cpu-layers.jsonl"), DOCS / "performance-cpu.png", "AMD Zen 4, two threads")
    draw_roofline(*read("h200-layers.jsonl"), DOCS / "performance-roofline.png")
    draw_roofline(*read("cpu-layers.jsonl"), DOCS / "performance-roofline-cpu.png")
    draw_scaling(*read("cpu-scaling.jsonl"), DOCS / "performance-scaling.png")


if __name__ == "__main__":
    main()
