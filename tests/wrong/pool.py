"""Wrong calls of pooling and unpooling."""

from __future__ import annotations

from tests.wrong.row import Row, because

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
            (f"{op}(x, 2**64)", "no 64-bit integer", RuntimeError),
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
            (f"{op}(x.to_sparse(), 2)", "sparse, COO", NotImplementedError),
            (f"{op}(e(6, 6).to_sparse_csr(), 2)", "sparse, CSR", RuntimeError),
            (f"{op}(nested(x[0], x[1]), 2)", "nested tensors", NotImplementedError),
            (
                f"{op}(x.to_mkldnn(), 2)",
                "oneDNN's own layout, of which torch knows some",
                NotImplementedError,
            ),
            # kinds of numbers
            *because(
                "a bool is no size", f"{op}(x, True)", f"{op}(x, (True, 2))", f"{op}(x, 2, padding=False)"
            ),
            *because("tensors of several elements are no size", f"{op}(x, e(2))", f"{op}(x, e(()))"),
            *because("a set has no order", f"{op}(x, {{2}})", f"{op}(x, {{2: 2}})"),
            *because("not a number", *(f"{op}(x, 2, {k}=nan)" for k in ("stride", "padding"))),
            *because("infinite", f"{op}(x, inf)", f"{op}(x, 2, inf)", f"{op}(x, 2, padding=-inf)"),
            *because("text", f"{op}(x, 2, '1')", f"{op}(x, 2, padding='1')", f"{op}(x, 2, padding='same')"),
            *because("no sizes", f"{op}(x, 2, padding=())", f"{op}(x, 2, padding=None)"),
            *because(
                "a flag is a bool", *(f"{op}(x, 2, ceil_mode={v})" for v in ("1", "None", "'no'", "e(1)"))
            ),
            *because(
                "larger than an int",
                *(f"{op}(x, 2, {n})" for n in ("2**31", "2**32", "2**63 - 1", "-(2**63)", "(1, 2**31)")),
            ),
            *because(
                "no 64-bit integer",
                *(
                    f"{op}(x, {a})"
                    for a in ("2**63", "2, 2**63", "2, padding=2**63", "-(2**64)", "2, 10**400")
                ),
                better=RuntimeError,
            ),
            *because(
                "a window larger than the input and its padding",
                *(f"{op}(x, {k}, padding={p})" for k, p in ((11, 2), ((2, 12), (1, 2)), (100, 46))),
            ),
            # the call itself
            (f"{op}(x, 2, None, 0, 1, 1, 1, 1, 1)", "too many arguments"),
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
    *because(
        "a flag is a bool",
        *(f"avg_pool2d(x, 2, count_include_pad={v})" for v in ("1", "None", "'no'")),
    ),
    *because(
        "the divisor is a whole number",
        *(f"avg_pool2d(x, 2, divisor_override={v})" for v in ("True", "'1'", "nan", "(1,)", "e(2)")),
    ),
    ("avg_pool2d(x, 2, divisor_override=2**63)", "no 64-bit integer", RuntimeError),
    ("avg_pool2d(x, 2, dilation=2)", "averages are not dilated"),
    ("max_pool2d(x, 2, count_include_pad=True)", "only averages count"),
    *because(
        "dilations are whole numbers", *(f"max_pool2d(x, 2, dilation={v})" for v in ("nan", "'1'", "None"))
    ),
    ("max_pool2d(x, 2, dilation=())", "no dilations"),
    ("max_pool2d(x, 2, dilation=2**63 - 1)", "the span overflows"),
    ("max_pool2d(x, 1, dilation=2**31)", "larger than an int"),
    ("max_pool2d(x, 2, dilation=2**63)", "no 64-bit integer", RuntimeError),
    *because(
        "half of the kernel, not of what it spans, bounds the padding",
        "max_pool2d(x, 3, 1, 2, 2)",
        "max_pool2d(x, 2, 1, (1, 2), (1, 4))",
    ),
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
            (f"{op}(x.to_sparse(), 2)", "sparse", NotImplementedError),
            (f"{op}(array, 2)", "numpy arrays are not converted", TypeError),
            (f"{op}(None, 2)", "no input", TypeError),
            (f"{op}(nested(x[0], x[1]), 2)", "nested tensors", NotImplementedError),
            *because(
                "sizes are whole numbers", *(f"{op}(x, {v})" for v in ("True", "nan", "inf", "(2, '2')"))
            ),
            *because(
                "neither a number nor a sequence", f"{op}(x, e(2))", f"{op}(x, {{1, 2}})", better=TypeError
            ),
            *because("negative", f"{op}(x, (None, -1))", f"{op}(x, [-1, 2])", f"{op}(x, -(2**63))"),
            *because("three sizes for two axes", f"{op}(x, [2, 2, 2])", f"{op}(x, (None, None, None))"),
            *because("no 64-bit integer", f"{op}(x, 2**63)", f"{op}(x, (2**64, 0))", better=RuntimeError),
            *because("nothing to divide", f"{op}(e(0, 4, 0, 6), 2)", f"{op}(e(2, 4, 6, 0), 2)"),
            (f"{op}(e(()), 2)", "rank 0"),
            *because("no such argument", f"{op}(x, size=2)", f"{op}(x, 2, kernel_size=2)"),
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
    ("max_unpool2d(y, i, 2**62)", "the size overflows", RuntimeError),
    ("max_unpool2d(e(3, 3), e(3, 3).long(), 2)", "rank 2", RuntimeError),
    ("max_unpool2d(e(1, 1, 1, 3, 3), e(1, 1, 1, 3, 3).long(), 2)", "rank 5", RuntimeError),
    ("max_unpool2d(e(2, 0, 3, 3), e(2, 0, 3, 3).long(), 2)", "no channels"),
    ("max_unpool2d(e(2, 4, 0, 3), e(2, 4, 0, 3).long(), 2)", "no rows"),
    (
        "max_unpool2d(y.long(), i, 2)",
        "torch takes integers; fastops says what it supports",
        NotImplementedError,
    ),
    *because(
        "indices are int64",
        *(f"max_unpool2d(y, i.{k}(), 2)" for k in ("short", "byte", "bool", "double", "cfloat")),
    ),
    *because(
        "one or two numbers for two axes",
        "max_unpool2d(y, i, ())",
        "max_unpool2d(y, i, (2, 2, 2))",
        "max_unpool2d(y, i, 2, ())",
        "max_unpool2d(y, i, 2, (1, 2, 3))",
        "max_unpool2d(y, i, 2, padding=(1, 1, 1))",
        better=RuntimeError,
    ),
    *because(
        "sizes are whole numbers",
        *(f"max_unpool2d(y, i, {v})" for v in ("None", "'2'", "True", "2, 1.5", "2, padding=0.5", "2, '1'")),
        "max_unpool2d(y, i, 2, output_size=(nan, 6))",
        better=TypeError,
    ),
    *because(
        "an output_size has two sizes or as many as axes",
        *(f"max_unpool2d(y, i, 2, output_size={v})" for v in ("6", "()", "'66'", "(6, 6, 6)", "(None, 6)")),
    ),
    *because(
        "not a size that pooling could have come from",
        *(f"max_unpool2d(y, i, 2, output_size={v})" for v in ("(2, 4, 6, 60)", "(-6, 6)", "(2**63 - 1, 6)")),
        "max_unpool2d(y, i, 2, padding=2**62)",
    ),
    *because(
        "the size overflows",
        "max_unpool2d(y, i, 2, 2**62)",
        "max_unpool2d(y, i, 2, 2**40)",
        "max_unpool2d(y, i, 2, padding=-(2**62))",
        "max_unpool2d(y, i, 2**64)",
        better=RuntimeError,
    ),
    *because(
        "no plane that the indices could point into: torch drops the values",
        "max_unpool2d(y, i, 0)",
        "max_unpool2d(y, i, (2, 0))",
        "max_unpool2d(y, i, 2, -1)",
        better=RuntimeError,
    ),
    *because("sparse", "max_unpool2d(y, i.to_sparse(), 2)", "max_unpool2d(y.to_sparse(), i, 2)"),
    *because(
        "nested",
        "max_unpool2d(y, nested(i[0], i[1]), 2)",
        "max_unpool2d(nested(y[0], y[1]), i, 2)",
        better=NotImplementedError,
    ),
    *because("not tensors", "max_unpool2d(y, i.tolist(), 2)", "max_unpool2d(y.numpy(), i, 2)"),
    *because(
        "indices of another shape",
        "max_unpool2d(y, i.transpose(0, 1), 2)",
        "max_unpool2d(y, i.flatten(), 2)",
        "max_unpool2d(y, i[0, 0, 0, 0], 2)",
    ),
    *because(
        "too few axes: torch stumbles with IndexError",
        "max_unpool2d(e(()), i[0, 0, 0, 0], 2)",
        "max_unpool2d(e(3), i[0, 0, 0], 2)",
        better=RuntimeError,
    ),
    ("max_unpool2d(e(2, 4, 3, 0), i[..., :0], 2)", "no columns"),
    ("max_unpool2d(y.to('meta'), i, 2)", "an input without data"),
    ("max_unpool2d(y, i, 2, 2, 0, None, 1)", "too many arguments"),
    ("max_unpool2d(y, i, kernel=2)", "no such argument"),
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
    *because(
        "right in its lowest 32 bits",
        "max_unpool2d(y, i + 2**32, 2)",
        "max_unpool2d(y, last(i, 2**32), 2)",
        "max_unpool2d(y, last(i, -(2**32)), 2)",
        "max_unpool2d(y, last(i, 2**63 - 2**32), 2)",
    ),
    *because("the largest", "max_unpool2d(y, last(i, 2**63 - 1), 2)", "max_unpool2d(y, i + (2**63 - 1), 2)"),
    *because(
        "indices that are no dense tensor",
        "max_unpool2d(y, (i + 36)[:1].expand(2, 4, 3, 3), 2)",
        "max_unpool2d(y, (i + 36).transpose(2, 3), 2)",
        "max_unpool2d(y, torch.full((1,), -7).as_strided((2, 4, 3, 3), (0, 0, 0, 0)), 2)",
        "max_unpool2d(y, last(torch.zeros(2, 4, 3, 6).long(), 36)[..., 1::2], 2)",
    ),
    *because(
        "other dtypes", *(f"max_unpool2d(y.{t}(), last(i, 36), 2)" for t in ("half", "bfloat16", "double"))
    ),
]
