"""Wrong constructions of layers, and wrong calls of layers: parameters and buffers stay as they were."""

from __future__ import annotations

from tests.wrong.row import Row, because

CONVS = ("Conv2d", "ConvTranspose2d")
CONSTRUCTORS: list[Row] = [
    *because(
        "required arguments", *(f"{c}(4, 8)" for c in CONVS), "MaxPool2d()", "AvgPool2d()", "BatchNorm2d()"
    ),
    *because(
        "required arguments", "AdaptiveAvgPool2d()", "AdaptiveMaxPool2d()", "MaxUnpool2d()", "SyncBatchNorm()"
    ),
    *(
        row
        for c in CONVS
        for row in (
            *because("negative", f"{c}(4, 8, -1)", f"{c}(-4, 8, 3)", f"{c}(4, -8, 3)"),
            *because(
                "whole numbers",
                *(f"{c}({a})" for a in ("4, 8, 1.5", "4, 8, None", "4, 8, '3'", "4.0, 8, 3", "4, 8.0, 3")),
                *(f"{c}({a})" for a in ("None, 8, 3", "'4', 8, 3", "4, 8, 3, groups=2.0")),
            ),
            *because("groups that do not divide", *(f"{c}(4, 8, 3, groups={n})" for n in (0, -1, 3))),
            (f"{c}(4, 6, 3, groups=4)", "output channels that are not 4 groups"),
            *because(
                "no such way to pad", *(f"{c}(4, 8, 3, padding_mode={v})" for v in ("'mirror'", "None", "1"))
            ),
            (f"{c}(4, 8, 3, device='nowhere')", "no such device"),
            (f"{c}(4, 8, 3, dtype=torch.long)", "parameters are floating point"),
            (f"{c}(4, 8, 3, dtype='float')", "a dtype is no text"),
            (f"{c}(4, 8, 3, size=3)", "no such argument"),
            *because(
                "more than any memory",
                *(f"{c}({a})" for a in ("4, 8, 2**31", "4, 8, 2**40", "2**63 - 1, 8, 3")),
            ),
        )
    ),
    *because(
        "no such padding", "Conv2d(4, 8, 3, padding='full')", "Conv2d(4, 8, 3, padding='same', stride=2)"
    ),
    ("ConvTranspose2d(4, 8, 3, padding_mode='circular')", "transposed, zeros only"),
    *because(
        "no such activation",
        "Conv2d(4, 8, 3, activation='gelu')",
        "BatchNorm2d(4, activation=1)",
        better=ValueError,
    ),
    *because(
        "channels are a whole number",
        *(f"BatchNorm2d({v})" for v in ("-4", "4.0", "'4'", "None", "2**63 - 1")),
    ),
    *because("no such kind", "BatchNorm2d(4, dtype=torch.long)", "BatchNorm2d(4, device='nowhere')"),
    *because(
        "no such argument", "BatchNorm2d(4, size=4)", "MaxPool2d(2, size=2)", "AvgPool2d(2, dilation=2)"
    ),
    *because(
        "no such argument", "UpsamplingNearest2d(4, mode='bilinear')", "AdaptiveAvgPool2d(2, ceil_mode=True)"
    ),
    ("Upsample(scale_factor='x')", "no number"),
]

CALLS: list[Row] = [
    *(
        row
        for c in CONVS
        for row in (
            *because(
                "an input that does not fit",
                *(f"{c}(4, 8, 3)(e({s}))" for s in ("2, 3, 6, 6", "6, 6", "1, 2, 4, 6, 6")),
            ),
            *because(
                "another dtype", *(f"{c}(4, 8, 3)(x.{d}())" for d in ("double", "half", "long", "cfloat"))
            ),
            *because(
                "without data",
                f"{c}(4, 8, 3)(x.to('meta'))",
                f"{c}(4, 8, 3, device='meta')(x)",
                better=RuntimeError,
            ),
            *because("not tensors", f"{c}(4, 8, 3)(array)", f"{c}(4, 8, 3)(None)", f"{c}(4, 8, 3)()"),
            *because("no way to move", *(f"{c}(4, 8, 3, stride={n})(x)" for n in ("0", "-1", "1.5"))),
            *because(
                "no such option",
                *(f"{c}(4, 8, 3, {a})(x)" for a in ("dilation=0", "padding=-1", "padding=1.5")),
            ),
            *because("no such filter", *(f"{c}(4, 8, {k})(x)" for k in ("0", "(3, 0)", "(3, 3, 3)"))),
            (f"{c}(4, 8, 3)(x.to_sparse())", "a sparse input", RuntimeError),
        )
    ),
    *because("no room", "Conv2d(4, 8, 7)(x)", "Conv2d(4, 8, 3, dilation=6)(x)", "Conv2d(4, 8, 3)(x, x)"),
    *because(
        "more padding than there is image",
        "Conv2d(4, 8, 3, padding=7, padding_mode='circular')(x)",
        "Conv2d(4, 8, 3, padding=6, padding_mode='reflect')(x)",
    ),
    ("ConvTranspose2d(4, 8, 3, padding='same')(x)", "transposed, only numbers"),
    ("ConvTranspose2d(4, 8, 3, output_padding=1)(x)", "not smaller than stride or dilation"),
    ("ConvTranspose2d(4, 8, 3, padding=9)(x)", "nothing is left", RuntimeError),
    *because(
        "no size that the layer can give",
        *(
            f"ConvTranspose2d(4, 8, 3, stride=2)(x, output_size={v})"
            for v in ("(99, 99)", "(13,)", "(1, 2, 3, 13, 13)", "13", "(13.0, 13)", "(-13, 13)", "()")
        ),
    ),
    *(
        row
        for c in ("MaxPool2d", "AvgPool2d")
        for row in (
            *because(
                "no such window",
                *(f"{c}({v})(x)" for v in ("0", "-2", "1.5", "None", "'2'", "7", "(2, 2, 2)", "()")),
            ),
            *because(
                "no such option",
                *(f"{c}(2, {a})(x)" for a in ("stride=0", "padding=2", "padding=-1", "stride=1.5")),
            ),
            *because("a flag is a bool", *(f"{c}(2, ceil_mode={v})(x)" for v in ("'yes'", "1", "None"))),
            *because("not tensors", f"{c}(2)(array)", f"{c}(2)(None)", f"{c}(2)(x, x)", f"{c}(2)()"),
            (f"{c}(2)(x.bool())", "bool has no order and no mean"),
            (f"{c}(2)(e(6, 6))", "rank 2", RuntimeError),
        )
    ),
    *because(
        "no such dilation", *(f"MaxPool2d(2, dilation={v})(x)" for v in ("0", "-1", "6", "1.5", "2**62"))
    ),
    *because("no such divisor", *(f"AvgPool2d(2, divisor_override={v})(x)" for v in ("0", "1.5", "'1'"))),
    ("AvgPool2d(2, count_include_pad='yes')(x)", "a flag is a bool"),
    *(
        row
        for c in ("AdaptiveAvgPool2d", "AdaptiveMaxPool2d")
        for row in (
            *because(
                "no such size",
                *(f"{c}({v})(x)" for v in ("-1", "2.0", "(1, 2, 3)", "(2, -1)", "(2, '2')", "()")),
            ),
            *because("no such input", f"{c}(2)(e(6))", f"{c}(2)(x.long())", f"{c}(2)(e(1, 1, 1, 6, 6))"),
            *because("not tensors: torch stumbles", f"{c}(2)(None)", f"{c}(2)(array)", better=TypeError),
        )
    ),
    *because(
        "indices that do not fit",
        *(
            f"MaxUnpool2d(2)(y, {i})"
            for i in ("i.int()", "i + 36", "i - 1", "i[:1]", "last(i, 36)", "i + 2**32")
        ),
        *("MaxUnpool2d(2)(y)", "MaxUnpool2d(2)(y, None)", "MaxUnpool2d(2)(y, i.tolist())"),
    ),
    *because("no such size", *(f"MaxUnpool2d(2)(y, i, {v})" for v in ("(9, 9)", "6", "(6,)", "(-6, 6)"))),
    *because("no such window", *(f"MaxUnpool2d({v})(y, i)" for v in ("2.0", "None", "'2'"))),
    ("MaxUnpool2d((2, 2, 2))(y, i)", "three sizes for two axes", RuntimeError),
    *(
        row
        for c in ("BatchNorm2d", "SyncBatchNorm")
        for row in (
            *because("other channels", f"{c}(3)(x)", f"{c}(5)(x)", f"{c}(4).eval()(e(2, 3, 6, 6))"),
            *because(
                "one value per channel",
                f"{c}(4)(e(1, 4, 1, 1))",
                f"{c}(4, track_running_stats=False)(e(1, 4, 1, 1))",
            ),
            *because(
                "another dtype",
                f"{c}(4)(x.double())",
                f"{c}(4).double()(x)",
                f"{c}(4).half()(x)",
                f"{c}(4)(x.long())",
            ),
            *because("the same, in evaluation", f"{c}(4).eval()(x.double())", f"{c}(4).eval().bfloat16()(x)"),
            *because("no such eps", *(f"{c}(4, eps={v})(x)" for v in ("0.0", "-1.0", "'1'", "None"))),
            (f"{c}(4, momentum='1')(x)", "momentum is a number"),
            (f"{c}(4, eps=-1.0).eval()(x)", "negative, in evaluation"),
            *because("not tensors", f"{c}(4)(array)", f"{c}(4)(None)", f"{c}(4)()"),
            *because(
                "without data", f"{c}(4)(x.to('meta'))", f"{c}(4, device='meta')(x)", better=RuntimeError
            ),
        )
    ),
    *because("other ranks", *(f"BatchNorm2d(4)(e({s}))" for s in ("4, 6, 6", "2, 4", "2, 4, 3, 3, 3"))),
    *because("of SyncBatchNorm", "SyncBatchNorm(4)(e(4))", "SyncBatchNorm(4)(e(2, 0, 3, 3))"),
    ("BatchNorm2d(4)(x, y)", "a residual of another shape", RuntimeError),
    ("BatchNorm2d(4)(x, activation='gelu')", "no such activation", ValueError),
    ("BatchNorm2d(4).train('yes')", "a mode is a bool"),
    *because(
        "no such size or factor",
        *(
            f"Upsample({a})(x)"
            for a in ("", "4, 2.0", "0", "2.5", "(2, 3, 4)", "scale_factor=nan", "scale_factor=-1")
        ),
        *(f"Upsample({a})(x)" for a in ("4, recompute_scale_factor=True", "4, align_corners=True", "2**62")),
        *(f"Upsampling{m}2d({a})(x)" for m in ("Nearest", "Bilinear") for a in ("", "4, 2", "0", "-1")),
    ),
    *because("no such mode", *(f"Upsample(4, mode={m})(x)" for m in ("'cubic'", "'linear'", "None"))),
    *because(
        "no such input", "Upsample(4)(e(6, 6))", "Upsample(4)(x.long())", "UpsamplingNearest2d(4)(e(6, 6))"
    ),
    *because("no such input", "UpsamplingBilinear2d(4)(e(4, 6, 6))", "UpsamplingBilinear2d(4)(x.long())"),
    *because(
        "not tensors: torch stumbles", "Upsample(4)(None)", "UpsamplingBilinear2d(4)(array)", better=TypeError
    ),
]
