"""How a process that section concurrency starts says what it found: a line of JSON per case,
{"what": WHAT, "case": name, "error": what went wrong}, or a figure, or a note.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

running_now = ""  # the WHAT


def record(**fields: Any) -> None:
    print(json.dumps({"what": running_now, **fields}), flush=True)


def say(case: str, error: str = "", skip: str = "") -> None:
    record(case=case, error=error, skip=skip)


def figure(value: float, unit: str) -> None:
    record(figure=value, unit=unit)


def note(text: str) -> None:
    record(note=text)


@contextmanager
def told(case: str) -> Iterator[None]:
    """Says how one case went."""
    try:
        yield
    except Exception as error:
        say(case, f"{type(error).__name__}: {error}"[:300])
    else:
        say(case)


def memory(resident: bool = True) -> int:
    """Bytes: resident, or of address space."""
    pages = Path("/proc/self/statm").read_text().split()[resident]
    return int(pages) * resource.getpagesize()


@contextmanager
def little_memory(more: int) -> Iterator[None]:
    """So many bytes of address space more than there are now: allocations that the system would grant, and
    not have, fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory(resident=False) + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
