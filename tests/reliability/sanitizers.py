"""Sanitizers over every kernel. A case is a test of the suite; a failure is a test that fails, or something
that the tool finds. The goal is none.

- *CPU kernels*: address and undefined-behaviour sanitizers (GCC), without the search for leaks, which Python
  and torch have. Race detector (GCC): every call on threads
  made by the kernels' own `csrc/threads.cpp`, since the detector does not understand the OpenMP runtime that
  torch brings. In the long form only. Not run are tests that start processes or compile, which would not have
  the sanitized module; that ask how long something takes; of torch's compilers; of whole networks; and of
  files that are not about the CPU's kernels (`ELSEWHERE` in the source).
- *CUDA kernels* in the emulation (`docs/emulation.md`): the same sanitizers, and a race detector that knows
  blocks and warps. The quick form counts what continuous integration has run just before, or runs one file.

Not here: compute-sanitizer, which needs a GPU (`make gpu`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tests import simt
from tests.reliability import sanitized, suite
from tests.reliability.tally import Tally

ROOT = Path(__file__).resolve().parents[2]
# Where .ci/run leaves pytest's reports: <mode>-<number>.xml.
REPORTS = ROOT / "build" / "simt-reports"
# Not run: tests that start processes, which would not have the sanitized module, or compile; that ask how
# long something takes; those of torch's compilers, which take minutes for the same kernels; and whole
# networks, beside torch's distance from fp64: this build rounds otherwise (-O1), and one ReLU that turns
# moves a gradient by ten times that.
ELSEWHERE = (
    "install",
    "build",
    "doctor",
    "distributed",
    "reliability",
    "bench",
    "onnx",
    "simt",
    "triton",
    "networks",
)
CHOSEN = "not cuda-emulated and not costs_nothing and not compile and not export and not graph_breaks"
EMULATED = {"asan": sanitized.FINDS["address"], "race": "races between threads, blocks and copies"}
QUICK = tuple(f"emulation, {mode}" for mode in EMULATED)
PARTS = (*(f"cpu, {mode}" for mode in sanitized.MODES), *QUICK)


def reported(tally: Tally, mode: str) -> Tally | None:
    """What continuous integration has just run, if its reports are newer than the kernels."""
    sources = (p for folder in ("csrc", "tests/simt") for p in (ROOT / folder).rglob("*.*"))
    newest = max(p.stat().st_mtime for p in sources if p.suffix != ".pyc")
    reports = sorted(REPORTS.glob(f"{mode}-*.xml"))
    if not reports or min(r.stat().st_mtime for r in reports) < newest:
        return None
    tally.note = "as continuous integration ran it"
    for report in reports:
        suite.count(tally, report)
    return tally


def emulated(mode: str, quick: bool) -> Tally:
    """The emulation's own command; quick: enough to see whether the tool works."""
    tally = Tally("suite", EMULATED[mode], simt.NAME)
    if why := simt.why_unavailable():
        tally.skipped, tally.reasons = 1, {why: 1}
        return tally
    if quick and (found := reported(tally, mode)):
        return found
    some = ["tests/test_regressions.py"] if quick else ["tests", "-m", "long or not long"]
    return suite.run(tally, [sys.executable, "-m", "tests.simt", mode, *some, "-k", simt.NAME], ROOT)


def on_the_cpu(mode: str) -> Tally:
    tally = Tally("suite", sanitized.FINDS[mode], "cpu")
    environment = {**sanitized.environment(mode), "FASTOPS_SANITIZED": str(sanitized.build(mode))}
    ignored = [f"--ignore=tests/test_{name}.py" for name in ELSEWHERE]
    chosen = ["tests", "-k", CHOSEN, *ignored]
    # What the tool says is on the process's own stderr; the last test is the one that it said it of.
    chosen += ["--capture=sys", "-vv"]
    command = sanitized.command(mode, "-m", "tests.reliability.sanitized", mode, *chosen)
    return suite.run(tally, command, ROOT, environment)


def run(quick: bool, part: str) -> Iterator[Tally]:
    where, mode = part.split(", ")
    yield on_the_cpu(mode) if where == "cpu" else emulated(mode, quick)
