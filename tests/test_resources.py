"""No CUDA kernel spills or uses local memory, and those that promise 16-byte accesses have them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

from fastops import _C
from tests import resources

TABLE = Path(__file__).resolve().parent.parent / "docs" / "cuda_resources.md"

# What the instantiations for 16 bytes of elements have 16-byte accesses for; "" where there are none such.
VECTOR_ACCESSES = {
    "all_taps_kernel": "load store",
    "average_images_kernel": "load store",
    "average_planes_kernel": "load",  # a plane's average is one element
    "avg_pool_adjoint_kernel": "load store",
    "avg_pool_adjoint_rows_kernel": "store",  # dy by runs of half the length at stride 2
    "avg_pool_kernel": "load store",
    "avg_pool_rows_kernel": "load store",
    "band_kernel": "load store",
    "batch_norm_backward_resident_kernel": "load store",
    "batch_norm_resident_kernel": "load store",
    "band_u8_kernel": "load store",
    "bounds_kernel": "",
    "claim_kernel": "",
    "conv_gemm_kernel": "load store",
    "conv_gemm_weight_grad_kernel": "load",  # its parts are written by pairs of neighbours
    "conv_hopper_kernel": "",  # of one architecture: test_sm90
    "conv_hopper_weight_grad_kernel": "",
    "depthwise_backward_kernel": "load store",
    "depthwise_kernel": "load store",
    "depthwise_weight_grad_kernel": "load",  # its sums are single elements
    "direct_conv_kernel": "load",  # what it writes is neighbours of neighbouring threads
    "direct_kernel": "load store",
    "direct_weight_grad_kernel": "load",
    "fill_kernel": "",
    "finish_channels_kernel": "",
    "finish_fours_kernel": "",  # loads fp32 by 16 bytes, and writes 8 of 16-bit elements
    "finish_weight_grad_kernel": "",
    "firsts_kernel": "",
    "gather_kernel": "store",  # each element of x has a place of its own
    "map_channels_kernel": "load store",
    "max_pool_kernel": "load store",
    "max_pool_rows_kernel": "load store",
    "nearest_adjoint_kernel": "store",  # rows of planes are read by elements
    "nearest_kernel": "load store",
    "nearest_rows_kernel": "store",
    "pack_weights_kernel": "",
    "quantise_kernel": "",
    "reduce_channels_kernel": "load",
    "scatter_add_kernel": "load store",
    "scatter_add_rows_kernel": "store",
    "stem_conv_kernel": "",  # whether memory has 16 bytes is found at run time
    "stem_weight_grad_kernel": "load",
    "toeplitz_kernel": "",  # single elements of planes, or pixels: found at run time
    "toeplitz_weight_grad_kernel": "",
    "transpose_image_kernel": "",  # whether memory has 16 bytes is found at run time
    "transpose_kernel": "",
    "unpool_adjoint_chunks_kernel": "",
    "unpool_adjoint_kernel": "",
    "unpool_chunks_kernel": "store",
    "unpool_kernel": "store",
}
# What every instantiation on tensor cores has: their instruction, and asynchronous copies of 16 bytes.
TENSOR_CORES = {
    "conv_gemm_kernel": "mma copy",
    "toeplitz_kernel": "mma",  # the source is spread over planes
    "toeplitz_weight_grad_kernel": "mma",
    "stem_conv_kernel": "mma",  # x has too few channels for vectors
    "stem_weight_grad_kernel": "mma copy",
    "conv_gemm_weight_grad_kernel": "mma",  # of tensors whose channels are not whole vectors, elements
}
# What kernels for sm_90a alone have there, where the block's warps share the registers out between them.
SM90 = {"conv_hopper_kernel": "wgmma tma store", "conv_hopper_weight_grad_kernel": "wgmma tma"}
# 65,536 registers serve at least two blocks of 256 threads on a multiprocessor, and one of 288.
MOST_REGISTERS, MOST_REGISTERS_SM90 = 128, 168

pytestmark = pytest.mark.skipif(
    resources.why_unavailable() is not None, reason=str(resources.why_unavailable())
)


@lru_cache(maxsize=1)
def kernels() -> list[resources.Kernel]:
    return [kernel for path in resources.OBJECTS for kernel in resources.read(path)]


def test_every_kernel_is_known() -> None:
    assert {k.name for k in kernels()} == {*VECTOR_ACCESSES}
    assert {k.arch for k in kernels()} == {f"sm_{a}" for a in _C.cuda_archs.split(";")}


def test_no_local_memory() -> None:
    assert [k for k in kernels() if k.stack or k.sass["local"]] == []


def test_registers_and_shared_memory() -> None:
    for k in kernels():
        assert k.registers <= (MOST_REGISTERS_SM90 if k.name in SM90 else MOST_REGISTERS), k
        assert k.shared <= 48 << 10, k


@pytest.mark.parametrize("name", VECTOR_ACCESSES)
def test_sixteen_bytes_at_a_time(name: str) -> None:
    wanted = VECTOR_ACCESSES[name].split()
    vector = [k for k in kernels() if k.name == name and k.is_vector]
    assert bool(vector) == bool(wanted)
    assert [(k, what) for k in vector for what in wanted if k.sass[what] == 0] == []


@pytest.mark.parametrize("name", TENSOR_CORES)
def test_tensor_cores(name: str) -> None:
    some = [k for k in kernels() if k.name == name]
    assert some
    assert [(k, what) for k in some for what in TENSOR_CORES[name].split() if k.sass[what] == 0] == []
    if name.startswith("conv_gemm"):
        assert [k for k in some if k.is_vector and k.sass["copy"] == 0] == []


@pytest.mark.parametrize("name", SM90)
def test_sm90(name: str) -> None:
    if "90a" not in _C.cuda_archs.split(";"):
        pytest.skip("not compiled for sm_90a")
    some = [k for k in kernels() if k.name == name and k.arch == "sm_90a"]
    assert some
    assert [(k, what) for k in some for what in SM90[name].split() if k.sass[what] == 0] == []


def test_table_is_up_to_date() -> None:
    text = "\n".join(resources.table(kernels())) + "\n"
    written = TABLE.read_text()
    head = f"nvcc {_C.cuda_version} made"
    archs = {line.split("|")[2].strip() for line in written.splitlines() if line.startswith("| `")}
    if head not in written or archs != {k.arch for k in kernels()}:
        pytest.skip("the table is another compiler's")
    assert written == text, "run: python -m tests.resources > docs/cuda_resources.md"
