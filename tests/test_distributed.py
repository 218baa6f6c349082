"""Several processes (gloo): SyncBatchNorm, DistributedDataParallel and FSDP of converted models.

Each test starts processes that do the same and compares with one that has the whole batch.
"""

from __future__ import annotations

import copy
import gc
import glob
import importlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import fastops

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


def _process(
    rank: int, world: int, store: str, dynamo: bool, function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    if dynamo:  # imported later, its torch.distributed.nn would keep the group in its functions' defaults
        importlib.import_module("torch._dynamo")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        function(rank, *args)
        dist.barrier()
    finally:
        dist.destroy_process_group()
    gc.collect()
    # Who keeps the group keeps its threads, which may end the process while Python ends ("terminate called").
    names = [Path(comm).read_text() for comm in glob.glob("/proc/self/task/*/comm")]
    assert not any("gloo" in name for name in names), names


def run(world: int, function: Callable[..., None], *args: Any, dynamo: bool = False) -> None:
    """function(rank, *args) in each of some processes; raises what one of them raises.

    dynamo: torch._dynamo is imported before the group is there; else nothing may import it.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = world, os.path.join(folder, "store"), dynamo, function, args
        mp.spawn(_process, arguments, nprocs=world)


def everyones(t: Tensor) -> list[Tensor]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, t)
    return found


# ---- SyncBatchNorm ------------------------------------------------------------------------------

# (sizes of the processes' batches, shape of a sample, dtype, channels_last)
BATCHES = [
    ((2, 2), (5, 4, 3), torch.float32, False),  # equal ones
    ((3, 1, 2), (5, 4, 3), torch.float32, True),  # uneven ones
    ((4, 0), (3, 6, 5), torch.float32, False),  # an empty one
    ((0, 2, 0, 1), (3, 2, 2), torch.float64, True),  # several empty ones
    ((1, 1), (7,), torch.float64, False),  # a value per channel in each, no image
    ((2, 3), (4, 5, 4), torch.bfloat16, True),  # 16 bits, parameters in fp32
    ((1, 2), (2, 2, 3, 2), torch.float32, False),  # volumes
]  # fmt: skip


def compare_with_one_process(rank: int, affine: bool) -> None:
    world = dist.get_world_size()
    for sizes, sample, dtype, channels_last in BATCHES:
        if len(sizes) != world:
            continue
        torch.manual_seed(0)
        x = (torch.randn(sum(sizes), *sample) * 3 + 100).to(dtype)
        dy, ddx = torch.randn_like(x), torch.randn_like(x)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        wide = torch.float32 if dtype is torch.bfloat16 else dtype
        layer = fastops.SyncBatchNorm(sample[0], affine=affine, dtype=wide)
        if affine:
            nn.init.uniform_(layer.weight), nn.init.uniform_(layer.bias)
        reference = nn.BatchNorm1d(sample[0], affine=affine, dtype=torch.float64)
        reference._check_input_dim = lambda x: None  # type: ignore[method-assign]  (of any rank)
        reference.load_state_dict(layer.state_dict())
        results = []
        for module, part, g, h in (
            (layer, x[own], dy[own], ddx[own]),
            (reference, x.double(), dy.double(), ddx.double()),
        ):
            part = part.detach().requires_grad_()
            g = g.detach().requires_grad_()
            parameters = list(module.parameters())
            y = module(part)
            plain = torch.autograd.grad(y, [part, *parameters], g.detach(), retain_graph=True)
            first = torch.autograd.grad(y, [part, *parameters], g, create_graph=True)
            second = torch.autograd.grad(first[0], [part, g], h)
            results.append([y.detach(), plain, first, second])
        tolerance: dict[str, float] = {
            torch.float32: dict(rtol=2e-4, atol=2e-4), torch.float64: dict(rtol=1e-8, atol=1e-8),
            torch.bfloat16: dict(rtol=2e-2, atol=6e-2),
        }[dtype]  # fmt: skip
        (y, plain, first, second), (y_all, plain_all, _, second_all) = results

        def close(a: Tensor, b: Tensor, tolerance: Any = tolerance) -> None:
            torch.testing.assert_close(a.double(), b.double(), **tolerance)

        close(y, y_all[own])
        assert y.stride() == x[own].stride() or not y.numel()
        for once in (plain, first):
            close(once[0], plain_all[0][own])
            for mine, whole in zip(once[1:], plain_all[1:], strict=True):  # of parameters each has its part
                close(torch.stack(everyones(mine)).sum(0), whole)
        for mine, whole in zip(second, second_all, strict=True):
            close(mine, whole[own])
        close(layer.running_mean, reference.running_mean)
        close(layer.running_var, reference.running_var)
        assert layer.num_batches_tracked == 1
        for buffer in (layer.running_mean, layer.running_var):
            assert all(torch.equal(buffer, other) for other in everyones(buffer))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_sync_batch_norm(world: int) -> None:
    run(world, compare_with_one_process, world != 3)


def nobody_has_a_batch(rank: int) -> None:
    layer = fastops.SyncBatchNorm(3)
    layer(torch.zeros(0, 3, 4, 4, requires_grad=True)).sum().backward()
    layer(torch.ones(1 - rank, 3, 1, 1))  # one value in all: no variance can be learnt from it
    assert torch.equal(layer.running_mean, torch.full((3,), 0.1))
    torch.testing.assert_close(layer.running_var, torch.full((3,), 0.9))


def test_empty_batches() -> None:
    """Nothing is learnt from nothing, and the state stays finite."""
    run(2, nobody_has_a_batch)


def groups(rank: int) -> None:
    """The processes of a group are one batch; others do not count."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    layer = fastops.SyncBatchNorm(2, process_group=pairs[rank // 2])
    layer(torch.full((3, 2, 1, 1), float(rank)))
    torch.testing.assert_close(layer.running_mean, torch.full((2,), 0.1 * (0.5 + 2 * (rank // 2))))
    layer.eval()
    layer(torch.ones(rank + 1, 2, 1, 1))  # nobody waits for anybody


def test_groups() -> None:
    run(4, groups)


def compiled(rank: int) -> None:
    """The graph breaks at the layer; what is around it is compiled."""
    torch.manual_seed(rank)
    x = torch.randn(2 + rank, 3, 5, 4)
    results = []
    for compiles in (False, True):
        torch.manual_seed(2)
        model = nn.Sequential(fastops.Conv2d(3, 4, 3), fastops.SyncBatchNorm(4), nn.ReLU(), nn.Flatten())
        part = x.clone().requires_grad_()
        y = (torch.compile(model, backend="eager") if compiles else model)(part)
        y.square().sum().backward()
        results.append([y.detach(), part.grad, *(p.grad for p in model.parameters()), *model.buffers()])
    torch.testing.assert_close(results[1], results[0])


def test_compiled() -> None:
    run(2, compiled, dynamo=True)


def test_sync_batch_norm_alone() -> None:
    """Without processes it is BatchNorm2d."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 6)
    ours, theirs = fastops.SyncBatchNorm(4), nn.BatchNorm2d(4)
    for _ in range(2):
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_convert_sync_batchnorm() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm1d(4, affine=False))
    )
    model[2].eval()
    fastops.convert(model)
    parameters, state = list(model.parameters()), copy.deepcopy(model.state_dict())
    converted = fastops.convert_sync_batchnorm(model)
    assert converted is model
    assert type(model[1]) is type(model[2][0]) is fastops.SyncBatchNorm
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    torch.testing.assert_close(model.state_dict(), state)
    assert model[1].training and not model[2][0].training
    assert type(fastops.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm2d(3))) is fastops.SyncBatchNorm
    # torch's own is converted, and reverted, like any layer.
    theirs = nn.Sequential(nn.SyncBatchNorm(3))
    assert fastops.convert(theirs).swapped == {"0": "SyncBatchNorm"}
    assert type(fastops.revert(theirs)[0]) is nn.SyncBatchNorm
    with pytest.raises(ValueError, match="activation"):
        fastops.convert_sync_batchnorm(fastops.BatchNorm2d(3, activation="relu"))


# ---- data parallel ------------------------------------------------------------------------------


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, groups=2), nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 3),
    )  # fmt: skip


def train(model: nn.Module, x: Tensor, target: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()


def data_parallel(rank: int, kind: str) -> None:
    torch.manual_seed(1)
    x, target = torch.randn(4, 3, 12, 10), torch.randn(4, 3)
    alone, model = network(), network()
    if kind == "ddp":  # which refuses SyncBatchNorm on a CPU, by its class
        alone[1].eval(), model[1].eval()
    train(alone, x, target)
    fastops.convert(model)
    if kind != "ddp":
        model = fastops.convert_sync_batchnorm(model)  # type: ignore[assignment]
    own = slice(2 * rank, 2 * rank + 2)
    if kind == "ddp":
        wrapped: nn.Module = nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        for layer in model:
            if list(layer.parameters()):
                fully_shard(layer, mesh=mesh)
        wrapped = fully_shard(model, mesh=mesh)
    train(wrapped, x[own], target[own])
    state = model.state_dict()
    for name, value in alone.state_dict().items():
        ours = state[name]
        ours = ours.full_tensor() if hasattr(ours, "full_tensor") else ours
        torch.testing.assert_close(ours, value, rtol=1e-4, atol=1e-5, msg=name)
    if kind != "ddp":  # fully_shard keeps the group for ever: without Python's ending nothing can end badly
        dist.barrier()
        os._exit(0)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_data_parallel(kind: str) -> None:
    """Two processes of half a batch train as torch does with the whole one."""
    run(2, data_parallel, kind, dynamo=True)
