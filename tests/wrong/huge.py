"""Fine but for their size: the allocation itself refuses, in torch's words."""

from __future__ import annotations

from tests.wrong.row import Row, because

HUGE: list[Row] = [
    ("adaptive_avg_pool2d(x, 2**63 - 1)", "more elements than an int64 counts", RuntimeError),
    ("adaptive_avg_pool2d(x, 2**28)", "more bytes than any memory", RuntimeError),
    ("adaptive_max_pool2d(x, 2**63 - 1)", "more elements than an int64 counts", RuntimeError),
    ("adaptive_max_pool2d(x, (2**62, 1))", "the same along H only", RuntimeError),
    ("interpolate(x, 2**62)", "more elements than an int64 counts", RuntimeError),
    ("interpolate(x, scale_factor=1e18)", "the same by a factor", RuntimeError),
    ("interpolate(x, 2**26, mode='bilinear')", "more bytes than any memory", RuntimeError),
    ("conv_transpose2d(x, v, stride=2**40)", "more elements than an int64 counts", RuntimeError),
    *because(
        "a few elements seen as more than fit any memory",
        *(
            f"{op}(e(1).expand(2**20, 2**20, 6, 6), {a})"
            for op, a in (
                ("avg_pool2d", 2),
                ("max_pool2d", 2),
                ("adaptive_avg_pool2d", 2),
                ("adaptive_max_pool2d", 2),
                ("interpolate", 4),
            )
        ),
        "conv2d(e(1).expand(2**34, 4, 6, 6), w)",
        "conv2d(x, e(1).expand(2**36, 4, 3, 3))",
        "conv_transpose2d(e(1).expand(2**34, 4, 6, 6), v)",
        "conv_transpose2d(x, e(1).expand(4, 2**36, 3, 3))",
        "batch_norm(e(1).expand(2**40, 4, 6, 6), rm, rv)",
        "max_unpool2d(e(1).expand(2**38, 4, 3, 3), i[0, 0, 0, 0].expand(2**38, 4, 3, 3), 2)",
        better=RuntimeError,
    ),
    *because(
        "outputs of more bytes than any memory",
        "max_unpool2d(y, i, 2, 2**31 - 1)",
        "conv2d(x, w, padding=2**28)",
        "conv_transpose2d(x, v, stride=2**28)",
        "interpolate(x, (2**30, 2**20), mode='bicubic')",
        "interpolate(x, scale_factor=1e8, mode='nearest-exact')",
        "interpolate(x, 2**26, mode='area')",
        "adaptive_max_pool2d(x, 2**28)",
        better=RuntimeError,
    ),
]
