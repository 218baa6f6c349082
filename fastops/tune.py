"""python -m fastops.tune: measures by which Triton kernels convolutions run fastest on this GPU.

    python -m fastops.tune --layer "Conv2d(64, 128, 3, padding=1)" --input 32,64,56,56
    python -m fastops.tune --model torchvision.models:resnet50 --input 32,3,224,224

Each pass of each convolution that the layer or the (converted) model would run is tried with every
configuration of backends/triton/conv_plan.py. The choices are kept in the user's cache, from which later
processes take them; nothing is ever measured while a program runs. Batches and images of other sizes are
other choices. FASTOPS_TUNED names another file.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fastops
from fastops import _C
from fastops.backends import triton
from fastops.explain import PASSES, _with_precision, raw_ops
from fastops.ops import layout

Measure = Callable[[Callable[..., None], tuple[Tensor | None, ...]], float]


def measure_on_gpu(run: Callable[..., None], tensors: tuple[Tensor | None, ...]) -> float:
    """The median of its time in milliseconds, with a cold L2 cache."""
    from triton.testing import do_bench

    return float(do_bench(lambda: run(*tensors), return_mode="median"))


def tensors_of(p: _C.ConvParams, pass_: _C.ConvPass, device: str) -> tuple[Tensor | None, ...]:
    """Random tensors for one pass; the result last."""
    dtype = next(torch_dtype for torch_dtype, ours in fastops.backends.DTYPES.items() if ours == p.dtype)

    def random(shape: tuple[int, ...], channels_last: bool) -> Tensor:
        memory_format = layout.CHANNELS_LAST if channels_last else layout.CONTIGUOUS
        return torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=memory_format)

    x = random((p.n, p.c, *p.in_[1:]), p.channels_last)
    w = random((p.k, p.c // p.groups, *p.kernel[1:]), p.weight_channels_last)
    y = random((p.n, p.k, *p.out[1:]), p.channels_last)
    if pass_ == _C.ConvPass.forward:
        return x, w, None, y
    return (y, w, None, x) if pass_ == _C.ConvPass.input_grad else (y, x, w)


def convolutions(module: nn.Module, x: Tensor) -> list[tuple[_C.ConvPass, _C.ConvParams]]:
    """The passes of convolutions that module(x) and its backward run, each once."""
    found = {}
    for op, params in raw_ops(module, x):
        for pass_ in PASSES.get(op, ()):
            params = _with_precision(params)
            found[pass_.name, repr(params)] = pass_, params
    return list(found.values())


def tune(
    module: nn.Module,
    x: Tensor,
    *,
    measure: Measure = measure_on_gpu,
    report: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Measures every convolution of module(x), forward and backward, and stores what is fastest.

    x: on the GPU to tune for. Returns the choices by key. Raises RuntimeError where there is no Triton.
    """
    reason = triton.why_unavailable()
    if reason is not None:
        raise RuntimeError(f"fastops.tune: {reason}")
    from fastops.backends.triton import conv_plan, tuned
    from fastops.backends.triton.conv import planned

    chosen: dict[str, Any] = {}
    for pass_, params in convolutions(module, x):
        tensors = tensors_of(params, pass_, str(x.device))
        times: list[tuple[float, conv_plan.Plan]] = []
        for plan in conv_plan.candidates(params, pass_, conv_plan.has_tma()):
            try:
                times.append((measure(planned(params, pass_, plan), tensors), plan))
            except Exception as error:  # too much shared memory, or whatever this Triton does not compile
                report(f"  {plan}: {type(error).__name__}")
        if not times:
            continue
        best, plan = min(times, key=lambda t: t[0])
        chosen[tuned.key(pass_.name, params)] = (plan.kernel, *plan.block)
        size = "×".join(map(str, (params.n, params.c, *params.in_[1:])))
        filters = "×".join(map(str, (params.k, *params.kernel[1:])))
        report(f"{pass_.name} {size} by {filters}: {plan}, {best:.4f} ms; by default {times[0][0]:.4f} ms")
    report(f"stored in {tuned.store(chosen)}")
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fastops.tune", description=(__doc__ or "").split("\n")[0]
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--layer", help='of fastops, such as "Conv2d(64, 128, 3, padding=1)"')
    what.add_argument(
        "--model", help="module:callable that makes a model, such as torchvision.models:resnet50"
    )
    parser.add_argument("--input", required=True, help="the input's size: N,C,H,W")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "float16", "bfloat16", "float64"])
    parser.add_argument("--contiguous", action="store_true", help="by default channels_last")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("fastops.tune: there is no GPU that torch can use", file=sys.stderr)
        return 2
    if options.layer:
        module = eval(options.layer, vars(fastops.modules))  # the user's own words
    else:
        name, _, function = options.model.partition(":")
        module = getattr(importlib.import_module(name), function)()
        fastops.convert(module)
    memory_format = layout.CONTIGUOUS if options.contiguous else layout.CHANNELS_LAST
    dtype = getattr(torch, options.dtype)
    module = module.to("cuda", dtype, memory_format=memory_format)
    x = torch.randn(*map(int, options.input.split(",")), device="cuda", dtype=dtype)
    tune(module, x.contiguous(memory_format=memory_format))
    return 0


if __name__ == "__main__":
    sys.exit(main())
