"""Threads, processes, signals, memory that runs out, and long runs.

A case is one call beside others, one process, one interrupted or failed call, or one measurement. Goals:

- 8 Python threads that call every op at once, at first with empty caches, also while each changes its number
  of threads: the bits of the same call alone; the same in a Python without a GIL, where there is one;
- processes that are forked, before and after threads were used, or spawned, and a DataLoader's workers: the
  bits of the parent;
- Ctrl-C at a random moment of a call of every op, and of its forward and backward: the process goes on, with
  right results. The note says how many came inside, that is were raised in a line of fastops; it must be half
  of them and, in the long form, a quarter of each op's. After every call into C of a batch norm: its running
  statistics are those from before the call or those from after it;
- too little memory: the process may grow its address space by 0.5 MiB during a call, then by 1 MiB, and so on
  until the call works (the quick form: 0.5, 4.5, 8.5), which leaves open which allocation it is that fails;
  first in the forward, then in the backward alone. Each time the exception that torch's allocator raises;
  inputs as before; each .grad, which held something already, as before or with all of the new gradient added;
  running statistics as before a forward that failed; and with memory again the same call has the bits that it
  had at first;
- training steps, and threads that come and go: resident memory stays;
- ever new shapes, a call of every op each, with and without gradients: all caches have limits. In the long
  form every cache of sizes and options is full before the last quarter of the shapes, and functions have
  dropped their recipes more than once (they keep 1,025 there, not 4,096, for time). Over that quarter there
  are to be fewer than half a small Python object more per shape, and what else malloc has given out is to
  grow by less than 1 MiB, as dicts' tables come and go. Resident memory, which has what both keep for later,
  too, is in the note.

Where it ends: a forked child of a parent that has used several threads may use one only, as with torch's own
ops (a DataLoader sees to that); a gradient that was being added up when Ctrl-C came is as far as it came.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

import fastops
from tests import interpreter, simt
from tests.cases import Case
from tests.conftest import device_of
from tests.reliability.calls import backends, by_label, name, same_bits, some
from tests.reliability.determinism import results, threads
from tests.reliability.tally import Skip, Tally

THREADS = 8
DTYPES = (torch.float32, torch.bfloat16)


# ---- threads ------------------------------------------------------------------------------------


def at_once(backend: str, quick: bool, changing: bool) -> Iterator[Tally]:
    """Every thread makes all calls; two by two they make the same ones, with other values. A line per op."""
    asked = f"{THREADS} threads at once" + (", each changing its number of threads" if changing else "")
    lines = {op: Tally(op, asked, backend) for op in by_label()}
    jobs: list[tuple[str, Case, torch.dtype]] = [
        (op, case, dtype)
        for op, cases in by_label().items()
        for case in some(cases, 3 if quick else 20)
        for dtype in DTYPES
        if dtype in case.dtypes
    ]

    # Unforced, so that calls are made by recipe, too (ops/replay.py).
    serving = nullcontext if backend == "cpu" else partial(fastops.backend, backend)

    def one(job: tuple[str, Case, torch.dtype], seed: int) -> list[torch.Tensor]:
        _, case, dtype = job
        return results(case, case.arguments(dtype, device=device_of(backend), seed=seed))

    wrong: list[tuple[str, str]] = []
    turns = 2 if quick else 10
    firsts: list[dict[int, list[torch.Tensor]]] = [{} for _ in range(THREADS)]

    def differs(job: tuple[str, Case, torch.dtype], problem: str) -> None:
        wrong.append((job[0], f"{job[1]} {name(job[2])}: {problem}"))

    def work(me: int) -> None:
        with serving():
            for turn in range(turns):
                for k in range(len(jobs)):
                    k = (k + me // 2 * len(jobs) // THREADS) % len(jobs)
                    if changing:
                        torch.set_num_threads(1 + (k + me + turn) % 4)
                    try:
                        found = one(jobs[k], me % 2)
                        if not all(map(same_bits, found, firsts[me].setdefault(k, found))):
                            differs(jobs[k], f"turn {turn}: other bits than in the first")
                    except Exception as error:
                        differs(jobs[k], f"turn {turn}: {error!r}")

    started = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    with threads(2 if changing else 1):
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
    # Alone afterwards, so that it is the threads that fill the caches.
    with serving():
        for k, job in enumerate(jobs):
            for seed in range(2):
                alone = one(job, seed)
                for first in firsts[seed::2]:
                    if k in first and not all(map(same_bits, first[k], alone)):
                        differs(job, "other bits than alone")
    for op, line in lines.items():
        line.cases = THREADS * turns * sum(job[0] == op for job in jobs)
        failures = [text for where, text in wrong if where == op]
        line.failed, line.failures = len(failures), failures[:5]
        yield line


# ---- processes ----------------------------------------------------------------------------------


def take(line: Tally, record: dict[str, Any]) -> None:
    """A line of what tests/reliability/processes.py prints."""
    if "figure" in record:
        line.measure(record["figure"])
        line.unit = record["unit"]
    elif "note" in record:
        line.note = record["note"]
    elif "case" in record:
        with line.case(record["case"]):
            if record["skip"]:
                raise Skip(record["skip"])
            assert not record["error"], record["error"]


def told(lines: dict[str, Tally], quick: bool, python: str = sys.executable) -> Iterator[Tally]:
    """Runs parts of tests/reliability/processes.py in one process; that each comes to its end is a case."""
    options = ["--quick"] if quick else []
    command = [python, "-X", "faulthandler", "-m", "tests.reliability.processes", *options, *lines]
    limit = 300 if quick else 2 * 3600
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        output, end = done.stdout, f"exit {done.returncode}: {done.stderr.strip()[-1500:]}"
    except subprocess.TimeoutExpired as late:
        output, end = (late.stdout or b"").decode(), f"not done after {limit} s"
    records = [json.loads(text) for text in output.splitlines()]
    for what, line in lines.items():
        for record in records:
            if record["what"] == what:
                take(line, record)
        with line.case("the process"):
            assert any(r["what"] == what and "done" in r for r in records), end
        yield line


PROCESSES = {
    "fork_before": ("every op", "forked before threads were used"),
    "fork_after": ("every op", "forked after threads were used; the child uses one"),
    "fork_threads": ("every op", "forked after threads were used; the child uses two"),
    "spawn": ("every op", "spawned"),
    "data_loader": ("every op", "DataLoader's workers: fork, spawn, forkserver"),
    "interrupt": ("every op", "Ctrl-C during a call: right results after it"),
    "interrupt_statistics": ("batch_norm", "Ctrl-C after each call into C: running statistics old or new"),
    "out_of_memory": ("every op", "too little address space: torch's exception, nothing half written"),
    "soak": ("training steps", "resident memory stays"),
    "shapes": ("every op", "ever new shapes: caches are bounded, memory in use stays"),
    "threads": ("conv2d", "threads come and go: resident memory stays"),
}
# Those that share a process.
TOGETHER = (
    ("fork_before", "fork_after", "fork_threads"),
    ("spawn", "data_loader"),
    ("interrupt", "interrupt_statistics"),
    ("out_of_memory",),
    ("soak", "shapes", "threads"),
)


def free_threaded(quick: bool) -> Iterator[Tally]:
    """All threads' calls again, without a GIL."""
    line = Tally("every op", f"{THREADS} threads at once, without a GIL", "cpu")
    here = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    python = sys.executable if here else shutil.which("python3.14t") or shutil.which("python3.13t")
    why = "" if python else "no free-threaded Python on this machine"
    if python:
        check = "import sys, torch, fastops; assert not sys._is_gil_enabled(), 'an import enabled the GIL'"
        done = subprocess.run([python, "-c", check], capture_output=True, text=True)
        if done.returncode:
            why = f"free-threaded Python: {done.stderr.strip().splitlines()[-1][:100]}"
    if why or python is None:
        with line.case("no GIL"):
            raise Skip(why)
        yield line
    else:
        yield from told({"at_once": line}, quick, python)


def run(quick: bool) -> Iterator[Tally]:
    torch.set_num_threads(1)
    # Not the emulation, whose engine is one at a time, nor the interpreter.
    for backend in backends():
        if backend not in (simt.NAME, interpreter.NAME):
            for changing in (False, True):
                yield from at_once(backend, quick, changing)
    yield from free_threaded(quick)
    for together in TOGETHER:
        yield from told({what: Tally(*PROCESSES[what], "cpu") for what in together}, quick)
