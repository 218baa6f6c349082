"""Wrong calls of interpolate."""

from __future__ import annotations

from tests.wrong.row import Row, because

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
    ("interpolate(x, scale_factor=1e300)", "an output too large for any integer", RuntimeError),
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
    ("interpolate(x.to_sparse(), 4)", "sparse", NotImplementedError),
    ("interpolate(None, 4)", "no input: torch stumbles with AttributeError", TypeError),
    ("interpolate(array, 4)", "a numpy array: the same", TypeError),
    ("interpolate([[1.0]], 4)", "a list: the same", TypeError),
    ("interpolate(nested(x[0], x[1]), 4)", "nested tensors", NotImplementedError),
    *because(
        "sizes are whole numbers",
        *(f"interpolate(x, {v})" for v in ("nan", "inf", "True", "(4, None)", "(None, None)", "(4, '4')")),
        *(
            f"interpolate(x, {v})"
            for v in ("e(2)", "torch.tensor([4, 4])", "{4, 5}", "range(4, 6)", "{4: 5}")
        ),
    ),
    *because("as many as axes", *(f"interpolate(x, {v})" for v in ("()", "[]", "[4]", "[4, 4, 4]"))),
    *because(
        "factors are numbers",
        *(f"interpolate(x, scale_factor={v})" for v in ("1j", "(2.0, None)", "(2.0, '2')", "e(2)", "array")),
        *("interpolate(x, scale_factor=torch.tensor(2.0))", "interpolate(x, scale_factor={2.0})"),
    ),
    *because("as many as axes", "interpolate(x, scale_factor=())", "interpolate(x, scale_factor=(2.0,))"),
    *because(
        "too large for any integer",
        *(f"interpolate(x, {v})" for v in ("2**63", "-(2**63)", "(2**63, 1)")),
        *(
            f"interpolate(x, scale_factor={v})"
            for v in ("10**400", "2**63", "1e308, recompute_scale_factor=True")
        ),
        better=RuntimeError,
    ),
    *(
        row
        for mode in ("nearest", "nearest-exact", "bilinear", "bicubic")
        for row in because(
            f"no such size or factor, {mode}",
            *(f"interpolate(x, {v}, mode='{mode}')" for v in ("0", "-1", "(4, 0)", "(-1, 4)")),
            *(
                f"interpolate(x, scale_factor={v}, mode='{mode}')"
                for v in ("nan", "inf", "-inf", "0", "-1", "1e-9")
            ),
            f"interpolate(e(2, 4, 0, 6), 4, mode='{mode}')",
            f"interpolate(e(0, 4, 6, 0), 4, mode='{mode}')",
            f"interpolate(e(2, 0, 6, 6), 4, mode='{mode}')",
        )
    ),
    ("interpolate(x, (4, True))", "torch looks at the first of the sizes only", TypeError),
    ("interpolate(x, -3, mode='area')", "negative"),
    ("interpolate(e(2, 4, 0, 6), 4, mode='area')", "no rows to read"),
    *because(
        "not a number, and infinite: torch stumbles with ValueError and OverflowError",
        "interpolate(x, scale_factor=nan, mode='area')",
        "interpolate(x, scale_factor=inf, recompute_scale_factor=True)",
        better=RuntimeError,
    ),
    *because("negative", "interpolate(x, scale_factor=-1, mode='bilinear', recompute_scale_factor=True)"),
    *because(
        "a flag", *(f"interpolate(x, 4, mode='bilinear', align_corners={v})" for v in ("1", "'yes'", "0.0"))
    ),
    *because("antialias of a nearest", "interpolate(x, 4, mode='nearest-exact', antialias=True)"),
    *because(
        "no such mode",
        *(f"interpolate(x, 4, mode={v})" for v in ("''", "'Bilinear'", "['nearest']", "b'nearest'")),
    ),
    *because("no scale to recompute", "interpolate(x, 4, recompute_scale_factor='yes')"),
    *because(
        "other dtypes",
        "interpolate(x.bool(), 4, mode='bicubic')",
        "interpolate(x.short(), 4, mode='bilinear', antialias=True)",
    ),
    *because(
        "without data too", "interpolate(x.to('meta'), 0)", "interpolate(x.to('meta'), -4, mode='bilinear')"
    ),
    *because(
        "no such argument",
        "interpolate(x, 4, factor=2)",
        "interpolate(x, 4, None, 'nearest', None, None, False, 1)",
    ),
]
