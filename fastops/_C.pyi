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
class IndexType:
    i64: ClassVar[IndexType]
    i32: ClassVar[IndexType]
    u8: ClassVar[IndexType]
    __members__: ClassVar[dict[str, IndexType]]
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
    positions: IndexType
    def __init__(self, **fields: Any) -> None: ...
class ConvKernel:
    auto: ClassVar[ConvKernel]
    direct: ClassVar[ConvKernel]
    depthwise: ClassVar[ConvKernel]
    stem: ClassVar[ConvKernel]
    gemm: ClassVar[ConvKernel]
    hopper: ClassVar[ConvKernel]
    toeplitz: ClassVar[ConvKernel]
    __members__: ClassVar[dict[str, ConvKernel]]
    name: str
    value: int
    def __init__(self, value: int) -> None: ...
    def __int__(self) -> int: ...
    def __index__(self) -> int: ...
class ConvPass:
    forward: ClassVar[ConvPass]
    input_grad: ClassVar[ConvPass]
    weight_grad: ClassVar[ConvPass]
    __members__: ClassVar[dict[str, ConvPass]]
    name: str
    value: int
    def __init__(self, value: int) -> None: ...
    def __int__(self) -> int: ...
    def __index__(self) -> int: ...
class Device:
    fields: ClassVar[tuple[str, ...]]
    capability: int
    multiprocessors: int
    shared_bytes: int
    l2_bytes: int
    clock_hz: float
    bandwidth: float
    hopper_kernels: bool
    def __init__(self, **fields: Any) -> None: ...
class ConvTile:
    fields: ClassVar[tuple[str, ...]]
    m: int
    n: int
    k: int
    stages: int
    def __init__(self, **fields: Any) -> None: ...
class ConvPlan:
    fields: ClassVar[tuple[str, ...]]
    kernel: ConvKernel
    tile: ConvTile
    vectors: bool
    copies: bool
    splits: int
    blocks: int
    flops: float
    bytes: float
    waves: float
    seconds: float
    roof: float
    def __init__(self, **fields: Any) -> None: ...
class ConvParams:
    fields: ClassVar[tuple[str, ...]]
    dtype: DType
    channels_last: bool
    weight_channels_last: bool
    n: int
    c: int
    k: int
    groups: int
    in_: tuple[int, int, int]
    out: tuple[int, int, int]
    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    pad: tuple[int, int, int]
    dilation: tuple[int, int, int]
    relu: bool
    tf32: bool
    kernel_family: ConvKernel
    tile_m: int
    tile_n: int
    splits: int
    def __init__(self, **fields: Any) -> None: ...
class TapAxis:
    fields: ClassVar[tuple[str, ...]]
    source: int
    grid: int
    out0: int
    out_step: int
    step: int
    taps: int
    tap0: int
    tap_step: int
    off0: int
    off_step: int
    def __init__(self, **fields: Any) -> None: ...
class BatchNormParams:
    fields: ClassVar[tuple[str, ...]]
    dtype: DType
    param_dtype: DType
    channels_last: bool
    n: int
    c: int
    in_: tuple[int, int, int]
    training: bool
    momentum: float
    eps: float
    relu: bool
    def __init__(self, **fields: Any) -> None: ...
class UnpoolParams:
    fields: ClassVar[tuple[str, ...]]
    dtype: DType
    channels_last: bool
    n: int
    c: int
    in_: tuple[int, int, int]
    out: tuple[int, int, int]
    def __init__(self, **fields: Any) -> None: ...
class Filter:
    nearest: ClassVar[Filter]
    nearest_exact: ClassVar[Filter]
    linear: ClassVar[Filter]
    cubic: ClassVar[Filter]
    lanczos: ClassVar[Filter]
    __members__: ClassVar[dict[str, Filter]]
    name: str
    value: int
    def __init__(self, value: int) -> None: ...
    def __int__(self) -> int: ...
    def __index__(self) -> int: ...
class InterpolateParams:
    fields: ClassVar[tuple[str, ...]]
    dtype: DType
    channels_last: bool
    n: int
    c: int
    in_: tuple[int, int, int]
    out: tuple[int, int, int]
    filter: Filter
    scale: tuple[float, float, float]
    align_corners: bool
    antialias: bool
    def __init__(self, **fields: Any) -> None: ...
class InterpolateTable:
    fields: ClassVar[tuple[str, ...]]
    taps: int
    begin: list
    count: list
    weight: list
    precision: int
    def __init__(self, **fields: Any) -> None: ...
def conv_kernel_serves(kernel: ConvKernel, params: ConvParams, pass_: ConvPass, device: Device) -> bool: ...
def conv_plan(params: ConvParams, pass_: ConvPass, device: Device) -> fastops._C.ConvPlan: ...
def forward_taps(in_: int, out: int, kernel: int, stride: int, pad: int, dilation: int) -> fastops._C.TapAxis: ...
def input_grad_taps(in_: int, out: int, kernel: int, stride: int, pad: int, dilation: int, phase: int) -> fastops._C.TapAxis: ...
def interpolate_table(params: InterpolateParams, axis: int, adjoint: bool, fixed_point: bool) -> fastops._C.InterpolateTable: ...
def set_min_work_per_thread(steps: int) -> None: ...
def set_openmp_runtime(gomp_parallel: int) -> None: ...
def usable_isas() -> list[str]: ...
class _CpuKernels(ModuleType):
    def avg_pool(self, arg0: PoolParams, arg1: int, arg2: int, arg3: int, /) -> None: ...
    def avg_pool_adjoint(self, arg0: PoolParams, arg1: int, arg2: int, arg3: int, /) -> None: ...
    def batch_norm(self, arg0: BatchNormParams, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, arg7: int, arg8: int, arg9: int, arg10: int, arg11: int, /) -> None: ...
    def batch_norm_apply(self, arg0: BatchNormParams, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, arg7: int, arg8: int, arg9: int, /) -> None: ...
    def batch_norm_apply_workspace(self, arg0: BatchNormParams, arg1: int, /) -> int: ...
    def batch_norm_backward(self, arg0: BatchNormParams, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, arg7: int, arg8: int, arg9: int, arg10: int, arg11: int, arg12: int, arg13: int, /) -> None: ...
    def batch_norm_backward_workspace(self, arg0: BatchNormParams, arg1: int, /) -> int: ...
    def batch_norm_double_backward(self, arg0: BatchNormParams, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, arg7: int, arg8: int, arg9: int, arg10: int, arg11: int, arg12: int, arg13: int, /) -> None: ...
    def batch_norm_double_backward_workspace(self, arg0: BatchNormParams, arg1: int, /) -> int: ...
    def batch_norm_stats(self, arg0: BatchNormParams, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, arg7: int, /) -> None: ...
    def batch_norm_stats_workspace(self, arg0: BatchNormParams, arg1: int, /) -> int: ...
    def batch_norm_workspace(self, arg0: BatchNormParams, arg1: int, /) -> int: ...
    def conv(self, arg0: ConvParams, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, /) -> None: ...
    def conv_backward(self, arg0: ConvParams, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, arg7: int, arg8: int, /) -> None: ...
    def conv_backward_workspace(self, arg0: ConvParams, arg1: int, /) -> int: ...
    def conv_bias_grad(self, arg0: ConvParams, arg1: int, arg2: int, arg3: int, /) -> None: ...
    def conv_input_grad(self, arg0: ConvParams, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, /) -> None: ...
    def conv_input_grad_workspace(self, arg0: ConvParams, arg1: int, /) -> int: ...
    def conv_weight_grad(self, arg0: ConvParams, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, /) -> None: ...
    def conv_weight_grad_workspace(self, arg0: ConvParams, arg1: int, /) -> int: ...
    def conv_workspace(self, arg0: ConvParams, arg1: int, /) -> int: ...
    def gather(self, arg0: PoolParams, arg1: int, arg2: int, arg3: int, arg4: int, /) -> None: ...
    def interpolate_nearest(self, arg0: InterpolateParams, arg1: int, arg2: int, arg3: int, /) -> None: ...
    def interpolate_nearest_adjoint(self, arg0: InterpolateParams, arg1: int, arg2: int, arg3: int, /) -> None: ...
    def interpolate_weighted(self, arg0: InterpolateParams, arg1: int, arg2: int, arg3: int, arg4: int, /) -> None: ...
    def interpolate_weighted_adjoint(self, arg0: InterpolateParams, arg1: int, arg2: int, arg3: int, arg4: int, /) -> None: ...
    def interpolate_weighted_adjoint_workspace(self, arg0: InterpolateParams, arg1: int, /) -> int: ...
    def interpolate_weighted_u8(self, arg0: InterpolateParams, arg1: int, arg2: int, arg3: int, arg4: int, /) -> None: ...
    def interpolate_weighted_u8_workspace(self, arg0: InterpolateParams, arg1: int, /) -> int: ...
    def interpolate_weighted_workspace(self, arg0: InterpolateParams, arg1: int, /) -> int: ...
    def max_pool(self, arg0: PoolParams, arg1: int, arg2: int, arg3: int, arg4: int, /) -> None: ...
    def max_unpool(self, arg0: UnpoolParams, arg1: int, arg2: int, arg3: int, arg4: int, /) -> None: ...
    def max_unpool_adjoint(self, arg0: UnpoolParams, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, /) -> None: ...
    def max_unpool_adjoint_workspace(self, arg0: UnpoolParams, arg1: int, /) -> int: ...
    def scatter_add(self, arg0: PoolParams, arg1: int, arg2: int, arg3: int, arg4: int, /) -> None: ...
compiler: str
cpu_avx2: _CpuKernels
cpu_avx512: _CpuKernels
cpu_baseline: _CpuKernels
cuda: ModuleType
cuda_archs: str
cuda_version: str
invalid_index: str
