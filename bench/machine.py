"""What a run was made on: the machine, versions, commit; and its ceilings, measured in the same run."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import fastops
from bench import measure


def _git(*arguments: str) -> str:
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def _commit() -> str:
    """The tree's commit; FASTOPS_COMMIT where the tree has come without its history."""
    changed = "+changes" if _git("status", "--porcelain", "-uno") else ""
    return os.environ.get("FASTOPS_COMMIT") or _git("rev-parse", "HEAD") + changed


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def describe(device: str) -> dict[str, Any]:
    """For the first line of a run."""
    info = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "fastops": fastops.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        info |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": l2_bytes(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    else:
        info["device"] = info["processor"]
    return info


@lru_cache(maxsize=1)
def l2_bytes() -> int:
    return int(torch.cuda.get_device_properties(0).L2_cache_size)


@lru_cache(maxsize=1)
def _loops() -> ctypes.CDLL | None:
    """roofs.cpp, compiled for this machine; None where there is no compiler."""
    source = Path(__file__).with_name("roofs.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "roofs.so"
        command = [os.environ.get("CXX", "g++"), "-O3", "-march=native", "-shared", "-fPIC"]
        try:
            subprocess.run([*command, str(source), "-o", str(library)], check=True, capture_output=True)
            loops = ctypes.CDLL(str(library))
        except (OSError, subprocess.CalledProcessError):
            return None
    for name in ("fma_fp32", "fma_bf16"):
        getattr(loops, name).restype = ctypes.c_double
        getattr(loops, name).argtypes = [ctypes.c_long, ctypes.POINTER(ctypes.c_float)]
    loops.copy.restype, loops.copy.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    return loops


def _together(work: Callable[[int], float], threads: int) -> float:
    """What so many threads do a second, at best of five; work(i) says what it has done. ctypes lets go of
    Python's lock."""
    best = 0.0
    for _ in range(5):
        done = [0.0] * threads

        def run(i: int, done: list[float] = done) -> None:
            done[i] = work(i)

        each = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
        begin = time.perf_counter()
        for thread in each:
            thread.start()
        for thread in each:
            thread.join()
        best = max(best, sum(done) / (time.perf_counter() - begin))
    return best


def cpu_ceilings(threads: int) -> dict[str, float]:
    """The best of loops of FMAs and of torch's matrix products; of a loop that copies and of torch's copy."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    found = _by_torch("cpu")
    torch.set_num_threads(before)
    loops = _loops()
    if loops is None:
        return found
    for name in ("fp32", "bf16"):
        loop = getattr(loops, f"fma_{name}")

        def multiply(_: int, loop: Callable[..., float] = loop) -> float:
            return loop(10_000_000, ctypes.byref(ctypes.c_float(0.5)))

        found[name] = max(found[name], _together(multiply, threads))
    found["bf16"] = max(found["bf16"], found["fp32"])  # a bf16 number can be multiplied as fp32
    size = 1 << 26
    sources = [torch.ones(size, dtype=torch.uint8) for _ in range(threads)]
    targets = [torch.zeros_like(source) for source in sources]

    def copy(i: int) -> float:
        loops.copy(targets[i].data_ptr(), sources[i].data_ptr(), size)
        return 2.0 * size

    found["copy"] = max(found["copy"], _together(copy, threads))
    return found


def ceilings(device: str, threads: list[int]) -> dict[str, Any]:
    """Bytes a second of a copy (read + written), operations a second by dtype; on a CPU of each number of
    threads."""
    return _by_torch(device) if device == "cuda" else {str(t): cpu_ceilings(t) for t in threads}


def _by_torch(device: str) -> dict[str, float]:
    """By torch's copy and matrix products on random data."""
    time = measure.on_gpu if device == "cuda" else measure.on_cpu
    size = (1 << 30) if device == "cuda" else (1 << 26)
    x = torch.randn(size // 4, device=device)
    y = torch.empty_like(x)
    n = 8192 if device == "cuda" else 1536
    products = {"bf16": torch.bfloat16, "fp32": torch.float32} | (
        {"tf32": torch.float32, "fp16": torch.float16} if device == "cuda" else {}
    )
    found = {}
    # By the copy engine, and by a kernel: the better one.
    copies = {"copy": lambda _: y.copy_(x), "kernel": lambda _: torch.neg(x, out=y)}
    times = time(copies, 1, rounds=5, round_seconds=0.02)
    found["copy"] = 2 * size / min(t.seconds for t in times.values())
    before = torch.backends.cuda.matmul.allow_tf32
    for name, dtype in products.items():
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in "ab")
        times = time({"matmul": lambda _, a=a, b=b: a @ b}, 1, rounds=3, round_seconds=0.02)
        found[name] = 2 * n**3 / times["matmul"].seconds
    torch.backends.cuda.matmul.allow_tf32 = before
    return found
