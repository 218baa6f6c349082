"""Writes the type stub of the compiled module: ``python -m fastops._stubs > fastops/_C.pyi``."""

from __future__ import annotations

import inspect
import re
from types import ModuleType

from fastops import _C

HEADER = '''"""Kernels of fastops. Written by ``python -m fastops._stubs``, after a change of the bindings."""

from types import ModuleType
from typing import Any, ClassVar
'''


def _type(value: object) -> str:
    if isinstance(value, tuple):
        return f"tuple[{', '.join(_type(v) for v in value)}]"
    return type(value).__name__


def _class(cls: type) -> str:
    lines = [f"class {cls.__name__}:"]
    members = getattr(cls, "__members__", None)
    if members is not None:  # an enum
        lines += [f"    {name}: ClassVar[{cls.__name__}]" for name in members]
        lines += [
            f"    __members__: ClassVar[dict[str, {cls.__name__}]]",
            "    name: str",
            "    value: int",
            "    def __init__(self, value: int) -> None: ...",
            "    def __int__(self) -> int: ...",
            "    def __index__(self) -> int: ...",
        ]
    else:  # a params struct: its fields, each with a default
        fields = {name: _type(getattr(cls(), name)) for name in cls.fields}  # type: ignore[attr-defined]
        lines += ["    fields: ClassVar[tuple[str, ...]]"]
        lines += [f"    {name}: {kind}" for name, kind in fields.items()]
        lines += ["    def __init__(self, **fields: Any) -> None: ..."]
    return "\n".join(lines)


def _function(name: str, function: object, first: str = "") -> str:
    """A def, from the signature that pybind11 writes into the docstring."""
    signature = (function.__doc__ or "").splitlines()[0]
    found = re.fullmatch(r"\w+\((.*)\) -> (.+)", signature)
    assert found, f"{name}: no signature in {signature!r}"
    arguments = [a for a in (first,) if a]
    names = re.findall(r"(\w+): (.*?)(?=, \w+: |$)", found.group(1))
    for argument, kind in names:
        struct = re.search(r"_C\.(\w+)", kind)
        plain = "float" if "float" in kind.lower() else "bool" if "bool" in kind else "int"
        arguments.append(f"{argument}: {struct.group(1) if struct else plain}")
    if names and names[0][0] == "arg0":  # arguments without names cannot be given by name
        arguments.append("/")
    return f"def {name}({', '.join(arguments)}) -> {found.group(2)}: ..."


def generate() -> str:
    """The text of ``_C.pyi``. It is the same for every build: all have the same names."""
    public = {name: value for name, value in vars(_C).items() if not name.startswith("__")}
    classes = [_class(v) for v in public.values() if inspect.isclass(v)]
    functions = [_function(n, v) for n, v in public.items() if inspect.isbuiltin(v)]
    kernels = [f"    {_function(n, v, 'self')}" for n, v in vars(_C.cpu_baseline).items() if callable(v)]
    attributes = []
    for name, value in public.items():
        if isinstance(value, ModuleType):
            attributes.append(f"{name}: {'_CpuKernels' if name.startswith('cpu_') else 'ModuleType'}")
        elif isinstance(value, str):
            attributes.append(f"{name}: str")
    kernel_class = "class _CpuKernels(ModuleType):\n" + "\n".join(sorted(kernels))
    parts = [HEADER, *classes, *sorted(functions), kernel_class, *sorted(attributes)]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(generate(), end="")
