"""Raw calls that are led by coverage: ``python -m tests.reliability.guided _C*.so -runs=20000``.

What follows the module is libFuzzer's: options, a file (an input to try), a folder (inputs to begin with).

The calls are those of tests/reliability/raw_fuzz.py. What is random there are bytes here, which libFuzzer (in
atheris) changes so as to reach branches of the kernels, their plans and their checks that no earlier input
reached. The module is compiled by clang with counters at its branches and with its address and
undefined-behaviour sanitizers; the latter end the process by an illegal instruction. What libFuzzer does not
end by itself, a call that did what it must not, is an exception. (Nothing here may import the package: its
module would be the one that is called.)
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from tests.reliability import raw_fuzz

# With counters, the host's walk along an axis of 2³² elements takes more than raw_fuzz.HANGS.
LIMITS = ("-max_len=512", "-rss_limit_mb=0", "-timeout=600", "-len_control=0")


class FromBytes(random.Random):
    """The generator whose bits an input is. Beyond its end they are random, by the input: with zeros there,
    short inputs would be few calls, and a check that was taken out was not missed in 20,000 of them."""

    def __new__(cls, data: bytes) -> FromBytes:
        return super().__new__(cls)

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.rest = data, 0, random.Random(data)

    def getrandbits(self, k: int) -> int:
        size = (k + 7) // 8
        taken = self.data[self.at : self.at + size]
        self.at += size
        if len(taken) < size:
            return self.rest.getrandbits(k)
        return int.from_bytes(taken, "little") & ((1 << k) - 1)

    def random(self) -> float:
        return self.getrandbits(16) / (1 << 16)


def call(caller: raw_fuzz.Caller, data: bytes) -> str:
    """The call that an input is: the first byte is its kind. What it was is returned."""
    r = FromBytes(data)
    return getattr(caller, r.choice(raw_fuzz.KINDS))(r)


def main() -> None:
    import atheris

    module = raw_fuzz.load(Path(sys.argv[1]))
    module.set_min_work_per_thread(1)
    caller = raw_fuzz.Caller(module, None, exact=True, threads=(1, 1, 2, 3))

    def one(data: bytes) -> None:  # whatever else it returned would count as an input that is no good
        call(caller, data)

    atheris.Setup([sys.argv[0], *LIMITS, *sys.argv[2:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
