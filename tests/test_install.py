"""The package as users get it: from an sdist to a wheel to a fresh environment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import fastops
from tests.packaging import build_sdist, build_wheel, check_wheel, missing_from_sdist, paths_in, run, unpack

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    return unpack(build_sdist(folder), folder)


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A wheel of the CPU's plain kernels, a third of the time of all; and what its build printed."""
    folder = tmp_path_factory.mktemp("wheel")
    return build_wheel(
        sdist, folder, "--no-build-isolation", FASTOPS_BASELINE="1", CXXFLAGS="-O1", FASTOPS_WERROR="1"
    )


def test_sdist_is_complete(sdist: Path) -> None:
    assert missing_from_sdist(sdist) == []


def test_build_says_what_it_leaves_out(wheel: tuple[Path, str]) -> None:
    lines = [line for line in wheel[1].splitlines() if "left out" in line]
    assert len(lines) == 1 and "FASTOPS_CUDA=0: the CUDA kernels are left out" in lines[0]


def test_wheel_is_complete(wheel: tuple[Path, str]) -> None:
    check_wheel(wheel[0])
    assert paths_in(wheel[0]) == []


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
