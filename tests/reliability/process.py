"""Work in a process of its own, which may die of it: what it was doing then is known."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any


class Died(Exception):
    """The process ended, or said nothing for too long; its argument says how."""


def _main(connection: Any, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    work(connection.send, *arguments)
    connection.send(None)


def messages(work: Callable[..., None], *arguments: Any, longest: float) -> Iterator[Any]:
    """What ``work(say, *arguments)`` says in a new process; Died where that ends before the work does, or is
    silent for `longest` seconds. Spawned, not forked: a GPU that was looked at here could not be used there.
    """
    context = multiprocessing.get_context("spawn")
    connection, other = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(other, work, arguments), daemon=True)
    process.start()
    other.close()
    try:
        while True:
            if not connection.poll(longest):
                raise Died(f"nothing for {longest:.0f} s")
            try:
                message = connection.recv()
            except EOFError:
                process.join()
                raise Died(f"the process died, exit code {process.exitcode}") from None
            if message is None:
                return
            yield message
    finally:
        process.kill()
        process.join()
