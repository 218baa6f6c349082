"""The compiled kernels: the only file that sees addresses, streams and ``_C``'s launchers."""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastops import _C


def _share_openmp() -> str | None:
    """Makes the CPU kernels run on the OpenMP runtime that torch has loaded; returns its path."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = {
        line.split(maxsplit=5)[5] for line in lines if re.search(r"/lib(gomp|iomp5|omp)[-.][^/]*$", line)
    }
    # Where there are several, torch's own is the one in its folder.
    for path in sorted(paths, key=lambda p: ("/torch/lib/" not in p and "/torch.libs/" not in p, p)):
        try:
            address = ctypes.cast(ctypes.CDLL(path).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
        if address:
            _C.set_openmp_runtime(address)
            return path
    return None


OPENMP_RUNTIME = _share_openmp()

# The instruction set in use: the best one, unless FASTOPS_ISA names another.
ISA = os.environ.get("FASTOPS_ISA") or _C.usable_isas()[-1]
if ISA not in _C.usable_isas():
    raise ValueError(f"FASTOPS_ISA={ISA}: this processor and build have {', '.join(_C.usable_isas())}")


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


# Scratch memory kept for the next call, per thread: fresh pages cost more than many a kernel (a
# convolution's packed weights are megabytes, and the allocator returns such blocks to the system).
_KEEP = 64 << 20
_scratch = threading.local()


def _workspace(size: int) -> Tensor:
    """At least `size` bytes that nobody else on this thread uses during the call."""
    kept: Tensor | None = getattr(_scratch, "tensor", None)
    if kept is None or kept.numel() < size:
        kept = torch.empty(size, dtype=torch.uint8, device="cpu")
        if size <= _KEEP:
            _scratch.tensor = kept
    return kept


def cpu_launcher(op: str, isa: str = ISA) -> Callable[..., None] | None:
    """Runs the op's CPU kernel on torch's number of threads."""
    kernels = getattr(_C, f"cpu_{isa}")
    kernel = getattr(kernels, op, None)
    workspace_bytes = getattr(kernels, f"{op}_workspace", None)
    if kernel is None:
        return None

    def launch(params: Any, *tensors: Tensor | None) -> None:
        kernel(params, *map(_address, tensors), torch.get_num_threads())

    def launch_with_workspace(params: Any, *tensors: Tensor | None) -> None:
        threads = torch.get_num_threads()
        workspace = _workspace(workspace_bytes(params, threads))
        addresses = [0 if t is None else t.data_ptr() for t in tensors]
        kernel(params, *addresses, workspace.data_ptr(), threads)

    return launch if workspace_bytes is None else launch_with_workspace


# A word per device, in page-locked memory, where kernels report what only they can see: an index that
# is not in the plane. To wait for the kernel would stall the device; each later launch on it looks
# instead, which costs nothing.
_reports: dict[int, Tensor] = {}


def raise_reported(report: Tensor) -> None:
    """Raises what a kernel has reported there, once."""
    word = ctypes.c_int32.from_address(report.data_ptr())
    if word.value:
        word.value = 0
        raise RuntimeError(_C.invalid_index)


def report_of(index: int) -> Tensor:
    """The word of a device; of index -1, for kernels that run on CPU tensors."""
    report = _reports.get(index)
    if report is None:
        report = torch.zeros(1, dtype=torch.int32, device="cpu", pin_memory=index >= 0)
        report = _reports.setdefault(index, report)
    return report


def raise_earlier(index: int) -> None:
    """Raises what kernels have reported on a device, if any ever could."""
    if index in _reports:
        raise_reported(_reports[index])


def run_cuda(kernel: Callable[..., None], params: Any, *arguments: int) -> None:
    """Calls a CUDA launcher; its errors name the kernel, and here get the params."""
    try:
        kernel(params, *arguments)
    except RuntimeError as error:
        raise RuntimeError(f"{error}, with {params!r}") from error


def cuda_launcher(op: str) -> Callable[..., None] | None:
    """Runs the op's CUDA kernel on the current stream of the tensors' device."""
    kernel = getattr(_C.cuda, op, None)
    workspace_bytes = getattr(_C.cuda, f"{op}_workspace", None)
    reports = hasattr(_C.cuda, f"{op}_reports")
    if kernel is None:
        return None

    def run(index: int, params: Any, *tensors: Tensor | None) -> None:
        addresses = [0 if t is None else t.data_ptr() for t in tensors]
        if workspace_bytes is not None:
            # Freed when this returns, and not handed out again but to later work on this stream.
            size = workspace_bytes(params)
            workspace = torch.empty(size, dtype=torch.uint8, device=f"cuda:{index}") if size else None
            addresses.append(_address(workspace))
        if reports:
            addresses.append(report_of(index).data_ptr())
        run_cuda(kernel, params, *addresses, torch._C._cuda_getCurrentRawStream(index))

    def launch(params: Any, *tensors: Tensor | None) -> None:
        index = tensors[0].get_device()  # type: ignore[union-attr]  (there always is a first one)
        raise_earlier(index)
        if index == torch._C._cuda_getDevice():
            run(index, params, *tensors)
        else:
            with torch.cuda.device(index):
                run(index, params, *tensors)
        raise_earlier(index)  # with CUDA_LAUNCH_BLOCKING=1 the kernel has run by now

    return launch


def describe_cpu() -> str:
    """What the CPU's kernels are, in a few words."""
    return f"C++ kernels, {ISA} instructions"


def describe_cuda() -> str:
    """What the GPU's are."""
    return f"CUDA C++ kernels for sm_{_C.cuda_archs.replace(';', ', sm_')}"


def why_no_cuda() -> str | None:
    """Why there are no CUDA C++ kernels; None where there are."""
    return None if _C.cuda_version else "this build of fastops has no CUDA C++ kernels"
