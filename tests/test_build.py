"""What is built: no torch in the core, no symbol that could mix instruction sets, stubs that agree."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

import fastops
from fastops import _C, _stubs, modules
from tests.simt import build as simt_build

ROOT = Path(__file__).resolve().parent.parent
STUB = ROOT / "fastops" / "_C.pyi"
OBJECTS = sorted(
    path
    for isa in ("Baseline", "Avx2", "Avx512")
    for path in (ROOT / "build").glob(
        f"temp.*-cpython-{sysconfig.get_python_version().replace('.', '')}/fastops/*.{isa}.o"
    )
    # An object whose source is gone is an old build's.
    if any((ROOT / "csrc" / "cpu").glob(f"{path.name.split('.')[0]}.cpp"))
)
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not here")


def test_no_torch_header() -> None:
    include = re.compile(r'^\s*#\s*include\s*[<"](torch|ATen|c10|caffe2)/', re.MULTILINE)
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cuh", ".cpp", ".cu")]
    assert len(sources) > 5
    assert [str(p) for p in sources if include.search(p.read_text())] == []


def weak_symbols(path: Path) -> list[str]:
    """Symbols of which the linker keeps one copy for all files, whatever each was compiled for."""
    lines = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^[0-9a-f]+ [VWu] (.+)$", lines, re.MULTILINE)


@needs_nm
@pytest.mark.skipif(not OBJECTS, reason="the objects of the build are not here")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: p.name)
def test_kernels_have_internal_linkage(path: Path) -> None:
    """A weak function could be kept in its AVX-512 version, and crash where that is missing."""
    assert [s for s in weak_symbols(path) if s != "DW.ref.__gxx_personality_v0"] == []


@needs_nm
def test_module_has_no_weak_function_of_ours() -> None:
    assert [s for s in weak_symbols(Path(_C.__file__)) if s.startswith("fastops::")] == []


@needs_nm
def test_module_links_neither_torch_nor_openmp() -> None:
    text = subprocess.run(["readelf", "-d", _C.__file__], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"NEEDED.*\[(.+)\]", text)
    assert needed and not [n for n in needed if re.search(r"torch|c10|omp|cuda", n)]


def test_every_instruction_set_has_every_kernel() -> None:
    def launchers(module: ModuleType) -> set[str]:
        return {name for name, value in vars(module).items() if callable(value)}

    for isa in _C.usable_isas():
        assert launchers(getattr(_C, f"cpu_{isa}")) == launchers(_C.cpu_baseline) != set()


def test_stub_is_what_the_generator_writes() -> None:
    assert STUB.read_text() == _stubs.generate(), "run: python -m fastops._stubs > fastops/_C.pyi"


def test_stub_and_module_have_the_same_names() -> None:
    """Apart from the generator: the names in the stub's syntax tree against the real objects."""
    body = ast.parse(STUB.read_text()).body

    def members(nodes: list[ast.stmt]) -> set[str]:
        found = set()
        for node in nodes:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.AnnAssign):
                assert isinstance(node.target, ast.Name)
                found.add(node.target.id)
        return found

    def real(thing: object) -> set[str]:
        return {name for name in vars(thing) if not name.startswith("_")}

    classes = {node.name: members(node.body) for node in body if isinstance(node, ast.ClassDef)}
    assert members(body) - {"_CpuKernels"} == real(_C)
    assert classes.pop("_CpuKernels") == real(_C.cpu_baseline)
    for name, names in classes.items():
        assert {n for n in names if not n.startswith("_")} == real(getattr(_C, name)), name


@pytest.mark.parametrize(
    ("archs", "portable"),
    [
        (["80", "90a"], "80"),  # the front end has made it for sm_80 anyway
        (["80", "90"], "90"),
        (["90a"], "90"),  # where all are for one kind of GPU, others still have something
        (["90a", "100f"], "100"),
    ],
    ids=str,
)
def test_later_gpus_get_ptx(archs: list[str], portable: str) -> None:
    *binaries, ptx = simt_build.setup_py().gencode(archs)
    assert binaries == [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    assert ptx == f"-gencode=arch=compute_{portable},code=compute_{portable}"


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(fastops.__file__).parent / "py.typed").exists()


def test_readme_has_every_layer() -> None:
    text = (ROOT / "README.md").read_text()
    assert [name for name in modules.__all__ if f"`{name}`" not in text] == []
