"""What random calls once found, and a few more of them; tests/reliability/fuzz.py asks thousands."""

from __future__ import annotations

import contextlib

import pytest

from tests.cases import FUNCTIONS
from tests.fuzz.call import Call
from tests.fuzz.compare import check
from tests.fuzz.past import PAST
from tests.fuzz.runner import search
from tests.reliability.tally import Skip

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize(("call", "reason"), PAST, ids=[reason for _, reason in PAST])
def test_past_failures(call: Call, reason: str, backend: str) -> None:
    try:
        check(call, [backend])
    except Skip as skip:
        pytest.skip(str(skip))


@pytest.mark.parametrize("op", FUNCTIONS)
def test_random_calls(op: str) -> None:
    def ask(call: Call) -> None:
        with contextlib.suppress(Skip):
            check(call, ["cpu"])

    _, failure = search(op, 25, 0, True, ask)
    assert not failure, failure


def test_a_failure_is_found_and_made_small() -> None:
    """The search itself: a call with a stride of 3 is reported as the smallest there is."""

    def ask(call: Call) -> None:
        assert call.options.get("stride") != 3, "a stride of 3"

    asked, failure = search("avg_pool2d", 250, 0, True, ask)
    assert 0 < asked < 250
    assert "a stride of 3" in failure and "'kernel_size': 1, 'stride': 3}" in failure
