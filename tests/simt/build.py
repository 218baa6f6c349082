"""Compiles csrc/cuda/*.cu with a C++ compiler, for the emulation, in one of its modes.

plain   as fast as it goes
asan    with the address and undefined-behaviour sanitizers; loaded by processes that ``python -m
        tests.simt asan`` starts
race    with the race detector
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "simt"

SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
# With checks by calls, and -Og, the kernels compile in a quarter of the time that -O1 with inline checks
# takes; the convolutions then run 16 % longer, the others do not.
CALLS = "--param asan-instrumentation-with-call-threshold=0"
# Flags of kernels, of the engine, and of the link.
MODES = {
    "plain": ("-O2", "-O2", ""),
    "asan": (f"-Og {SANITIZE} {CALLS}", f"-O1 {SANITIZE}", SANITIZE),
    "race": ("-O1 -fsanitize=thread", "-O2 -DSIMT_RACE", ""),
}


class Unavailable(Exception):
    """The emulation cannot be built here; the message says why."""


@lru_cache(maxsize=1)
def setup_py() -> ModuleType:
    """setup.py as a module: how it finds CUDA and ninja, and its warnings."""
    spec = importlib.util.spec_from_file_location("fastops_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache(maxsize=1)
def cuda_includes() -> list[Path]:
    """The folders of the CUDA headers: a toolkit's, or those that PyPI's packages bring."""
    home = setup_py().find_cuda_home()
    packages = sorted({f for p in sys.path for f in Path(p).glob("nvidia/cu[0-9]*/include")})
    needed = ("cuda_runtime.h", "cuda_bf16.h", "crt/host_config.h", "nv/target")
    for folders in ([home / "include"] if home else [], packages):
        if all(any((folder / name).exists() for folder in folders) for name in needed):
            return folders
    raise Unavailable(
        "no CUDA headers: neither a toolkit nor nvidia-cuda-runtime, nvidia-cuda-crt and nvidia-cuda-cccl"
    )


def compiler() -> list[str]:
    cxx = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(cxx[0]) is None:
        raise Unavailable(f"no C++ compiler: {cxx[0]}")
    return cxx


def check() -> None:
    """Raises Unavailable if something that the build needs is not here."""
    for package in ("setuptools", "pybind11"):
        if importlib.util.find_spec(package) is None:
            raise Unavailable(f"the Python package {package} is not installed")
    if importlib.util.find_spec("ninja") is None and shutil.which("ninja") is None:
        raise Unavailable("ninja is not installed")
    compiler()
    cuda_includes()


def output(mode: str) -> Path:
    return BUILD / mode / f"emulated_{mode}.so"


def twins(kernel: Path) -> str:
    """Which twins of primitives a file of kernels is compiled with."""
    return "async" if "primitives_sm90.cuh" in kernel.read_text() else "kernels"


def write_ninja() -> None:
    import pybind11

    setup = setup_py()
    ninja, cxx, escape = setup.NinjaFile(), " ".join(compiler()), setup.escape
    folders = (*cuda_includes(), sysconfig.get_path("include"), pybind11.get_include())
    flags = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-ftls-model=initial-exec", "-g1", "-pthread"]
    flags += [
        "-Wno-psabi",
        *setup.WARNINGS,
        *(["-Werror"] if os.environ.get("FASTOPS_WERROR") == "1" else []),
    ]
    flags += [f"-isystem {escape(p)}" for p in folders]
    compile_ = [cxx, "-MMD", "-MF", "$out.d", *flags]
    as_cpp = [
        "-DFASTOPS_SM90A",
        "-x",
        "c++",
        "-include",
        escape(HERE / "emulation.h"),
        "-Wno-unknown-pragmas",
    ]
    ninja.rule("module", [*compile_, "-O1", "-c", "$in", "-o", "$out"])
    conv_plans = sorted((ROOT / "csrc").glob("conv_plan*.cpp"))
    host = [
        ninja.build(BUILD / f"{source.stem}.o", "module", [source])
        for source in (HERE / "module.cpp", ROOT / "csrc" / "validate.cpp", *conv_plans)
    ]
    kernels = [*sorted((ROOT / "csrc" / "cuda").glob("*.cu")), *sorted(HERE.glob("*.cu"))]
    for mode, (kernel_flags, engine_flags, link_flags) in MODES.items():
        engine = ["engine", "processor", "async", "tensor_maps", *(["race"] if mode == "race" else [])]
        ninja.rule(f"kernels-{mode}", [*compile_, kernel_flags, *as_cpp, "-c", "$in", "-o", "$out"])
        with_async = [*as_cpp, "-include", escape(HERE / "async.h")]
        ninja.rule(f"async-{mode}", [*compile_, kernel_flags, *with_async, "-c", "$in", "-o", "$out"])
        ninja.rule(f"engine-{mode}", [*compile_, engine_flags, "-c", "$in", "-o", "$out"])
        objects = [
            *host,
            *(ninja.build(BUILD / mode / f"{k.stem}.cu.o", f"{twins(k)}-{mode}", [k]) for k in kernels),
            *(ninja.build(BUILD / mode / f"{e}.o", f"engine-{mode}", [HERE / f"{e}.cpp"]) for e in engine),
        ]
        link = [cxx, "-shared", "-Wl,-Bsymbolic", "-pthread", link_flags, "$in", "-o", "$out", "-ldl"]
        ninja.rule(f"link-{mode}", link, depfile=False)
        ninja.build(output(mode), f"link-{mode}", objects)
    text = "\n".join(ninja.lines) + "\n"
    target = BUILD / "build.ninja"
    if not target.exists() or target.read_text() != text:
        target.write_text(text)


@lru_cache
def compile_errors(mode: str) -> str:
    """Compiles what has changed for a mode; what the compiler says if it fails."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may build
        write_ninja()
        jobs = os.environ.get("MAX_JOBS")
        command = [setup_py().BuildWithNinja.find_ninja(), "-C", str(BUILD), *(["-j", jobs] if jobs else [])]
        done = subprocess.run([*command, str(output(mode))], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr if done.returncode else ""


def build(mode: str) -> Path:
    """The compiled module of a mode, ``emulated_<mode>``, up to date."""
    errors = compile_errors(mode)
    if errors:
        raise RuntimeError(f"the emulation does not compile:\n{errors}")
    return output(mode)


def libraries(*names: str) -> list[str]:
    """Where the compiler has its libraries of those names."""
    commands = ([*compiler(), f"-print-file-name={name}"] for name in names)
    return [subprocess.run(c, capture_output=True, text=True, check=True).stdout.strip() for c in commands]


def sanitized_environment() -> dict[str, str]:
    """The environment for a process that loads the asan module: the sanitizers' libraries come first."""
    return {
        **os.environ,
        "FASTOPS_SIMT": "asan",
        "LD_PRELOAD": " ".join(libraries("libasan.so", "libubsan.so", "libstdc++.so")),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }
