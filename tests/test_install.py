"""The package as users get it: from an sdist to a wheel to a fresh environment."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fastops

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.long

Run = Callable[..., subprocess.CompletedProcess[str]]


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(c) for c in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | environment,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist. Built from the tree's tracked files, as a clean clone has them."""
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "setup.py", "-q", "egg_info", "-e", folder, "sdist", "-d", folder, cwd=ROOT)
    (archive,) = folder.glob("fastops-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return archive.with_name(archive.name.removesuffix(".tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A wheel without CUDA kernels, and what its build printed."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-v",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        sdist,
    ]
    done = run(*pip, cwd=folder, FASTOPS_CUDA="0", CXXFLAGS="-O1", FASTOPS_WERROR="1")
    (path,) = folder.glob("fastops-*.whl")
    return path, done.stdout + done.stderr


def test_sdist_is_complete(sdist: Path) -> None:
    tracked = run("git", "ls-files", cwd=ROOT).stdout.split() if (ROOT / ".git").exists() else []
    wanted = [
        f for f in tracked if f.split("/")[0] in ("csrc", "fastops", "tests", "examples", "docs", "bench")
    ]
    wanted += ["setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile"]
    assert [f for f in wanted if not (sdist / f).exists()] == []


def test_build_says_what_it_leaves_out(wheel: tuple[Path, str]) -> None:
    lines = [line for line in wheel[1].splitlines() if "left out" in line]
    assert len(lines) == 1 and "FASTOPS_CUDA=0: the CUDA kernels are left out" in lines[0]


def test_wheel_is_complete(wheel: tuple[Path, str]) -> None:
    with zipfile.ZipFile(wheel[0]) as archive:
        names = set(archive.namelist())
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    package = ROOT / "fastops"
    wanted = {f"fastops/{p.relative_to(package)}" for p in package.rglob("*.py")}
    wanted |= {"fastops/py.typed", "fastops/_C.pyi"}
    assert wanted <= names
    assert sum(n.startswith("fastops/_C.") and n.endswith(".so") for n in names) == 1
    assert any(n.endswith("LICENSE") for n in names)
    assert not any(n.startswith(("tests/", "csrc/", "examples/")) for n in names)
    assert f"Version: {fastops.__version__}" in text
    assert "Requires-Dist: torch>=" in text


CHECK = """
import sys, torch, fastops, fastops.backends.native as native
assert "site-packages" in fastops.__file__, fastops.__file__
assert fastops._C.cuda_version == "" and not any(map(callable, vars(fastops._C.cuda).values()))
x = torch.rand(2, 3, 8, 8, requires_grad=True)
y = fastops.AvgPool2d(2)(x)
assert torch.allclose(y, torch.nn.functional.avg_pool2d(x, 2), atol=1e-6)
y.sum().backward()
assert torch.equal(x.grad, torch.full_like(x, 0.25))
print(native.OPENMP_RUNTIME)
"""


def test_wheel_works_in_a_fresh_environment(wheel: tuple[Path, str], tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
    (Path(purelib.stdout.strip()) / "torch.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    install = ["-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index"]
    run(sys.executable, *install, "--force-reinstall", "--ignore-installed", wheel[0], cwd=tmp_path)
    here = fastops.backends.native.OPENMP_RUNTIME
    assert run(python, "-c", CHECK, cwd=tmp_path).stdout.strip() == str(here)
    run(python, "-m", "fastops.doctor", cwd=tmp_path)
