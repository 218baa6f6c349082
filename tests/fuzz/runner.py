"""So many random calls of an op, from a seed: one failure each, made as small as hypothesis can."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.call import Call
from tests.fuzz.strategies import calls


def search(op: str, count: int, number: int, small: bool, ask: Callable[[Call], None]) -> tuple[int, str]:
    """Asks `count` calls from the seed `number`, or fewer where there is a failure; how many they were, and
    the failure: the error and the smallest call that has it."""
    asked, failed, smallest = 0, False, ""

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(calls(op, small))
    def body(call: Call) -> None:
        nonlocal asked, failed, smallest
        asked += not failed  # what only makes a failure smaller does not count
        try:
            ask(call)
        except Exception as error:
            failed = True
            smallest = f"{type(error).__name__}: {error}, of {call!r}"
            raise

    try:
        body()
    except Exception as error:
        smallest = smallest or f"{type(error).__name__}: {error}"
    return asked, smallest
