"""What holds for every op: adjoints, threads, views, subclasses, meta tensors, autocast, fork."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastops.functional as G
from tests.cases import Case, all_cases
from tests.conftest import device_of
from tests.tolerance import assert_same_layout

CASES = [c for c in all_cases() if hasattr(G, c.op)]
SMALL = [c for c in CASES if not c.large]
every_small_case = pytest.mark.parametrize("case", SMALL, ids=str)
every_layout = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])

# Which arguments each op is linear in, one at a time and without what is added to it.
LINEAR = {
    "conv2d": (0, 1),
    "conv_transpose2d": (0, 1),
    "avg_pool2d": (0,),
    "adaptive_avg_pool2d": (0,),
    "max_unpool2d": (0,),
    "interpolate": (0,),
}


def first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


def one_per_op(cases: list[Case]) -> list[Case]:
    """A floating-point case with a batch of each op (and of each that is composed in torch): the first
    with the most elements."""
    chosen: dict[Any, Case] = {}
    for case in cases:
        size = sum(torch.Size(s).numel() for s in case.shapes)
        best = chosen.get((case.op, case.composed))
        if torch.float32 in case.dtypes and (
            best is None or size > sum(torch.Size(s).numel() for s in best.shapes)
        ):
            chosen[case.op, case.composed] = case
    return list(chosen.values())


ONE_PER_OP = one_per_op(SMALL)
one_case_per_op = pytest.mark.parametrize("case", ONE_PER_OP, ids=lambda c: c.op)


def run(case: Case, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Outputs and gradients of all the differentiable arguments, with dy = y + 1."""
    wrt = case.differentiable(arguments)
    arguments = tuple(
        a.clone().requires_grad_(i in wrt) if isinstance(a, Tensor) else a for i, a in enumerate(arguments)
    )
    result = case.call(G, *arguments)
    y = first(result)
    grads = torch.autograd.grad(y, [arguments[i] for i in wrt], y.detach() + 1) if y.requires_grad else ()
    outputs = [y] if isinstance(result, Tensor) else list(result)
    return [*(o.detach() for o in outputs), *grads]


# ---- linear ops and their adjoints --------------------------------------------------------------


@every_layout
@pytest.mark.parametrize("case", [c for c in SMALL if c.op in LINEAR and c.wrt != ()], ids=str)
def test_adjoint(case: Case, channels_last: bool, backend: str) -> None:
    """<A u, v> = <u, A* v>, and the adjoint of the adjoint is A again."""
    if torch.float64 not in case.dtypes:
        pytest.skip("not a dtype of this case")
    arguments = list(case.arguments(torch.float64, channels_last, device_of(backend)))
    if case.op.startswith("conv"):
        arguments = arguments[:2]  # a bias makes it affine
    g = torch.Generator().manual_seed(3)
    for i in LINEAR[case.op]:
        u = torch.randn(arguments[i].shape, generator=g, dtype=torch.float64).to(arguments[i].device)

        def apply(u: Tensor, i: int = i) -> Tensor:
            full = [*arguments[:i], u, *arguments[i + 1 :]]
            return case.call(G, *full)

        x = arguments[i].clone().requires_grad_()
        y = apply(x)
        v = torch.randn(y.shape, generator=g, dtype=torch.float64).to(y.device).requires_grad_()
        (adjoint,) = torch.autograd.grad(y, x, v, create_graph=True)
        scale = float(u.norm() * v.detach().norm()) + 1
        torch.testing.assert_close((apply(u) * v).sum(), (u * adjoint).sum(), rtol=0, atol=1e-13 * scale)
        if adjoint.requires_grad:
            (twice,) = torch.autograd.grad(adjoint, v, u)
            torch.testing.assert_close(twice, apply(u), rtol=1e-12, atol=1e-12)


@every_small_case
def test_superposition_of_gradients(case: Case, backend: str) -> None:
    """A gradient is linear in dy, whatever the op."""
    if torch.float64 not in case.dtypes or case.wrt == ():
        pytest.skip("nothing to differentiate in fp64")
    arguments = case.arguments(torch.float64, device=device_of(backend))
    wrt = case.differentiable(arguments)
    arguments = tuple(
        a.clone().requires_grad_(i in wrt) if isinstance(a, Tensor) else a for i, a in enumerate(arguments)
    )
    y = first(case.call(G, *arguments))
    g = torch.Generator().manual_seed(3)
    u, v = (torch.randn(y.shape, generator=g, dtype=y.dtype).to(y.device) for _ in range(2))
    grad = [
        torch.autograd.grad(y, [arguments[i] for i in wrt], dy, retain_graph=True) for dy in (u, v, 2 * u - v)
    ]
    for a, b, c in zip(*grad, strict=True):
        torch.testing.assert_close(2 * a - b, c, rtol=1e-9, atol=1e-9)


# ---- threads and processes ----------------------------------------------------------------------


def test_threads_at_once() -> None:
    """Four Python threads, every op, forward and backward: the bits of a call alone."""
    jobs = [(case, case.arguments(torch.float32)) for case in ONE_PER_OP]
    alone = [run(*job) for job in jobs]
    wrong: list[str] = []

    def work(offset: int) -> None:
        for turn in range(5):
            for k in range(len(jobs)):
                k = (k + offset) % len(jobs)
                try:
                    together = run(*jobs[k])
                    same = all(
                        torch.equal(a.nan_to_num(0), b.nan_to_num(0))
                        for a, b in zip(together, alone[k], strict=True)
                    )
                except Exception as error:
                    same = False
                    wrong.append(repr(error))
                if not same:
                    wrong.append(f"{jobs[k][0].op}, turn {turn}")

    threads = [threading.Thread(target=work, args=(2 * i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def _unpooled(x: Tensor) -> Tensor:
    return G.max_unpool2d(x, torch.arange(0, 2 * x[0, 0].numel(), 2).view(x.shape[2:]).expand(x.shape), 2)


# Every op: a call of some tens of milliseconds on one thread, and the shapes of its tensors.
LONG_CALLS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "conv2d": (G.conv2d, ((2, 64, 56, 56), (128, 64, 3, 3))),
    "conv_transpose2d": (G.conv_transpose2d, ((2, 64, 56, 56), (64, 128, 3, 3))),
    "avg_pool2d": (partial(G.avg_pool2d, kernel_size=5, stride=1, padding=2), ((32, 64, 64, 64),)),
    "adaptive_avg_pool2d": (partial(G.adaptive_avg_pool2d, output_size=95), ((4, 64, 96, 96),)),
    "max_pool2d": (partial(G.max_pool2d, kernel_size=5, stride=1, padding=2), ((32, 64, 64, 64),)),
    "adaptive_max_pool2d": (partial(G.adaptive_max_pool2d, output_size=95), ((4, 64, 96, 96),)),
    "max_unpool2d": (_unpooled, ((8, 64, 64, 64),)),
    "batch_norm": (
        partial(G.batch_norm, running_mean=None, running_var=None, training=True),
        ((16, 64, 96, 96),),
    ),
    "interpolate": (partial(G.interpolate, scale_factor=2, mode="bicubic"), ((4, 64, 96, 96),)),
}


def long_call(op: str, requires_grad: bool = False) -> tuple[Callable[[], Any], list[Tensor]]:
    """The call, and its tensors, which are there before it begins."""
    function, shapes = LONG_CALLS[op]
    tensors = [torch.ones(s, requires_grad=requires_grad) for s in shapes]
    return partial(function, *tensors), tensors


@pytest.mark.parametrize("op", [op for op in LONG_CALLS if hasattr(G, op)])
def test_gil_is_released(op: str, threads: None) -> None:
    """Another thread gets to run in the middle of a kernel: the largest pause of a ticking thread is
    shorter than the call. (With the lock held it would be the whole call.)"""
    torch.set_num_threads(1)
    call, _ = long_call(op)
    call()
    ticks, stop = [], threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    ticker = threading.Thread(target=tick)
    ticker.start()
    best = 1.0
    for _ in range(5):  # a busy machine may pause the ticker for reasons of its own
        begin = time.perf_counter()
        call()
        end = time.perf_counter()
        inside = [begin, *(t for t in ticks if begin < t < end), end]
        best = min(best, max(b - a for a, b in pairwise(inside)) / (end - begin))
        if best < 0.7:
            break
    stop.set()
    ticker.join()
    assert best < 0.7, f"the other thread stood still for {best:.0%} of the call"


def _child(queue: Any) -> None:
    """Only the forward (torch's autograd threads do not survive a fork) and one thread, as a DataLoader."""
    torch.set_num_threads(1)
    results = []
    with torch.no_grad():
        for case in ONE_PER_OP:
            results.append([first(case.call(G, *case.arguments(torch.float32))).tolist()])
    queue.put(results)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork() -> None:
    """A data loader's worker: forked after the parent has used its threads, it can call every op."""
    expected = [[t.tolist() for t in run(case, case.arguments(torch.float32))[:1]] for case in ONE_PER_OP]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_child, args=(queue,))
    process.start()
    try:
        assert queue.get(timeout=20) == expected
    finally:
        process.join(10)
        if process.is_alive():
            process.kill()


# ---- kinds of tensors ---------------------------------------------------------------------------


class Tagged(torch.Tensor):
    """A subclass with nothing of its own: torch's functions give it back."""


class Recorder(torch.Tensor):
    """Notes which functions were called on it."""

    seen: list[Any] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


@one_case_per_op
def test_tensor_subclasses(case: Case) -> None:
    arguments = case.arguments(torch.float32)
    plain = first(case.call(G, *arguments))
    arguments = case.arguments(torch.float32)
    tagged = first(case.call(G, arguments[0].as_subclass(Tagged), *arguments[1:]))
    assert type(tagged) is Tagged
    assert torch.equal(tagged.as_subclass(Tensor), plain)
    arguments = case.arguments(torch.float32)
    Recorder.seen.clear()
    case.call(G, arguments[0].as_subclass(Recorder), *arguments[1:])
    assert getattr(G, case.op) in Recorder.seen, "the subclass was not asked about fastops' function"


@one_case_per_op
def test_subclass_in_another_argument(case: Case) -> None:
    """A weight that is a subclass (quantised, distributed) decides too."""
    arguments = list(case.arguments(torch.float32))
    others = [i for i, a in enumerate(arguments) if i > 0 and isinstance(a, Tensor)]
    if not others:
        pytest.skip("one tensor only")
    arguments[others[0]] = arguments[others[0]].as_subclass(Recorder)
    Recorder.seen.clear()
    case.call(G, *arguments)
    assert getattr(G, case.op) in Recorder.seen


@every_layout
@pytest.mark.parametrize("case", CASES, ids=str)
def test_meta(case: Case, channels_last: bool) -> None:
    """Shapes, strides and dtypes without data, in the backward too."""
    dtype = case.dtypes[0]
    arguments = case.arguments(dtype, channels_last)
    on_meta = tuple(a.to("meta") if isinstance(a, Tensor) else a for a in arguments)
    result = case.call(G, *on_meta)
    real = case.call(G, *arguments)
    pairs = [(result, real)] if isinstance(real, Tensor) else list(zip(result, real, strict=True))
    for m, r in pairs:
        assert m.device.type == "meta" and (m.shape, m.dtype) == (r.shape, r.dtype)
        assert_same_layout(m, r)
    wrt = case.differentiable(arguments) if dtype.is_floating_point else ()
    leaves = [on_meta[i].requires_grad_() for i in wrt]
    y = first(case.call(G, *on_meta))
    if y.requires_grad:
        for leaf, grad in zip(leaves, torch.autograd.grad(y, leaves, torch.empty_like(y)), strict=True):
            assert grad.is_meta and (grad.shape, grad.dtype) == (leaf.shape, leaf.dtype)
            assert_same_layout(grad, leaf)


@one_case_per_op
def test_without_gradients(case: Case) -> None:
    """no_grad and inference_mode: the same bits, and nothing to go back through."""
    expected = run(case, case.arguments(torch.float32))[0]
    for mode in (torch.no_grad, torch.inference_mode):
        arguments = case.arguments(torch.float32)
        wrt = case.differentiable(arguments)
        for i in wrt:
            arguments[i].requires_grad_()
        with mode():
            y = first(case.call(G, *arguments))
        assert not y.requires_grad and y.is_inference() == (mode is torch.inference_mode)
        assert torch.equal(y, expected)
    with torch.inference_mode():  # inputs that were made there
        arguments = case.arguments(torch.float32)
        assert torch.equal(first(case.call(G, *arguments)), expected)


@one_case_per_op
def test_only_asked_for_gradients(case: Case) -> None:
    """Every subset of one argument: the others have no gradient, and its own is the same bits."""
    arguments = case.arguments(torch.float32)
    wrt = case.differentiable(arguments)
    everything = dict(zip(wrt, run(case, arguments)[-len(wrt) :], strict=True))
    for i in wrt:
        fresh = [a.clone() if isinstance(a, Tensor) else a for a in case.arguments(torch.float32)]
        fresh[i].requires_grad_()
        y = first(case.call(G, *fresh))
        y.backward(y.detach() + 1)
        assert torch.equal(fresh[i].grad, everything[i])
        assert all(a.grad is None for j, a in enumerate(fresh) if isinstance(a, Tensor) and j != i)


@every_layout
@one_case_per_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_unaligned(case: Case, dtype: torch.dtype, channels_last: bool, backend: str) -> None:
    """Tensors that start one element into their storage: no kernel may count on alignment."""
    if dtype not in case.dtypes:
        pytest.skip("not a dtype of this case")

    def shifted(a: Any) -> Any:
        if not isinstance(a, Tensor):
            return a
        storage = torch.empty(a.numel() + 1, dtype=a.dtype, device=a.device)
        view = storage[1:].as_strided(a.shape, a.stride(), 1)
        view.copy_(a)
        return view

    aligned = case.arguments(dtype, channels_last, device_of(backend))
    moved = tuple(shifted(a) for a in case.arguments(dtype, channels_last, device_of(backend)))
    a = case.call(G, *aligned)
    b = case.call(G, *moved)
    assert torch.equal(first(a), first(b))


@one_case_per_op
def test_one_tensor_in_two_places(case: Case) -> None:
    """x used twice in one graph, and expanded dy (stride 0): gradients add up as they should."""
    arguments = list(case.arguments(torch.float64))
    x = arguments[0].clone().requires_grad_()
    arguments[0] = x
    y = first(case.call(G, *arguments))
    (once,) = torch.autograd.grad(y.sum(), x)
    arguments = list(case.arguments(torch.float64))
    z = x.detach().clone().requires_grad_()
    first_use = first(case.call(G, z, *arguments[1:]))
    second_use = first(case.call(G, z.view_as(z), *arguments[1:]))
    (first_use + second_use).sum().backward()
    torch.testing.assert_close(z.grad, 2 * once)


# ---- autocast -----------------------------------------------------------------------------------


@one_case_per_op
def test_autocast(case: Case) -> None:
    """Each op's dtype is the one torch chooses for it, and the gradient has the input's."""
    for dtype in (torch.float32, torch.bfloat16):
        if dtype not in case.dtypes:
            continue
        seen = []
        for f in (G, F):
            arguments = list(case.arguments(dtype))
            arguments[0].requires_grad_()
            with torch.autocast("cpu", torch.bfloat16):
                y = first(case.call(f, *arguments))
            y.float().sum().backward()
            seen.append((y.dtype, arguments[0].grad.dtype))
        assert seen[0] == seen[1], f"{case.op} of {dtype}: fastops {seen[0]}, torch {seen[1]}"


def test_autocast_mixes_dtypes_as_torch_does() -> None:
    """A bf16 activation meets fp32 weights: autocast makes that legal, its absence does not."""
    if not hasattr(G, "conv2d"):
        pytest.skip("fastops has no conv2d yet")
    x, w = torch.randn(1, 3, 6, 6).bfloat16(), torch.randn(2, 3, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert G.conv2d(x, w).dtype is torch.bfloat16
        with torch.autocast("cpu", enabled=False), pytest.raises(RuntimeError):
            G.conv2d(x, w)
