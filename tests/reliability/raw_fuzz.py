"""Calls everything in fastops._C as nobody should: ``python -m tests.reliability.raw_fuzz --calls 20000``.

Four kinds of call, each from a random generator of its own, whose seed is the run's and the call's number:

valid     params and memory as the contract asks for them: must succeed, and touch no byte beside the tensors
hostile   a valid call of which some fields, addresses or the number of threads are something else. What the
          contract surely forbids must raise ValueError; the rest may raise, or succeed within its memory
blind     params of which every field is arbitrary, without memory
surface   any function, any attribute, any arguments: wrong types, wrong counts, numbers beyond 64 bits

With --emulated, a build of tests/simt, it calls that one's CUDA launchers instead, with less memory; valid
convolutions name a family of kernels that serves them, and launchers have nothing to report.

Under a sanitizer (--exact) each tensor is an allocation of its own, so that reading beyond it is seen, too.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.reliability import raw_calls
from tests.reliability.raw_calls import ENUMS, OPS, Fields, Op

KINDS = ("valid", "hostile", "blind", "surface")
LIMIT, LIMIT_EMULATED = 1 << 18, 1 << 14  # bytes of a tensor that is made
WORKSPACE = 64 << 20  # bytes of a workspace that is made
MOST = 1 << 48  # that a size may be
GUARD = 256
HANGS = 60  # seconds after which a call is taken to hang; the longest walk along an axis of 2³² elements
# Numbers at which arithmetic breaks. (What is large but allowed would only take long.)
NUMBERS = (
    *(0, 0, -1, -1, -2, 1, 2, 3, 5, 255, 2**31, -(2**31), 2**32, 2**32 + 1, 2**47, 2**48 + 1, 2**60, 2**62),
    *(2**63 - 1, -(2**63), -(2**63) + 1),
)
SIZES = {"n", "c", "k", "in_", "out", "groups"}
OPTIONS = {"kernel", "stride", "pad", "dilation"}
REFUSED = (ValueError, TypeError, RuntimeError, OverflowError, AttributeError)


class Wrong(Exception):
    """A call that did what it must not."""


def load(path: Path, name: str = "fastops._C") -> ModuleType:
    """A compiled module, without the package around it."""
    loader = ExtensionFileLoader(name, str(path))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


# ---- memory --------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None)
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.free.argtypes = [ctypes.c_void_p]


class Memory:
    """The tensors of one call. Between them lie guards; if `exact`, they are allocations instead."""

    def __init__(self, r: random.Random, exact: bool) -> None:
        self.r, self.exact = r, exact
        self.blocks: list[int] = []
        self.kept: list[tuple[str, bytearray, int, int]] = []

    def take(self, name: str, size: int, step: int, content: bytes) -> int:
        """The address of `size` bytes, at a multiple of `step`; what is not in `content` is arbitrary."""
        shift = step * self.r.randrange(4)
        data = (content or self.r.randbytes(min(size, 512))).ljust(size, b"\x3c")[:size]
        if self.exact:
            block = _libc.malloc(shift + size)
            self.blocks.append(block)
            ctypes.memmove(block + shift, data, size)
            return block + shift
        store = bytearray(b"\xff" * (GUARD + shift) + data + b"\xff" * GUARD)
        self.kept.append((name, store, GUARD + shift, size))
        return ctypes.addressof(ctypes.c_char.from_buffer(store)) + GUARD + shift

    def close(self) -> None:
        for block in self.blocks:
            _libc.free(block)
        for name, store, begin, size in self.kept:
            if store[:begin].strip(b"\xff") or store[begin + size :].strip(b"\xff"):
                raise Wrong(f"bytes beside {name} were written")


def indices(r: random.Random, count: int, width: int, below: int) -> bytes:
    last = min(max(below, 1), 1 << (8 * width - 1))
    return b"".join(r.randrange(last).to_bytes(width, "little") for _ in range(count))


def given_operands(r: random.Random, op: Op, fields: Fields) -> set[str]:
    """The names of the tensors of a valid call: all that must be there, and some that need not."""
    for _ in range(20):
        given = {o.name for o in op.operands if not o.optional or r.random() < 0.7}
        if op.allowed(fields, given):
            return given
    return {o.name for o in op.operands}


@dataclass(frozen=True)
class Kernels:
    """Launchers, and what a call of them has behind its tensors: the CPU's a number of threads; CUDA's a word
    for reports, where one wants it, and a stream, of which the emulation has none."""

    module: Any
    emulated: bool

    def workspace(self, op: str, params: Any, threads: int) -> int | None:
        """How many bytes; None where the launcher has no such argument."""
        size = getattr(self.module, f"{op}_workspace", None)
        return size and (size(params) if self.emulated else size(params, threads))

    def reports(self, op: str) -> bool:
        return hasattr(self.module, f"{op}_reports")

    def __call__(self, op: str, params: Any, addresses: list[int], threads: int) -> None:
        getattr(self.module, op)(params, *addresses, 0 if self.emulated else threads)


# ---- kinds of call -------------------------------------------------------------------------------


class Caller:
    def __init__(
        self, module: ModuleType, emulated: ModuleType | None, exact: bool, threads: tuple[int, ...]
    ) -> None:
        self.module, self.emulated, self.exact, self.threads = module, emulated, exact, threads
        self.limit = LIMIT_EMULATED if emulated else LIMIT
        self.kernels = [Kernels(getattr(module, f"cpu_{isa}"), False) for isa in module.usable_isas()]
        if emulated:
            self.kernels = [Kernels(emulated.cuda, True)]
        self.ops = tuple(op for op in OPS if hasattr(self.kernels[0].module, op))

    def launch(
        self,
        r: random.Random,
        name: str,
        fields: Fields,
        leave_out: set[str],
        threads: int,
        given: set[str],
        no_workspace: bool = False,
    ) -> bool:
        """Calls a launcher; returns whether the contract surely forbids it: something is not there."""
        op, kernels = OPS[name], r.choice(self.kernels)
        memory, addresses, missing = Memory(r, self.exact), [], False
        try:
            for operand in op.operands:
                count = operand.elements(fields)
                width = operand.bytes(fields)
                absent = operand.name in leave_out or not 0 <= count * width <= self.limit
                if operand.name not in given or absent:
                    missing |= operand.name in given and not operand.optional and count > 0
                    addresses.append(0)
                    continue
                content = b""
                if operand.positions is not None:
                    content = indices(r, count, width, operand.positions(fields))
                addresses.append(memory.take(operand.name, count * width, width, content))
            p = raw_calls.params(self.module, op.struct, fields)
            self.missing = missing
            size = kernels.workspace(name, p, threads)
            if size is not None:
                if size < 0:
                    raise Wrong(f"a workspace of {size} bytes")
                there = size <= WORKSPACE and not no_workspace
                self.missing |= not there and size > 0
                addresses.append(memory.take("workspace", size, 64, b"") if there else 0)
            report = ctypes.c_int32(0)
            if kernels.reports(name):
                self.missing |= no_workspace
                addresses.append(0 if no_workspace else ctypes.addressof(report))
            kernels(name, p, addresses, threads)
            if report.value:
                raise RuntimeError(self.module.invalid_index)
        finally:
            memory.close()
        return self.missing

    def make(self, r: random.Random, name: str) -> Fields:
        """What a valid call's params are; in CUDA a convolution may name its kernels."""
        fields = OPS[name].make(r)
        if self.emulated and name in raw_calls.PASSES:
            return raw_calls.with_kernels(r, self.module, self.emulated.cuda.device(), name, fields)
        return fields

    def valid(self, r: random.Random) -> str:
        name = r.choice(self.ops)
        op = OPS[name]
        while True:
            fields = self.make(r, name)
            if all(o.elements(fields) * o.bytes(fields) <= self.limit for o in op.operands):
                break
        self.launch(r, name, fields, set(), r.choice(self.threads), given_operands(r, op, fields))
        return name

    def hostile(self, r: random.Random) -> str:
        name = r.choice(self.ops)
        op = OPS[name]
        fields, threads, leave_out, forbidden = self.make(r, name), r.choice(self.threads), set(), False
        given = given_operands(r, op, fields)
        no_workspace = False
        keys = r.sample(tuple(fields), 3)
        for _ in range(r.choice((1, 1, 1, 2, 3))):
            what = r.random()
            if what < 0.15 and self.emulated is None:
                threads = r.choice((0, -1, -(2**31), 2**31 - 1, 65537))
                forbidden = True
            elif what < 0.3:
                leave_out |= {r.choice(op.operands).name}
            elif what < 0.35:
                no_workspace = True
            else:
                key = keys.pop()
                fields[key], bad = self.other(r, key, fields[key])
                forbidden |= bad
        try:
            missing = self.launch(r, name, fields, leave_out, threads, given, no_workspace)
        except ValueError:
            return name
        except RuntimeError as error:  # what only the data shows, an index out of range
            if forbidden or self.missing or str(error) != self.module.invalid_index:
                raise
            return name
        if forbidden or missing:
            raise Wrong(f"accepted: {name} {fields} without {leave_out}, threads={threads}")
        return name

    def other(self, r: random.Random, key: str, value: Any) -> tuple[Any, bool]:
        """Another value of a field, and whether it is surely forbidden."""
        if key in ENUMS:
            known = tuple(getattr(self.module, ENUMS[key]).__members__)
            tag = r.choice((*known, -1, 8, 77, 2**31 - 1, -(2**31)))
            return tag, tag not in known
        if isinstance(value, bool):
            return not value, False
        if isinstance(value, float):
            return r.choice((0.0, -1.0, 1e300, float("nan"), float("inf"))), False
        if isinstance(value, int):
            number = r.choice(NUMBERS)
            bad = key in SIZES and (number < 0 or number > MOST or (key == "groups" and number == 0))
            return number, bad
        axis = r.randrange(3)
        if isinstance(value[0], float):
            new = r.choice((-1.0, -0.5, 1e-300, 1e300, float("nan"), float("inf"), 0.3))
            bad = not 0 <= new < 1e300
        else:
            new = r.choice(NUMBERS) if r.random() < 0.7 else value[axis] + r.choice((-1, 1))
            bad = new < 0 or new > MOST
            if key in OPTIONS:
                bad = new < 0 or new >= 2**31 or (new == 0 and key != "pad")
        return (*value[:axis], new, *value[axis + 1 :]), bad

    def blind(self, r: random.Random) -> str:
        name = r.choice(self.ops)
        struct = getattr(self.module, OPS[name].struct)
        fields = {}
        for key in struct.fields:
            usual = getattr(struct(), key)
            if key in ENUMS:
                fields[key] = r.choice((0, 0, 1, 2, 3, 4, 9, -1))
            elif isinstance(usual, bool):
                fields[key] = r.random() < 0.5
            elif isinstance(usual, tuple):
                fields[key] = tuple(type(usual[0])(self.number(r)) for _ in range(3))
            else:
                fields[key] = type(usual)(self.number(r))
        kernels, threads, operands = r.choice(self.kernels), r.choice(self.threads), len(OPS[name].operands)
        try:
            p = raw_calls.params(self.module, OPS[name].struct, fields)
            operands += kernels.workspace(name, p, threads) is not None
            # No memory: what is not empty must be refused.
            kernels(name, p, [0] * (operands + kernels.reports(name)), threads)
        except ValueError:
            return name
        # Then each of its tensors is empty.
        if any(o.elements(fields) != 0 for o in OPS[name].operands if not o.optional):
            raise Wrong(f"accepted without memory: {name} {fields}")
        return name

    @staticmethod
    def number(r: random.Random) -> int:
        return r.choice((0, 1, 1, 1, 2, 3, 8)) if r.random() < 0.85 else r.choice(NUMBERS)

    def thing(self, r: random.Random) -> Any:
        """Any argument; no address but null."""
        structs = [getattr(self.module, s) for s in dir(self.module) if s[0].isupper()]
        return r.choice(
            (
                *(None, "", "f32", b"x", 0, 1, 3, -1, 1.5, True, [], (), (1, 2), (1, 2, 3), {}, object()),
                *(2**64, -(2**70), float("nan"), (1, 2, None), ("a", "b", "c"), (2**64, 1, 1)),
                *(self.module, r.choice(structs)),
                r.choice([s() for s in structs if not hasattr(s, "__members__")]),
            )
        )

    def surface(self, r: random.Random) -> str:
        m = self.module
        structs = [s for s in vars(m).values() if isinstance(s, type)]
        what = r.random() if self.emulated is None else 1.0  # all but the launchers is the CPU build's
        try:
            if what < 0.3:
                struct = r.choice(structs)
                made = struct(self.thing(r)) if hasattr(struct, "__members__") else struct()
                key = r.choice((*getattr(struct, "fields", ("value",)), "no_such_field"))
                setattr(made, key, self.thing(r))
                repr(made)
            elif what < 0.4:
                r.choice(structs)(**{r.choice(("n", "in_", "dtype", "x")): self.thing(r)})
            elif what < 0.7:
                self.planning(r)
            else:
                functions = [f for f in vars(r.choice(self.kernels).module).values() if callable(f)]
                if self.emulated is None:
                    functions += [m.forward_taps, m.input_grad_taps, m.conv_plan, m.conv_kernel_serves]
                    functions += [m.interpolate_table, m.usable_isas]
                r.choice(functions)(*(self.thing(r) for _ in range(r.randrange(9))))
        except REFUSED:
            pass
        return "surface"

    def planning(self, r: random.Random) -> None:
        """What is computed on the host alone, with arbitrary numbers of the right types."""
        m, number = self.module, self.number
        what = r.randrange(4)
        if what == 0:
            m.forward_taps(*(number(r) for _ in range(6)))
        elif what == 1:
            m.input_grad_taps(*(number(r) for _ in range(7)))
        elif what == 2:
            fields = raw_calls.conv(r)
            for _ in range(r.randrange(3)):
                key = r.choice((*fields, "tile_m", "tile_n", "splits", "kernel_family"))
                fields[key] = self.other(r, key, fields.get(key, 0))[0]
            device = m.Device(multiprocessors=number(r), capability=r.choice((0, 75, 80, 90, 100, number(r))))
            if r.random() < 0.3:
                setattr(device, r.choice(("clock_hz", "bandwidth")), r.choice((0.0, -1.0, float("nan"))))
            params = raw_calls.params(m, "ConvParams", fields)
            pass_ = m.ConvPass(r.choice((0, 1, 2, 2, number(r) % 2**31)))
            if r.random() < 0.5:
                m.conv_plan(params, pass_, device)
            else:
                m.conv_kernel_serves(m.ConvKernel(r.randrange(-1, 9)), params, pass_, device)
        else:
            fields = raw_calls.resize(r, (*raw_calls.NEAREST, *raw_calls.WEIGHTED), ("f32", "u8"))
            if r.random() < 0.7:
                key = r.choice(tuple(fields))
                fields[key] = self.other(r, key, fields[key])[0]
            params = raw_calls.params(m, "InterpolateParams", fields)
            m.interpolate_table(params, r.randrange(-1, 4), r.random() < 0.5, r.random() < 0.5)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.raw_fuzz", description=__doc__)
    parser.add_argument("--module", type=Path, required=True, help="the _C*.so")
    parser.add_argument("--emulated", type=Path, help="the emulation's: its launchers are called instead")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 1, 2, 3])
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--hangs", type=float, default=HANGS, help="seconds; more under a sanitizer")
    parser.add_argument(
        "--at", type=Path, default=Path(os.devnull), help="gets the number of the call under way"
    )
    arguments = parser.parse_args()
    module = load(arguments.module)
    module.set_min_work_per_thread(1)  # so that small calls use threads
    emulated = None
    if arguments.emulated:
        emulated = load(arguments.emulated, arguments.emulated.stem)
        emulated.configure("random", "random", arguments.seed)
    caller = Caller(module, emulated, arguments.exact, tuple(arguments.threads))
    at = os.open(arguments.at, os.O_WRONLY | os.O_CREAT)
    counts: Counter[str] = Counter()
    failures: list[str] = []
    for call in range(arguments.start, arguments.start + arguments.calls):
        os.pwrite(at, b"%12d" % call, 0)
        signal.setitimer(signal.ITIMER_REAL, arguments.hangs)  # whose signal ends the process
        kind = arguments.kinds[call % len(arguments.kinds)]
        try:
            op = getattr(caller, kind)(random.Random(f"{arguments.seed} {call}"))
            counts[f"{kind} {op}"] += 1
        except Exception as error:
            counts[f"{kind} failed"] += 1
            failures.append(f"{kind}, seed {arguments.seed}, call {call}: {type(error).__name__}: {error}")
    print(json.dumps({"counts": counts, "failures": failures[:20]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
