"""Arguments that nobody should give: raw calls of `fastops._C`, below all of Python's checks. A case is one.

*valid*: params and memory as the launcher's contract has them, with guards around each tensor; *hostile*:
some fields, addresses or thread counts are something else; what is surely forbidden must raise ValueError.
*blind*: every field arbitrary, no memory; *surface*: any function with any arguments. A crash, a hang, a byte
written beside a tensor, and an error of another kind are failures. The goal is none. The launchers of the
CUDA kernels get the same in the emulation, with small tensors.

The long form repeats some with both modules under sanitizers, where each tensor is an allocation of its own,
and lets coverage lead to others of the CPU's (libFuzzer in atheris; the module compiled by clang). A wrong
address that is not null cannot be recognised: none is tried.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fastops import _C
from tests import simt
from tests.reliability import raw_fuzz, sanitized, suite
from tests.reliability.tally import KEPT, Skip, Tally

ROOT = Path(__file__).resolve().parents[2]
BATCH = 20_000  # raw calls of a process
# Inputs of guided.py that found something: an empty tensor's null address was added to.
PAST = ("0909000009c3092f00000004002b0a0a",)
MODULE = Path(_C.__file__)


def raw_calls(
    what: str, module: Path, calls: int, kinds: tuple[str, ...], seed: int, mode: str = "", *more: str
) -> Iterator[Tally]:
    """Raw calls of a build, in processes of BATCH calls; a tally per kind."""
    asked, note = sanitized.FINDS.get(mode, "raises or succeeds"), f"seed {seed}"
    tallies = {kind: Tally(f"raw calls, {kind}", asked, what, note=note) for kind in kinds}
    environment = sanitized.environment(mode) if mode else dict(os.environ)
    start = 0
    while start < calls:
        count = min(BATCH, calls - start)
        with tempfile.NamedTemporaryFile("r") as at:
            arguments = ["-m", "tests.reliability.raw_fuzz", "--module", module, "--kinds", *kinds, *more]
            arguments += ["--calls", count, "--start", start, "--seed", seed, "--at", at.name]
            arguments += ["--hangs", 10 * raw_fuzz.HANGS] if mode else []
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


def with_counters() -> Path:
    """The module with counters; raises Skip where clang or atheris is missing."""
    compilers = [f"clang++{version}" for version in ("", *(f"-{n}" for n in range(22, 13, -1)))]
    compiler = next(filter(shutil.which, compilers), None)
    if compiler is None or importlib.util.find_spec("atheris") is None:
        raise Skip("clang or atheris is not installed")
    return sanitized.compiled(
        "guided",
        CXX=compiler,
        FASTOPS_BASELINE="1",  # a third of the time; plans and checks are the same for all
        FASTOPS_SANITIZE="address,undefined,fuzzer-no-link",
        CXXFLAGS="-O1 -fsanitize-trap=undefined -fno-sanitize=vptr,function",
    )


def led_by_coverage(runs: int, seed: int) -> Tally:
    """That many calls in one process, which the first failure ends."""
    line = Tally("raw calls led by coverage", sanitized.FINDS["address"], "cpu")
    with line.case("the process"):
        module = with_counters()
        atheris = importlib.util.find_spec("atheris")
        assert atheris is not None and atheris.origin is not None
        environment = {
            **os.environ,
            "LD_PRELOAD": str(Path(atheris.origin).parents[1] / "asan_with_fuzzer.so"),
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "PYTHONMALLOC": "malloc",
        }
        with tempfile.TemporaryDirectory() as found:
            past = Path(found) / "past"
            past.mkdir()
            for i, data in enumerate(PAST):
                (past / str(i)).write_bytes(bytes.fromhex(data))
            options = [f"-runs={runs}", f"-seed={seed + 1}", f"-artifact_prefix={found}/"]
            command = [sys.executable, "-m", "tests.reliability.guided", str(module), *options, str(past)]
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
            )
            inputs = [p.read_bytes().hex() for p in Path(found).iterdir() if p != past]
        # Exceptions are on stdout, what sanitizers and libFuzzer find on stderr.
        said = f"{done.stdout.strip()[-200:]} {suite.how_it_died(done)}"
        assert done.returncode == 0, f"{said}; input {inputs}"
        last = re.findall(r"#(\d+)\s+DONE\s+cov: (\d+) ft: \d+ corp: (\d+)", done.stderr)
        assert last, done.stderr[-300:]
        made, edges, kept = map(int, last[-1])
        line.cases += made - 1  # the process is one
        line.note = f"seed {seed + 1}, {edges:,} edges reached by {kept:,} inputs"
    return line


def emulated(quick: bool, seed: int) -> Iterator[Tally]:
    """Those of the CUDA launchers."""
    if why := simt.why_unavailable():
        yield Tally("raw calls", "raises or succeeds", simt.NAME, skipped=1, reasons={why: 1})
        return

    def calls(mode: str, number: int, sanitizer: str = "", *more: str) -> Iterator[Tally]:
        build = "--emulated", str(simt.build.build(mode))
        yield from raw_calls(simt.NAME, MODULE, number, raw_fuzz.KINDS, seed, sanitizer, *build, *more)

    yield from calls("plain", 6_000 if quick else 150_000)
    if not quick:
        yield from calls("asan", 30_000, "address", "--exact")


def run(quick: bool) -> Iterator[Tally]:
    seed = 0 if quick else random.SystemRandom().randrange(1 << 30)
    yield from raw_calls("as built", MODULE, 20_000 if quick else 1_000_000, raw_fuzz.KINDS, seed)
    yield from emulated(quick, seed)
    if quick:
        return
    for mode in sanitized.MODES:
        module = sanitized.build(mode)
        kinds = raw_fuzz.KINDS if mode == "address" else ("valid",)
        more = ("--exact",) if mode == "address" else ("--threads", "2", "3", "5")
        yield from raw_calls("cpu", module, 100_000, kinds, seed, mode, *more)
    yield led_by_coverage(100_000, seed)
