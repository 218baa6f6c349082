"""The doctor: it works on a healthy build, and on a broken one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastops
from fastops import _C, backends, doctor
from fastops.backends import native


def run(*options: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastops.doctor", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


@pytest.fixture(scope="module")
def report() -> dict:
    return doctor.examine()


def test_it_is_usable(report: dict) -> None:
    assert report["usable"], report["failed"]
    assert report["built"]["version"] == fastops.__version__
    assert report["isa"] == native.ISA
    assert report["openmp"] == native.OPENMP_RUNTIME
    assert json.loads(json.dumps(report)) == report


def test_every_raw_op_ran_at_every_dtype(report: dict) -> None:
    """So an op that is added without a line in the doctor's smoke test is noticed here."""
    ops = set(doctor._ops(_C.cpu_baseline))
    rows = {row["op"]: row for row in report["kernels"] if row["device"] == "cpu"}
    assert rows.keys() == ops
    for op, row in rows.items():
        assert row["backend"] == backends.choose(op, "cpu").backend
        floating = ["float64", "float32", "float16", "bfloat16"]
        assert row["ran"] == ["uint8"] if op.endswith("_u8") else row["ran"][:4] == floating, op


def test_it_leaves_no_trace(report: dict) -> None:
    assert "doctor" not in backends.BACKENDS
    assert backends.choose("avg_pool", "cpu").backend == "cpu"


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(op: str) -> object:
        if op == "avg_pool":
            return lambda params, x, y: y.fill_(100)
        return native.cpu_launcher(op)

    cpu = backends.BACKENDS["cpu"]._replace(launcher=broken)
    monkeypatch.setitem(backends.BACKENDS, "cpu", cpu)
    backends._choose.cache_clear()
    try:
        report = doctor.examine()
    finally:
        monkeypatch.undo()
        backends._choose.cache_clear()
    assert not report["usable"]
    assert any("avg_pool2d on cpu, float32: the values differ" in line for line in report["failed"])
    assert report["improve"].startswith(doctor.REBUILD)
    assert "FAILED   avg_pool2d" in doctor.prescription(report)


def test_command_line() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    assert f"fastops {fastops.__version__}" in done.stdout and "avg_pool_adjoint" in done.stdout
    done = run("--json")
    assert done.returncode == 0 and json.loads(done.stdout)["usable"]


def test_a_broken_compiled_module(tmp_path: Path) -> None:
    """It reports what is wrong, and how to build it; the import itself says so too."""
    package = Path(fastops.__file__).parent
    shutil.copytree(package, tmp_path / "fastops", ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    # In place of a missing file, which the finder of an editable install would still find elsewhere.
    (tmp_path / "fastops" / "_C.py").write_text("raise ImportError('undefined symbol')\n")
    done = run(folder=tmp_path)
    assert done.returncode == 1
    assert "BROKEN   ImportError: undefined symbol" in done.stdout
    assert f"improve: {doctor.REBUILD.split()[0]} install" in done.stdout
    assert not json.loads(run("--json", folder=tmp_path).stdout)["usable"]
    done = subprocess.run(
        [sys.executable, "-c", "import fastops"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert "pip install -e . --no-build-isolation" in done.stderr


def test_kernels_for_hopper(report: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor says whether they are compiled in, and whether they have been turned off."""
    monkeypatch.delenv("FASTOPS_SM90", raising=False)
    assert doctor.sm90("80;90a") == "its kernels are in"
    assert doctor.sm90("80") is None
    assert doctor.sm90("") is None
    line = "  sm_90a   its kernels are"
    assert (line in doctor.prescription(report)) == ("90a" in (_C.cuda_archs or "").split(";"))
    monkeypatch.setenv("FASTOPS_SM90", "0")
    assert "are off" in (doctor.sm90("80;90a") or "")


@pytest.mark.parametrize(
    ("change", "command"),
    [
        ({}, None),
        ({"failed": ["conv2d"]}, "the compiled kernels do not work"),
        ({"gpu": "H100", "torch_cuda": "13.0", "driver": "580"}, "FASTOPS_CUDA=1 pip"),
        ({"driver": "580"}, "pip install --force-reinstall torch"),
        ({"torch": None}, "pip install torch"),
    ],
    ids=["healthy", "broken", "GPU without kernels", "torch for the CPU only", "no torch"],
)
def test_improvement(change: dict, command: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTOPS_ISA", raising=False)
    found = {"torch": "2.13", "torch_cuda": None, "driver": None, "gpu": None, "nvcc": None, "triton": None}
    build = {"cuda": None, "usable_isas": ["baseline"]}
    report = {"built": build, "found": found, "failed": [], "isa": "baseline"}
    for key, value in change.items():
        (report if key in report else found)[key] = value
    answer = doctor.improvement(report)
    assert answer is None if command is None else command in (answer or "")
