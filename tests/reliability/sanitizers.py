"""Sanitizers over every kernel, and arguments that nobody should give. A case is a test of the suite, or a
raw call of a launcher; a failure is a test that fails or a finding of the tool. The goal is none.

- *CPU kernels*: address and undefined-behaviour sanitizers (GCC), over the suite and over raw calls of which
  each tensor is an allocation of its own. Race detector (GCC): every call on threads made by the kernels' own
  `csrc/threads.cpp`, since the detector does not understand the OpenMP runtime that torch brings.
- *CUDA kernels* in the emulation (`docs/emulation.md`): the same sanitizers, and a race detector that knows
  blocks and warps. The quick form counts what continuous integration has run just before, or runs one file.
- *Raw calls* go to `fastops._C` below all of Python's checks. *valid*: params and memory as the launcher's
  contract has them, with guards around each tensor; *hostile*: some fields, addresses or thread counts are
  something else; what is surely forbidden must raise ValueError. *blind*: every field arbitrary, no memory;
  *surface*: any function with any arguments. A crash, a hang, a byte written beside a tensor, and an error of
  another kind are failures. A wrong address that is not null cannot be recognised: none is tried. No fuzzer
  guided by coverage: the kernels are built by GCC, calls are made by a generator that knows the params.

Not here: compute-sanitizer, which needs a GPU (`make gpu`).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fastops import _C
from tests import simt
from tests.reliability import raw_fuzz, sanitized, suite
from tests.reliability.tally import KEPT, Tally

ROOT = Path(__file__).resolve().parents[2]
# Where .ci/run leaves pytest's reports: <mode>-<number>.xml.
REPORTS = ROOT / "build" / "simt-reports"
BATCH = 20_000  # raw calls of a process
# Tests that start processes, which would not have the sanitized module, or compile. (Nor are those run that
# ask how long something takes.)
ELSEWHERE = (
    "test_install.py test_build.py test_doctor.py test_distributed.py test_reliability.py test_bench.py"
)
SUITES = {"address": "address and undefined behaviour", "thread": "races between threads"}


# ---- raw calls -----------------------------------------------------------------------------------


def raw_calls(
    what: str, module: Path, calls: int, kinds: tuple[str, ...], seed: int, mode: str = "", *more: str
) -> Iterator[Tally]:
    """Raw calls of a build, in processes of BATCH calls; a tally per kind."""
    tallies = {
        kind: Tally(
            f"raw calls, {kind}", SUITES.get(mode, "raises or succeeds"), backend=what, note=f"seed {seed}"
        )
        for kind in kinds
    }
    environment = sanitized.environment(mode) if mode else dict(os.environ)
    start = 0
    while start < calls:
        count = min(BATCH, calls - start)
        with tempfile.NamedTemporaryFile("r") as at:
            arguments = ["-m", "tests.reliability.raw_fuzz", "--module", module, "--kinds", *kinds, *more]
            arguments += ["--calls", count, "--start", start, "--seed", seed, "--at", at.name]
            command = sanitized.command(mode, *map(str, arguments))
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
            )
            reached = int(at.read() or start)
        if done.returncode == 0:
            found = json.loads(done.stdout.splitlines()[-1])
            for name, number in found["counts"].items():
                kind, op = name.split(" ", 1)
                tallies[kind].cases += number
                tallies[kind].failed += number if op == "failed" else 0
            for failure in found["failures"]:
                tally = tallies[failure.split(",")[0]]
                tally.failures += [failure] * (len(tally.failures) < KEPT)
            start += count
            continue
        # It died: the calls before that one are lost to the count, those after it are tried.
        how = "hangs" if done.returncode == -signal.SIGALRM else suite.how_it_died(done)
        suite.note(tallies[kinds[reached % len(kinds)]], f"seed {seed}, call {reached}: {how}")
        if sum(t.failed for t in tallies.values()) > 10 * KEPT:
            break
        start = reached + 1
    yield from tallies.values()


# ---- the suite -----------------------------------------------------------------------------------


def emulated(mode: str) -> Tally:
    tool = {"asan": "address and undefined behaviour", "race": "races between threads, blocks and copies"}[
        mode
    ]
    return Tally("suite", tool, backend=simt.NAME)


def reported(mode: str) -> Tally | None:
    """What continuous integration has just run, if its reports are newer than the kernels."""
    sources = (p for folder in ("csrc", "tests/simt") for p in (ROOT / folder).rglob("*.*"))
    newest = max(p.stat().st_mtime for p in sources if p.suffix != ".pyc")
    reports = sorted(REPORTS.glob(f"{mode}-*.xml"))
    if not reports or min(r.stat().st_mtime for r in reports) < newest:
        return None
    tally = emulated(mode)
    tally.note = "as continuous integration ran it"
    for report in reports:
        suite.count(tally, report)
    return tally


def run(quick: bool) -> Iterator[Tally]:
    seed = 0 if quick else random.SystemRandom().randrange(1 << 30)
    module = Path(_C.__file__)
    calls = 20_000 if quick else 1_000_000
    yield from raw_calls("as built", module, calls, raw_fuzz.KINDS, seed)
    if simt.why_unavailable() is not None:
        yield Tally("suite", "sanitizers", simt.NAME, skipped=1, reasons={str(simt.why_unavailable()): 1})
    else:
        for mode in ("asan", "race"):
            yield (reported(mode) if quick else None) or run_emulated(mode, quick)
    if quick:
        return
    for mode in sanitized.MODES:
        module = sanitized.build(mode)
        kinds = raw_fuzz.KINDS if mode == "address" else ("valid",)
        more = ("--exact",) if mode == "address" else ("--threads", "2", "3", "5")
        yield from raw_calls("cpu", module, 100_000, kinds, seed, mode, *more)
        ignored = [f"--ignore=tests/test_{name}.py" for name in ELSEWHERE]
        chosen = ["tests", "-k", "not cuda-emulated and not costs_nothing", *ignored]
        command = ["-m", "tests.reliability.sanitized", mode, *chosen]
        environment = {**sanitized.environment(mode), "FASTOPS_SANITIZED": str(module)}
        tally = Tally("suite", SUITES[mode], "cpu")
        yield suite.run(tally, sanitized.command(mode, *command), ROOT, environment)


def run_emulated(mode: str, quick: bool) -> Tally:
    """The emulation's own command; quick: enough to see whether the tool works."""
    some = ["tests/test_regressions.py"] if quick else ["tests"]
    command = [sys.executable, "-m", "tests.simt", mode, *some, "-k", simt.NAME]
    return suite.run(emulated(mode), command, ROOT)
