"""python -m bench.compare A B: what has become slower between two runs of the benchmark.

Runs are compared by their ratios, torch's time over fastops': torch was measured beside fastops in each, so a
machine that is busier, or another one, changes both. Exits with 1 if a case has lost more than --threshold,
or fails now and did not before.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.report import mean, ratio

Record = dict[str, Any]
# What identifies a case, in any of the suites; the fields that a suite does not have are empty.
KEY = ("suite", "axis", "value", "model", "kind", "call", "row", "pass", "dtype", "layout", "threads")


class Change(NamedTuple):
    """A case in both runs: its ratios there, None where fastops failed."""

    case: str
    before: float | None
    after: float | None

    @property
    def factor(self) -> float:
        """By how much it is faster than before; 0: it fails now, infinite: it no longer does."""
        if self.after is None:
            return 1.0 if self.before is None else 0.0
        return math.inf if self.before is None else self.after / self.before


def ratios(records: list[Record]) -> dict[str, float | None]:
    """Case → torch's time over fastops', None where fastops has none. What torch fails in is left out."""
    by: dict[str, dict[str, Record]] = {}
    for r in records:
        if "by" in r:
            by.setdefault(", ".join(str(r[k]) for k in KEY if k in r), {})[r["by"]] = r
    found = {}
    for case, both in by.items():
        if "seconds" in both.get("torch", {}):
            found[case] = ratio(both.get("fastops", {}), both["torch"])
    return found


def changes(before: list[Record], after: list[Record]) -> list[Change]:
    """Of the cases that both runs have, the worst first."""
    old, new = ratios(before), ratios(after)
    return sorted((Change(c, old[c], new[c]) for c in old if c in new), key=lambda change: change.factor)


def report(found: list[Change], threshold: float) -> Iterator[str]:
    """Markdown: the cases that changed by more than the threshold, either way."""

    def shown(value: float | None) -> str:
        return "fails" if value is None else f"{value:.2f}"

    yield "| case | torch ÷ fastops before | after | change |"
    yield "|---|---|---|---|"
    for change in found:
        if not 1 / threshold <= change.factor <= threshold:
            yield f"| {change.case} | {shown(change.before)} | {shown(change.after)} | {change.factor:.2f} |"
    both = [c.factor for c in found if c.before and c.after]
    yield ""
    average = f"; geometric mean of the changes {mean(both):.3f}" if both else ""
    yield f"{len(found)} cases in both{average}."


def read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__.split("\n\n")[0])  # type: ignore[union-attr]
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--threshold", type=float, default=1.2, help="a factor above 1; default 1.2")
    options = parser.parse_args(arguments)
    found = changes(read(options.before), read(options.after))
    print("\n".join(report(found, options.threshold)))
    return int(any(change.factor < 1 / options.threshold for change in found))


if __name__ == "__main__":
    sys.exit(main())
