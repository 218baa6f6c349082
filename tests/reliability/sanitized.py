"""The compiled module under sanitizers: ``python -m tests.reliability.sanitized address tests -k conv``.

address   with the address and undefined-behaviour sanitizers
thread    with the race detector

Built beside the ordinary module, which stays as it is, and put in its place in processes started here.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "sanitize"
# The sanitizers of each, and the libraries that have to be loaded before any other.
MODES = {
    "address": ("address,undefined", ("libasan.so", "libubsan.so", "libstdc++.so")),
    "thread": ("thread", ("libtsan.so", "libstdc++.so")),
}

FINDS = {"address": "address and undefined behaviour", "thread": "races between threads"}


def build(mode: str) -> Path:
    """The module of a mode, up to date; some minutes if it is new."""
    return compiled(mode, FASTOPS_SANITIZE=MODES[mode][0], CXXFLAGS="-O1 -fno-sanitize-recover=all")


def compiled(name: str, **settings: str) -> Path:
    """The module as setup.py makes it with these variables, in a folder of its own."""
    folder = BUILD / name
    environment = {**os.environ, "FASTOPS_CUDA": "0", **settings}
    place = ["--build-temp", folder / "temp", "--build-lib", folder]
    command = [sys.executable, "setup.py", "-q", "build_ext", *map(str, place)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two sections may want it
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the {name} build fails:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    (found,) = (folder / "fastops").glob(f"_C.{sys.implementation.cache_tag}*.so")
    return found


def environment(mode: str) -> dict[str, str]:
    """For a process that loads the module."""
    from tests.simt import build as simt_build

    libraries = simt_build.libraries(*MODES[mode][1])
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        # Tensors of 2⁶⁰ bytes are for torch to refuse.
        "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1:allocator_may_return_null=1",
        "PYTHONMALLOC": "malloc",
        "OMP_NUM_THREADS": "1",
    }


def command(mode: str, *arguments: str) -> list[str]:
    """A Python process with those arguments. Addresses are laid out where the race detector wants them."""
    fixed = [setarch, "-R"] if mode == "thread" and (setarch := shutil.which("setarch")) else []
    return [*fixed, sys.executable, *arguments]


def main() -> int:
    """In the process itself, if the libraries are loaded: pytest; else starts it."""
    if len(sys.argv) < 2 or sys.argv[1] not in MODES:
        raise SystemExit(
            f"usage: python -m tests.reliability.sanitized {'|'.join(MODES)} [arguments of pytest]"
        )
    mode, arguments = sys.argv[1], sys.argv[2:]
    if "FASTOPS_SANITIZED" not in os.environ:
        path = build(mode)
        started = command(mode, "-m", "tests.reliability.sanitized", mode, *arguments)
        os.execvpe(started[0], started, {**environment(mode), "FASTOPS_SANITIZED": str(path)})
    import pytest

    from tests.reliability import raw_fuzz

    # Instead of the one beside the package, before anybody imports that.
    assert "fastops" not in sys.modules
    sys.modules["fastops._C"] = module = raw_fuzz.load(Path(os.environ["FASTOPS_SANITIZED"]))
    import fastops
    from fastops.backends import native

    fastops._C = module  # type: ignore[misc]
    assert native._C is module
    if mode == "thread":
        use_threads()
    return pytest.main(arguments)


def use_threads() -> None:
    """Three threads for every call, however small; made anew each time, so that the race detector sees where
    they begin and end: of an OpenMP runtime that is not compiled with it, it knows nothing."""
    import torch

    from fastops import _C

    _C.set_openmp_runtime(0)
    _C.set_min_work_per_thread(1)
    for name in ("set_openmp_runtime", "set_min_work_per_thread"):
        setattr(_C, name, lambda value: None)
    torch.get_num_threads = lambda: 3
    torch.set_num_threads = lambda count: None  # torch's own kernels stay on one: theirs are of that runtime


if __name__ == "__main__":
    sys.exit(main())
