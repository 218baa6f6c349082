"""docs/reliability.md, from docs/reliability.jsonl and the sections' docstrings alone."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

from bench.machine import describe
from tests.reliability import SECTIONS

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "docs" / "reliability.jsonl"
PAGE = ROOT / "docs" / "reliability.md"
QUICK = ROOT / "build" / "reliability.jsonl"  # a quick run's: it takes no long one's place

HEAD = """# Reliability

Written by `make reliability` from [reliability.jsonl](reliability.jsonl); nothing here is typed by hand.
A case is one call, or one comparison, that could fail. Skipped ones are not among the cases.
"""
NOT_ASKED = "counted, not asked"  # in a line's `asked`: nothing there is a failure
COLUMNS = ("what", "asked", "backend", "dtype", "layout", "cases", "failed", "skipped", "worst", "note")


def machine() -> dict[str, Any]:
    """The machine, versions and commit of a run."""
    return {k: v for k, v in describe("cpu").items() if k not in ("date", "device")}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(path: Path, run: dict[str, Any]) -> None:
    """Replaces the record of that process of that section, or adds it; in the order of the sections."""

    def which(record: dict[str, Any]) -> tuple[str, str]:
        return record["section"], record["process"]

    records = [run if which(r) == which(run) else r for r in read(path)]
    records += [run] * (run not in records)
    records.sort(key=lambda r: SECTIONS.index(r["section"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


def total(run: dict[str, Any], key: str) -> int:
    return sum(t.get(key, 0) for t in run["tallies"])


def headline(runs: list[dict[str, Any]]) -> str:
    """What README says of all runs together: of what could fail."""
    asked = [t for run in runs for t in run["tallies"] if NOT_ASKED not in t["asked"]]
    cases, failed = (sum(t.get(key, 0) for t in asked) for key in ("cases", "failed"))
    return f"{cases:,} cases, {failed:,} failed"


def summary(run: dict[str, Any]) -> str:
    """One line for the terminal, and the failures."""
    name = f"{run['section']} {run['process']}".strip()
    counts = f"{total(run, 'cases'):,} cases, {total(run, 'failed')} failed, {total(run, 'skipped')} skipped"
    lines = [f"{name}: {counts}, {run['seconds']} s", *([run["ended"]] if run["ended"] else [])]
    lines += [f"  {t['what']}: {f}" for t in run["tallies"] for f in t.get("failures", ())]
    return "\n".join(lines)


def text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Markdown, without the columns that are empty in every row."""
    used = [i for i in range(len(header)) if any(row[i] for row in rows)]
    lines = [[header[i] for i in used], ["---"] * len(used), *([row[i] for i in used] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def line(tally: dict[str, Any]) -> list[str]:
    cells = {k: text(tally.get(k, "")) for k in COLUMNS}
    cells["failed"] = text(tally.get("failed", 0))
    cells["skipped"] = text(tally["skipped"]) if tally.get("skipped") else ""
    if tally.get("unit") and cells["worst"]:
        cells["worst"] += f" {tally['unit']}"
    return [cells[k] for k in COLUMNS]


def page(runs: list[dict[str, Any]]) -> str:
    lines = [HEAD]
    rows = []
    for run in runs:
        name = run["section"] + (f" ({run['process']})" if run["process"] else "")
        mode = "quick" if run["quick"] else "long"
        counts = [f"{total(run, key):,}" for key in ("cases", "failed", "skipped")]
        rows.append(
            [name, mode, *counts, f"{run['seconds']:,}", run["date"][:10], run["commit"][:9], run["ended"]]
        )
    lines += table(
        ["section", "form", "cases", "failed", "skipped", "seconds", "date", "commit", "ended"], rows
    )
    lines += ["", f"In all {headline(runs)}. Cases of the CPU's kernels run for each instruction set."]
    for section in dict.fromkeys(run["section"] for run in runs):
        of_section = [run for run in runs if run["section"] == section]
        first = of_section[0]
        doc = inspect.getdoc(importlib.import_module(f"tests.reliability.{section}")) or ""
        lines += ["", f"## {section.replace('_', ' ')}", "", doc, ""]
        on = f"{first['processor']}, {first['threads']} threads"
        lines.append(f"torch {first['torch']}, Python {first['python']}, {on}.")
        tallies = [t for run in of_section for t in run["tallies"]]
        if tallies:
            lines += ["", *table(list(COLUMNS), [line(t) for t in tallies])]
        failures = [f"- {t['what']}: {f}" for t in tallies for f in t.get("failures", ())]
        lines += ["", "Failures:", "", *failures] if failures else []
        reasons: dict[str, int] = {}
        for tally in tallies:
            for reason, count in tally.get("reasons", {}).items():
                reasons[reason] = reasons.get(reason, 0) + count
        lines += ["", "Skipped:", "", *(f"- {r}: {n:,}" for r, n in reasons.items())] if reasons else []
    return "\n".join(lines) + "\n"
