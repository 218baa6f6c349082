"""Right calls on memory that is not a tensor's own: read-only, shared between arguments, of inference mode.

torch cannot be told that a tensor is read-only, so nothing can be refused: of statistics that a call updates
in read-only pages the process dies in torch as in fastops, and they are no rows here. Everything that a call
only reads may lie there. Read-only rows are asked with their tensors in pages that the system lets nobody
write to: a write ends the process.

Overlapping rows are asked twice, as they are and with dense clones in the place of what ``o()`` marks; those
of inference mode with what ``o()`` marks made there, and not. Both must give the same, bit for bit, and
torch's numbers; that torch itself does not mind is asked, too. No rows are calls whose arguments overlap
with what they update: torch writes both of two running statistics to the one place that they share, and reads
a weight that is the running mean after it has written the mean. The output of the former is compared.
"""

from __future__ import annotations

import mmap
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastops.functional as G

READ_ONLY, OVERLAPPING, INFERENCE = "read-only memory", "overlapping memory", "inference tensors"
FAMILIES = (READ_ONLY, OVERLAPPING, INFERENCE)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of the largest value: kernels, not rounding


@dataclass(frozen=True)
class Memory:
    """A call that is right, and what is odd about its memory."""

    family: str
    source: str
    reason: str
    dtype: torch.dtype = torch.float32


# {x} stands for four dimensions that differ from row to row; the reason is which kernel reads them.
READS = (
    ("avg_pool2d({x}, 2)", "averages, tiles"),
    ("avg_pool2d({x}, 3, 1, 1)", "averages, overlap and padding"),
    ("max_pool2d({x}, 2, return_indices=True)", "maxima with positions"),
    ("max_pool2d({x}, 3, 2, 1)", "maxima, overlap and padding"),
    ("adaptive_avg_pool2d({x}, 1)", "whole planes"),
    ("adaptive_avg_pool2d({x}, (4, 5))", "windows that overlap"),
    ("adaptive_max_pool2d({x}, (4, 5), return_indices=True)", "maxima of windows that overlap"),
    ("conv2d({x}, w, b8, 1, 1)", "dense filters"),
    ("conv2d({x}, w1)", "1×1: a matrix product that may read x where it lies"),
    ("conv2d({x}, wd, None, 2, 1, 1, 4)", "depthwise"),
    ("conv2d({x}, wg, b8, groups=2)", "groups"),
    ("conv_transpose2d({x}, v, b8, 2, 1)", "transposed"),
    ("batch_norm({x}, rm, rv, g, b)", "evaluation"),
    ("batch_norm({x}, rm.clone(), rv.clone(), g, b, True)", "training, statistics that may be written"),
    ("batch_norm({x}, rm, rv, g, b, residual=z, activation='relu')", "evaluation, fused"),
    ("batch_norm({x}, None, None, g, b, True, residual=z, activation='relu')", "training, fused"),
    ("interpolate({x}, 9)", "nearest"),
    ("interpolate({x}, scale_factor=2)", "nearest, doubling"),
    ("interpolate({x}, (9, 4), mode='bilinear')", "bilinear"),
    ("interpolate({x}, (4, 13), mode='bicubic', align_corners=True)", "bicubic"),
    ("interpolate({x}, (6, 6), mode='bilinear')", "nothing to do: a copy"),
    ("interpolate({x}, 3, mode='area')", "area"),
)
NOT_16_BIT = (
    ("interpolate({x}, (4, 3), mode='bilinear', antialias=True)", "antialias, which torch has wide only"),
)
UNPOOL = (("max_unpool2d({x}, i, 2)", "unpooling, whose indices are looked at first"),)


def _read_only() -> Iterator[Memory]:
    for dtype in TOLERANCE:
        for source, reason in READS + (NOT_16_BIT if dtype is torch.float32 else ()):
            for x, layout in (("x", "contiguous"), ("xl", "channels_last"), ("xs[..., ::2]", "with gaps")):
                yield Memory(READ_ONLY, source.format(x=x), f"{reason}, {layout}", dtype)
                backward = f"grads(lambda x: {source.format(x='x')}, {x})"
                yield Memory(READ_ONLY, backward, f"{reason}, {layout}, backward", dtype)
        for source, reason in UNPOOL:
            yield Memory(READ_ONLY, source.format(x="y"), reason, dtype)
            yield Memory(
                READ_ONLY, f"grads(lambda y: {source.format(x='y')}, y)", f"{reason}, backward", dtype
            )
        for source, reason in (
            (
                "grads(lambda x, w, b: conv2d(x, w, b, padding=1), x, w, b8)",
                "gradients of all: saved tensors",
            ),
            ("grads(lambda x, w: conv2d(x, w, groups=4), xl, wd)", "the same, depthwise"),
            ("grads(lambda x, w, b: conv_transpose2d(x, w, b), x, v, b8)", "the same, transposed"),
            ("grads(lambda x, w, b: batch_norm(x, None, None, w, b, True), x, g, b)", "the same, training"),
            ("grads(lambda x, w, b: batch_norm(x, rm, rv, w, b), xl, g, b)", "the same, evaluation"),
        ):
            yield Memory(READ_ONLY, source, reason, dtype)


def _overlapping() -> Iterator[Memory]:
    """In fp32: nothing here is a matter of the dtype."""
    for source, reason in READS + NOT_16_BIT:
        for x, how in (
            ("win", "windows of one line"),
            ("ex", "expanded rows"),
            ("one", "one element, expanded"),
        ):
            if x == "one" and "batch_norm" in source and "True" in source:
                continue  # no variance: roundings of the mean grow by hundreds, in torch, too
            yield Memory(OVERLAPPING, source.format(x=f"o({x})"), f"{reason}: {how}")
            backward = f"grads(lambda x: {source.format(x='x')}, o({x}))"
            yield Memory(OVERLAPPING, backward, f"{reason}: {how}, backward")
        backward = f"grads(lambda x: {source.format(x='x')}, x, dy=lambda y: o(e(1).expand_as(y)))"
        yield Memory(OVERLAPPING, backward, f"{reason}: a gradient that is one element, as of sum()")
    for source, reason in (
        *UNPOOL,
        ("max_unpool2d({x}, o(i[:1, :1].expand(2, 4, 3, 3)), 2)", "unpooling, one plane of indices for all"),
        ("max_unpool2d({x}, o(i.flatten().as_strided((2, 4, 3, 3), (9, 3, 3, 1))), 2)", "windows of indices"),
    ):
        for y in ("y", "o(y[:1, :1].expand(2, 4, 3, 3))"):
            if "o(" in source + y:
                yield Memory(OVERLAPPING, source.format(x=y), reason)
                yield Memory(
                    OVERLAPPING, f"grads(lambda y: {source.format(x='y')}, {y})", f"{reason}, backward"
                )
    for op, w in (("conv2d", "w"), ("conv_transpose2d", "v")):
        for weight, how in (
            (f"o({w}[:1, :1].expand(*{w}.shape))", "one filter for all"),
            (f"o({w}.flatten().as_strided({w}.shape, (13, 5, 3, 1)))", "filters that are windows"),
            (f"o(e(1).expand(*{w}.shape))", "one element for all"),
        ):
            yield Memory(
                OVERLAPPING, f"{op}(x, {weight}, o(b8[:1].expand(8)))", f"{how}; a bias of one element"
            )
            yield Memory(OVERLAPPING, f"grads(lambda x, w: {op}(x, w), xl, {weight})", f"{how}, backward")
        yield Memory(OVERLAPPING, f"{op}(o(sq), o(sq), padding=1)", "the input is the weight")
        source = f"grads(lambda t: {op}(o(t), o(t), padding=1), sq)"
        yield Memory(OVERLAPPING, source, "the input is the weight, backward")
    for source, reason in (
        ("batch_norm(x, rm, rv, o(g), o(g))", "the weight is the bias"),
        ("batch_norm(x, None, None, o(g), o(g), True)", "the same in training"),
        ("grads(lambda x, p: batch_norm(x, None, None, o(p), o(p), True), x, g)", "the same, backward"),
        ("grads(lambda x, p: batch_norm(x, rm, rv, o(p), o(p)), xl, g)", "the same, evaluation"),
        ("batch_norm(x, None, None, o(s[:4]), o(s[2:6]), True)", "weight and bias share two elements"),
        ("batch_norm(x, rm, rv, o(g[:1].expand(4)), o(b[:1].expand(4)))", "parameters of one element"),
        ("grads(lambda x, w: batch_norm(x, None, None, w, w, True), x, o(g[:1].expand(4)))", "backward"),
        ("batch_norm(x, o(rv), o(rv))", "the mean is the variance, in evaluation"),
        ("batch_norm(x, o(s[:4]), o(s[2:6]))", "they share two elements, in evaluation"),
        ("batch_norm(x, o(e(1).expand(4)), o(rv[:1].expand(4)))", "of one element, in evaluation"),
        ("batch_norm(x, o(rv), rv, o(rv), o(rv))", "all four are one, in evaluation"),
        ("batch_norm(x, o(rv), o(rv), training=True)", "the mean is the variance, in training: the output"),
        ("batch_norm(x, o(s[:4]), o(s[2:6]), training=True)", "they share two elements: the output"),
        ("updated(x, o(s[:4]), o(s[4:8]))", "halves of one storage, as of a flat buffer"),
        ("updated(x, o(s[4:8]), o(s[:4]))", "the other way round"),
        ("updated(x, o(s[0:8:2]), o(s[1:8:2]))", "every other element of one storage"),
        ("updated(x, o(s[0:8:2]), o(s[1:8:2]), s[8:], s[8:])", "and parameters behind them"),
        ("updated(x, rm, o(g.exp()), o(b), o(b))", "the bias is the weight beside an updated variance"),
        ("batch_norm(o(x), rm, rv, g, b, residual=o(x))", "the residual is the input"),
        ("batch_norm(o(x), None, None, g, b, True, residual=o(x), activation='relu')", "the same, training"),
        ("grads(lambda x: batch_norm(o(x), rm, rv, residual=o(x), activation='relu'), x)", "backward"),
        (
            "grads(lambda x: batch_norm(o(x), None, None, g, b, True, residual=o(x)), xl)",
            "backward, training",
        ),
        ("batch_norm(x, rm, rv, g, b, residual=o(ex))", "a residual of expanded rows"),
        ("grads(lambda x, z: batch_norm(x, rm, rv, residual=z, activation='relu'), x, o(win))", "backward"),
        (
            "batch_norm(o(line[:288].view(2, 4, 6, 6)), rm, rv, residual=o(line[8:296].view(2, 4, 6, 6)))",
            "shifted",
        ),
    ):
        yield Memory(OVERLAPPING, source, reason)


def _inference() -> Iterator[Memory]:
    for source, reason in READS + NOT_16_BIT:
        yield Memory(INFERENCE, source.format(x="o(x)"), reason)
    for source, reason in (
        ("updated(x, o(rm), rv)", "a mean that inference mode made, updated outside of it: torch does so"),
        ("updated(x, o(s)[0:8:2], o(s)[1:8:2])", "with gaps: dense copies are updated, and copied back"),
        ("updated(x, rm, o(s)[0:8:2])", "one of the two, with gaps: both are updated or none"),
        ("updated(x, rm, o(rv), o(g), o(b))", "the same for the variance; parameters"),
        ("conv2d(x, o(w), o(b8))", "a weight that inference mode made"),
        ("conv_transpose2d(x, o(v), o(b8))", "the same, transposed"),
        ("max_unpool2d(o(y), o(i), 2)", "indices that inference mode made"),
    ):
        yield Memory(INFERENCE, source, reason)


def rows() -> list[Memory]:
    return [*_read_only(), *_overlapping(), *_inference()]


# ---- asking -------------------------------------------------------------------------------------


def read_only(t: Tensor) -> Tensor:
    """A copy, strides and all, in pages that nobody may write to."""
    flat = t.as_strided((t.numel(),), (1,))  # dense, in whatever order
    with tempfile.TemporaryFile() as file:
        file.write(flat.view(torch.uint8).numpy().tobytes())
        file.flush()
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch cannot know it
        return torch.frombuffer(pages, dtype=t.dtype).as_strided(t.shape, t.stride())


def tensors(dtype: torch.dtype) -> dict[str, Tensor]:
    """What rows are made of, made afresh."""
    r = torch.Generator().manual_seed(0)

    def t(*shape: int) -> Tensor:
        return torch.randn(shape, generator=r).to(dtype)

    return dict(
        x=t(2, 4, 6, 6),
        xl=t(2, 4, 6, 6).contiguous(memory_format=torch.channels_last),
        xs=t(2, 4, 6, 12),
        z=t(2, 4, 6, 6),  # a residual
        w=t(8, 4, 3, 3),
        w1=t(8, 4, 1, 1),
        wd=t(4, 1, 3, 3),
        wg=t(8, 2, 3, 3),
        v=t(4, 8, 3, 3),
        sq=t(4, 4, 3, 3),
        y=t(2, 4, 3, 3),
        i=torch.arange(72).view(2, 4, 3, 3) % 36,
        **{k: t(4) for k in ("rm", "g", "b")},
        rv=t(4).exp(),
        b8=t(8),
        s=t(12).exp(),
        line=t(300),
    )


def fused(x: Tensor, *arguments: Any, residual: Any = None, activation: Any = None, **options: Any) -> Tensor:
    """torch's batch_norm, and what stands for fastops' further arguments."""
    y = F.batch_norm(x, *arguments, **options)
    y = y if residual is None else y + residual
    return y if activation is None else F.relu(y)


def results(row: Memory, functions: Any, place: Callable[..., Any], o: Callable[..., Any]) -> list[Tensor]:
    """Of the row's call: tensors as `place` puts them, and what the row marks as `o` changes it."""
    made = tensors(row.dtype)
    known: dict[str, Any] = {name: place(t) for name, t in made.items()}
    line, x = known["line"], known["x"]
    known["win"] = line.as_strided((2, 4, 6, 6), (41, 7, 3, 1))
    known["ex"] = x[:1, :, :, :1].expand(2, 4, 6, 6)
    known["one"] = x[:1, :1, :1, :1].expand(2, 4, 6, 6)
    called = {name: getattr(functions, name) for name in dir(G) if hasattr(functions, name)}
    if functions is F:
        called["batch_norm"] = fused

    def grads(
        function: Callable[..., Any], *of: Tensor, dy: Callable[..., Any] | None = None
    ) -> list[Tensor]:
        """The result, and the gradients of tensors where they lie."""
        leaves = [t.detach().requires_grad_() for t in of]
        y = function(*leaves)
        y = y if isinstance(y, Tensor) else y[0]
        slope = place(torch.linspace(-1, 1, y.numel()).to(y.dtype).view(y.shape)) if dy is None else dy(y)
        return [y.detach(), *torch.autograd.grad(y, leaves, slope)]

    def updated(x: Tensor, mean: Tensor, var: Tensor, *affine: Tensor) -> list[Tensor]:
        """The result of training, and the statistics after it."""
        return [called["batch_norm"](x, mean, var, *affine, training=True), mean, var]

    found = eval(
        compile(row.source, "row", "eval"),
        {**known, **called, "o": o, "e": torch.ones, "grads": grads, "updated": updated},
    )
    found = [found] if isinstance(found, Tensor) else list(found)
    assert torch.equal(known["s"][8:], made["s"][8:].to(known["s"].dtype)), "written beside the statistics"
    return [t.detach() for t in found]


def same(t: Tensor) -> Tensor:
    return t


def inference(t: Tensor) -> Tensor:
    """The tensor, as inference mode makes it."""
    with torch.inference_mode():
        return t.clone()


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float, what: str) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        a, b = a.double(), b.double()
        bound = tolerance * max(float(b.abs().max()), 1.0)
        assert a.shape == b.shape and float((a - b).abs().max()) <= bound, f"{what}: {(a - b).abs().max()}"


def ask(row: Memory) -> None:
    """Raises AssertionError unless the memory makes no difference; a write to read-only pages kills."""
    place, odd, plain = {
        READ_ONLY: (read_only, same, same),
        OVERLAPPING: (same, same, torch.clone),
        INFERENCE: (same, inference, torch.clone),
    }[row.family]
    ordinary, found = results(row, G, same, plain), results(row, G, place, odd)
    theirs = results(row, F, place, odd)
    tolerance = TOLERANCE[row.dtype]
    assert_close(theirs, results(row, F, same, plain), tolerance, "torch minds: no row to compare with")
    for a, b in zip(found, ordinary, strict=True):
        assert torch.equal(a, b), f"differs from what ordinary memory gives, by {(a - b).abs().max()}"
    assert_close(found, theirs, tolerance, "differs from torch")
