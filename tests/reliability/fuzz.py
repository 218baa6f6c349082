"""Random calls, drawn by hypothesis, on every backend and on torch.

A case is one call on one backend: an op with shapes (0, 1, and those around the widths of vectors), options,
a dtype, values (ties, zeros, NaN and infinities for pooling) and tensors that lie in memory in one of several
ways: contiguous, channels_last, transposed, sliced, expanded, off their storage's start, dimensions reversed.
It must give torch's values and gradients, with an error against fp64 of at most twice torch's plus a rounding
floor, torch's indices, torch's layout; or raise, where torch does, and nowhere else; and leave its inputs
alone. All backends are compared with the same reference, and so with each other: some small calls are the
same for all, the rest are a backend's own. Emulated and interpreted backends get fewer, and small ones only.
Where fastops differs from torch on purpose, or torch is wrong, the call counts as skipped, with the reason,
and the backend must do what the CPU's does.

The note has the seeds, which are others in every long run: `tests.fuzz.runner.search(op, 250, seed, small,
...)` repeats a batch. A failure is printed as the smallest call that hypothesis finds to have it, and belongs
into tests/fuzz/past.py, whose calls are asked first.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
import torch.nn.functional as F

from tests import interpreter
from tests.cases import FUNCTIONS
from tests.fuzz import compare
from tests.fuzz.call import Call
from tests.fuzz.past import PAST
from tests.fuzz.runner import search
from tests.reliability.backends import is_slow, runnable
from tests.reliability.process import Died, messages
from tests.reliability.tally import KEPT, Skip, Tally

INTERPRETED = True

BATCH = 250  # calls of one seed
SEEDS = 1000  # of a backend
COMMON = 0  # the seed of the calls that all backends get
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


def batches(backend: str, quick: bool, first: int) -> list[tuple[int, int, bool]]:
    """Seeds, how many calls of each, and whether these are small. (The same number of the common ones for
    all: it decides what hypothesis draws.)"""
    calls, common = count(backend, quick), 2 if quick else 50
    own = [min(BATCH, calls - done) for done in range(common, calls, BATCH)]
    return [(COMMON, common, True), *((first + i, n, is_slow(backend)) for i, n in enumerate(own))]


def run(quick: bool) -> Iterator[Tally]:
    run_of_seeds = 0 if quick else random.SystemRandom().randrange(1, 1 << 30)
    for number, backend in enumerate(runnable()):
        first = SEEDS * (100 * run_of_seeds + number) + 1
        start, of_torch = 0, set[str]()
        while start < len(LINES):
            call = "no call yet"
            try:
                for message in messages(tallies, backend, quick, first, start, longest=LONGEST):
                    if isinstance(message, Tally):
                        start += 1
                        yield message
                    else:
                        call = message
            except Died as died:
                tally, excused = Tally(LINES[start], ASKED, backend), torch_dies(call)
                with tally.case(call):
                    if excused:
                        raise Skip("torch's own kernel ends the process") from died
                    raise died
                yield tally
                if excused and call not in of_torch:
                    of_torch.add(call)
                    first += SEEDS // 4  # the line once more, with other calls
                else:  # (some calls are the same each time)
                    start += 1


def torch_dies(call: str) -> bool:
    """Whether torch alone does not survive a call: in 2.13 some convolutions in bf16 read what is not theirs,
    which ends the process now and then."""
    try:
        return [*messages(ask_torch, call, longest=LONGEST)] != ["alive"]
    except Died:
        return True


def ask_torch(say: Callable[[str], None], call: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    asked = eval(call, {"Call": Call})
    for _ in range(300):
        with suppress(Exception):
            tensors = asked.tensors()
            compare.run(F, asked, tensors, compare.cotangent(asked, tensors))
    say("alive")


def tallies(say: Callable[[Tally | str], None], backend: str, quick: bool, first: int, start: int) -> None:
    """In a process of its own: the lines from a number on; and before each call, what it is. `first`: the
    first of the backend's own seeds."""
    warnings.simplefilter("ignore")  # torch's, of empty tensors and the like
    torch.set_num_threads(1)

    own = batches(backend, quick, first)

    def ask(call: Call) -> None:
        say(repr(call))
        compare.check(call, [backend])

    for line in LINES[start:]:
        found = past(backend, ask) if line == PAST_LINE else fuzzed(line, backend, own, ask)
        say(found)


def past(backend: str, ask: Callable[[Call], None]) -> Tally:
    tally = Tally(PAST_LINE, ASKED, backend)
    for call, reason in PAST:
        with tally.case(f"{call} ({reason})"):
            ask(call)
    return tally


def fuzzed(op: str, backend: str, parts: list[tuple[int, int, bool]], ask: Callable[[Call], None]) -> Tally:
    tally = Tally(op, ASKED, backend, note=f"seeds {COMMON}, {parts[1][0]} to {parts[-1][0]}")
    skipped: list[str] = []

    def judge(call: Call) -> None:
        try:
            ask(call)
        except Skip as skip:
            skipped.append(str(skip))

    for seed, calls, small in parts:
        asked, failure = search(op, calls, seed, small, judge)
        tally.cases += asked
        if failure:
            tally.failed += 1
            if len(tally.failures) < KEPT:
                tally.failures.append(f"seed {seed}: {failure}")
    tally.cases -= len(skipped)
    tally.skipped, tally.reasons = len(skipped), dict(Counter(skipped))
    return tally
