"""Random calls, drawn by hypothesis, on every backend and on torch.

A case is one call on one backend: an op with shapes (0, 1, and those around the widths of vectors), options,
a dtype, values (ties, zeros, NaN and infinities for pooling) and tensors that lie in memory in one of several
ways: contiguous, channels_last, transposed, sliced, expanded, off their storage's start, dimensions reversed.
It must give torch's values and gradients, with an error against fp64 of at most twice torch's plus a rounding
floor, torch's indices, torch's layout; or raise, where torch does, and nowhere else; and leave its inputs
alone. All backends are compared with the same reference, and so with each other. Emulated and interpreted
backends get fewer and smaller calls. Where fastops differs from torch on purpose, or torch is wrong, the call
counts as skipped, with the reason.

The note has the seeds: `tests.fuzz.runner.search(op, 250, seed, ...)` repeats a batch. A failure is printed
as the smallest call that hypothesis finds to have it, and belongs into tests/fuzz/past.py, whose calls are
asked first.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch

from tests import interpreter
from tests.fuzz.call import Call
from tests.fuzz.compare import check
from tests.fuzz.past import PAST
from tests.fuzz.runner import search
from tests.fuzz.strategies import OPS
from tests.reliability.backends import is_slow, runnable
from tests.reliability.tally import KEPT, Skip, Tally

INTERPRETED = True

BATCH = 250  # calls of one seed
ASKED = "torch's values, gradients, layout, or error"


def count(backend: str, quick: bool) -> int:
    """How many calls of each op a backend is asked."""
    if backend == interpreter.NAME:
        return 4 if quick else 100
    if is_slow(backend):
        return 10 if quick else 1000
    return 25 if quick else 6000


def run(quick: bool) -> Iterator[Tally]:
    warnings.simplefilter("ignore")  # torch's, of empty tensors and the like
    torch.set_num_threads(1)
    for backend in runnable():
        yield past(backend)
        for op in OPS:
            yield fuzzed(op, backend, count(backend, quick))


def past(backend: str) -> Tally:
    tally = Tally("calls that failed once", ASKED, backend)
    for call, reason in PAST:
        with tally.case(f"{call} ({reason})"):
            check(call, [backend])
    return tally


def fuzzed(op: str, backend: str, calls: int) -> Tally:
    batches = range(-(-calls // BATCH))
    tally = Tally(op, ASKED, backend, note=f"seeds 0 to {batches[-1]}" if len(batches) > 1 else "seed 0")

    def ask(call: Call) -> None:
        try:
            check(call, [backend])
        except Skip as skip:
            skipped.append(str(skip))

    for seed in batches:
        skipped: list[str] = []
        asked, failure = search(op, min(BATCH, calls), seed, is_slow(backend), ask)
        for reason in skipped:
            tally.reasons[reason] = tally.reasons.get(reason, 0) + 1
        tally.skipped += len(skipped)
        tally.cases += asked - len(skipped)
        if failure:
            tally.failed += 1
            if len(tally.failures) < KEPT:
                tally.failures.append(f"seed {seed}: {failure}")
    return tally
