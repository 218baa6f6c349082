"""What must hold of one call: values, gradients, layouts and indices as torch's, or an error as torch's.

Values are compared by tests/tolerance.py's rule, whose floor knows the size of the terms: that is what the
same call makes of absolute values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastops
import fastops.functional as G
from fastops.backends import BACKENDS
from tests.fuzz.call import Call, lay
from tests.reliability.tally import Skip
from tests.tolerance import assert_accurate, assert_same_layout


@dataclass
class Result:
    outputs: list[Tensor]
    grads: list[Tensor]
    statistics: list[Tensor]  # the running ones, afterwards


def first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


def wanted(call: Call, tensors: list[Tensor | None]) -> list[int]:
    """Positions of what is differentiated: all floating-point arguments but running statistics."""
    fixed = (1, 2) if call.op == "batch_norm" else ()
    return [k for k, t in enumerate(tensors) if t is not None and t.is_floating_point() and k not in fixed]


def run(module: Any, call: Call, tensors: list[Tensor | None], dy: Tensor | None) -> Result:
    statistics = (1, 2) if call.op == "batch_norm" else ()
    leaves = wanted(call, tensors) if dy is not None else []
    fresh = [
        None if t is None else t.clone() if k in statistics else t.detach().requires_grad_(k in leaves)
        for k, t in enumerate(tensors)
    ]
    result = call.invoke(module, fresh)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    grads: tuple[Tensor, ...] = ()
    if leaves and outputs[0].requires_grad:
        grads = torch.autograd.grad(outputs[0], [fresh[k] for k in leaves], dy)  # type: ignore[misc]
    after = [t.detach().cpu() for k in statistics if (t := fresh[k]) is not None]
    return Result([o.detach().cpu() for o in outputs], [g.cpu() for g in grads], after)


def mapped(tensors: list[Tensor | None], f: Any) -> list[Tensor | None]:
    """The floating-point ones, changed."""
    return [f(t) if t is not None and t.is_floating_point() else t for t in tensors]


def cotangent(call: Call, tensors: list[Tensor | None]) -> Tensor | None:
    """dy, in its form; zero where it hangs on a rounding whether a ReLU lets it through."""
    if call.dtype == "uint8":
        return None
    without = Call(call.op, call.shapes, {**call.options, "activation": None}, call.dtype)
    double = mapped(tensors, Tensor.double)
    y = first(run(F, without, double, None).outputs)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(call.seed + 1)).bfloat16()
    form = call.form(len(call.shapes))
    if call.options.get("activation"):
        near = 1e-3 if call.torch_dtype.itemsize > 2 else 0.1
        sure = y.abs() > near * max(1.0, y.abs().max().item() if y.numel() else 1.0)
        if form == "expanded" and y.numel():  # one slice for all
            sure = sure.all(1 if y.dim() == 4 else 0, keepdim=True)
        dy = dy * sure
    return lay(dy.to(call.torch_dtype), form)


def formats(t: Tensor) -> list[torch.memory_format]:
    last = {4: [torch.channels_last], 5: [torch.channels_last_3d]}
    return [torch.contiguous_format, *last.get(t.dim(), [])]


def has_a_layout(t: Tensor) -> bool:
    """Whether the strides are those of a new tensor, in one layout or the other."""
    return t.stride() in [torch.empty(t.shape, memory_format=f, device="meta").stride() for f in formats(t)]


def is_ambiguous(t: Tensor | None) -> bool:
    """Whether it is dense in channels_last, but not with the strides that a new tensor would have."""
    if t is None or t.dim() < 4:
        return False
    return t.is_contiguous(memory_format=formats(t)[-1]) and not has_a_layout(t)


def duplicates(call: Call, tensors: list[Tensor | None]) -> bool:
    """Whether an unpooling overwrites: torch gives what is lost a gradient too, fastops not."""
    if call.op != "max_unpool2d":
        return False
    planes = tensors[1].flatten(-2).flatten(0, -2)  # type: ignore[union-attr]
    return any(len(plane.unique()) < plane.numel() for plane in planes)


def sizes(call: Call, tensors: list[Tensor | None], dy: Tensor | None) -> Result:
    """How large the terms are of which each result is made."""
    terms = mapped(judged(call, tensors), Tensor.abs)
    if call.op != "batch_norm":
        return run(F, call, terms, None if dy is None else dy.double().abs().contiguous())
    x, _, var, w, b, residual = terms
    dims = [d for d in range(x.dim()) if d != 1]  # type: ignore[union-attr]
    if call.options.get("training"):
        var = tensors[0].double().var(dims, unbiased=False)  # type: ignore[union-attr]
    if var is None:  # an empty batch
        var = torch.ones(1)
    invstd = (var + call.options.get("eps", 1e-5)).rsqrt().max().item() if var.numel() else 1.0  # type: ignore[union-attr]

    def greatest(t: Tensor | None, without: float = 0.0) -> float:
        return without if t is None or not t.numel() else t.max().item()

    count = max(1, x.numel() // max(1, x.shape[1]))  # type: ignore[union-attr]
    far = 1 + greatest(x) * invstd  # of x̂, whose mean is taken off after it is divided
    # In fp64 torch is the reference, which adds up one by one.
    roundings = max(1.0, count / 16) if call.dtype == "float64" and call.options.get("training") else 1.0
    y = roundings * far * greatest(w, 1.0) + greatest(b) + greatest(residual)
    pull = 0.0 if dy is None else greatest(dy.double().abs())
    grads = {
        0: roundings * pull * greatest(w, 1.0) * invstd * far * far,
        3: pull * far * count,
        4: pull * count,
        5: pull,
    }
    new = [torch.tensor(roundings * v) for v in (1 + greatest(x), 1 + greatest(x) ** 2)]
    return Result(
        [torch.tensor(y)],
        [torch.tensor(grads[k]) for k in wanted(call, tensors)],
        new[: 2 * (tensors[1] is not None)],
    )


def one_column(call: Call) -> bool:
    """Whether images are resized to one column, uint8 ones or with antialiasing: torch (2.13) mixes their
    channels in NCHW, or, of one channel, their rows."""
    if call.op != "interpolate" or not (call.dtype == "uint8" or call.options.get("antialias")):
        return False
    size, factor = call.options.get("size"), call.options.get("scale_factor")
    across = [v[1] if isinstance(v, tuple) else v for v in (size, factor)]
    assert call.shapes[0] is not None
    return (int(call.shapes[0][-1] * across[1]) if size is None else across[0]) == 1


def ambiguous_nearest(call: Call) -> bool:
    """Whether the nearest elements are others by a factor in fp64 than by one in fp32. torch takes the one or
    the other for tensors in fp64: it depends on the layout and on the size of the planes."""
    factor, mode = call.options.get("scale_factor"), call.options.get("mode", "")
    if call.dtype != "float64" or factor is None or not mode.startswith("nearest"):
        return False
    shift = 0.5 if mode == "nearest-exact" else 0.0
    assert call.shapes[0] is not None
    factors = factor if isinstance(factor, tuple) else (factor, factor)
    for size, f in zip(call.shapes[0][2:], factors, strict=True):
        o = torch.arange(int(size * f), dtype=torch.float64) + shift
        step = torch.tensor(1 / f, dtype=torch.float64)
        if not torch.equal((o * step).floor(), (o.float() * step.float()).floor().double()):
            return True
    return False


def judged(call: Call, tensors: list[Tensor | None]) -> list[Tensor | None]:
    """What torch is asked with as the judge, in fp64 or uint8: dense tensors, since with others its results
    are not all right (2.13: batch norm's gradient in channels_last with a strided weight; max_unpool2d's
    raises); and channels_last for one column, and for antialiasing, which in NCHW is wrong there, too."""
    dense = [t if t is None else t.contiguous() for t in mapped(tensors, Tensor.double)]
    if call.options.get("antialias") or one_column(call):
        dense[0] = dense[0].contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
    return dense


def deviation(call: Call) -> str | None:
    """Why fastops raises on purpose what torch computes, or computes what torch does not."""
    x = call.shapes[0]
    assert x is not None
    adaptive = call.op.startswith("adaptive") or call.options.get("mode") == "area"
    if call.op == "max_unpool2d" and len(x) == 3 and x[0] == 0:
        return "torch unpools an image without channels, fastops does not"
    if call.op == "max_unpool2d" and call.options["plane"] == 0:
        return "torch drops all values where the unpooled plane is empty, fastops raises"
    if adaptive and call.dtype == "uint8":
        return "torch has a uint8 area mode where the result is empty"
    if adaptive and 0 in x[-3:]:
        return "torch takes some empty images for adaptive pooling, fastops none"
    if call.op == "conv2d" and x[-3] == 0:
        return "torch's convolution of no channels has no channels, fastops' those of the weight"
    if call.op == "conv_transpose2d" and 0 in x:
        return "torch checks output_padding of non-empty inputs only"
    if call.op == "batch_norm" and 0 in x:
        return "torch evaluates an empty batch without statistics"
    factor = call.options.get("scale_factor")
    if factor is not None and (call.options["mode"] == "bicubic" or call.options.get("antialias")):
        factors = factor if isinstance(factor, tuple) else (factor, factor)
        if any(int(size * f) == size for size, f in zip(x[2:], factors, strict=True)):
            return "torch's bicubic or antialiased resizing to the same size has another function's gradient"
    if call.options.get("antialias") and call.torch_dtype.itemsize == 2:
        return "torch has no antialiasing in 16 bits"
    if one_column(call) and x[1] == 1:  # both layouts are the same memory: there is no judge
        return "torch mixes the rows of images of one channel that become one column"
    if ambiguous_nearest(call):
        return "torch's nearest elements in fp64 depend on the layout and on the size"
    return None


def empty_window(call: Call) -> bool:
    """Whether the taps of some dilated max-pooling window are all outside of the image: torch (2.13) gives it
    the index of an element that may be in no plane, and writes there in the backward."""
    dilation = call.options.get("dilation", 1)
    if call.op != "max_pool2d" or dilation in (1, (1, 1)):
        return False
    x = call.shapes[0]
    assert x is not None
    try:
        out = first(F.max_pool2d(torch.empty(x, device="meta"), **call.options)).shape
    except Exception:
        return False

    def two(value: Any) -> tuple[int, int]:
        return value if isinstance(value, tuple) else (value, value)

    kernel = call.options["kernel_size"]
    options = map(two, (kernel, call.options.get("stride", kernel), call.options.get("padding", 0), dilation))
    return any(
        not any(0 <= o * s - p + tap * d < size for tap in range(k))
        for size, outputs, k, s, p, d in zip(x[-2:], out[-2:], *options, strict=True)
        for o in range(outputs)
    )


def check(call: Call, backends: list[str]) -> None:
    """Raises AssertionError for the first backend that differs from torch; Skip where it does so on purpose,
    or where torch is no judge."""
    if empty_window(call):
        agree_among_themselves(call, call.tensors(), backends)
        raise Skip("torch corrupts its memory in the gradient of a dilated window without an element")
    reason = deviation(call)
    try:
        compare(call, backends)
    except Exception:
        if reason is None:
            raise
        agree_among_themselves(call, call.tensors(), backends)
        raise Skip(reason) from None


def compare(call: Call, backends: list[str]) -> None:
    tensors = call.tensors()
    kept = [None if t is None else t.clone() for t in tensors]
    try:
        theirs, error = run(F, call, tensors, None), None
    except Exception as raised:
        theirs, error = None, raised
    if error is not None and "INTERNAL ASSERT" in str(error):
        agree_among_themselves(call, tensors, backends)
        raise Skip("torch fails an assertion of its own")
    if error is not None:
        for backend in backends:
            refuses(call, tensors, backend, error)
        return
    assert theirs is not None
    double = judged(call, tensors)
    try:
        reference = run(F, call, double, None)
    except Exception as raised:
        raise Skip(f"torch computes it in {call.dtype}, and raises {type(raised).__name__} in fp64") from None
    dy = cotangent(call, tensors)
    if dy is None or not dy.numel():
        dy = None
    else:
        reference = run(F, call, double, dy.double().contiguous())
        try:
            theirs.grads = run(F, call, tensors, dy).grads
        except RuntimeError:
            dense = [t if t is None else t.contiguous() for t in tensors]
            theirs.grads = run(F, call, dense, dy.contiguous()).grads
    terms = sizes(call, tensors, dy)
    for backend in backends:
        agrees(call, tensors, dy, backend, theirs, reference, terms)
        for before, after in zip(kept, tensors, strict=True):
            assert before is None or torch.equal(before.nan_to_num(7), after.nan_to_num(7)), (
                "an input was changed"
            )


def agree_among_themselves(call: Call, tensors: list[Tensor | None], backends: list[str]) -> None:
    """All backends, and the CPU's where it is another, raise the same or compute the same."""
    raised, results = [], []
    backends = list(dict.fromkeys([*(["cpu"] if "cpu" in BACKENDS else []), *backends]))
    for backend in backends:
        try:
            with fastops.backend(backend):
                y = first(run(G, call, moved(call, tensors, backend), None).outputs)
            raised.append(f"computes {tuple(y.shape)}")
            results.append(y.double())
        except Exception as error:
            raised.append(f"raises {type(error).__name__}")
    assert len(set(raised)) == 1, f"backends differ: {dict(zip(backends, raised, strict=True))}"
    for backend, y in zip(backends, results, strict=False):  # without results where all raise
        far = y.isfinite() & ((y - results[0]).abs() > 1e-2 * (1 + results[0].abs()))
        assert not far.any() and torch.equal(y.isfinite(), results[0].isfinite()), f"{backend}: other values"


def refuses(call: Call, tensors: list[Tensor | None], backend: str, error: Exception) -> None:
    try:
        with fastops.backend(backend):
            run(G, call, moved(call, tensors, backend), None)
    except type(error):
        return
    except Exception as other:
        better = isinstance(other, (RuntimeError, TypeError, ValueError)) and isinstance(error, IndexError)
        assert better, (
            f"{backend}: raises {type(other).__name__}({other}), torch {type(error).__name__}({error})"
        )
        return
    raise AssertionError(f"{backend}: accepted, where torch raises {type(error).__name__}({error})")


def moved(call: Call, tensors: list[Tensor | None], backend: str, first: int = 0) -> list[Tensor | None]:
    """The tensors, of which the first has that position, on the backend's device, laid as they are here."""
    device = BACKENDS[backend].device_type
    if device == "cpu":
        return tensors
    return [None if t is None else lay(t.to(device), call.form(k)) for k, t in enumerate(tensors, first)]


def agrees(
    call: Call,
    tensors: list[Tensor | None],
    dy: Tensor | None,
    backend: str,
    theirs: Result,
    reference: Result,
    terms: Result,
) -> None:
    there = moved(call, tensors, backend)
    try:
        with fastops.backend(backend):
            ours = run(G, call, there, dy if dy is None else moved(call, [dy], backend, len(call.shapes))[0])
    except Exception as error:
        raise AssertionError(f"{backend}: raises {type(error).__name__}({error}), torch does not") from error
    assert len(ours.outputs) == len(theirs.outputs), f"{backend}: {len(ours.outputs)} results"
    for k, (o, t, r) in enumerate(zip(ours.outputs, theirs.outputs, reference.outputs, strict=True)):
        if o.dtype.is_floating_point:
            assert_accurate(o, t, r, f"{backend}, value", terms.outputs[k])
        else:
            # uint8's roundings depend on the layout.
            judge = r if call.options.get("antialias") or one_column(call) else t
            assert torch.equal(o, judge), f"{backend}: {'indices' if k else 'values'} differ"
        composed = call.op == "batch_norm" and call.shapes[-1] is not None
        if not composed and not is_ambiguous(tensors[0]):  # composed, it is the layout of torch's addition
            assert_same_layout(o, t)
    for k, (o, t) in enumerate(zip(ours.statistics, theirs.statistics, strict=True)):
        what = f"{backend}, running statistics"
        assert_accurate(o, t, reference.statistics[k], what, terms.statistics[k])
    if duplicates(call, tensors):
        return
    assert len(ours.grads) == len(theirs.grads), f"{backend}: {len(ours.grads)} gradients"
    leaves = wanted(call, tensors)
    for k, (o, t, r) in enumerate(zip(ours.grads, theirs.grads, reference.grads, strict=True)):
        assert_accurate(o, t, r, f"{backend}, gradient {k}", terms.grads[k])
        leaf = tensors[leaves[k]]
        assert leaf is not None
        if leaf.dim() == 4 and has_a_layout(leaf):
            assert_same_layout(o, leaf)
