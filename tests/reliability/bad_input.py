"""Wrong calls, each on every backend: refused, and nothing touched. And right ones on odd memory.

A case is one row of the tables in tests/wrong: a call of a function, the construction of a layer or a call
of one, wrong by type, rank, size, dtype, device, value, index, memory or by overflow. It must raise the type
of error that torch raises there, or the one that the table says is better; the message of a function's error
about its arguments names the function; inputs, running statistics and the state of layers are afterwards bit
for bit what they were; and the process lives. torch, 2.13 on the CPU, is asked with every row: where the
table has a type of its own, that torch raises the very type that the tables say, or takes the call, is part
of the case (`huge` ones with 4 GiB of memory to take). Calls on which torch computes garbage, stumbles or
takes what cannot be meant have a line each; that it accepts them, or what it raises, is checked, the words
behind that are not.

Read-only memory: every function, forward and backward, in two dtypes, contiguous, channels_last and with
gaps, with all of its tensors and dy in pages of a file that nobody may write to, where a write ends the
process. Statistics that a call updates are in memory of their own: in such pages torch dies, too. Overlapping
memory: inputs, weights, biases, residuals, indices, statistics and dy that are expanded or overlapping
windows, and arguments that are the same tensor or share a storage. Inference tensors: made in inference mode,
used outside of it. Each call must give, bit for bit, what it gives with tensors of their own (dense clones),
and torch's numbers, to 1e-5 of the largest in fp32 and 2e-2 in bf16; torch must do the same with both. Of
running statistics that overlap with each other in training the output is compared, not what they become.

The ops of `torch.ops.fastops`, which compilers call, are called with one argument that does not fit, every
argument in turn. Such a call raises, or its results are as on meta tensors, and depend on no memory that is
not the call's; with a tensor that is only laid out otherwise they are the same.

Each backend is asked in a process of its own, call by call: one that dies or takes more than two minutes is
a failure that names the call, and another process goes on behind it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch

import fastops
from fastops.backends import BACKENDS
from tests import interpreter, simt, wrong
from tests.reliability.backends import runnable
from tests.reliability.process import Died, messages
from tests.reliability.tally import Tally
from tests.wrong import Wrong, library, memory
from tests.wrong.library import Direct
from tests.wrong.memory import Memory

INTERPRETED = True

Row = Wrong | Direct | Memory
LONGEST = 120  # seconds of one call


def rows(backend: str) -> list[Row]:
    """Of the calls that run, Triton's interpreter, which takes a second for some, gets every tenth. Odd
    memory is the CPU's."""
    on_cpu = BACKENDS[backend].device_type == "cpu"
    running = [*(memory.rows() if on_cpu else ()), *library.rows()]
    return [*wrong.rows(), *running[:: 10 if backend == interpreter.NAME else 1]]


def ask_one(row: Row, backend: str) -> None:
    """Raises AssertionError unless a call does what it should."""
    if isinstance(row, Direct):
        library.ask(row, BACKENDS[backend].device_type)
    elif isinstance(row, Memory):
        memory.ask(row)
    else:
        wrong.ask(row)


def answers(say: Callable[[tuple[int, str | None]], None], backend: str, start: int) -> None:
    """In the process of its own: for each row from a number on, None before it is asked, and then what is
    wrong, or nothing."""
    warnings.simplefilter("ignore")  # torch's, of nested tensors and the like
    torch.set_num_threads(1)
    with fastops.backend(backend):
        for number, row in list(enumerate(rows(backend)))[start:]:
            say((number, None))
            try:
                ask_one(row, backend)
            except Exception as error:
                say((number, f"{type(error).__name__}: {error}"))
            else:
                say((number, ""))


def ask(backend: str) -> Iterator[tuple[int, str]]:
    """What is wrong with each row; a row that kills its process is asked no more."""
    start, count = 0, len(rows(backend))
    while start < count:
        try:
            for number, answer in messages(answers, backend, start, longest=LONGEST):
                start = number + 1
                if answer is not None:
                    yield number, answer
        except Died as died:
            yield start - 1, str(died)


def tally_of(row: Row, backend: str) -> tuple[str, Tally]:
    """The line that a row belongs to: one per family, and one per call where torch errs."""
    if isinstance(row, Direct):
        return row.family, Tally(row.family, "raises, or as on meta tensors; nothing else touched", backend)
    if isinstance(row, Memory):
        return row.family, Tally(row.family, "as with memory of its own, and as torch", backend)
    if row.family != "torch errs":
        return row.family, Tally(row.family, "same type of error or better, nothing touched", backend)
    note = f"torch {row.torch_says}: {row.reason}"
    return row.source, Tally(row.source, "raises where torch errs", backend, note=note)


def run(quick: bool) -> Iterator[Tally]:
    for backend in runnable():
        if backend == simt.NAME:
            simt.load()  # compiled here if it has to be: longer than a call may take
        asked = rows(backend)
        tallies: dict[str, Tally] = {}
        for number, answer in ask(backend):
            row = asked[number]
            key, tally = tally_of(row, backend)
            with tallies.setdefault(key, tally).case(f"{row.source} ({row.reason})"):
                assert not answer, answer
        yield from tallies.values()
