"""The benchmark: its rows, what it records of a measurement, and its document."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastops
from bench import compare, contenders, goals, lagging, layers, machine, measure, memory, report
from bench.rows import CONVS, ROWS, Conv, Row, rows


def test_rows_have_names_of_their_own() -> None:
    names = [str(row) + str(row.dtypes[0]) for row in ROWS]
    assert len({*names}) == len(ROWS) == len(names)
    assert all(row.bytes(p, 1) > 0 for row in ROWS for p in row.passes)


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_operations_of_a_convolution(conv: Conv) -> None:
    """Counted once more, from what torch says of the result."""
    row = conv.row()
    tensors = [torch.empty(s, device="meta") for s in (row.shape, *row.operands.values())]
    y = row.call(torch.nn.functional, tensors)
    assert row.flops["forward"] == 2 * y.numel() * tensors[1][0].numel()
    live = min(1, conv.kernel / conv.stride) ** 2
    elements = tensors[0].numel() * live + tensors[1].numel() + y.numel()
    assert row.bytes("forward", 2) == 2 * elements


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (Conv("", 1, 8, 8, 3, 8).row(), "weight_grad"),
        (Conv("", 1, 3, 8, 3, 9, stride=2, bias=True).row(), "forward"),
    ],
    ids=["gradient", "with bias"],
)
def test_a_measurement(row: object, name: str) -> None:
    by = contenders.chosen("cpu", "")
    found = list(
        layers.measured(
            row, name, torch.bfloat16, "NHWC", "cpu", by=by, rounds=2, round_seconds=1e-4, more=True
        )
    )
    assert [r["by"] for r in found] == ["fastops", "torch"]
    for record in found:
        assert "error" not in record and 0 < record["low"] <= record["seconds"] <= record["high"]
        assert record["cold"] > 0 and record["peak"] >= record["workspace"] and record["error_fp64"] < 0.02
    assert found[0]["difference"] < 0.02


def test_training_is_all_its_passes() -> None:
    """Of an image that needs no gradient, without it; the least cost is the sum."""
    for c, gradients in ((8, ["x", "w", "b"]), (3, ["w", "b"])):
        row = Conv("", 1, c, 8, 3, 8, bias=True).row()
        operands = layers.operands(row, torch.float32, torch.contiguous_format, "cpu")
        found = layers.work_of(row, "training", contenders.Contender("torch"), [operands])(0)
        shapes = {"x": row.shape} | row.operands
        assert [t.shape for t in found] == [shapes[name] for name in gradients]
        parts = [p for p in row.passes if p != "training"]
        assert row.bytes("training", 4) == sum(row.bytes(p, 4) for p in parts)
        assert row.operations("training") == len(parts) * row.operations("forward")


def test_contenders() -> None:
    """The two of each row; those that are named; those that a row has a function for."""
    assert [each.name for each in contenders.chosen("cpu", "")] == ["fastops", "torch"]
    assert [each.name for each in contenders.chosen("cpu", "all")] == ["fastops", "torch", "inductor"]
    assert {"fastops cuda", "fastops triton", "torch, heuristics"} <= {*contenders.every("cuda")}
    with pytest.raises(ValueError, match="no contender"):
        contenders.chosen("cpu", "MKL")
    one = contenders.Contender("one", types.SimpleNamespace(conv2d=None))
    assert [one.serves(row) for row in ROWS] == [row.op == "conv2d" for row in ROWS]


def test_what_is_set_around_a_call() -> None:
    """In each call of a work, and no longer."""
    row = Conv("", 1, 8, 8, 3, 8).row()
    operands = layers.operands(row, torch.float32, torch.contiguous_format, "cpu")
    within, seen = [False], []

    @contextmanager
    def around() -> Iterator[None]:
        within[0] = True
        yield
        within[0] = False

    def conv2d(*args: Tensor, **options: Any) -> Tensor:
        seen.append(within[0])
        return torch.nn.functional.conv2d(*args, **options)

    by = contenders.Contender("", types.SimpleNamespace(conv2d=conv2d), around)
    for name in ("training", "inference", "weight_grad"):
        layers.work_of(row, name, by, [operands])(0)
    assert seen == [True] * 4 and within == [False]  # training: to know the result's shape, and then


def test_other_contenders_have_columns() -> None:
    first = {"device": "", "torch": "", "commit": "", "ceilings": {"2": {"copy": 1.0, "fp32": 1.0}}}
    base = {"row": "", "op": "conv2d", "pass": "", "dtype": "fp32", "layout": "", "threads": 2}
    base |= {"bytes": 1.0, "flops": 0.5, "seconds": 2.0, "cold": 3.0}
    lines = [*report.table(first, [base | {"by": by} for by in ("fastops", "torch", "x")])]
    assert "x µs" in lines[2] and lines[4].endswith("| 2000000.0 |") and "x 3000.0" in lines[-1]


def test_lagging(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The slowest cases, at most two of an op's pass, are called once each under what stands for ncu here."""
    some = [
        (row, name) for row in rows("cpu", [1]) for name in row.passes if row.op in ("conv2d", "max_pool2d")
    ]
    records: list[dict[str, Any]] = [{"device": "a line of the machine's"}]
    for i, (row, name) in enumerate(some):
        case = {"row": str(row), "op": row.op, "pass": name, "dtype": "fp32", "layout": "NHWC", "bytes": 1e6}
        records += [case | {"by": "fastops", "seconds": 2.0 + i}, case | {"by": "torch", "seconds": 1.0}]
    run = tmp_path / "layers.jsonl"
    run.write_text("\n".join(map(json.dumps, records)))
    ncu = tmp_path / "ncu"
    ncu.write_text('#!/bin/sh\nwhile [ "$3" != bench.lagging ]; do shift; done\n"$@" && echo called once\n')
    ncu.chmod(0o755)
    assert lagging.main([str(run), "--most", "3", "--ncu", str(ncu)]) == 0
    out = capfd.readouterr().out
    headings = [line for line in out.splitlines() if line.startswith("====")]
    assert len(headings) == out.count("called once") == 3 and "exit" not in out
    assert f"torch ÷ fastops {1 / (1 + len(some)):.2f}; its operands have 1.0 MB" in headings[0]
    chosen = [(r["op"], r["pass"]) for _, r in lagging.lagging(records[1:], 99)]
    assert max(chosen.count(c) for c in chosen) == lagging.OF_AN_OP
    assert lagging.main([str(run), "--ncu", str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_rows_are_found_by_their_records(row: Row) -> None:
    for dtype in row.dtypes:
        record = {"row": str(row), "dtype": "tf32" if row.tf32 else layers.DTYPES[dtype]}
        assert lagging.row_of(record, "cuda") == (row, dtype)


def test_a_row_that_fails_is_a_row() -> None:
    row = Conv("", 1, 8, 8, 3, 8, groups=3).row()
    found = list(
        layers.measured(
            row,
            "forward",
            torch.bfloat16,
            "NCHW",
            "cpu",
            by=contenders.chosen("cpu", ""),
            rounds=1,
            round_seconds=1e-4,
        )
    )
    assert all("error" in r and "seconds" not in r for r in found)
    first = {"device": "", "torch": "", "commit": "", "ceilings": {"1": {"copy": 1.0, "bf16": 1.0}}}
    assert "Error" in "\n".join(report.table(first, found))


def test_differences() -> None:
    """The largest of the results', relative; a NaN is not none."""
    one = torch.ones(20, 3)
    assert layers._difference(one * 1.5, one) == pytest.approx(0.5)
    assert layers._difference([one, one * 1.25], [one, one]) == pytest.approx(0.25)
    assert layers._difference([one, one * math.nan], [one, one]) == math.inf


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row}{row.dtypes[0]}")
def test_fewer_images(row: Row) -> None:
    """The traffic and operations of one image and another are those of two."""
    few = {n: row.images(n) for n in (1, 2, 3)}
    for name in row.passes:
        traffic = [few[n].bytes(name, 2) for n in (1, 2, 3)]
        assert traffic[2] - traffic[1] == pytest.approx(traffic[1] - traffic[0])
        assert few[2].operations(name) == pytest.approx(2 * few[1].operations(name))
    assert row.images(row.shape[0]).bytes(row.passes[0], 2) == pytest.approx(row.bytes(row.passes[0], 2))
    assert few[2].shape == (2, *row.shape[1:])


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_convolution_of_fewer_images(conv: Conv) -> None:
    """Its weights are read once, however many images there are."""
    few = dataclasses.replace(conv, n=2).row()
    assert conv.row().images(2).traffic == pytest.approx(few.traffic)


def test_rows_of_the_cpu() -> None:
    """Each once, whatever its number of images on a GPU and its dtypes there."""
    found = rows("cpu", [1, 8])
    assert len({*map(str, found)}) == len(found) > 60 and not any(row.tf32 for row in found)
    assert {row.op for row in found} == {row.op for row in ROWS}
    assert rows("cuda", [1]) == ROWS


def test_errors_against_fp64() -> None:
    """Of fewer images where there would be too many operations; fp32 about 2⁻²⁴, bf16 about 2⁻⁹."""
    row = Conv("", 4, 8, 8, 3, 8).row()
    for dtype, most in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        for name in ("forward", "input_grad", "weight_grad"):
            found = layers.errors(
                row, name, dtype, "NHWC", "cpu", row.flops[name] / 2, contenders.chosen("cpu", "")
            )
            assert all(most / 1e3 < found[by]["error_fp64"] < most for by in ("fastops", "torch"))


def test_memory_of_a_call() -> None:
    held = measure.memory(lambda _: torch.ones(1000) + torch.ones(1000), "cpu")
    assert held == {"peak": 12000, "workspace": 8000}


def test_winograd_has_a_lower_floor() -> None:
    """3 × 3 with stride 1 may need 16 of 36 multiplications; every other layer needs its sums."""
    for row in ROWS:
        fewer = (
            row.op == "conv2d"
            and " 3×3" in row.text
            and not any(s in row.text for s in (" s2", " d1", " d3", " g16"))
        )
        ratio = (
            row.least_operations("forward") / row.operations("forward") if row.operations("forward") else 1
        )
        assert ratio == pytest.approx(16 / 36 if fewer else 1), row
    first = {"2": {"copy": 1e9, "fp32": 1.0}}
    record = {"dtype": "fp32", "threads": 2, "bytes": 1.0, "flops": 36.0}
    assert report.floor(record, first) == 36.0 and report.floor(record | {"least_flops": 16.0}, first) == 16.0


def test_beyond_the_roof() -> None:
    """A win that the machine cannot do is called wrong and does not count."""
    first = {"device": "", "torch": "", "commit": "", "ceilings": {"2": {"copy": 1.0, "fp32": 1.0}}}
    base = {"row": "", "op": "conv2d", "pass": "", "dtype": "fp32", "layout": "", "threads": 2}
    base |= {"bytes": 1.0, "flops": 0.5}
    for seconds, words in ((0.5, "wrong: 200 %"), (2.0, "1 cases, geometric mean of the ratios 2.00")):
        records = [base | {"by": "fastops", "seconds": seconds}, base | {"by": "torch", "seconds": 4.0}]
        text = "\n".join(report.table(first, records))
        assert words in text and ("geometric" in text) == (seconds == 2.0)


def test_ceilings_of_the_cpu() -> None:
    found = machine.cpu_ceilings(1)
    assert found["bf16"] >= found["fp32"] > 1e9 and found["copy"] > 1e8


def test_medians() -> None:
    assert measure.summary([3.0, 1.0, 2.0], "x") == (2.0, 1.0, 3.0, "x")
    assert math.isclose(report.mean([2.0, 8.0]), 4.0)


def test_goals() -> None:
    """A goal is met by the mean, or by every case, of the first run; what is missed says by what."""

    def case(op: str, what: str, layout: str, ratio: float) -> goals.Case:
        return goals.Case(op, "N1", what, "fp32", layout, ratio, 0.5, 0.25, None)

    one = [case("avg_pool2d", "forward", "NCHW", r) for r in (2.0, 8.0)]
    one += [case("interpolate", "forward", "NHWC", r) for r in (0.5, 8.0)]
    lines = [*goals.table({"one": one, "two": [case("avg_pool2d", "forward", "NCHW", 1.0)]})]
    by = {
        cells[1]: cells[2:]
        for cells in ([c.strip() for c in line.split("|")] for line in lines if "|" in line)
    }
    assert by["pooling and adjoints, NCHW"][:4] == [
        "≥ 3.0",
        "4.00 (2.00; 0 of 2)",
        "1.00 (1.00; 0 of 1)",
        "yes",
    ]
    assert by["interpolation and adjoints"][1:4] == ["2.00 (0.50; 1 of 2)", "", "yes"]
    assert by["interpolation, every row"][0] == "each ≥ 1.0" and by["interpolation, every row"][3] == "no"
    assert "at 50 % of the roof, torch at 25 %" in by["interpolation, every row"][4]


def test_the_document_is_up_to_date() -> None:
    text = "\n".join(report.document()) + "\n"
    assert (report.DOCS / "performance.md").read_text() == text, "run: python -m bench.report"


@pytest.mark.parametrize(
    ("text", "ours", "theirs"),
    [
        ("max 2×2 s2 64×224²", 4, 8),  # positions of max pooling, of 4 and of 8 bytes
        ("avg 2×2 s2 256×56²", 0, 0),  # nothing is needed
    ],
)
def test_memory(text: str, ours: int, theirs: int) -> None:
    row = next(row for row in ROWS if row.text == text)
    outputs = math.prod(row.shape) // 4
    for functions, each in ((fastops.functional, ours), (torch.nn.functional, theirs)):
        assert memory.kept(row, functions, torch.bfloat16, "NHWC", "cpu") == each * outputs


def test_memory_of_batch_norm() -> None:
    """mean and invstd; torch keeps a workspace beside them, or not."""
    row = next(row for row in ROWS if row.op == "batch_norm")
    assert memory.kept(row, fastops.functional, torch.bfloat16, "NCHW", "cpu") == 2 * 4 * row.shape[1]
    record = {"row": str(row), "dtype": "bf16", "layout": "NCHW", "kept": 1}
    lines = "\n".join(memory.table([record | {"by": by} for by in ("fastops", "torch")]))
    assert "In 1 more cases" in lines


# ---- two runs -----------------------------------------------------------------------------------


def a_run(**ours: float | None) -> list[dict[str, object]]:
    """Records of cases in which torch takes a second and fastops so many, or fails."""
    records: list[dict[str, object]] = [{"device": "", "commit": ""}]
    for case, seconds in ours.items():
        base = {"row": case, "pass": "forward", "dtype": "fp32", "layout": "NCHW"}
        time = {"error": "…"} if seconds is None else {"seconds": seconds}
        records += [base | {"by": "fastops"} | time, base | {"by": "torch", "seconds": 1.0}]
    return records


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = a_run(same=0.5, slower=0.5, faster=0.5, broken=0.5, mended=None, gone=1.0, never=None)
    after = a_run(same=0.55, slower=0.9, faster=0.1, broken=None, mended=1.0, new=1.0, never=None)
    found = compare.changes(before, after)
    assert [c.case.split(",")[0] for c in found][:2] == ["broken", "slower"]
    assert {c.case.split(",")[0] for c in found} == {"same", "slower", "faster", "broken", "mended", "never"}
    files = [tmp_path / name for name in ("a", "b")]
    for file, records in zip(files, (before, after), strict=True):
        file.write_text("\n".join(map(json.dumps, records)))
    names = [*map(str, files)]
    assert compare.main(names) == 1
    printed = capsys.readouterr().out
    assert "| slower, forward, fp32, NCHW | 2.00 | 1.11 | 0.56 |" in printed and "same" not in printed
    assert "| broken, forward, fp32, NCHW | 2.00 | fails | 0.00 |" in printed
    assert compare.main([names[0], names[0]]) == 0
    files[1].write_text("\n".join(map(json.dumps, a_run(same=0.55, slower=0.9))))
    assert compare.main([*names, "--threshold", "2"]) == 0
    files[1].write_text("\n".join(map(json.dumps, a_run(same=0.5, faster=0.1, mended=1.0))))
    assert compare.main(names) == 0  # what is faster is none


# ---- every suite ------------------------------------------------------------------------------------


def test_all_is_every_suite() -> None:
    """Each within its part of the time, the last one to its end."""
    from bench import __main__ as command

    assert {suite for _, suite, _, _ in command.ALL} == {*command.SUITES} - {"all", "quick"}
    shares = [share for *_, share in command.ALL]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert len({name for name, *_ in command.ALL}) == len(command.ALL)


def test_fp16_is_measured_where_it_is_asked_for() -> None:
    """By default a row has one dtype, so that the table of a GPU is not three."""
    assert all(row.dtypes[0] is not torch.float16 for row in ROWS)
    assert sum(torch.float16 in row.dtypes for row in ROWS) > len(ROWS) - 5
