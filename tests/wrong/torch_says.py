"""What torch 2.13 does on the CPU with the rows that name a type of their own, where it is not that type.

A row that names what fastops raises, and does not stand here, raises that very type in torch, too. Both are
asked, row by row (tests/wrong/__init__.py), so that a claim about torch is one that was checked. Why fastops
differs is the row's reason. torch kills its process on none of the rows; one on which it would hang, die or
fill the memory needs a table of its own, and must not be asked.
"""

from __future__ import annotations

import torch

ACCEPTS = None  # torch takes the call
# Whether oneDNN computes torch's convolutions of a dtype: of 16 bits where the processor has instructions.
ONEDNN = {
    "float64": False,
    "float16": torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    "bfloat16": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
}

INSTEAD: dict[type[Exception] | None, tuple[str, ...]] = {
    ACCEPTS: (
        "avg_pool2d(x.to_mkldnn(), 2)",
        "max_pool2d(x.to_mkldnn(), 2)",
        "avg_pool2d(x.long(), 2)",
        "max_pool2d(x.long(), 2)",
        "adaptive_avg_pool2d(e(2, 0, 6, 6), 2)",
        "adaptive_avg_pool2d(x, {1, 2})",
        "adaptive_max_pool2d(x, {1, 2})",
        "max_unpool2d(y, i, 2, (1, 2, 3))",
        "max_unpool2d(y, i, 2, padding=(1, 1, 1))",
        "max_unpool2d(y, i, True)",
        "max_unpool2d(y, i, 0)",
        "max_unpool2d(y, i, (2, 0))",
        "max_unpool2d(y, i, 2, -1)",
        "conv2d(x.long(), w.long())",
        "conv2d(x.cfloat(), w.cfloat())",
        "conv2d(x, w.to('meta'))",
        "conv2d(x.to('meta'), w)",
        "conv2d(x, w, e(8).to('meta'))",
        "conv2d(x, w, padding=b'same')",
        "conv2d(x, w, stride=2**31)",
        "conv2d(x, w, stride=2**63 - 1)",
        "conv2d(x.to_mkldnn(), w)",
        "conv2d(x.to('meta'), w.to('meta'), e(8))",
        "conv_transpose2d(x.long(), v.long())",
        "conv_transpose2d(x.cfloat(), v.cfloat())",
        "conv_transpose2d(x, v.to('meta'))",
        "conv_transpose2d(x.to('meta'), v)",
        "conv_transpose2d(x.to_mkldnn(), v)",
        "batch_norm(x, e(1).expand(4), rv, training=True)",
        "batch_norm(x, rm, e(1).expand(4), training=True)",
        "batch_norm(x, e(5).as_strided((4,), (0,)), rv, training=True)",
        "interpolate(x, (4, True))",
        "Conv2d(4, 8, 3)(x.to('meta'))",
        "Conv2d(4, 8, 3, device='meta')(x)",
        "ConvTranspose2d(4, 8, 3)(x.to('meta'))",
        "ConvTranspose2d(4, 8, 3, device='meta')(x)",
        "conv2d(x, w, dilation=2**63 - 1)",
        "conv_transpose2d(x, v, dilation=2**63 - 1)",
        "conv_transpose2d(x, v, e(8).to('meta'))",
        # integers and complex numbers
        *(f"max_pool2d(x.to(torch.{d}), 2)" for d in ("int8", "int16", "int32", "int64", "uint8")),
        *(
            f"conv2d(x.to(torch.{d}), w.to(torch.{d}))"
            for d in ("int8", "int16", "int32", "int64", "uint8", "complex32", "complex64", "complex128")
        ),
        *(
            f"conv_transpose2d(x.to(torch.{d}), v.to(torch.{d}))"
            for d in ("int64", "complex32", "complex64", "complex128")
        ),
        "avg_pool2d(x.to(torch.int64), 2)",
        # a bias of another dtype, which it converts where oneDNN does not serve
        *(
            f"conv_transpose2d(x.to(torch.{d}), v.to(torch.{d}), e(8).to(torch.{b}))"
            for d in ("float64", "float16", "bfloat16")
            for b in ("float64", "float32", "float16", "bfloat16")
            if b != d and not ONEDNN[d]
        ),
    ),
    AttributeError: (
        "adaptive_avg_pool2d(None, 2)",
        "adaptive_max_pool2d(None, 2)",
        "max_unpool2d(None, i, 2)",
        "interpolate(None, 4)",
        "interpolate(array, 4)",
        "interpolate([[1.0]], 4)",
        "AdaptiveAvgPool2d(2)(None)",
        "AdaptiveMaxPool2d(2)(None)",
        "Upsample(4)(None)",
        "UpsamplingBilinear2d(4)(array)",
    ),
    IndexError: (
        "avg_pool2d(e(6), 2)",
        "avg_pool2d(e(6, 6), 2)",
        "avg_pool2d(e(()), 2)",
        "avg_pool2d(e(6, 6).to_sparse_csr(), 2)",
        "max_unpool2d(y, i, (2, 2, 2))",
        "max_unpool2d(y, i, 2, ())",
        "max_unpool2d(e(()), i[0, 0, 0, 0], 2)",
        "max_unpool2d(e(3), i[0, 0, 0], 2)",
        "AvgPool2d(2)(e(6, 6))",
        "MaxUnpool2d((2, 2, 2))(y, i)",
    ),
    OverflowError: (
        "interpolate(x, scale_factor=1e308, recompute_scale_factor=True)",
        "interpolate(x, scale_factor=inf, recompute_scale_factor=True)",
    ),
    RuntimeError: (
        "adaptive_avg_pool2d(nested(x[0], x[1]), 2)",
        "adaptive_max_pool2d(nested(x[0], x[1]), 2)",
        "max_unpool2d(nested(y[0], y[1]), i, 2)",
        "conv2d(x, w, e(8).to_sparse())",
        "conv2d(x.to_sparse(), w.to_sparse())",
        "conv2d(x, w.to_mkldnn())",
        "conv_transpose2d(x, v.to_sparse())",
        "conv_transpose2d(x, v, e(8).to_sparse())",
        "batch_norm(nested(x[0], x[1]), rm, rv)",
        "batch_norm(x, rm, rv, nested(rm, rm))",
        "batch_norm(x.to_mkldnn(), rm, rv)",
        "batch_norm(x, rm.to_mkldnn(), rv)",
        "batch_norm(x, rm, rv, eps=e(2))",
        "interpolate(nested(x[0], x[1]), 4)",
    ),
    TypeError: (
        "adaptive_avg_pool2d(x, (2**64, 0))",
        "adaptive_max_pool2d(x, (2**64, 0))",
        "max_unpool2d(y, i, 2**62)",
        "max_unpool2d(y, i, 2, 2**62)",
        "max_unpool2d(y, i, 2, padding=-(2**62))",
        "max_unpool2d(y, i, 2**64)",
        "conv2d(x, w, activation='gelu')",
        "conv2d(x, w, activation=1)",
        "batch_norm(x, rm, rv, g, b, True, residual=y)",
        "batch_norm(x, rm, rv, residual=x[:1])",
        "batch_norm(x, rm, rv, training=True, residual=x.double())",
        "batch_norm(x, rm, rv, training=True, residual=x.to('meta'))",
        "batch_norm(x, rm, rv, training=True, residual=x.to_sparse())",
        "batch_norm(x, rm, rv, training=True, activation='gelu')",
        "batch_norm(x, rm, rv, activation=True)",
        "batch_norm(x, rm, rv, residual=nested(x[0], x[1]))",
        "batch_norm(x, rm, rv, activation='ReLU')",
        "batch_norm(x, rm, rv, activation=[])",
        "batch_norm(x, rm, rv, activation=torch.relu)",
        "batch_norm(x, rm, rv, activation=0)",
        "interpolate(x, 2**63)",
        "interpolate(x, (2**63, 1))",
        "interpolate(x, scale_factor=10**400)",
        "Conv2d(4, 8, 3, activation='gelu')",
        "BatchNorm2d(4, activation=1)",
        "BatchNorm2d(4)(x, y)",
        "BatchNorm2d(4)(x, activation='gelu')",
    ),
    ValueError: (
        "avg_pool2d(x, 2**64)",
        "avg_pool2d(x, 2**63)",
        "avg_pool2d(x, 2, 2**63)",
        "avg_pool2d(x, 2, padding=2**63)",
        "avg_pool2d(x, -(2**64))",
        "avg_pool2d(x, 2, 10**400)",
        "max_pool2d(x, 2**64)",
        "max_pool2d(x, 2**63)",
        "max_pool2d(x, 2, 2**63)",
        "max_pool2d(x, 2, padding=2**63)",
        "max_pool2d(x, -(2**64))",
        "max_pool2d(x, 2, 10**400)",
        "avg_pool2d(x, 2, divisor_override=2**63)",
        "max_pool2d(x, 2, dilation=2**63)",
        "adaptive_avg_pool2d(x, 2**63)",
        "adaptive_max_pool2d(x, 2**63)",
        "max_unpool2d(y, i, 2, output_size=(nan, 6))",
        "conv2d(x, w, stride=2**63)",
        "conv2d(x, w, padding=2**63)",
        "conv2d(x, w, dilation=2**63)",
        "conv2d(x, w, groups=2**63)",
        "conv_transpose2d(x, v, stride=2**63)",
        "interpolate(x, scale_factor=nan, recompute_scale_factor=True)",
        "interpolate(x, scale_factor=nan, mode='area')",
    ),
}


def instead() -> dict[str, type[Exception] | None]:
    """By call."""
    return {source: says for says, sources in INSTEAD.items() for source in sources}
