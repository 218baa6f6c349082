"""The ops of torch.library, and what sees the package through them: FakeTensor, make_fx, the compilers,
export, FlopCounterMode."""

from __future__ import annotations

import copy
import io
import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import fastops
import fastops.functional as G
from examples.demo import Restorer
from fastops.ops.library import OPS
from tests.cases import Case, all_cases
from tests.test_properties import first, one_per_op
from tests.wrong import library

SMALL = [case for case in all_cases() if not case.large]
one_case_per_op = pytest.mark.parametrize("case", one_per_op(SMALL), ids=lambda c: str(c.op))
every_small_case = pytest.mark.parametrize("case", SMALL, ids=str)
every_layout = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Recorder(TorchDispatchMode):
    """Keeps the calls of the package's ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastops":
            kept = (
                a.detach().clone().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a
                for a in args
            )
            self.calls.append((func, tuple(kept)))
        return func(*args, **(kwargs or {}))


def differentiable(case: Case, arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[Tensor]]:
    """The arguments, of which those to be differentiated require it; and these."""
    wrt = case.differentiable(arguments)
    arguments = tuple(
        a.detach().clone().requires_grad_(i in wrt) if isinstance(a, Tensor) else a
        for i, a in enumerate(arguments)
    )
    return arguments, [arguments[i] for i in wrt]


def calls_of(case: Case, channels_last: bool, dtype: torch.dtype = torch.float32) -> list[Any]:
    """The calls that a case makes of the ops: forward, backward, and backward of that."""
    arguments, inputs = differentiable(case, case.arguments(dtype, channels_last))
    with Recorder() as recorder:
        y = first(case.call(G, *arguments))
        if y.requires_grad:
            dy = torch.ones_like(y, requires_grad=True)
            grads = torch.autograd.grad(y, inputs, dy, create_graph=True)
            if any(g.requires_grad for g in grads):
                total = sum((g * g).sum() for g in grads)
                torch.autograd.grad(total, [dy, *inputs], allow_unused=True)
    return recorder.calls


def check_op(op: Any, args: tuple[Any, ...]) -> None:
    """torch's own checks of one call of an op; without NaN, which is not equal to itself there."""
    tensors = [
        a.nan_to_num(0.0, math.inf, -math.inf).requires_grad_()
        if isinstance(a, Tensor) and a.is_floating_point()
        else a
        for a in args
    ]
    if "backward" not in op.name().split("::")[1] or "conv" in op.name():
        torch.library.opcheck(op, tensors)
    else:  # not themselves differentiable
        torch.library.opcheck(op, [a.detach() if isinstance(a, Tensor) else a for a in args])


def opcheck(case: Case, channels_last: bool) -> set[str]:
    """check_op of all the ops that a case calls; their names."""
    names = set()
    for op, args in calls_of(case, channels_last):
        check_op(op, args)
        names.add(op.name().removeprefix("fastops::"))
    return names


def test_opcheck() -> None:
    """One case of each function, and with them every op that there is."""
    checked = set()
    for case in one_per_op(SMALL):
        checked |= opcheck(case, False)
    assert checked == set(OPS)


@pytest.mark.long
@every_layout
@every_small_case
def test_opcheck_of_every_case(case: Case, channels_last: bool) -> None:
    opcheck(case, channels_last)


@pytest.mark.parametrize("op", OPS)
def test_wrong_direct_calls(op: str) -> None:
    failures = []
    for row in (row for row in library.rows() if row.op == op):
        try:
            library.ask(row)
        except AssertionError as error:
            failures.append(f"{row.source}: {error}")
    assert not failures


# ---- compilers ----------------------------------------------------------------------------------


def outputs_and_gradients(function: Any, case: Case, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Of a function of the case's arguments, for dy = y; and the tensors that it may have changed."""
    arguments, inputs = differentiable(case, arguments)
    result = function(*arguments)
    y = first(result)
    grads = torch.autograd.grad(y, inputs, y.detach()) if y.requires_grad else ()
    outputs = [result] if isinstance(result, Tensor) else list(result)
    return [*(o.detach() for o in outputs), *grads, *(a for a in arguments if isinstance(a, Tensor))]


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Bit for bit, and in the same layout."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


def check_compiled(case: Case, channels_last: bool, backend: str) -> None:
    arguments = case.arguments(torch.float32, channels_last)

    def function(*arguments: Any) -> Any:
        return case.call(G, *arguments)

    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=True)
    assert_equal(
        outputs_and_gradients(compiled, case, arguments), outputs_and_gradients(function, case, arguments)
    )


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@one_case_per_op
def test_compile(case: Case, backend: str) -> None:
    """Symbolic sizes, forward and backward; the very same kernels run, so the results are the same."""
    check_compiled(case, True, backend)


@pytest.mark.long
@every_layout
@every_small_case
def test_compile_every_case(case: Case, channels_last: bool) -> None:
    check_compiled(case, channels_last, "aot_eager")


class Everything(nn.Module):
    """A network with every layer of the package that torch can compile."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.overlapping = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.transposed = nn.ConvTranspose2d(8, 4, 2, 2)
        self.mean, self.cells, self.peaks = (
            nn.AvgPool2d(2),
            nn.AdaptiveAvgPool2d(3),
            nn.AdaptiveMaxPool2d((2, 3)),
        )
        self.nearest, self.linear = (
            nn.UpsamplingNearest2d(scale_factor=2),
            nn.UpsamplingBilinear2d(scale_factor=2),
        )
        self.cubic = nn.Upsample(size=(7, 9), mode="bicubic", align_corners=False)
        self.same = nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular")

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.stem(x)).relu()
        peaks, where = self.pool(y)
        y = self.overlapping(self.unpool(peaks, where, output_size=y.shape) + y)
        y = self.same(self.transposed(y))
        y = self.mean(self.linear(self.nearest(y)))
        return torch.cat([self.cells(y).flatten(1), self.peaks(y).flatten(1), self.cubic(y).flatten(1)], 1)


def step(forward: Any, model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients and state after a forward and a backward pass."""
    model.zero_grad()
    x = x.detach().requires_grad_()
    y = forward(x)
    y.square().mean().backward()
    grads = [x.grad, *(p.grad for p in model.parameters())]
    return [y.detach(), *(g for g in grads if g is not None), *model.state_dict().values()]


def converted(model: nn.Module) -> nn.Module:
    report = fastops.convert(model)
    assert report.swapped and not report.left
    return model


MODELS = pytest.mark.parametrize("model", [Everything, Restorer], ids=lambda m: m.__name__)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
@MODELS
def test_compiled_networks(model: type[nn.Module], backend: str) -> None:
    """One graph, also of training with batch norm's statistics; and one more serves all other sizes."""
    torch.manual_seed(0)
    eager = converted(model())
    counter = CompileCounterWithBackend(backend)
    lazily = copy.deepcopy(eager)
    compiled = torch.compile(lazily, backend=counter, fullgraph=True)
    for shape in ((2, 3, 16, 20), (3, 3, 24, 28), (5, 3, 40, 12), (4, 3, 32, 32)):
        x = torch.randn(shape)
        for ours, theirs in zip(step(compiled, lazily, x), step(eager, eager, x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= 2


@MODELS
def test_no_graph_breaks(model: type[nn.Module]) -> None:
    explanation = torch._dynamo.explain(converted(model()))(torch.randn(2, 3, 16, 20))
    assert explanation.graph_break_count == 0, explanation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_compile_under_autocast(dtype: torch.dtype) -> None:
    """Each layer computes in the dtype that it has eagerly."""
    torch.manual_seed(0)
    eager = converted(Everything())
    compiled = torch.compile(copy.deepcopy(eager), backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype):
        x = torch.randn(2, 3, 16, 20)
        ours, theirs = compiled(x), eager(x)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs)


def test_autocast_of_the_ops() -> None:
    """Called as they are, the ops follow autocast as torch's do."""
    ops = torch.ops.fastops
    x, w, dy = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3), torch.randn(1, 3, 3, 3)
    options = ((1, 1), (0, 0), (1, 1), 1)
    with torch.autocast("cpu", torch.float16):
        assert ops.conv2d(x, w, None, *options, (1, 3, 3, 3), None, False).dtype == torch.float16
        assert ops.conv2d_input_grad(dy, w, None, *options, (1, 2, 5, 5), None).dtype == torch.float16
        half = torch.zeros(1, 2, 2, 2, dtype=torch.bfloat16)
        assert ops.max_unpool2d(half, torch.zeros(1, 2, 2, 2).long(), (4, 4), None).dtype == torch.float32
        assert ops.avg_pool2d(half, (2, 2), (2, 2), (0, 0), False, True, None).dtype == torch.bfloat16
        double = ops.conv2d(x.double(), w.double(), None, *options, (1, 3, 3, 3), None, False)
        assert double.dtype == torch.float64


# ---- export and tracing -------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@MODELS
def test_export(model: type[nn.Module], strict: bool) -> None:
    """A converted model is exported with dynamic sizes, saved, loaded and run."""
    torch.manual_seed(0)
    eager = converted(model()).eval()
    dim = torch.export.Dim
    sizes = {0: dim("batch", max=64), 2: 4 * dim("rows", min=2, max=64), 3: 4 * dim("columns", min=2, max=64)}
    exported = torch.export.export(
        eager, (torch.randn(2, 3, 16, 20),), dynamic_shapes=(sizes,), strict=strict
    )
    assert any("fastops" in str(node.target) for node in exported.graph.nodes)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for shape in ((2, 3, 16, 20), (3, 3, 24, 28)):
        x = torch.randn(shape)
        torch.testing.assert_close(loaded(x), eager(x))


def test_export_for_training() -> None:
    """Batch norm's statistics are buffers that the program changes."""
    layer = fastops.BatchNorm2d(4)
    x = torch.randn(3, 4, 5, 5)
    exported = torch.export.export(copy.deepcopy(layer), (x,))
    assert len(exported.run_decompositions({}).graph_signature.buffers_to_mutate) == 3
    module = exported.module()
    torch.testing.assert_close(module(x), layer(x))
    torch.testing.assert_close(dict(module.named_buffers()), dict(layer.named_buffers()))


@pytest.mark.parametrize("tracing", ["real", "fake", "symbolic"])
@one_case_per_op
def test_make_fx(case: Case, tracing: str) -> None:
    """Traced forward and backward, in terms of the ops."""
    arguments = case.arguments(torch.float32, True)

    def function(*arguments: Any) -> list[Tensor]:
        return outputs_and_gradients(lambda *a: case.call(G, *a), case, arguments)

    graph = make_fx(function, tracing_mode=tracing)(*arguments)
    assert any("fastops" in str(node.target) for node in graph.graph.nodes)
    assert_equal(graph(*case.arguments(torch.float32, True)), function(*case.arguments(torch.float32, True)))


@every_layout
@every_small_case
def test_fake_tensors(case: Case, channels_last: bool) -> None:
    """Fake tensors get shape, strides and dtype of the results and gradients, with and without a mode."""
    dtype = torch.float32
    expected = outputs_and_gradients(lambda *a: case.call(G, *a), case, case.arguments(dtype, channels_last))
    mode = FakeTensorMode()
    fakes = tuple(
        mode.from_tensor(a) if isinstance(a, Tensor) else a for a in case.arguments(dtype, channels_last)
    )
    with mode:
        inside = outputs_and_gradients(lambda *a: case.call(G, *a), case, fakes)
    outside = outputs_and_gradients(lambda *a: case.call(G, *a), case, fakes)
    for found in (inside, outside):
        for a, b in zip(found, expected, strict=True):
            assert isinstance(a, torch._subclasses.FakeTensor)
            assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


def test_jit_trace() -> None:
    """Refused with what to do instead; which then works."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
    eager = converted(nn.Sequential(*layers)).eval()
    x, other = torch.randn(2, 3, 16, 20), torch.randn(2, 3, 16, 20)
    with pytest.raises(RuntimeError, match=r"torch.jit.trace does not see .* fastops.revert"):
        torch.jit.trace(eager, (x,))
    expected = eager(other)
    traced = torch.jit.trace(fastops.revert(eager), (x,))
    torch.testing.assert_close(traced(other), expected)


# ---- counting -----------------------------------------------------------------------------------


@every_small_case
def test_flops_are_torchs(case: Case) -> None:
    """FlopCounterMode counts the same, forward and backward."""
    totals = []
    for module in (G, F):
        arguments, inputs = differentiable(case, case.arguments(torch.float32))
        with FlopCounterMode(display=False) as counter:
            y = first(case.call(module, *arguments))
            if y.requires_grad:
                torch.autograd.grad(y, inputs, y.detach())
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1]


COUNTED_LATER = """
import sys, torch
before = set(sys.modules)
import fastops.functional as G
brought = {m for m in set(sys.modules) - before if m.split(".")[0] == "triton" or m.endswith(".flop_counter")}
assert not brought, brought
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    G.conv2d(torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3))
assert counter.get_total_flops() == 2 * 3 * 9 * 2 * 9, counter.get_total_flops()
"""


def test_import_does_not_import_triton() -> None:
    """torch's module of flop counts does; it learns of the ops once it is imported."""
    done = subprocess.run([sys.executable, "-c", COUNTED_LATER], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
