"""From the source to an installed package. A case is one build, one check of what was built, one environment,
or one test in it.

The quick form makes an sdist and a wheel of the tree, where only what has changed is compiled, and looks into
them: everything there, nothing else, no path of the machine that built them, `twine check`. The long form
builds wheels from the sdist in pip's isolated environments: twice, in two folders, which must give the same
bytes; and for each version of Python, from the sdist and from a wheel, in environments without fastops,
where each op is tried against torch (`tests/smoke.py`) and `fastops.doctor` must be content; and with the
oldest torch that is meant to work on the oldest Python, with the newest on the newest, and with that on a
Python without a GIL, which must stay without one, six files of the suite: every case against torch, pooling,
convolution, batch norm, interpolation, usage. Wheels for other
machines come of `.github/workflows/wheels.yml`, which nobody has run yet; CUDA kernels are in none of the
long form's builds.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from fastops import _C
from tests import packaging
from tests.packaging import ROOT
from tests.packaging import run as execute
from tests.reliability import suite
from tests.reliability.tally import Skip, Tally

FREE_THREADED = "3.14t"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", FREE_THREADED)
WITH_SUITE = ("3.10", "3.13", FREE_THREADED)
TREE, BYTES = "tree", "reproducible"
PARTS = (TREE, BYTES, *(f"Python {version}" for version in PYTHONS))
QUICK = (TREE,)
ENVIRONMENTS = ROOT / "build" / "supply"  # kept: torch is large
EPOCH = "1700000000"  # any; the time stamps in a wheel
# What is tried with each torch.
SUITE = ("test_against_torch", "test_pool", "test_conv", "test_batch_norm", "test_interpolate", "test_usage")


def twine_check(*archives: Path) -> None:
    if importlib.util.find_spec("twine") is None:
        raise Skip("twine is not installed")
    execute(sys.executable, "-m", "twine", "check", "--strict", *archives, cwd=ROOT)


def in_the_tree(folder: Path) -> Iterator[Tally]:
    """What setup.py makes of the tree: an sdist, and a wheel of what is compiled already."""
    tally = Tally("sdist", "complete")
    archive = None
    with tally.case("builds"):
        archive = packaging.build_sdist(folder)
    if archive is not None:
        with tally.case("has every file"):
            missing = packaging.missing_from_sdist(packaging.unpack(archive, folder))
            assert missing == [], missing
        with tally.case("twine check"):
            twine_check(archive)
    yield tally
    tally = Tally("wheel", "complete, and nothing else in it")
    wheel = None
    with tally.case("builds"):
        options = ("--dist-dir", folder / "dist", "--bdist-dir", folder / "bdist")
        execute(sys.executable, "setup.py", "-q", "bdist_wheel", *options, cwd=ROOT)
        (wheel,) = (folder / "dist").glob("fastops-*.whl")
    if wheel is not None:
        with tally.case("contents"):
            packaging.check_wheel(wheel)
        with tally.case("no path of this machine"):
            if _C.cuda_version:
                raise Skip("the line tables of CUDA kernels name their sources")
            assert packaging.paths_in(wheel) == []
        with tally.case("twine check"):
            twine_check(wheel)
    yield tally


def workflows() -> Tally:
    """The files for GitHub: whether they are YAML, and call what a person would."""
    tally = Tally("GitHub workflows", "are YAML, and run .ci/run and cibuildwheel")
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        with tally.case(path.name):
            if importlib.util.find_spec("yaml") is None:
                raise Skip("PyYAML is not installed")
            import yaml

            jobs = yaml.safe_load(path.read_text())["jobs"]
            commands = [step.get("run") or step.get("uses") for j in jobs.values() for step in j["steps"]]
            wanted = ".ci/run" if path.stem == "ci" else "cibuildwheel"
            assert any(wanted in c for c in commands), commands
    return tally


# ---- environments --------------------------------------------------------------------------------


def interpreter(version: str) -> Path:
    """A Python of that version: this one, one on the path, or pyenv's."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return Path(sys.executable)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [*sorted(pyenv.glob(f"{version}.*/bin/python")), shutil.which(f"python{version}")]
    for one in filter(None, found):
        if subprocess.run([one, "-c", "import venv, ssl"], check=False, capture_output=True).returncode == 0:
            return Path(one)
    raise Skip(f"no Python {version}")


def torch_ends() -> tuple[str, str]:
    """The oldest torch that pyproject.toml allows, and the one that the Makefile installs."""
    oldest = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    newest = re.search(r"TORCH \?= torch==([\d.]+)", (ROOT / "Makefile").read_text())
    assert oldest and newest
    return oldest.group(1) + ".0", newest.group(1)


@lru_cache
def environment(version: str, torch: str) -> Path:
    """The Python of an environment with that torch, and what the tests want; without fastops."""
    base = interpreter(version)
    folder = ENVIRONMENTS / f"py{version}-torch{torch}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        execute(base, "-m", "venv", "--clear", folder, cwd=ROOT)
        wanted = [f"torch=={torch}", "numpy", "pytest>=7", "expecttest", "hypothesis"]
        execute(python, "-m", "pip", "install", "-q", *wanted, cwd=ROOT)
        (folder / "ready").touch()
    execute(python, "-m", "pip", "uninstall", "-q", "-y", "fastops", cwd=ROOT)
    return python


def install(python: Path, what: Path) -> None:
    """Into an environment that has torch; pip checks that this torch is one that fastops wants."""
    execute(
        python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", what, cwd=what.parent, **FAST
    )
    execute(python, "-m", "pip", "check", cwd=what.parent)


def smoke(python: Path, folder: Path) -> None:
    """Each op against torch, away from the tree."""
    shutil.copy(ROOT / "tests" / "smoke.py", folder / "smoke.py")
    execute(python, "smoke.py", "cpu", cwd=folder)
    execute(python, "-m", "fastops.doctor", cwd=folder)


FAST = {"FASTOPS_CUDA": "0", "CXXFLAGS": os.environ.get("CXXFLAGS", "-O1")}


def run_suite(python: Path, version: str, folder: Path, tally: Tally) -> Tally:
    """Six files of the suite, on what is installed."""
    here = folder / "suite"
    for name in ("tests", "bench", "examples"):
        shutil.copytree(ROOT / name, here / name, dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", here)
    files = [f"tests/{name}.py" for name in SUITE]
    # (The tests import Triton, which would turn the GIL on.)
    options = ["-X", "gil=0"] if version == FREE_THREADED else []
    return suite.run(tally, [str(python), *options, "-m", "pytest", *files, "-k", "not emulated"], here)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def reproducible(folder: Path) -> Tally:
    archive = packaging.build_sdist(folder)
    tally = Tally("wheel", "the same bytes from two folders")
    with tally.case("two isolated builds"):
        wheels = []
        for place in ("one", "another/place"):
            (folder / place).mkdir(parents=True)
            source = packaging.unpack(archive, folder / place)
            wheels.append(packaging.build_wheel(source, folder / place / "out", SOURCE_DATE_EPOCH=EPOCH)[0])
        assert digest(wheels[0]) == digest(wheels[1]), "the wheels differ"
    return tally


def installed(version: str, folder: Path) -> Iterator[Tally]:
    """From the sdist and from a wheel, with the oldest torch on the oldest Python."""
    archive = packaging.build_sdist(folder)
    oldest, newest = torch_ends()
    torch = oldest if version == PYTHONS[0] else newest
    tally = Tally(f"Python {version}", "installs, imports, agrees with torch", note=f"torch {torch}")
    with tally.case("from the sdist"):
        python = environment(version, torch)
        install(python, archive)
        smoke(python, folder)
    with tally.case("from a wheel"):
        python = environment(version, torch)
        wheel, _ = packaging.build_wheel(archive, folder / "wheel", python=python, **FAST)
        packaging.check_wheel(wheel)
        assert packaging.paths_in(wheel) == []
        install(python, wheel)
        smoke(python, folder)
    if version == FREE_THREADED:
        with tally.case("leaves the GIL off"):
            execute(python, "-c", "import sys, fastops; assert not sys._is_gil_enabled()", cwd=folder)
    yield tally
    if version in WITH_SUITE and not tally.failed and not tally.skipped:
        tally = Tally("suite, six files", "passes", "cpu", note=f"torch {torch}, Python {version}")
        yield run_suite(python, version, folder, tally)


def run(quick: bool, part: str) -> Iterator[Tally]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if part == TREE:
            yield from in_the_tree(folder)
            yield workflows()
        elif part == BYTES:
            yield reproducible(folder)
        else:
            yield from installed(part.removeprefix("Python "), folder)
