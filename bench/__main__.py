"""python -m bench: fastops beside torch, row by row; one JSON line per measurement.

python -m bench                          every row, on the GPU if there is one
python -m bench --rows "max|unpool"      those whose names match
python -m bench --out build/bench.jsonl --minutes 3
python -m bench --suite quick            a few in seconds; exits with 1 if fastops fails in one
python -m bench --by all                 beside them torch compiled, each backend alone, and so on
python -m bench --suite all --minutes 8 --out build/bench       every suite, a file each
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

# The profiler, asked for memory, would speak of each start.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch

from bench import contenders, host, layers, machine, memory, models, report, scaling
from bench.rows import rows

# One of each op, on a small image.
QUICK = r"N\d+ (512→512|960→960|adaptive avg 2048×7|max 3×3|avg 2|unpool|2048×7|nearest 256|bilinear 21)"
SUITES = ["layers", "quick", "host", "models", "memory", "scaling", "all"]
# Of "all": the file, its suite, what it is asked, and the part of the time by which it must have ended; a
# model that is being compiled then may take a while. The last one has what is left.
ALL: list[tuple[str, str, dict[str, str], float]] = [
    ("layers", "layers", {}, 0.35),
    ("layers-fp16", "layers", {"dtypes": "fp16"}, 0.45),
    ("host", "host", {}, 0.5),
    ("scaling", "scaling", {}, 0.6),
    ("memory", "memory", {}, 0.65),
    ("models", "models", {}, 0.75),
    ("contenders", "layers", {"by": "all"}, 1.0),
]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="fastops beside torch, row by row")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--suite", choices=SUITES, default="layers")
    parser.add_argument("--rows", default="", help="a regular expression: rows whose line matches")
    parser.add_argument("--layouts", default="NCHW,NHWC")
    parser.add_argument("--passes", default="", help="a regular expression")
    parser.add_argument("--dtypes", default="", help="such as bf16,fp32; default: the rows' first")
    parser.add_argument("--images", default="1,8", help="on the CPU: how many at once")
    parser.add_argument("--threads", default="", help="on the CPU: such as 1,2; default: torch's")
    parser.add_argument(
        "--by", default="fastops,torch", help="who: all, or such as inductor; see bench/contenders.py"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round-seconds", type=float, default=0.01)
    parser.add_argument("--minutes", type=float, default=60.0, help="ends after the row that runs then")
    parser.add_argument("--shuffle", action="store_true", help="rows in a random order")
    parser.add_argument("--out", type=Path, default=Path("build/bench.jsonl"))
    options = parser.parse_args()
    if options.suite == "quick":  # whether it runs at all, in seconds
        options.rows, options.images, options.dtypes = QUICK, "1", "fp32,bf16"
        options.rounds, options.round_seconds = 2, 1e-3
    return options


def threads_of(options: argparse.Namespace) -> list[int]:
    """How many threads; one entry, that nobody reads, on a GPU."""
    return [int(t) for t in options.threads.split(",")] if options.threads else [torch.get_num_threads()]


def layer_cases(options: argparse.Namespace) -> list[tuple[Any, ...]]:
    """The cases (threads, row, pass, dtype, layout) of the options."""
    cases = [
        (threads, row, name, dtype, layout)
        for threads in threads_of(options)
        for row in rows(options.device, [*map(int, options.images.split(","))])
        for name in row.passes
        for dtype in (
            [d for d in row.dtypes if layers.DTYPES[d] in options.dtypes.split(",")]
            if options.dtypes
            else row.dtypes[:1]
        )
        for layout in options.layouts.split(",")
        if re.search(options.rows, f"{row.op} {row}") and re.search(options.passes, name)
    ]
    if options.shuffle:
        random.Random(0).shuffle(cases)
    return cases


def layer_records(options: argparse.Namespace, end: float) -> Iterator[dict[str, Any]]:
    cases = layer_cases(options)
    for done, (threads, row, name, dtype, layout) in enumerate(cases):
        if time.monotonic() > end:
            print(f"out of time: {len(cases) - done} of {len(cases)} cases left out", file=sys.stderr)
            return
        torch.set_num_threads(threads)
        yield from layers.measured(
            *(row, name, dtype, layout, options.device),
            by=contenders.chosen(options.device, options.by),
            rounds=options.rounds,
            round_seconds=options.round_seconds,
            more=True,
        )
        if options.device == "cuda":
            torch.cuda.empty_cache()


def run(options: argparse.Namespace, suite: str, out: Path, first: dict[str, Any], end: float) -> list[Any]:
    """One suite: its records into a file, its table to the screen."""
    found, table = {
        "layers": lambda: (layer_records(options, end), partial(report.table, first)),
        "scaling": lambda: (
            scaling.measured(options.device, threads_of(options), options.rounds, options.round_seconds, end),
            partial(scaling.table, first),
        ),
        "host": lambda: (host.measured(options.device), host.table),
        "models": lambda: (models.measured(options.device, end), models.table),
        "memory": lambda: (memory.measured(options.device, end), memory.table),
    }[suite]()
    out.parent.mkdir(parents=True, exist_ok=True)
    records = []
    with out.open("w") as file:
        for record in itertools.chain([first], found):
            file.write(json.dumps(record) + "\n")
            file.flush()
            records.append(record)
    print("\n".join(table(records[1:])))
    return records


def main() -> int:
    options = arguments()
    begin = time.monotonic()
    seconds = 60 * options.minutes
    torch.backends.cudnn.benchmark = True
    # A stream of its own: CUDA graphs are not captured from the default one.
    stream = torch.cuda.Stream() if options.device == "cuda" else None
    failed = False
    with torch.cuda.stream(stream):
        first = machine.describe(options.device)
        first["ceilings"] = machine.ceilings(options.device, threads_of(options))
        if options.suite != "all":
            suite = "layers" if options.suite == "quick" else options.suite
            records = run(options, suite, options.out, first, begin + seconds)
            failed = any(r.get("by") == "fastops" and "error" in r for r in records)
            return int(failed and options.suite == "quick")
        options.shuffle = True  # should the time end, no op has gone without
        for name, suite, asked, share in ALL:
            more = argparse.Namespace(**{**vars(options), **asked})
            run(more, suite, options.out.with_suffix("") / f"{name}.jsonl", first, begin + share * seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
