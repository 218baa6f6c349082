"""What a section counts: one Tally per line of its table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

KEPT = 5  # failures that a line keeps word for word


class Skip(Exception):
    """Raised in a case that cannot be asked here; its argument says why."""


@dataclass
class Tally:
    """A line of a section's table: what is asked, of whom, and how it went."""

    what: str  # the op, module or tool
    asked: str  # the property that every case is asked for, in a few words
    backend: str = ""
    dtype: str = ""
    layout: str = ""
    cases: int = 0  # that were asked; those skipped are not among them
    failed: int = 0
    skipped: int = 0
    worst: float | None = None  # the largest of what `measure` was given
    unit: str = ""  # of that figure
    failures: list[str] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)  # of what was skipped
    note: str = ""  # a figure or a limit that belongs beside the line

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Counts one case; whatever is raised inside is its failure, Skip aside."""
        try:
            yield
        except Skip as skip:
            self.skipped += 1
            self.reasons[str(skip)] = self.reasons.get(str(skip), 0) + 1
            return
        except Exception as error:
            self.failed += 1
            if len(self.failures) < KEPT:
                self.failures.append(f"{name}: {type(error).__name__}: {str(error).strip()[:300]}")
        self.cases += 1

    def measure(self, value: float) -> None:
        """Keeps the largest; NaN counts as infinite."""
        value = math.inf if math.isnan(value) else value
        self.worst = value if self.worst is None else max(self.worst, value)

    def record(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v not in ("", None, [], {}) or k == "what"}
