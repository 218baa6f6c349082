"""What a table of wrong calls consists of."""

from __future__ import annotations

from collections.abc import Iterator

# A call, written as Python with the names of ``tests.wrong.names``, and the reason why it is wrong. A third
# entry is the type that fastops raises whatever torch does: because fastops differs from it on purpose (then
# the reason says so), or because what torch does there (overflow, missing data) varies with its version. What
# torch does with such a row is said in tests/wrong/torch_says.py, and asked of that version.
Row = tuple[str, str] | tuple[str, str, type[Exception]]


def because(reason: str, *sources: str, better: type[Exception] | None = None) -> Iterator[Row]:
    """Rows with one reason."""
    for source in sources:
        yield (source, reason) if better is None else (source, reason, better)
