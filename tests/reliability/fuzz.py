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
from collections import Counter
from collections.abc import Callable, Iterator

import torch

from tests import interpreter
from tests.cases import FUNCTIONS
from tests.fuzz.call import Call
from tests.fuzz.compare import check
from tests.fuzz.past import PAST
from tests.fuzz.runner import search
from tests.reliability.backends import is_slow, runnable
from tests.reliability.process import Died, messages
from tests.reliability.tally import KEPT, Skip, Tally

INTERPRETED = True

BATCH = 250  # calls of one seed
ASKED = "torch's values, gradients, layout, or error"
LONGEST = 300  # seconds of one call
PAST_LINE = "calls that failed once"
LINES = (PAST_LINE, *FUNCTIONS)


def count(backend: str, quick: bool) -> int:
    """How many calls of each op a backend is asked."""
    if backend == interpreter.NAME:
        return 4 if quick else 100
    if is_slow(backend):
        return 10 if quick else 1000
    return 25 if quick else 2500


def run(quick: bool) -> Iterator[Tally]:
    for backend in runnable():
        start = 0
        while start < len(LINES):
            call = "no call yet"
            try:
                for message in messages(tallies, backend, quick, start, longest=LONGEST):
                    if isinstance(message, Tally):
                        start += 1
                        yield message
                    else:
                        call = message
            except Died as died:
                tally = Tally(LINES[start], ASKED, backend)
                with tally.case(call):
                    raise died
                start += 1
                yield tally


def tallies(say: Callable[[Tally | str], None], backend: str, quick: bool, start: int) -> None:
    """In a process of its own: the lines from a number on; and before each call, what it is."""
    warnings.simplefilter("ignore")  # torch's, of empty tensors and the like
    torch.set_num_threads(1)

    def ask(call: Call) -> None:
        say(repr(call))
        check(call, [backend])

    for line in LINES[start:]:
        say(past(backend, ask) if line == PAST_LINE else fuzzed(line, backend, count(backend, quick), ask))


def past(backend: str, ask: Callable[[Call], None]) -> Tally:
    tally = Tally(PAST_LINE, ASKED, backend)
    for call, reason in PAST:
        with tally.case(f"{call} ({reason})"):
            ask(call)
    return tally


def fuzzed(op: str, backend: str, calls: int, ask: Callable[[Call], None]) -> Tally:
    seeds = range(-(-calls // BATCH))
    tally = Tally(op, ASKED, backend, note=f"seeds 0 to {seeds[-1]}" if len(seeds) > 1 else "seed 0")
    skipped: list[str] = []

    def judge(call: Call) -> None:
        try:
            ask(call)
        except Skip as skip:
            skipped.append(str(skip))

    for seed in seeds:
        asked, failure = search(op, min(BATCH, calls), seed, is_slow(backend), judge)
        tally.cases += asked
        if failure:
            tally.failed += 1
            if len(tally.failures) < KEPT:
                tally.failures.append(f"seed {seed}: {failure}")
    tally.cases -= len(skipped)
    tally.skipped, tally.reasons = len(skipped), dict(Counter(skipped))
    return tally
