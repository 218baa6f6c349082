"""torch.nn.functional's signatures, served by fastops' kernels.

Every function takes what torch's function of that name takes, returns the same values in the same
layout, and raises the same types of errors. Arguments are checked in ``fastops/_functional``, one file
per family; sizes are checked where the op's plan is made (``fastops.ops``), once per shape.
"""

from fastops._functional.avg_pool import adaptive_avg_pool2d, avg_pool2d
from fastops._functional.batch_norm import batch_norm
from fastops._functional.conv import conv2d, conv_transpose2d
from fastops._functional.interpolate import interpolate
from fastops._functional.max_pool import (
    adaptive_max_pool2d,
    adaptive_max_pool2d_with_indices,
    max_pool2d,
    max_pool2d_with_indices,
    max_unpool2d,
)

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_with_indices",
    "avg_pool2d",
    "batch_norm",
    "conv2d",
    "conv_transpose2d",
    "interpolate",
    "max_pool2d",
    "max_pool2d_with_indices",
    "max_unpool2d",
]
