"""Wrong calls, on torch and on fastops: the same type of error, a message naming the op, nothing touched.

A row is a call, written as Python with the names of ``names()``, and the reason why it is wrong. A third
entry is what fastops raises where torch is not asked: because fastops differs from it on purpose (then the
reason says so), or because what torch does there (overflow, missing data) varies with its version.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastops
import fastops.functional as G

Row = tuple[str, str] | tuple[str, str, type[Exception]]

POOLS: list[Row] = [
    # kernel_size, stride, padding, dilation: ranks, types, ranges
    *[
        row
        for op in ("avg_pool2d", "max_pool2d")
        for row in (
            (f"{op}(x, 0)", "an empty window"),
            (f"{op}(x, -1)", "a negative window"),
            (f"{op}(x, (2, 0))", "a window empty along W"),
            (f"{op}(x, 1.5)", "sizes are whole numbers"),
            (f"{op}(x, (2.0, 2))", "a float in a pair"),
            (f"{op}(x, '2')", "a string is no size"),
            (f"{op}(x, None)", "a window is needed"),
            (f"{op}(x, ())", "no sizes"),
            (f"{op}(x, (2, 2, 2))", "three sizes for two axes"),
            (f"{op}(x, 2, stride=0)", "no way to move"),
            (f"{op}(x, 2, stride=-1)", "backwards"),
            (f"{op}(x, 2, stride=(1, 0))", "no way to move along W"),
            (f"{op}(x, 2, stride=1.0)", "strides are whole numbers"),
            (f"{op}(x, 2, stride=(1, 1, 1))", "three strides for two axes"),
            (f"{op}(x, 2, padding=-1)", "negative padding"),
            (f"{op}(x, 2, padding=2)", "a window could lie in the padding"),
            (f"{op}(x, (3, 2), padding=(0, 2))", "the same along W only"),
            (f"{op}(x, 2, padding=0.5)", "paddings are whole numbers"),
            (f"{op}(x, 3, padding=(1, 1, 1))", "three paddings for two axes"),
            (f"{op}(x, 2, padding=(1, -1))", "negative along W only"),
            (f"{op}(x, 7)", "no window fits"),
            (f"{op}(x, (2, 9))", "no window fits along W"),
            (f"{op}(x, 2**31)", "larger than an int: neither truncated nor wrapped around"),
            (f"{op}(x, 2**63 - 1)", "index arithmetic would overflow", RuntimeError),
            (f"{op}(x, 2**64)", "no 64-bit integer; torch has RuntimeError or ValueError", Exception),
            (f"{op}(x, -(2**63))", "the most negative integer", RuntimeError),
            (f"{op}(x, 2, padding=2**62)", "twice this overflows", RuntimeError),
            # inputs
            (f"{op}(3.0, 2)", "not a tensor"),
            (f"{op}(None, 2)", "no input"),
            (f"{op}([[1.0]], 2)", "lists are not converted"),
            (f"{op}(array, 2)", "numpy arrays are not converted"),
            (f"{op}(e(6), 2)", "rank 1: torch's avg_pool2d stumbles over it with IndexError", RuntimeError),
            (f"{op}(e(6, 6), 2)", "rank 2: the same", RuntimeError),
            (f"{op}(e(1, 1, 1, 6, 6), 2)", "rank 5"),
            (f"{op}(e(()), 2)", "rank 0: the same", RuntimeError),
            (f"{op}(e(2, 0, 6, 6), 2)", "no channels"),
            (f"{op}(e(2, 4, 0, 6), 2)", "no rows"),
            (f"{op}(e(2, 4, 6, 0), 1)", "no columns"),
            (f"{op}(e(0, 6, 6), 2)", "unbatched and without channels"),
            (f"{op}(x.bool(), 2)", "bool has no order and no mean"),
            (f"{op}(x.cfloat(), 2)", "complex numbers"),
            (f"{op}(x.to(torch.float8_e4m3fn), 2)", "float8 only stores"),
            (f"{op}(x.to_sparse(), 2)", "sparse, COO", RuntimeError),
            (f"{op}(e(6, 6).to_sparse_csr(), 2)", "sparse, CSR", RuntimeError),
            # the call itself
            (f"{op}(x)", "kernel_size is required"),
            (f"{op}(x, 2, kernel_size=2)", "given twice"),
            (f"{op}(x, 2, size=2)", "no such argument"),
        )
    ],
    ("avg_pool2d(x, 2, divisor_override=0)", "division by zero"),
    ("avg_pool2d(x, 2, divisor_override=1.5)", "the divisor is a whole number"),
    ("avg_pool2d(x.long(), 2)", "torch averages int64; fastops says what it supports", NotImplementedError),
    ("avg_pool2d(x.int(), 2)", "an integer dtype that torch refuses too"),
    ("max_pool2d(x.long(), 2)", "torch takes integers; fastops says what it supports", NotImplementedError),
    ("max_pool2d(x, 2, dilation=0)", "all taps in one place"),
    ("max_pool2d(x, 2, dilation=-1)", "negative dilation"),
    ("max_pool2d(x, 2, dilation=(1, 0))", "the same along W only"),
    ("max_pool2d(x, 2, dilation=1.5)", "dilations are whole numbers"),
    ("max_pool2d(x, 2, dilation=(1, 1, 1))", "three dilations for two axes"),
    ("max_pool2d(x, 2, dilation=6)", "the spread window does not fit"),
    ("max_pool2d(x, 2, dilation=2**31)", "larger than an int", RuntimeError),
    ("max_pool2d(x, 3, dilation=2**62)", "the span overflows", RuntimeError),
]

ADAPTIVE: list[Row] = [
    *[
        row
        for op in ("adaptive_avg_pool2d", "adaptive_max_pool2d")
        for row in (
            (f"{op}(x, -1)", "a negative size"),
            (f"{op}(x, (2, -1))", "negative along W"),
            (f"{op}(x, 2.0)", "sizes are whole numbers"),
            (f"{op}(x, (2, 2.5))", "a float in a pair"),
            (f"{op}(x, '2')", "a string is no size", TypeError),
            (f"{op}(x, (1, 2, 3))", "three sizes for two axes"),
            (f"{op}(x, ())", "no sizes"),
            (f"{op}(x)", "output_size is required"),
            (f"{op}(e(6, 6), (2, 2))", "rank 2"),
            (f"{op}(e(6), 2)", "rank 1"),
            (f"{op}(e(1, 1, 1, 6, 6), 2)", "rank 5"),
            (f"{op}(e(2, 4, 0, 6), 2)", "no rows to divide"),
            (f"{op}(e(2, 0, 6, 6), 2)", "no channels", RuntimeError),
            (f"{op}(x.long(), 2)", "an integer dtype"),
            (f"{op}(x.cfloat(), 2)", "complex numbers"),
            (f"{op}(x.to(torch.float8_e5m2), 2)", "float8 only stores"),
            (f"{op}(x.to_sparse(), 2)", "sparse", RuntimeError),
            (f"{op}(array, 2)", "numpy arrays are not converted", TypeError),
            (f"{op}(None, 2)", "no input", TypeError),
        )
    ],
]

UNPOOL: list[Row] = [
    ("max_unpool2d(y, i.int(), 2)", "indices are int64"),
    ("max_unpool2d(y, y, 2)", "indices are not floats"),
    ("max_unpool2d(y, i[..., :1], 2)", "indices of another shape"),
    ("max_unpool2d(y, i[0], 2)", "indices of another rank"),
    ("max_unpool2d(y, i[:1], 2)", "indices of another batch"),
    ("max_unpool2d(y, None, 2)", "no indices"),
    ("max_unpool2d(y, 0, 2)", "indices are a tensor"),
    ("max_unpool2d(None, i, 2)", "no input: torch stumbles with AttributeError", TypeError),
    ("max_unpool2d(y)", "indices and kernel_size are required"),
    ("max_unpool2d(y, i, 2, output_size=(9, 9))", "further than a stride from the default size"),
    ("max_unpool2d(y, i, 2, output_size=(3, 6))", "too small"),
    ("max_unpool2d(y, i, 2, output_size=(6,))", "one size for two axes"),
    ("max_unpool2d(y, i, 2, output_size=(1, 2, 3, 6, 6))", "more sizes than axes"),
    ("max_unpool2d(y, i, 2, output_size=(6.0, 6.0))", "sizes are whole numbers", TypeError),
    ("max_unpool2d(y, i, -2)", "a negative window"),
    ("max_unpool2d(y, i, 2.0)", "sizes are whole numbers", TypeError),
    ("max_unpool2d(y, i, 2, padding=9)", "nothing is left of the output"),
    ("max_unpool2d(y, i, 2**62)", "the size overflows", Exception),
    ("max_unpool2d(e(3, 3), e(3, 3).long(), 2)", "rank 2", RuntimeError),
    ("max_unpool2d(e(1, 1, 1, 3, 3), e(1, 1, 1, 3, 3).long(), 2)", "rank 5", RuntimeError),
    ("max_unpool2d(e(2, 0, 3, 3), e(2, 0, 3, 3).long(), 2)", "no channels"),
    ("max_unpool2d(e(2, 4, 0, 3), e(2, 4, 0, 3).long(), 2)", "no rows"),
    (
        "max_unpool2d(y.long(), i, 2)",
        "torch takes integers; fastops says what it supports",
        NotImplementedError,
    ),
    ("max_unpool2d(y.cfloat(), i, 2)", "complex numbers", NotImplementedError),
    ("max_unpool2d(y, i.to('meta'), 2)", "real values, indices without data", RuntimeError),
]

# Wrong values rather than wrong arguments: found by looking at the data, so after the allocation.
INDICES: list[Row] = [
    ("max_unpool2d(y, i + 36, 2)", "one past the plane"),
    ("max_unpool2d(y, i - 1, 2)", "before the plane"),
    ("max_unpool2d(y, i + 2**31, 2)", "past 32 bits"),
    ("max_unpool2d(y, i + 2**62, 2)", "its address would overflow", RuntimeError),
    ("max_unpool2d(y, i - 2**63, 2)", "the most negative index", RuntimeError),
    ("max_unpool2d(y, last(i, 36), 2)", "only the very last index is wrong"),
    (
        "max_unpool2d(y, last(i, 25), 2, output_size=(5, 5))",
        "inside the default plane, outside the asked one",
    ),
    ("max_unpool2d(nhwc(y), nhwc(last(i, 36)), 2)", "channels_last"),
    ("max_unpool2d(y[0], last(i[0], -5), 2)", "unbatched"),
]

# Fine but for their size: the allocation itself refuses, in torch's words.
HUGE: list[Row] = [
    ("adaptive_avg_pool2d(x, 2**63 - 1)", "more elements than an int64 counts", RuntimeError),
    ("adaptive_avg_pool2d(x, 2**28)", "more bytes than any memory", RuntimeError),
    ("adaptive_max_pool2d(x, 2**63 - 1)", "more elements than an int64 counts", RuntimeError),
    ("adaptive_max_pool2d(x, (2**62, 1))", "the same along H only", RuntimeError),
    ("interpolate(x, 2**62)", "more elements than an int64 counts", RuntimeError),
    ("interpolate(x, scale_factor=1e18)", "the same by a factor", RuntimeError),
    ("interpolate(x, 2**26, mode='bilinear')", "more bytes than any memory", RuntimeError),
    ("conv_transpose2d(x, v, stride=2**40)", "more elements than an int64 counts", RuntimeError),
]

CONV: list[Row] = [
    ("conv2d(x, w, stride=0)", "no way to move"),
    ("conv2d(x, w, stride=-1)", "backwards"),
    ("conv2d(x, w, stride=(1, 0))", "no way to move along W"),
    ("conv2d(x, w, stride=())", "no strides"),
    ("conv2d(x, w, stride=1.5)", "strides are whole numbers"),
    ("conv2d(x, w, stride=(1, 1, 1))", "three strides for two axes"),
    ("conv2d(x, w, stride=None)", "no stride"),
    ("conv2d(x, w, padding=-1)", "negative padding"),
    ("conv2d(x, w, padding=(0, -1))", "negative along W only"),
    ("conv2d(x, w, padding=1.5)", "paddings are whole numbers"),
    ("conv2d(x, w, padding=(1, 1, 1))", "three paddings for two axes"),
    ("conv2d(x, w, padding='full')", "no such padding"),
    ("conv2d(x, w, padding='same', stride=2)", "'same' has no meaning with a stride"),
    ("conv2d(x, w, padding=2**62)", "twice this overflows", RuntimeError),
    ("conv2d(x, w, dilation=0)", "all taps in one place"),
    ("conv2d(x, w, dilation=-1)", "negative dilation"),
    ("conv2d(x, w, dilation=1.5)", "dilations are whole numbers"),
    ("conv2d(x, w, dilation=(1, 1, 1))", "three dilations for two axes"),
    ("conv2d(x, w, dilation=6)", "the spread filter does not fit"),
    ("conv2d(x, w, dilation=2**62)", "the span overflows", RuntimeError),
    ("conv2d(x, w, groups=0)", "no groups"),
    ("conv2d(x, w, groups=-1)", "negative groups"),
    ("conv2d(x, w, groups=3)", "8 output channels are not 3 groups"),
    ("conv2d(x, w, groups=2)", "the weight has the channels of one group"),
    ("conv2d(x, w, groups=1.0)", "groups are a whole number"),
    ("conv2d(x, w, groups=2**63 - 1)", "more groups than channels"),
    ("conv2d(x, e(8, 4, 7, 3))", "the filter is higher than the input"),
    ("conv2d(x, e(8, 4, 3, 9), padding=1)", "the filter is wider than the padded input"),
    ("conv2d(x, e(8, 5, 3, 3))", "other channels in the weight"),
    ("conv2d(x, e(8, 4, 3))", "a weight of rank 3"),
    ("conv2d(x, e(8, 4, 3, 3, 3))", "a weight of rank 5"),
    ("conv2d(x, e(3))", "a weight of rank 1"),
    ("conv2d(x, e(8, 4, 0, 3))", "a filter without rows"),
    ("conv2d(x, e(0, 4, 3, 3))", "no filters", RuntimeError),
    ("conv2d(x, w, e(7))", "a bias of another length"),
    ("conv2d(x, w, e(8, 1))", "a bias of rank 2"),
    ("conv2d(x, w, e(()))", "a scalar bias"),
    ("conv2d(x, w, 0.5)", "a bias that is no tensor"),
    ("conv2d(x, w.double())", "a weight of another dtype"),
    ("conv2d(x.double(), w)", "an input of another dtype"),
    ("conv2d(x, w.half())", "half weights, float input"),
    ("conv2d(x, w, e(8).double())", "a bias of another dtype"),
    (
        "conv2d(x.long(), w.long())",
        "torch convolves integers; fastops says what it supports",
        NotImplementedError,
    ),
    (
        "conv2d(x.cfloat(), w.cfloat())",
        "torch convolves complex; fastops says what it supports",
        NotImplementedError,
    ),
    ("conv2d(x.bool(), w.bool())", "bool"),
    ("conv2d(x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn))", "float8 only stores"),
    ("conv2d(x.to_sparse(), w)", "a sparse input", RuntimeError),
    ("conv2d(x, w.to_sparse())", "a sparse weight", RuntimeError),
    ("conv2d(x, w.to('meta'))", "a weight without data: torch may compute garbage", RuntimeError),
    ("conv2d(x.to('meta'), w)", "an input without data", RuntimeError),
    ("conv2d(x, w, e(8).to('meta'))", "a bias without data", RuntimeError),
    ("conv2d(e(6, 6), w)", "rank 2"),
    ("conv2d(e(1, 1, 4, 6, 6), w)", "rank 5"),
    ("conv2d(e(2, 3, 6, 6), w)", "other channels in the input"),
    ("conv2d(e(3, 6, 6), w)", "unbatched, other channels"),
    ("conv2d(e(2, 4, 0, 6), w)", "no rows"),
    ("conv2d(array, w)", "a numpy array"),
    ("conv2d(x, None)", "no weight"),
    ("conv2d(None, w)", "no input"),
    ("conv2d(x, [[1.0]])", "a weight that is a list"),
    ("conv2d(x)", "a weight is required"),
    ("conv2d(x, w, kernel_size=3)", "no such argument"),
]

CONV_TRANSPOSE: list[Row] = [
    ("conv_transpose2d(x, v, stride=0)", "no way to move"),
    ("conv_transpose2d(x, v, stride=-1)", "backwards"),
    ("conv_transpose2d(x, v, stride=1.5)", "strides are whole numbers"),
    ("conv_transpose2d(x, v, stride=(1, 1, 1))", "three strides for two axes"),
    ("conv_transpose2d(x, v, padding=-1)", "negative padding"),
    ("conv_transpose2d(x, v, padding='same')", "only numbers here"),
    ("conv_transpose2d(x, v, padding=1.5)", "paddings are whole numbers"),
    ("conv_transpose2d(x, v, padding=9)", "nothing is left of the output", RuntimeError),
    ("conv_transpose2d(x, v, dilation=0)", "all taps in one place"),
    ("conv_transpose2d(x, v, dilation=-1)", "negative dilation"),
    ("conv_transpose2d(x, v, output_padding=1)", "not smaller than stride or dilation"),
    ("conv_transpose2d(x, v, stride=2, output_padding=2)", "not smaller than the stride"),
    ("conv_transpose2d(x, v, stride=2, output_padding=-1)", "negative output padding"),
    ("conv_transpose2d(x, v, stride=2, output_padding=0.5)", "output paddings are whole numbers"),
    ("conv_transpose2d(x, v, stride=2**62)", "the size overflows", RuntimeError),
    ("conv_transpose2d(x, v, groups=0)", "no groups"),
    ("conv_transpose2d(x, v, groups=3)", "4 input channels are not 3 groups"),
    ("conv_transpose2d(x, v, groups=-2)", "negative groups"),
    ("conv_transpose2d(x, e(3, 8, 3, 3))", "other channels in the weight"),
    ("conv_transpose2d(x, e(4, 8, 3))", "a weight of rank 3"),
    ("conv_transpose2d(x, e(4, 8, 3, 3, 3))", "a weight of rank 5"),
    ("conv_transpose2d(x, v, e(7))", "a bias of another length"),
    ("conv_transpose2d(x, v, e(8, 1))", "a bias of rank 2"),
    ("conv_transpose2d(x, v.double())", "a weight of another dtype"),
    ("conv_transpose2d(x, v, e(8).double())", "a bias of another dtype"),
    ("conv_transpose2d(x.long(), v.long())", "integers", NotImplementedError),
    ("conv_transpose2d(x.cfloat(), v.cfloat())", "complex numbers", NotImplementedError),
    ("conv_transpose2d(x, v.to('meta'))", "torch computes garbage", RuntimeError),
    ("conv_transpose2d(x.to('meta'), v)", "an input without data", RuntimeError),
    ("conv_transpose2d(x.to_sparse(), v)", "a sparse input", RuntimeError),
    ("conv_transpose2d(e(6, 6), v)", "rank 2"),
    ("conv_transpose2d(e(1, 1, 4, 6, 6), v)", "rank 5"),
    ("conv_transpose2d(e(2, 3, 6, 6), v)", "other channels in the input"),
    ("conv_transpose2d(array, v)", "a numpy array"),
    ("conv_transpose2d(x, None)", "no weight"),
    ("conv_transpose2d(x)", "a weight is required"),
]

BATCH_NORM: list[Row] = [
    ("batch_norm(x, None, None)", "evaluation needs statistics"),
    ("batch_norm(x, rm, None)", "evaluation needs the variance too"),
    ("batch_norm(x, None, rv)", "evaluation needs the mean too"),
    ("batch_norm(e(1, 4, 1, 1), rm, rv, training=True)", "one value per channel has no variance"),
    ("batch_norm(e(1, 4), rm, rv, training=True)", "the same for rank 2"),
    ("batch_norm(x, rm, rv, training=True, eps=0.0)", "torch wants a positive eps in training"),
    ("batch_norm(x, rm, rv, training=True, eps=-1e-5)", "negative eps"),
    ("batch_norm(x, rm[:3], rv, g, b)", "a running mean of another length"),
    ("batch_norm(x, rm, rv[:3], g, b)", "a running variance of another length"),
    ("batch_norm(x, rm[:3], rv, g, b, True)", "the same in training"),
    ("batch_norm(x, rm, rv[:3], training=True)", "the same for the variance"),
    ("batch_norm(x, rm, rv, g[:3], b)", "a weight of another length"),
    ("batch_norm(x, rm, rv, g, b[:3])", "a bias of another length"),
    ("batch_norm(x, rm, rv, g, b[:3], True)", "the same in training: statistics stay as they were"),
    ("batch_norm(x, rm, rv, g[:3], b, True)", "the same for the weight"),
    ("batch_norm(x, rm, rv, e(2), None, True)", "a weight alone, too short"),
    ("batch_norm(x, rm, rv, 1.0)", "a weight that is no tensor"),
    ("batch_norm(x, rm, rv, g, 'b')", "a bias that is no tensor"),
    ("batch_norm(x, 0.0, 1.0)", "statistics that are no tensors"),
    ("batch_norm(x, rm, rv, momentum='0.1', training=True)", "momentum is a number"),
    ("batch_norm(x, rm, rv, eps='1e-5')", "eps is a number"),
    ("batch_norm(x, rm, rv, eps=None)", "eps is needed"),
    ("batch_norm(x, rm, rv, training=True, momentum=None)", "the function has no cumulative average"),
    (
        "batch_norm(x, rm.bfloat16(), rv.bfloat16(), g.bfloat16(), b.bfloat16())",
        "fp32 x with bf16 parameters",
    ),
    ("batch_norm(x, rm, rv, g.bfloat16(), b.bfloat16(), True)", "the same in training"),
    ("batch_norm(x, rm, rv, g.double(), b.double())", "parameters of another dtype", RuntimeError),
    ("batch_norm(x.long(), rm, rv)", "an integer dtype"),
    ("batch_norm(x.cfloat(), rm, rv, training=True)", "complex numbers"),
    ("batch_norm(x.to(torch.float8_e4m3fn), rm, rv, training=True)", "float8 only stores"),
    ("batch_norm(x.to_sparse(), rm, rv)", "a sparse input", RuntimeError),
    ("batch_norm(x, rm, rv, g.to('meta'), b)", "a weight without data", RuntimeError),
    ("batch_norm(x.to('meta'), rm, rv, g, b, True)", "an input without data", RuntimeError),
    ("batch_norm(array, rm, rv)", "a numpy array"),
    ("batch_norm(None, rm, rv)", "no input", TypeError),
    ("batch_norm(e(()), None, None, training=True)", "rank 0", Exception),
    ("batch_norm(x)", "the statistics are required, if only as None"),
    ("batch_norm(x, rm, rv, g, b, True, residual=y)", "a residual of another shape", RuntimeError),
    ("batch_norm(x, rm, rv, residual=x[:1])", "a residual is not broadcast", RuntimeError),
    ("batch_norm(x, rm, rv, training=True, residual=x.double())", "of another dtype", RuntimeError),
    ("batch_norm(x, rm, rv, training=True, residual=x.to('meta'))", "without data", RuntimeError),
    ("batch_norm(x, rm, rv, training=True, residual=x.to_sparse())", "of another kind", RuntimeError),
    ("batch_norm(x, rm, rv, training=True, residual=array)", "a numpy array", TypeError),
    ("batch_norm(x, rm, rv, training=True, activation='gelu')", "no such activation", ValueError),
    ("batch_norm(x, rm, rv, activation=True)", "an activation is named", ValueError),
    ("batch_norm(x, rm, rv, g, b, True, 0.1, 1e-5, x)", "the residual is given by name"),
]

INTERPOLATE: list[Row] = [
    ("interpolate(x)", "neither size nor scale"),
    ("interpolate(x, 4, 2.0)", "both size and scale"),
    ("interpolate(x, (2.0, 3.0))", "sizes are whole numbers"),
    ("interpolate(x, 2.5)", "the same for one size"),
    ("interpolate(x, (2, 3, 4))", "three sizes for two axes"),
    ("interpolate(x, (2,))", "one size in a tuple for two axes"),
    ("interpolate(x, 0)", "an empty output"),
    ("interpolate(x, -1)", "a negative size"),
    ("interpolate(x, (4, 0))", "empty along W only"),
    ("interpolate(x, '4')", "a string is no size", TypeError),
    ("interpolate(x, scale_factor=nan)", "not a number"),
    ("interpolate(x, scale_factor=inf)", "infinite"),
    ("interpolate(x, scale_factor=0)", "an empty output"),
    ("interpolate(x, scale_factor=1e-9)", "an output too small to be one pixel"),
    ("interpolate(x, scale_factor=-2.0)", "a negative scale"),
    ("interpolate(x, scale_factor=1e300)", "an output too large for any integer", Exception),
    ("interpolate(x, scale_factor=(2.0, 2.0, 2.0))", "three scales for two axes"),
    ("interpolate(x, scale_factor='2')", "a string is no scale", TypeError),
    ("interpolate(x, scale_factor=(nan, 2.0), mode='bilinear')", "not a number along H only"),
    (
        "interpolate(x, scale_factor=nan, recompute_scale_factor=True)",
        "RuntimeError as without",
        RuntimeError,
    ),
    ("interpolate(x, 4, recompute_scale_factor=True)", "there is no scale to recompute"),
    ("interpolate(x, 4, align_corners=True)", "nearest has no corners"),
    ("interpolate(x, 4, mode='nearest-exact', align_corners=False)", "nearest-exact has none either"),
    ("interpolate(x, 4, mode='area', align_corners=True)", "area has none either"),
    ("interpolate(x, 4, antialias=True)", "nothing to smooth in nearest"),
    ("interpolate(x, 4, mode='area', antialias=True)", "area is smooth already"),
    ("interpolate(x, 4, mode='cubic')", "no such mode"),
    ("interpolate(x, 4, mode='linear')", "linear is for 3-d inputs"),
    ("interpolate(x, 4, mode='trilinear')", "trilinear is for 5-d inputs"),
    ("interpolate(x, 4, mode=None)", "no mode"),
    ("interpolate(x, 4, mode=1)", "a mode is a string"),
    ("interpolate(e(6, 6), 4)", "rank 2"),
    ("interpolate(e(6), 4)", "rank 1"),
    ("interpolate(e(()), 4)", "rank 0"),
    ("interpolate(e(1, 1, 1, 1, 6, 6), 4)", "rank 6"),
    ("interpolate(e(4, 6, 6), 4, mode='bilinear')", "bilinear takes no unbatched input"),
    ("interpolate(e(4, 6, 6), (4, 4), mode='bicubic')", "bicubic neither"),
    ("interpolate(e(2, 0, 6, 6), 4)", "no channels"),
    ("interpolate(e(2, 4, 0, 6), 4)", "no rows to read"),
    ("interpolate(e(2, 4, 6, 0), 4, mode='bilinear')", "no columns to read"),
    ("interpolate(x.long(), 4)", "an integer dtype"),
    ("interpolate(x.long(), 4, mode='bilinear')", "the same for bilinear"),
    ("interpolate(x.byte(), 4, mode='area')", "uint8 has no area mode in torch"),
    ("interpolate(x.cfloat(), 4)", "complex numbers"),
    ("interpolate(x.to(torch.float8_e4m3fn), 4)", "float8 only stores"),
    ("interpolate(x.to_sparse(), 4)", "sparse", RuntimeError),
    ("interpolate(None, 4)", "no input: torch stumbles with AttributeError", TypeError),
    ("interpolate(array, 4)", "a numpy array: the same", TypeError),
]

TABLES = {
    "pools": POOLS,
    "adaptive": ADAPTIVE,
    "unpool": UNPOOL,
    "conv": CONV,
    "conv_transpose": CONV_TRANSPOSE,
    "batch_norm": BATCH_NORM,
    "interpolate": INTERPOLATE,
    "indices": INDICES,
    "huge": HUGE,
}


def last(indices: Tensor, value: int) -> Tensor:
    """The indices with another last one."""
    indices = indices.clone()
    indices.view(-1)[-1] = value
    return indices


def names() -> dict[str, Any]:
    """What a row may use, made afresh for every call."""
    g = torch.Generator().manual_seed(0)
    return dict(
        torch=torch,
        nan=math.nan,
        inf=math.inf,
        e=torch.ones,
        last=last,
        nhwc=lambda t: t.contiguous(memory_format=torch.channels_last),
        x=torch.randn(2, 4, 6, 6, generator=g),
        array=torch.randn(2, 4, 6, 6, generator=g).numpy(),
        w=torch.randn(8, 4, 3, 3, generator=g),  # of a convolution
        v=torch.randn(4, 8, 3, 3, generator=g),  # of a transposed convolution
        y=torch.randn(2, 4, 3, 3, generator=g),  # pooled, with its indices
        i=torch.zeros(2, 4, 3, 3, dtype=torch.int64),
        rm=torch.randn(4, generator=g),
        rv=torch.rand(4, generator=g),
        g=torch.randn(4, generator=g),
        b=torch.randn(4, generator=g),
    )


def call(module: ModuleType, source: str, known: dict[str, Any]) -> Exception | None:
    """What the call raises."""
    op = source.partition("(")[0]
    code = compile(source, "row", "eval")
    try:
        eval(code, {**known, op: getattr(module, op)})
    except Exception as error:
        return error
    return None


class Allocations(TorchDispatchMode):
    """Notes the tensors that are made within it."""

    MAKES = ("empty", "zeros", "full", "clone", "copy", "new_", "ones")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith(self.MAKES):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def existing(*sources: str) -> list[str]:
    """The calls whose op fastops has."""
    return [s for s in sources if hasattr(G, s.partition("(")[0])]


def rows() -> list[Any]:
    result = []
    for family, table in TABLES.items():
        for source, reason, *better in table:
            if hasattr(G, source.partition("(")[0]):
                result.append(pytest.param(family, source, reason, better[0] if better else None, id=source))
    return result


@pytest.mark.parametrize(("family", "source", "reason", "better"), rows())
def test_wrong_call(family: str, source: str, reason: str, better: type[Exception] | None) -> None:
    wanted: type[BaseException] | None = better
    if wanted is None:
        theirs = call(F, source, names())
        assert theirs is not None, f"torch accepts this; give what fastops should raise ({reason})"
        wanted = type(theirs)
    known, untouched = names(), names()
    ours = call(G, source, known)
    assert ours is not None, f"accepted, but: {reason}"
    assert isinstance(ours, wanted), f"{type(ours).__name__}({ours}) instead of {wanted.__name__}: {reason}"
    op = source.partition("(")[0]
    named = op in str(ours) or ("mode='area'" in source and "adaptive_avg_pool2d" in str(ours))
    assert named or family == "huge", f"the message does not name the op: {ours}"
    for name, value in known.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, untouched[name]), f"{name} was changed by a call that failed"


@pytest.mark.parametrize(
    "source", [p.values[1] for p in rows() if p.values[0] not in ("indices", "huge")], ids=lambda s: s
)
def test_fails_before_allocating(source: str) -> None:
    """The tensors of the row itself aside: its arguments are made outside of the watch."""
    op, _, arguments = source.partition("(")
    known = names()
    try:
        args, kwargs = eval("grab(" + arguments, {**known, "grab": lambda *a, **k: (a, k)})
    except TypeError:
        pytest.skip("no call at all")
    with Allocations() as watch, pytest.raises(Exception):  # noqa: B017
        getattr(G, op)(*args, **kwargs)
    assert not watch.seen, f"{watch.seen} before the error"


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.complex64, torch.float8_e4m3fn, torch.bool], ids=lambda d: str(d)[6:]
)
@pytest.mark.parametrize(
    "source",
    existing(
        "avg_pool2d(x, 2)",
        "adaptive_avg_pool2d(x, 2)",
        "max_pool2d(x, 2)",
        "adaptive_max_pool2d(x, 2)",
        "max_unpool2d(y, i, 2)",
        "conv2d(x, w)",
        "conv_transpose2d(x, v)",
        "batch_norm(x, rm, rv, g, b, True)",
        "interpolate(x, 4)",
        "interpolate(x, 4, mode='bilinear')",
    ),
)
def test_unsupported_dtype_says_what_is_supported(source: str, dtype: torch.dtype) -> None:
    known = {k: v.to(dtype) if isinstance(v, Tensor) and k != "i" else v for k, v in names().items()}
    error = call(G, source, known)
    assert isinstance(error, NotImplementedError), repr(error)
    for word in (str(dtype).removeprefix("torch."), "float32", "bfloat16"):
        assert word in str(error), f"{word} is missing: {error}"


@pytest.mark.parametrize("wrong", [2.0, (2.0, 2), [2, 2.0]], ids=str)
@pytest.mark.parametrize(
    "source",
    existing(
        "avg_pool2d(x, k)",
        "avg_pool2d(x, 2, stride=k)",
        "adaptive_avg_pool2d(x, k)",
        "max_pool2d(x, k)",
        "max_pool2d(x, 2, dilation=k)",
        "adaptive_max_pool2d(x, k)",
        "max_unpool2d(y, i, k)",
        "conv2d(x, w, stride=k)",
        "conv2d(x, w, padding=k)",
        "conv_transpose2d(x, v, stride=k)",
        "interpolate(x, k)",
    ),
)
def test_a_float_is_not_found_in_a_cache_of_ints(source: str, wrong: Any) -> None:
    """2.0 == 2 and their hashes are equal, so a call with 2 just before must not make 2.0 acceptable."""
    right = 2 if isinstance(wrong, float) else (2, 2)
    assert call(G, source, {**names(), "k": right}) is None
    assert isinstance(call(G, source, {**names(), "k": wrong}), TypeError)


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="unknown backend 'tpu'"), fastops.backend("tpu"):
        pass
