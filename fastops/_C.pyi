"""Kernels of fastops. Written by ``python -m fastops._stubs``, after a change of the bindings."""

from types import ModuleType
from typing import Any, ClassVar

class DType:
    f64: ClassVar[DType]
    f32: ClassVar[DType]
    f16: ClassVar[DType]
    bf16: ClassVar[DType]
    u8: ClassVar[DType]
    __members__: ClassVar[dict[str, DType]]
    name: str
    value: int
    def __init__(self, value: int) -> None: ...
    def __int__(self) -> int: ...
    def __index__(self) -> int: ...
class PoolParams:
    fields: ClassVar[tuple[str, ...]]
    dtype: DType
    channels_last: bool
    n: int
    c: int
    in_: tuple[int, int, int]
    out: tuple[int, int, int]
    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    pad: tuple[int, int, int]
    dilation: tuple[int, int, int]
    adaptive: bool
    count_include_pad: bool
    divisor_override: int
    def __init__(self, **fields: Any) -> None: ...
def set_openmp_runtime(gomp_parallel: int) -> None: ...
def usable_isas() -> list[str]: ...
class _CpuKernels(ModuleType):
    def avg_pool(self, arg0: PoolParams, arg1: int, arg2: int, arg3: int, /) -> None: ...
    def avg_pool_adjoint(self, arg0: PoolParams, arg1: int, arg2: int, arg3: int, /) -> None: ...
compiler: str
cpu_avx2: _CpuKernels
cpu_avx512: _CpuKernels
cpu_baseline: _CpuKernels
cuda: ModuleType
cuda_archs: str
cuda_version: str
