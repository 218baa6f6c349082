"""python -m bench.lagging LAYERS.jsonl: what the GPU did in the layers that lag most behind torch, by ncu.

Takes the cases with the smallest torch ÷ fastops of a run of the suite of layers, at most two of an op's
pass, and has each called once under ncu: the bytes that its kernels move, against those that the operands
have, how busy memory and the multiprocessors are, and what warps wait for.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench import contenders, layers
from bench.compare import read
from bench.report import pairs, ratio
from bench.rows import Row, rows

Record = dict[str, Any]
SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "WarpStateStats", "Occupancy", "LaunchStats")
METRICS = "dram__bytes_read.sum,dram__bytes_write.sum"
OF_AN_OP = 2


def lagging(records: list[Record], most: int) -> Iterator[tuple[float, Record]]:
    """The smallest torch ÷ fastops, and fastops' records."""
    found = [(r, ours) for ours, theirs, _ in pairs(records) if (r := ratio(ours, theirs)) is not None]
    taken: Counter[tuple[str, str]] = Counter()
    for quotient, ours in sorted(found, key=lambda one: one[0]):
        which = (ours["op"], ours["pass"])
        if taken[which] < OF_AN_OP and taken.total() < most:
            taken[which] += 1
            yield quotient, ours


def row_of(record: Record, device: str) -> tuple[Row, torch.dtype]:
    """What a record was measured on. (A row of strict fp32 may have the name of one in 16 bits.)"""
    tf32 = record["dtype"] == "tf32"
    dtype = torch.float32 if tf32 else next(d for d, name in layers.DTYPES.items() if name == record["dtype"])
    alike = (r for r in rows(device, [1]) if str(r) == record["row"] and r.tf32 == tf32)
    return next(r for r in alike if dtype in r.dtypes), dtype


def once(record: Record, device: str) -> None:
    """One call of the case, the only one that ncu looks at."""
    row, dtype = row_of(record, device)
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = row.tf32
    operands = layers.operands(row, dtype, layers.LAYOUTS[record["layout"]], device)
    work = layers.work_of(row, record["pass"], contenders.every(device)["fastops"], [operands])
    for _ in range(2):  # plans, and memory of the allocator
        work(0)
    if device != "cuda":
        work(0)
        return
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    work(0)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def profile(record: Record, ncu: str) -> str:
    """What ncu says of it."""
    command = [ncu, "--profile-from-start", "off", "--metrics", METRICS]
    command += [word for section in SECTIONS for word in ("--section", section)]
    call = [sys.executable, "-m", "bench.lagging", "--once", json.dumps(record)]
    done = subprocess.run([*command, *call], capture_output=True, text=True, check=False)
    return done.stdout + (f"\nexit {done.returncode}: {done.stderr[-600:]}" if done.returncode else "")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.lagging", description=__doc__)
    parser.add_argument("layers", type=Path, nargs="?", help="a run of the suite of layers")
    parser.add_argument("--most", type=int, default=12, help="cases")
    parser.add_argument("--ncu", default="ncu")
    parser.add_argument("--once", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.once:
        once(json.loads(options.once), "cuda" if torch.cuda.is_available() else "cpu")
        return 0
    if options.layers is None:
        parser.error("which run of the suite of layers?")
    if shutil.which(options.ncu) is None:
        print(f"there is no {options.ncu}", file=sys.stderr)
        return 2
    for quotient, record in lagging(read(options.layers)[1:], options.most):
        name = " ".join(record[k] for k in ("row", "pass", "dtype", "layout"))
        print(
            f"==== {name}: torch ÷ fastops {quotient:.2f}; its operands have {record['bytes'] / 1e6:.1f} MB"
        )
        print(profile(record, options.ncu), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
