"""What Triton makes of our kernels for each architecture, found without a GPU.

Every op runs at every configuration that ships, through Triton's own launch path, on a driver that launches
nothing (stub_driver.c); what was compiled for these launches is then read. In a process of its own:

    python -m tests.triton_offline > docs/triton_resources.md
    python -m tests.triton_offline 90      # one architecture; exits with 1 where a rule is broken
    python -m tests.triton_offline 90 conv # the calls that have this in their name
    python -m tests.triton_offline candidates  # instead: what fastops.tune may choose

With FASTOPS_TEST_WIDE=1 every index has 64 bits.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests import interpreter

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "triton"
# Devices of the stub driver by number.
ARCHITECTURES = [80, 90, 100]
MOST_SHARED = {80: 166912, 90: 232448, 100: 232448}
# What instructions count as, and where they are expected: of kernels for channels_last in 16-bit types
# accesses of 16 bytes, of matrix products the tensor cores' instruction.
SASS = {
    "load": r"\b(?:LDG|LDGSTS)\.E\.(?:\w+\.)*128\b",
    "store": r"\bSTG\.E\.(?:\w+\.)*128\b",
    "local": r"\b(?:LDL|STL)\b",
    "mma": r"\bHMMA\b",
    "wgmma": r"\bHGMMA\b",
    "wgmma from registers": r"\bHGMMA\S* R\d+, R\d+",
    "tcgen05": r"\bUTC\w*MMA\b",
    "tma": r"\bUTMALDG\b",
}
VECTORS = {
    "avg_pool_kernel": "load store",
    "avg_pool_adjoint_kernel": "load store",
    "max_pool_kernel": "load store",
    "scatter_add_kernel": "load store",
    "gather_kernel": "store",
    "unpool_adjoint_kernel": "store",
    "copy_kernel": "load store",
    "resample_kernel": "load store",
    "apply_kernel": "load store",
    "statistics_kernel": "load",
    "backward_sums_kernel": "load",
    "backward_kernel": "load store",
    "double_kernel": "load store",
    "double_sums_kernel": "load",
    "depthwise_kernel": "load store",
    "depthwise_weight_grad_kernel": "load",
    "conv_kernel": "load store",
    "conv_tma_kernel": "",
    "weight_grad_tma_kernel": "load",
}
PRODUCTS = {"conv_kernel", "weight_grad_kernel", "conv_tma_kernel", "weight_grad_tma_kernel"}


def why_unavailable() -> str | None:
    from fastops.backends import triton as kernels

    reason = kernels.why_unavailable()
    if reason is not None:
        return reason
    import triton

    version = tuple(map(int, triton.__version__.split(".")[:2]))
    return None if version >= (3, 4) else f"the stub driver is made for Triton 3.4 and later, not {version}"


def install_driver() -> Callable[[int], None]:
    """Makes Triton believe in GPUs; returns what chooses the current one."""
    import triton

    folder = Path(triton.__file__).parent / "backends" / "nvidia"
    library = BUILD / "libcuda.so.1"
    BUILD.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CC", "gcc")
    sources = [HERE / "stub_driver.c", "-I", folder / "include"]
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", *sources, "-o", library], check=True
    )
    os.environ["TRITON_LIBCUDA_PATH"] = str(BUILD)
    os.environ.setdefault("TRITON_CACHE_DIR", str(BUILD / "cache"))
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)

    from triton.backends.nvidia import driver

    current = [0]

    class Driver(driver.CudaDriver):  # type: ignore[misc]
        def __init__(self) -> None:
            self.utils, self.launcher_cls = driver.CudaUtils(), driver.CudaLauncher

        def get_current_device(self) -> int:
            return current[0]

        def set_current_device(self, device: int) -> None:
            current[0] = device

        def get_device_capability(self, device: int = 0) -> tuple[int, int]:
            return divmod(ARCHITECTURES[device], 10)

        def get_current_stream(self, device: int = 0) -> int:
            return 0

    triton.runtime.driver.set_active(Driver())
    return lambda arch: current.__setitem__(0, ARCHITECTURES.index(arch))


@dataclass
class Kernel:
    """One compiled kernel."""

    name: str
    arch: int
    registers: int
    stack: int
    shared: int
    options: str
    sass: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read(compiled: Any, name: str, arch: int, options: str) -> Kernel:
    """Registers, memory and instructions of what Triton compiled."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    path = BUILD / f"{os.getpid()}.cubin"
    path.write_bytes(compiled.asm["cubin"])
    run = dict(capture_output=True, text=True, check=True)
    usage = subprocess.run([tools / "cuobjdump", "--dump-resource-usage", path], **run).stdout  # type: ignore[call-overload]
    sass = subprocess.run([tools / "cuobjdump", "-sass", path], **run).stdout  # type: ignore[call-overload]
    numbers = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    kernel = Kernel(
        name, arch, numbers["REG"], numbers["STACK"] + numbers["LOCAL"], compiled.metadata.shared, options
    )
    kernel.sass = {what: len(re.findall(pattern, sass)) for what, pattern in SASS.items()}
    if kernel.sass["wgmma"]:  # ptxas says where it had to make them wait for each other
        (BUILD / f"{os.getpid()}.ptx").write_text(compiled.asm["ptx"])
        command = [
            tools / "ptxas",
            "-v",
            "--gpu-name=sm_90a",
            BUILD / f"{os.getpid()}.ptx",
            "-o",
            "/dev/null",
        ]
        said = subprocess.run(command, capture_output=True, text=True).stderr
        kernel.notes = re.findall(r"C75\d\d", said)
    return kernel


def local_memory(compiled: Any) -> int:
    """Bytes of it, read from the binary: the driver that launches nothing knows of none."""
    return read(compiled, "", 0, "").stack


def calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """(what, a call forward and backward) of each op at each configuration."""
    import torch

    import fastops.functional as F
    from fastops.ops import conv

    def both(function: Callable[..., Any], *shapes: tuple[int, ...], dtype: Any, last: bool) -> None:
        memory_format = torch.channels_last if last else torch.contiguous_format
        tensors = [torch.zeros(shape, dtype=dtype) for shape in shapes]
        tensors = [t.contiguous(memory_format=memory_format) if t.dim() == 4 else t for t in tensors]
        y = function(*(t.requires_grad_() for t in tensors))
        y.backward(torch.zeros_like(y))

    def twice(function: Callable[..., Any], *shapes: tuple[int, ...], dtype: Any, last: bool) -> None:
        """The gradient's gradient, too."""

        def gradient(*tensors: Any) -> Any:
            y = function(*tensors)
            dy = torch.zeros_like(y, requires_grad=True)
            return torch.autograd.grad(y, tensors[0], dy, create_graph=True)[0]

        both(gradient, *shapes, dtype=dtype, last=last)

    def in_tf32(call: Callable[[], object]) -> None:
        conv.tf32_allowed = lambda x: True  # as on a GPU
        try:
            call()
        finally:
            conv.tf32_allowed = allowed

    allowed = conv.tf32_allowed

    def unpool(x: Any) -> Any:
        positions = torch.zeros_like(x, dtype=torch.int64, requires_grad=False)
        return F.max_unpool2d(x, positions, 2)

    def norm(x: Any, w: Any, b: Any) -> Any:
        return F.batch_norm(x, w.detach() * 0, w.detach() * 0, w, b, training=True)

    image = (2, 64, 28, 28)
    simple: dict[str, tuple[Any, ...]] = {
        "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1), image),
        "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 1), image),
        "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1), image),
        "max_unpool2d": (unpool, image),
        "nearest": (lambda x: F.interpolate(x, scale_factor=2), image),
        "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), image),
        "antialias": (
            lambda x: F.interpolate(x, size=(9, 9), mode="bilinear", antialias=True),
            image,
        ),
        "batch_norm": (norm, image, (64,), (64,)),
        "batch_norm fused": (
            lambda x, r, w, b: F.batch_norm(
                x, None, None, w, b, training=True, residual=r, activation="relu"
            ),
            image,
            image,
            (64,),
            (64,),
        ),
        "batch_norm in evaluation": (
            lambda x, mean, var: F.batch_norm(x, mean.detach(), var.detach()),
            image,
            (64,),
            (64,),
        ),
        "depthwise 3×3": (lambda x, w: F.conv2d(x, w, padding=1, groups=64), image, (64, 1, 3, 3)),
        "conv 3×3": (lambda x, w, b: F.conv2d(x, w, b, padding=1), image, (64, 64, 3, 3), (64,)),
        "conv 1×1 large": (lambda x, w: F.conv2d(x, w), (64, 128, 28, 28), (256, 128, 1, 1)),
        "conv stem": (lambda x, w: F.conv2d(x, w, stride=2, padding=3), (2, 3, 64, 64), (64, 3, 7, 7)),
        "conv stride 2": (lambda x, w: F.conv2d(x, w, stride=2, padding=1), image, (32, 64, 3, 3)),
    }
    for name, (function, *shapes) in simple.items():
        for dtype in (torch.bfloat16, torch.float32, torch.float64):
            for last in (False, True):
                what = f"{name}, {str(dtype)[6:]}, {'NHWC' if last else 'NCHW'}"
                call = partial(both, function, *shapes, dtype=dtype, last=last)
                yield what, call
                if name in ("max_pool2d", "batch_norm"):
                    yield f"{what}, twice", partial(twice, function, *shapes, dtype=dtype, last=last)
                if dtype is torch.float32 and name.startswith("conv"):
                    yield f"{what}, TF32", partial(in_tf32, call)
    yield (
        "antialias, uint8, NHWC",
        lambda: F.interpolate(
            torch.zeros(image, dtype=torch.uint8).contiguous(memory_format=torch.channels_last),
            size=(9, 9),
            mode="bilinear",
            antialias=True,
        ),
    )


def candidate_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """What fastops.tune tries, for the current device."""
    import torch

    import fastops
    from fastops import tune
    from fastops.backends.triton import conv_plan
    from fastops.backends.triton.conv import planned

    for memory_format in (torch.channels_last, torch.contiguous_format):
        module = fastops.Conv2d(128, 128, 3, padding=1).bfloat16().to(memory_format=memory_format)
        x = torch.zeros(64, 128, 28, 28).bfloat16().contiguous(memory_format=memory_format)
        for pass_, params in tune.convolutions(module, x):
            tensors = tune.tensors_of(params, pass_, "cpu")
            for plan in conv_plan.candidates(params, pass_, conv_plan.has_tma()):
                layout = "NHWC" if params.channels_last else "NCHW"
                yield (
                    f"{pass_.name} by {plan}, bfloat16, {layout}",
                    lambda a=(params, pass_, plan), t=tensors: planned(*a)(*t),
                )


def compile_all(architectures: list[int], names: list[str]) -> list[Kernel]:
    """Runs every call (of those whose name has one of the names, if any) for every architecture; what was
    compiled on the way."""
    choose = install_driver()
    if os.environ.get("FASTOPS_TEST_WIDE") == "1":
        interpreter.widen()
    import triton

    import fastops
    from fastops import backends
    from fastops.backends.triton import runtime
    from fastops.backends.triton.runtime import Launch

    found: list[Kernel] = []
    running = ""
    seen: set[str] = set()
    compile_and_run = Launch._compile_and_run

    def recording(self: Any, *tensors: Any) -> Any:
        compiled = compile_and_run(self, *tensors)
        if compiled.hash not in seen:
            seen.add(compiled.hash)
            memory = (getattr(t, "base", t) for t in tensors if t is not None)
            kinds = "/".join(sorted({str(t.dtype)[6:] for t in memory}))
            tile = "×".join(str(v) for k, v in self.arguments.items() if re.fullmatch(r"B[A-Z]", k))
            arch = ARCHITECTURES[triton.runtime.driver.active.get_current_device()]
            found.append(read(compiled, self.kernel.__name__, arch, f"{kinds} {tile}, {running}"))
        return compiled

    Launch._compile_and_run = recording  # type: ignore[method-assign]
    runtime.spilled_bytes = local_memory
    name = "triton-stub"
    backends.BACKENDS[name] = backends.BACKENDS["triton"]._replace(device_type="cpu")
    with fastops.backend(name):
        for arch in architectures:
            choose(arch)
            backends._choose.cache_clear()  # and with the launchers what these have prepared
            candidates = names == ["candidates"]
            for what, call in candidate_calls() if candidates else calls():
                if names and not candidates and not any(name in what for name in names):
                    continue
                running = what
                call()
                call()  # by the cached runner
    return found


def broken_rules(kernels: list[Kernel]) -> list[str]:
    broken = []
    for k in kernels:
        where = f"{k.name} sm_{k.arch} ({k.options}; {k.registers} registers)"
        if k.stack or k.sass["local"]:
            broken.append(f"{where}: {k.stack} bytes of local memory")
        if k.shared > MOST_SHARED[k.arch]:
            broken.append(f"{where}: {k.shared} bytes of shared memory")
        if k.notes:
            broken.append(f"{where}: wgmma in turn ({', '.join(sorted(set(k.notes)))})")
        if k.sass["wgmma from registers"]:
            broken.append(f"{where}: wgmma from registers")
        narrow = "bfloat16" in k.options and "NHWC" in k.options
        for access in VECTORS.get(k.name, "").split() if narrow and "stem" not in k.options else ():
            if not k.sass[access]:
                broken.append(f"{where}: no {access} of 16 bytes")
        if "tma" in k.name and not k.sass["tma"]:
            broken.append(f"{where}: no copy by TMA")
        if k.name in PRODUCTS and "bfloat16" in k.options:
            unit = {80: "mma", 90: "wgmma", 100: "tcgen05"}[k.arch]
            if not k.sass[unit] and not k.sass["mma"]:
                broken.append(f"{where}: no {unit}")
    return broken


def table(kernels: list[Kernel]) -> str:
    """Per kernel and architecture: the ranges over its configurations."""
    groups: dict[tuple[str, int], list[Kernel]] = defaultdict(list)
    for k in kernels:
        groups[k.name, k.arch].append(k)
    lines = [
        "# What Triton makes of our kernels",
        "",
        "Written by `python -m tests.triton_offline`, without a GPU: each op at every configuration that",
        "ships, compiled on the way through Triton's own launch path. Accesses of 16 bytes and instructions",
        "of the tensor cores: in how many of the configurations.",
        "",
        "| kernel | for | configurations | registers | shared memory | spills | 16-byte loads "
        "| 16-byte stores | mma | wgmma | tcgen05 | TMA |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, arch), some in sorted(groups.items()):
        registers, shared = [k.registers for k in some], [k.shared for k in some]
        counts = [
            sum(k.sass[what] > 0 for k in some)
            for what in ("load", "store", "mma", "wgmma", "tcgen05", "tma")
        ]
        cells = [
            f"`{name}`", f"sm_{arch}", len(some), f"{min(registers)}–{max(registers)}",
            f"{min(shared)}–{max(shared)}", sum(bool(k.stack or k.sass["local"]) for k in some), *counts,
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> int:
    architectures = [int(a) for a in sys.argv[1:] if a.isdigit()] or ARCHITECTURES
    names = [a for a in sys.argv[1:] if not a.isdigit()]
    kernels = compile_all(architectures, names)
    print(table(kernels))
    broken = broken_rules(kernels)
    print("\n".join(broken), file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
