"""Calls on which torch computes garbage, stumbles, or lets pass what cannot be meant; fastops must raise.

The reason says what torch 2.13 does on the CPU; that it takes the call, or raises which type, is in
tests/wrong/torch_says.py, and asked.
"""

from __future__ import annotations

from tests.wrong.row import Row

TORCH_ERRS: list[Row] = [
    ("conv2d(x, w, dilation=2**63 - 1)", "the span overflows: an output larger than the input", RuntimeError),
    ("conv_transpose2d(x, v, dilation=2**63 - 1)", "the span overflows: a smaller output", RuntimeError),
    (
        "conv2d(x, w.to('meta'))",
        "takes a weight without data, and returns memory as it finds it",
        RuntimeError,
    ),
    ("conv2d(x.to('meta'), w)", "takes an input without data beside a real weight", RuntimeError),
    ("conv_transpose2d(x, v.to('meta'))", "takes a weight without data", RuntimeError),
    ("conv_transpose2d(x, v, e(8).to('meta'))", "takes a bias without data", RuntimeError),
    ("conv2d(x.to('meta'), w.to('meta'), e(8))", "takes a real bias for meta tensors", RuntimeError),
    (
        "Conv2d(4, 8, 3, device='meta')(x)",
        "a layer that was never given memory returns garbage",
        RuntimeError,
    ),
    ("ConvTranspose2d(4, 8, 3, device='meta')(x)", "the same, transposed", RuntimeError),
    ("Conv2d(4, 8, 3)(x.to('meta'))", "a real layer takes a meta tensor", RuntimeError),
    ("batch_norm(x, e(1).expand(4), rv, training=True)", "writes four means to one place", RuntimeError),
    ("batch_norm(x, rm, e(1).expand(4), training=True)", "writes four variances to one place", RuntimeError),
    ("max_unpool2d(y, i, 0)", "drops all values, and returns an empty tensor", RuntimeError),
    ("max_unpool2d(y, i, (2, 0))", "the same along W", RuntimeError),
    ("max_unpool2d(y, i, 2, -1)", "a negative stride drops all values", RuntimeError),
    ("max_unpool2d(y, i, 2, (1, 2, 3))", "ignores the third stride", RuntimeError),
    ("max_unpool2d(y, i, 2, padding=(1, 1, 1))", "ignores the third padding", RuntimeError),
    ("max_unpool2d(y, i, True)", "takes True for a window of 1", TypeError),
    ("max_unpool2d(e(3), i[0, 0, 0], 2)", "stumbles over a shape that is too short", RuntimeError),
    ("avg_pool2d(e(6), 2)", "stumbles over a dimension that is not there", RuntimeError),
    ("adaptive_avg_pool2d(None, 2)", "stumbles over None having no size", TypeError),
    ("interpolate(None, 4)", "stumbles over None having no rank", TypeError),
    (
        "interpolate(x, scale_factor=inf, recompute_scale_factor=True)",
        "stumbles over an infinity that is made an integer",
        RuntimeError,
    ),
    (
        "adaptive_avg_pool2d(nested(x[0], x[1]), 2)",
        "says internal error, please file an issue",
        NotImplementedError,
    ),
    ("interpolate(nested(x[0], x[1]), 4)", "says internal error, please file an issue", NotImplementedError),
    ("avg_pool2d(x.long(), 2)", "averages integers, rounding down", NotImplementedError),
    ("conv2d(x, w, padding=b'same')", "takes bytes for text", TypeError),
]
