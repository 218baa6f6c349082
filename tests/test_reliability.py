"""The scoreboard: that it says what was found, and that it notices what fails."""

from __future__ import annotations

import ctypes
import json
import random
import signal
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from fastops import _C
from tests.reliability import __main__ as frame
from tests.reliability import fuzz, guided, raw_fuzz, report, suite, surface
from tests.reliability.process import Died
from tests.reliability.tally import Skip, Tally

SECTION = "supply"  # any: its process is replaced


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child: str) -> tuple[int, dict]:
    """The exit status, and the record, of a run whose section's process does what `child` says."""
    script = tmp_path / "child"
    script.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nout = open(sys.argv[sys.argv.index('--out') + 1], 'w')\n"
        f"def tally(**fields): print(json.dumps(fields), file=out, flush=True)\n{child}\n"
    )
    script.chmod(0o755)
    out = tmp_path / "records.jsonl"
    monkeypatch.setattr(sys, "argv", ["reliability", "--quick", "--only", SECTION, "--out", str(out)])
    with monkeypatch.context() as patch:
        patch.setattr(frame.sys, "executable", str(script))
        status = frame.main()
    (record,) = report.read(out)
    return status, record


def test_the_page_is_what_the_records_give() -> None:
    """Regenerate it: make reliability."""
    assert report.DATA.exists() == report.PAGE.exists()
    if report.DATA.exists():
        assert report.PAGE.read_text() == report.page(report.read(report.DATA))


def test_readme_says_what_the_records_give() -> None:
    """Write it there."""
    wanted = f"{report.headline(report.read(report.DATA))} ([docs/reliability.md](docs/reliability.md))"
    assert wanted in (report.ROOT / "README.md").read_text()


def test_nothing_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, record = run(tmp_path, monkeypatch, "tally(what='a', asked='b', cases=3, failed=0, skipped=0)")
    assert status == 0 and record["ended"] == "" and record["tallies"][0]["cases"] == 3


def test_a_failing_tally_is_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = "tally(what='a', asked='b', cases=3, failed=1, skipped=0, failures=['it does not'])"
    status, record = run(tmp_path, monkeypatch, planted)
    assert status == 1 and record["tallies"][0]["failed"] == 1
    assert "it does not" in capsys.readouterr().out
    assert "- a: it does not" in report.page([record])


def test_a_process_that_dies_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = "tally(what='a', asked='b', cases=2, failed=0, skipped=0); os.kill(os.getpid(), 11)"
    status, record = run(tmp_path, monkeypatch, child)
    assert status == 1 and f"exit {-signal.SIGSEGV}" in record["ended"]
    assert record["tallies"][0]["cases"] == 2, "what it had found by then is kept"
    assert "exit -11" in report.page([record])


def test_tally_counts() -> None:
    tally = Tally("a", "b")
    for outcome in (None, ValueError("wrong"), Skip("not here")):
        with tally.case("one"):
            if outcome is not None:
                raise outcome
    assert (tally.cases, tally.failed, tally.skipped) == (2, 1, 1)
    assert tally.failures == ["one: ValueError: wrong"] and tally.reasons == {"not here": 1}


def test_pytest_is_counted(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert False, 'no'\n"
        "def test_c(): pytest.skip('why')\n"
    )
    tally = suite.run(Tally("a", "b"), [sys.executable, "-m", "pytest", "test_it.py"], tmp_path)
    assert (tally.cases, tally.failed, tally.skipped) == (2, 1, 1) and "no" in tally.failures[0]
    (tmp_path / "test_it.py").write_text("import os\ndef test_a(): os.abort()\n")
    tally = suite.run(Tally("a", "b"), [sys.executable, "-m", "pytest", "test_it.py"], tmp_path)
    assert tally.failed == 1 and "SIGABRT" in tally.failures[0]


# ---- raw calls -----------------------------------------------------------------------------------


def test_raw_calls_find_nothing() -> None:
    tallies = list(surface.raw_calls("as built", Path(_C.__file__), 2000, raw_fuzz.KINDS, 1))
    assert [t.failures for t in tallies] == [[]] * 4 and sum(t.cases for t in tallies) == 2000


def test_a_byte_written_beside_a_tensor_is_seen() -> None:
    for where, beside in ((0, False), (15, False), (-1, True), (16, True)):
        memory = raw_fuzz.Memory(random.Random(0), exact=False)
        address = memory.take("y", 16, 4, b"")
        ctypes.memset(address + where, 0, 1)
        if beside:
            with pytest.raises(raw_fuzz.Wrong, match="beside y"):
                memory.close()
        else:
            memory.close()


def test_a_call_that_kills_the_process_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls before and after it go on, and the report says which it was."""
    script = tmp_path / "child"
    script.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "option = lambda name: sys.argv[sys.argv.index(name) + 1]\n"
        "start, calls = int(option('--start')), int(option('--calls'))\n"
        "if start <= 7 < start + calls:\n"
        "    open(option('--at'), 'w').write('7')\n"
        "    os.abort()\n"
        "print(json.dumps({'counts': {'valid conv': calls}, 'failures': []}))\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(surface.sanitized.sys, "executable", str(script))
    (tally,) = surface.raw_calls("x", Path(_C.__file__), 100, ("valid",), 5)
    assert tally.failed == 1 and tally.failures == ["seed 5, call 7: SIGABRT:"]
    assert tally.cases == 93


@pytest.mark.parametrize("data", [b"", b"\x01", bytes(600), b"\xff" * 600, random.Random(1).randbytes(600)])
def test_any_bytes_are_a_call(data: bytes) -> None:
    """Coverage leads to inputs of any length: none may make the generator go on for ever."""
    caller = raw_fuzz.Caller(_C, None, exact=False, threads=(1,))
    for kind in range(len(raw_fuzz.KINDS)):
        assert guided.call(caller, bytes([kind]) + data) == guided.call(caller, bytes([kind]) + data)


@pytest.mark.parametrize("of_torch", [False, True])
def test_a_call_that_always_kills_the_process_ends_its_line(
    of_torch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object, **__: object) -> Iterator[str]:
        yield "the same call"
        raise Died

    monkeypatch.setattr(fuzz, "runnable", lambda: ["cpu"])
    monkeypatch.setattr(fuzz, "messages", dies)
    monkeypatch.setattr(fuzz, "torch_dies", lambda call: of_torch)
    found = [*islice(fuzz.run(True), 10 * len(fuzz.LINES))]
    assert len(found) < 10 * len(fuzz.LINES)
    assert {t.what for t in found} == {*fuzz.LINES}
    assert all(t.failed == (not of_torch) for t in found)


def test_json_of_a_tally_is_plain() -> None:
    assert json.loads(json.dumps(Tally("a", "b", worst=1.5).record()))["worst"] == 1.5
