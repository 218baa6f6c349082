"""``python -m fastops.doctor``: what is built, what is found, and which kernel serves what.

``--json`` for machines. Exits with 0 if fastops is usable, with 1 if the import or a kernel is broken.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastops

DTYPES = ("float64", "float32", "float16", "bfloat16", "uint8")
SOURCE = Path(fastops.__path__[0]).parent
REBUILD = (
    f"pip install -e {SOURCE} --no-build-isolation"
    if (SOURCE / "setup.py").exists()
    else "pip install --force-reinstall --no-deps fastops"
)


def _imported(name: str) -> tuple[Any, str | None]:
    """The module, or None and why it cannot be imported."""
    try:
        return importlib.import_module(name), None
    except Exception as error:  # a broken library may raise anything
        return None, f"{type(error).__name__}: {error}"


def _find_in(pattern: str, *command: str) -> str | None:
    """What the pattern's group matches in a program's output, if the program is there and succeeds."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(pattern, done.stdout) if done.returncode == 0 else None
    return match.group(1) if match else None


def _ops(kernels: Any) -> list[str]:
    """The raw ops that a submodule of the compiled module has launchers for."""
    names = {name for name, value in vars(kernels).items() if callable(value)}
    return sorted(name for name in names if not name.endswith("_workspace"))


def sm90(archs: str) -> str | None:
    """What becomes of the kernels for Hopper in a build for these architectures."""
    if "90a" not in archs.split(";"):
        return None
    if os.environ.get("FASTOPS_SM90") == "0":
        return "its kernels are off, by FASTOPS_SM90=0"
    return "its kernels are in"


def built() -> dict[str, Any]:
    """What the compiled module has in it."""
    report: dict[str, Any] = {"version": fastops.__version__, "folder": fastops.__path__[0]}
    module, error = _imported("fastops._C")
    if error is not None:
        return report | {"error": error}
    compiled = [n.removeprefix("cpu_") for n in vars(module) if n.startswith("cpu_")]
    return report | {
        "compiler": module.compiler,
        "isas": [isa for isa in compiled if _ops(getattr(module, f"cpu_{isa}"))],
        "usable_isas": module.usable_isas(),
        "cuda": module.cuda_version or None,
        "cuda_archs": module.cuda_archs or None,
        "sm90": sm90(module.cuda_archs),
    }


def found() -> dict[str, Any]:
    """What the machine and the Python environment offer."""
    report: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine()}
    torch, error = _imported("torch")
    report["torch"] = torch.__version__ if error is None else None
    if error is not None:
        report["torch_error"] = error
    report["torch_cuda"] = getattr(getattr(torch, "version", None), "cuda", None)
    report["gpu"] = torch.cuda.get_device_name() if error is None and torch.cuda.is_available() else None
    # Seen without torch, which may be a build for the CPU only.
    report["driver"] = _find_in(r"(\S+)", "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    triton, _ = _imported("triton")
    report["triton"] = getattr(triton, "__version__", None)
    ours, _ = _imported("fastops.backends.triton")
    report["triton_kernels"] = ours.why_unavailable() or ours.describe() if ours else None
    report["nvcc"] = _find_in(r"release ([\d.]+)", "nvcc", "--version")
    return report


def _smoke_calls() -> dict[str, Callable[[Any, Any], Any]]:
    """One small call of each function in fastops.functional, given that module and an 1×4×6×6 input."""

    def unpool(F: Any, x: Any) -> Any:
        import torch

        positions = torch.arange(9, device=x.device).reshape(1, 1, 3, 3).mul(4).expand(1, 4, 3, 3)
        return F.max_unpool2d(x[..., :3, :3], positions, 2)

    def batch_norm_in_two_parts(F: Any, x: Any) -> Any:
        """As SyncBatchNorm has it."""
        from fastops import functional
        from fastops.ops import batch_norm, sync_batch_norm

        if F is not functional:
            return F.batch_norm(x, None, None, training=True)
        if not x.is_floating_point():
            raise NotImplementedError
        spec = batch_norm.BatchNormSpec(True, 0.0, 1e-5, False, x.dtype, batch_norm.format_of(x))
        constant = x.detach()
        y = sync_batch_norm.affine(
            constant, *sync_batch_norm.statistics(constant, spec), None, None, None, spec
        )
        return y + 0 * x

    return {
        "conv2d": lambda F, x: F.conv2d(x, x[:, :, :3, :3].contiguous(), x[0, 0, 0, :1].contiguous()),
        "conv_transpose2d": lambda F, x: F.conv_transpose2d(
            x, x.reshape(4, 1, 6, 6), x[0, 0, 0, :1].contiguous()
        ),
        "max_pool2d": lambda F, x: F.max_pool2d(x, 2),
        "max_pool2d with indices": lambda F, x: F.max_pool2d(x, 2, return_indices=True)[0],
        "avg_pool2d": lambda F, x: F.avg_pool2d(x, 2),
        "adaptive_avg_pool2d": lambda F, x: F.adaptive_avg_pool2d(x, 2),
        "adaptive_max_pool2d": lambda F, x: F.adaptive_max_pool2d(x, 2),
        "max_unpool2d": unpool,
        "batch_norm": lambda F, x: F.batch_norm(x, None, None, training=True),
        "batch_norm in two parts": batch_norm_in_two_parts,
        "batch_norm in evaluation": lambda F, x: F.batch_norm(
            x, x[0, :, 0, 0].detach(), x[0, :, 0, 1].detach()
        ),
        "nearest": lambda F, x: F.interpolate(x, scale_factor=2),
        "bilinear": lambda F, x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        "bilinear with antialias": lambda F, x: F.interpolate(x, size=3, mode="bilinear", antialias=True),
        "area": lambda F, x: F.interpolate(x, size=3, mode="area"),
    }


def _agrees(y: Any, reference: Any) -> bool:
    """Whether a result is right, as far as a smoke test goes: to a twentieth of the largest value."""
    reference = reference.to(y.device)
    return bool(((y.double() - reference).abs() <= 0.05 * reference.abs().max() + 1e-12).all())


def _run_twice_differentiated(call: Callable[[Any, Any], Any], x: Any) -> Any:
    import torch

    from fastops import functional

    if not x.dtype.is_floating_point:
        return call(functional, x)
    x = x.detach().requires_grad_()
    y = call(functional, x)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    if dx.requires_grad:
        torch.autograd.grad(dx.square().sum(), x)
    return y.detach()


def try_kernels(devices: list[str]) -> tuple[dict[tuple[str, str], set[str]], list[str]]:
    """Runs every function forward, backward and twice backward, and compares its values with torch's.

    Returns the dtypes at which each (device, raw op) ran, and what failed and how.
    """
    import torch
    import torch.nn.functional as theirs

    from fastops import backends, functional

    names = {str(d).removeprefix("torch."): value for d, value in backends.DTYPES.items()}
    ran: dict[tuple[str, str], set[str]] = {}
    failed: list[str] = []
    device = "cpu"

    def recorder(op: str) -> Callable[..., None] | None:
        """A backend that hands every launch on to the chosen one, and notes it."""
        launcher = backends._choose(op, device, None).launcher

        def launch(params: Any, *tensors: Any) -> None:
            assert launcher is not None
            launcher(params, *tensors)
            dtype = next(name for name, value in names.items() if value == params.dtype)
            ran.setdefault((tensors[0].device.type, op), set()).add(dtype)

        return launch

    try:
        for device in devices:
            backends.BACKENDS["doctor"] = backends.Backend(recorder, device, lambda: "the chosen kernel")
            for (name, call), dtype in itertools.product(_smoke_calls().items(), DTYPES):
                # Distinct values, exact in every dtype, in no order.
                x = torch.arange(144).mul(61).remainder(145).reshape(1, 4, 6, 6)
                x = (x if dtype == "uint8" else x / 64).to(device, getattr(torch, dtype))
                try:
                    with fastops.backend("doctor"):
                        y = _run_twice_differentiated(call, x)
                except NotImplementedError:
                    continue  # not a dtype or device of this function
                except AttributeError as error:
                    if getattr(error, "obj", None) is functional:
                        continue  # this version has no such function
                    failed.append(f"{name} on {device}, {dtype}: {type(error).__name__}: {error}")
                    continue
                except Exception as error:
                    failed.append(f"{name} on {device}, {dtype}: {type(error).__name__}: {error}")
                    continue
                if not _agrees(y, call(theirs, x.double().cpu())):
                    failed.append(f"{name} on {device}, {dtype}: the values differ from torch's")
            backends._choose.cache_clear()
    finally:
        backends.BACKENDS.pop("doctor", None)
        backends._choose.cache_clear()
    return ran, failed


def kernels(gpu: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """One row per raw op and device: the backend, why, and the dtypes at which it ran just now."""
    from fastops import _C, backends

    ran, failed = try_kernels(["cpu", "cuda"] if gpu else ["cpu"])
    rows = []
    for op, device in itertools.product(_ops(_C.cpu_baseline), ("cpu", "cuda")):
        try:
            choice = backends.choose(op, device)
            backend, reason = choice.backend, choice.reason
        except NotImplementedError:
            backend, reason = None, "no kernel for this device"
        dtypes = [d for d in DTYPES if d in ran.get((device, op), ())]
        rows.append({"op": op, "device": device, "backend": backend, "reason": reason, "ran": dtypes})
    return rows, failed


def improvement(report: dict[str, Any]) -> str | None:
    """One command that would make things better, with the reason; None where there is nothing to do."""
    build, machine = report["built"], report["found"]
    if machine["torch"] is None:
        return "pip install torch  # fastops computes on torch's tensors"
    if "error" in build or report["failed"]:
        return f"{REBUILD}  # the compiled kernels do not work"
    if os.environ.get("FASTOPS_ISA") and report["isa"] != build["usable_isas"][-1]:
        return f"unset FASTOPS_ISA  # this processor has {build['usable_isas'][-1]}"
    if machine["driver"] and machine["torch_cuda"] is None:
        return "pip install --force-reinstall torch  # a build with CUDA: this one is for the CPU only"
    if machine["gpu"] and build["cuda"] is None:
        with_nvcc = "there is a GPU, and nvcc" if machine["nvcc"] else "there is a GPU: install nvcc first"
        return f"FASTOPS_CUDA=1 {REBUILD}  # {with_nvcc}"
    return None


def examine() -> dict[str, Any]:
    """Everything that the doctor knows, ready for json."""
    report: dict[str, Any] = {"built": built(), "found": found(), "kernels": [], "failed": []}
    native, error = _imported("fastops.backends.native")
    report["isa"] = getattr(native, "ISA", None)
    report["openmp"] = getattr(native, "OPENMP_RUNTIME", None)
    if error is None:
        report["kernels"], report["failed"] = kernels(report["found"]["gpu"] is not None)
    elif "error" not in report["built"]:
        report["built"]["error"] = error
    report["usable"] = "error" not in report["built"] and not report["failed"]
    report["improve"] = improvement(report)
    return report


def prescription(report: dict[str, Any]) -> str:
    """The report as text."""
    build, machine = report["built"], report["found"]
    lines = [f"fastops {build['version']} in {build['folder']}"]
    if "error" in build:
        lines.append(f"  BROKEN   {build['error']}")
    else:
        isas = f"compiled: {', '.join(build['isas'])}; usable here: {', '.join(build['usable_isas'])}"
        cuda = (
            f"{build['cuda']} for sm_{build['cuda_archs'].replace(';', ', sm_')}" if build["cuda"] else None
        )
        lines += [
            f"  built    by compiler {build['compiler']}",
            f"  CPU      {report['isa']} ({isas})",
            f"  CUDA     {cuda or 'not compiled in: there was no nvcc, or FASTOPS_CUDA=0'}",
            *([f"  sm_90a   {build['sm90']}"] if build["sm90"] else []),
        ]
    shared = f"OpenMP runtime {report['openmp']}" if report["openmp"] else "made anew for each call"
    if report["isa"] is None:
        shared = "not looked at"
    lines += [
        "found",
        f"  torch    {machine['torch'] or machine['torch_error']}",
        f"  threads  {shared}",
        f"  GPU      {machine['gpu'] or 'none that torch can use'}, driver {machine['driver'] or 'none'}",
        f"  Triton   {machine['triton_kernels'] or machine['triton'] or 'none'}",
        f"  nvcc     {machine['nvcc'] or 'none'}",
    ]
    rows = [("raw op", "device", "backend", "ran just now with", "why")]
    for row in report["kernels"]:
        ran = " ".join(row["ran"]) or ("not run" if row["backend"] else "-")
        rows.append((row["op"], row["device"], row["backend"] or "-", ran, row["reason"]))
    if report["kernels"]:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines.append("")
        lines += [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
    lines += ["", *(f"FAILED   {line}" for line in report["failed"])]
    lines.append(f"improve: {report['improve']}" if report["improve"] else "nothing to improve")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fastops.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as json")
    options = parser.parse_args()
    report = examine()
    print(json.dumps(report, indent=2) if options.json else prescription(report))
    return 0 if report["usable"] else 1


if __name__ == "__main__":
    sys.exit(main())
