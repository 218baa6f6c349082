"""Runs the sections, each in processes of its own, and writes what they found.

A section is a module with ``run(quick) -> Iterator[Tally]``; its docstring's first paragraph stands above its
table. One that names ``PARTS`` has a process for each, and ``run(quick, part)``, where ``QUICK`` are those of
the quick form; one that names ``INTERPRETED`` runs once more with Triton's interpreter, where a Triton is. A
process that dies, or outlives its time, is a failure of its section, not the end of the scoreboard.
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
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tests.reliability import SECTIONS, report

ROOT = Path(__file__).resolve().parents[2]
INTERPRETER = "interpreter"
LONGEST = {True: 900, False: 6 * 3600}  # seconds of one process, quick or not


def processes(section: str, quick: bool) -> Iterator[str]:
    """Names of the processes of a section: its parts, "" if it has none, or the interpreter's."""
    module = importlib.import_module(f"tests.reliability.{section}")
    parts = getattr(module, "PARTS", ("",))
    yield from getattr(module, "QUICK", parts) if quick else parts
    if getattr(module, "INTERPRETED", False) and importlib.util.find_spec("triton") is not None:
        yield INTERPRETER


def child(section: str, process: str, quick: bool, out: Path) -> None:
    """In the process of its own: one line of JSON per tally, as they come."""
    module = importlib.import_module(f"tests.reliability.{section}")
    arguments = (quick, process) if hasattr(module, "PARTS") else (quick,)
    with out.open("a") as file:
        for tally in module.run(*arguments):
            file.write(json.dumps(tally.record()) + "\n")
            file.flush()


def run(section: str, process: str, quick: bool) -> dict[str, Any]:
    """One process; what is returned is a line of docs/reliability.jsonl."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if process == INTERPRETER:
        environment["TRITON_INTERPRET"] = "1"
    mode = ["--quick"] if quick else []
    begin = time.monotonic()
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as out:
        which = ["--child", f"{section}:{process}", "--out", out.name]
        command = [sys.executable, "-m", "tests.reliability", *mode, *which]
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
        "process": process,
        "quick": quick,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - begin),
        "ended": ended,
        "tallies": tallies,
    }


def chosen(names: list[str], quick: bool) -> list[tuple[str, str]]:
    """Sections and processes of ``section`` or ``section:process``."""
    found = []
    for section, _, process in (name.partition(":") for name in names):
        if section not in SECTIONS:
            raise SystemExit(f"no section {section}: {', '.join(SECTIONS)}")
        there = [one for one in processes(section, quick) if process in ("", one)]
        if not there:
            raise SystemExit(f"no {section}:{process}: {', '.join(processes(section, quick))}")
        found += [(section, one) for one in there]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few cases of each kind: for every commit")
    parser.add_argument("--only", nargs="+", metavar="SECTION[:PROCESS]", default=list(SECTIONS))
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, which begin in this order")
    parser.add_argument(
        "--out",
        type=Path,
        help="where the records are kept, and beside them the page: docs, or build if --quick",
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child.split(":"), arguments.quick, arguments.out)
        return 0
    out = arguments.out or (report.QUICK if arguments.quick else report.DATA)
    lock = threading.Lock()
    machine = report.machine()

    def one(which: tuple[str, str]) -> bool:
        """Runs, keeps and tells one; whether nothing failed."""
        record = {**run(*which, arguments.quick), **machine}
        with lock:
            print(report.summary(record), flush=True)
            report.keep(out, record)
        return not record["ended"] and not any(t.get("failed") for t in record["tallies"])

    with ThreadPoolExecutor(arguments.jobs) as pool:
        passed = list(pool.map(one, chosen(arguments.only, arguments.quick)))
    out.with_suffix(".md").write_text(report.page(report.read(out)))
    return int(not all(passed))


if __name__ == "__main__":
    raise SystemExit(main())
