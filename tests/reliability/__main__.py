"""Runs the sections, each in a process of its own, and writes what they found.

A section is a module with ``run(quick) -> Iterator[Tally]``; its docstring's first paragraph stands above its
table. Sections that name ``INTERPRETED = True`` run once more with Triton's interpreter, where a Triton is.
A process that dies, or outlives its time, is a failure of its section, not the end of the scoreboard.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tests.reliability import report

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = (
    "samples",
    "bad_input",
    "fuzz",
    "numerics",
    "determinism",
    "concurrency",
    "large",
    "sanitizers",
    "supply",
)
LONGEST = {True: 900, False: 6 * 3600}  # seconds of one process, quick or not


def child(section: str, quick: bool, out: str) -> None:
    """In the process of its own: one line of JSON per tally, as they come."""
    with open(out, "a") as file:
        for tally in importlib.import_module(f"tests.reliability.{section}").run(quick):
            file.write(json.dumps(tally.record()) + "\n")
            file.flush()


def run(section: str, quick: bool, interpreted: bool) -> dict[str, Any]:
    """One process; what is returned is a line of docs/reliability.jsonl."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    mode = ["--quick"] if quick else []
    begin = time.monotonic()
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as out:
        command = [sys.executable, "-m", "tests.reliability", *mode, "--child", section, "--out", out.name]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, timeout=LONGEST[quick]
            )
            ended = "" if done.returncode == 0 else f"exit {done.returncode}: {done.stderr.strip()[-600:]}"
        except subprocess.TimeoutExpired:
            ended = f"not done after {LONGEST[quick]} s"
        tallies = [json.loads(line) for line in out]
    return {
        "section": section,
        "process": "interpreter" if interpreted else "",
        "quick": quick,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - begin),
        "ended": ended,
        "tallies": tallies,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few cases of each kind: for every commit")
    parser.add_argument("--only", nargs="+", metavar="SECTION", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--out", type=Path, default=report.DATA, help="where the records are kept")
    parser.add_argument("--child", choices=SECTIONS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.quick, arguments.out)
        return 0
    triton = importlib.util.find_spec("triton") is not None
    runs = []
    for section in arguments.only:
        module = importlib.import_module(f"tests.reliability.{section}")
        for interpreted in (False, True) if triton and getattr(module, "INTERPRETED", False) else (False,):
            runs.append({**run(section, arguments.quick, interpreted), **report.machine()})
            print(report.summary(runs[-1]), flush=True)
    report.keep(arguments.out, runs)
    if arguments.out == report.DATA:
        report.PAGE.write_text(report.page(report.read(report.DATA)))
    return int(any(r["ended"] or any(t.get("failed") for t in r["tallies"]) for r in runs))


if __name__ == "__main__":
    raise SystemExit(main())
