"""Wrong calls, each on every backend: refused, and nothing touched.

A case is one row of the tables in tests/wrong: a call of a function, the construction of a layer or a call
of one, wrong by type, rank, size, dtype, device, value, index, memory or by overflow. It must raise the type
of error that torch raises there, or the one that the table says is better; its message names the function;
inputs, running statistics and the state of layers are afterwards bit for bit what they were; and the process
lives. Calls on which torch crashes, computes garbage or takes what cannot be meant have a line each; the
notes say what it does, as seen with torch 2.13 on the CPU.

Each backend is asked in a process of its own, call by call: one that dies or takes more than two minutes is a
failure that names the call, and the next process goes on behind it.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Iterator
from typing import Any

import torch

import fastops
from tests import wrong
from tests.reliability.backends import runnable
from tests.reliability.tally import Tally
from tests.wrong import Wrong

INTERPRETED = True

LONGEST = 120  # seconds of one call


def serve(connection: Any, backend: str) -> None:
    """In the process of its own: is sent numbers of rows, and answers with what is wrong with each."""
    warnings.simplefilter("ignore")  # torch's, of nested tensors and the like
    torch.set_num_threads(1)
    rows = wrong.rows()
    with fastops.backend(backend):
        while (number := connection.recv()) is not None:
            try:
                wrong.ask(rows[number])
            except Exception as error:
                connection.send(f"{type(error).__name__}: {error}")
            else:
                connection.send("")


class Process:
    """Asks rows of one backend, in processes that may die of it."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.process: Any = None

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process is not None:
            self.connection.send(None)
            self.process.join(10)
        self.end()

    def start(self) -> None:
        # Not forked: a GPU that this process has looked at could not be used in the other.
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, self.backend), daemon=True)
        self.process.start()
        other.close()

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None

    def ask(self, number: int) -> None:
        """Raises AssertionError for what is wrong."""
        if self.process is None:
            self.start()
        self.connection.send(number)
        if not self.connection.poll(LONGEST):
            self.end()
            raise AssertionError(f"no answer after {LONGEST} s")
        try:
            answer = self.connection.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            self.end()
            raise AssertionError(f"the process died of it, exit code {code}") from None
        assert not answer, answer


def tally_of(row: Wrong, backend: str) -> tuple[str, Tally]:
    """The line that a row belongs to: one per family, and one per call where torch errs."""
    if row.family != "torch errs":
        return row.family, Tally(row.family, "same type of error or better, nothing touched", backend)
    note = f"torch: {row.reason}"
    return row.source, Tally(row.source, "raises where torch errs", backend, note=note)


def run(quick: bool) -> Iterator[Tally]:
    rows = wrong.rows()
    for backend in runnable():
        tallies: dict[str, Tally] = {}
        with Process(backend) as process:
            for number, row in enumerate(rows):
                key, tally = tally_of(row, backend)
                with tallies.setdefault(key, tally).case(f"{row.source} ({row.reason})"):
                    process.ask(number)
        yield from tallies.values()
