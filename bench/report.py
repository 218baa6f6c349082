"""Tables from a run's records: ``python -m bench.report build/bench.jsonl``."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def floor(record: Record, ceilings: dict[str, float]) -> float:
    """The seconds that no kernel can go below on this machine."""
    return max(record["bytes"] / ceilings["copy"], record["flops"] / ceilings[record["dtype"]])


def pairs(records: list[Record]) -> Iterator[tuple[Record, Record, float | None]]:
    """fastops' and torch's record of each case, and torch's best time over the layouts."""
    by: dict[tuple[str, ...], dict[str, Record]] = {}
    for r in records:
        by.setdefault((r["row"], r["pass"], r["dtype"], r["layout"]), {})[r["by"]] = r
    best: dict[tuple[str, ...], float] = {}
    for key, both in by.items():
        seconds = both.get("torch", {}).get("seconds")
        if seconds:
            best[key[:3]] = min(seconds, best.get(key[:3], math.inf))
    for key, both in by.items():
        if len(both) == 2:
            yield both["fastops"], both["torch"], best.get(key[:3])


def table(first: Record, records: list[Record]) -> Iterator[str]:
    """Markdown: one line per case."""
    ceilings = first["ceilings"]
    roofs = ", ".join(
        f"{name} {v / 1e12:.2f} {'TB/s' if name == 'copy' else 'TFLOP/s'}" for name, v in ceilings.items()
    )
    yield f"{first['device']}, torch {first['torch']}, commit {first['commit'][:12]}; measured: {roofs}."
    yield ""
    heads = ["row", "pass", "layout", "fastops µs", "torch µs", "ratio", "to best layout"]
    heads += ["of the roof", "torch's", "differ"]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    ratios = []
    for ours, theirs, best in pairs(records):
        head = f"| {ours['row']} | {ours['pass']} | {ours['layout']} |"
        if "seconds" not in ours or "seconds" not in theirs:
            yield f"{head} {ours.get('error', 'ok')[:80]} | {theirs.get('error', 'ok')[:80]} | | | | | |"
            continue
        a, b, least = ours["seconds"], theirs["seconds"], floor(ours, ceilings)
        ratios.append(b / a)
        to_best = f"{best / a:.2f}" if best else ""
        differ = f"{ours['difference']:.0e}" if "difference" in ours else ""
        yield (
            f"{head} {a * 1e6:.1f} | {b * 1e6:.1f} | {b / a:.2f} | {to_best} | {100 * least / a:.0f} % | "
            f"{100 * least / b:.0f} % | {differ} |"
        )
    if ratios:
        yield ""
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        below = sum(r < 1 for r in ratios)
        yield f"{len(ratios)} cases, geometric mean of the ratios {mean:.2f}, {below} below 1."


def main() -> None:
    lines = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    print("\n".join(table(lines[0], lines[1:])))


if __name__ == "__main__":
    main()
