"""Runs of pytest in processes of their own, counted: a test is a case."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tests.reliability.tally import KEPT, Tally

OPTIONS = ("-p", "no:cacheprovider", "--tb=short")


def note(tally: Tally, failure: str) -> None:
    """Counts a failed case."""
    tally.cases += 1
    tally.failed += 1
    if len(tally.failures) < KEPT:
        tally.failures.append(failure)


def how_it_died(done: subprocess.CompletedProcess[str]) -> str:
    """A signal's name or the exit status, and what a sanitizer said in its first lines."""
    code = done.returncode
    name = signal.Signals(-code).name if code < 0 else f"exit {code}"
    found = "ERROR: AddressSanitizer|ERROR: libFuzzer|WARNING: ThreadSanitizer|runtime error"
    said = re.search(rf"({found}).*(\n.*){{0,6}}", done.stderr)
    return f"{name}: {said.group() if said else done.stderr[-300:]}".strip()


def run(tally: Tally, command: list[str], cwd: Path, environment: dict[str, str] | None = None) -> Tally:
    """Counts pytest's tests. A process that dies, or finds no test, is one failure more."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [*command, *OPTIONS, f"--junitxml={report}"]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        if report.exists():
            count(tally, report)
        if done.returncode and not tally.failed:
            note(tally, f"{how_it_died(done)}; after {done.stdout.strip()[-200:]}")
    return tally


def count(tally: Tally, report: Path) -> None:
    """Adds the tests of a report in JUnit's format."""
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = {child.tag: child.get("message") or "" for child in case}
        if "skipped" in outcome:
            tally.skipped += 1
            reason = outcome["skipped"]
            tally.reasons[reason] = tally.reasons.get(reason, 0) + 1
        elif outcome.keys() & {"failure", "error"}:
            message = outcome.get("failure", outcome.get("error", ""))
            note(tally, f"{case.get('classname')}::{case.get('name')}: {message[:300]}")
        else:
            tally.cases += 1
