"""torch's own samples: ``op_db``'s inputs and wrong inputs for these ops, ``module_db``'s for the modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore:.*:UserWarning")

try:
    from tests import torch_samples as their
except Exception as error:  # pragma: no cover
    pytest.skip(f"no torch.testing._internal in this torch: {error}", allow_module_level=True)

DTYPES = [torch.float32, torch.float64]
# max_pool2d has 1440 samples, max_unpool2d 288: the default run takes at most about so many.
DEFAULT_SAMPLES = 48
every_info = pytest.mark.parametrize("info", their.INFOS, ids=their.label)


@pytest.fixture(autouse=True)
def one_thread(threads: None) -> None:
    """Samples are tiny: on a busy machine the threads would mostly wait for each other."""
    torch.set_num_threads(1)


def check(info: Any, chosen: list[tuple[int, Any]]) -> None:
    failures = []
    for number, sample in chosen:
        try:
            their.compare(info, sample)
        except Exception as error:  # every sample has its say
            failures.append(f"sample {number}: {their.describe(sample)}: {type(error).__name__}: {error}")
    assert not failures, f"{len(failures)} of {len(chosen)}:\n" + "\n".join(failures[:5])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@every_info
def test_samples(info: Any, dtype: torch.dtype, backend: str, device: str) -> None:
    """Values, layouts and gradients; of very many samples every k-th, starting with the first."""
    check(info, their.spread(their.samples(info, dtype, device), DEFAULT_SAMPLES))


@pytest.mark.long
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
@every_info
def test_all_samples(info: Any, dtype: torch.dtype) -> None:
    check(info, list(enumerate(their.samples(info, dtype))))


@pytest.mark.parametrize("info", [o for o in their.INFOS if o.error_inputs_func is not None], ids=their.label)
def test_error_inputs(info: Any) -> None:
    for wrong in info.error_inputs("cpu"):
        their.refuse(info, wrong)


# ---- modules ------------------------------------------------------------------------------------


def module_cases() -> Iterator[Any]:
    for info in their.MODULES:
        for name, training, sample in their.module_samples(info, torch.float32):
            yield pytest.param(info.module_cls, training, sample, id=name)


@pytest.mark.parametrize(("theirs_class", "training", "sample"), list(module_cases()))
def test_modules(theirs_class: type[nn.Module], training: bool, sample: Any) -> None:
    their.compare_module(theirs_class, training, sample)


@pytest.mark.parametrize(
    "info",
    [m for m in their.MODULES if m.module_error_inputs_func],
    ids=lambda m: m.module_cls.__name__,
)
def test_module_error_inputs(info: Any) -> None:
    for wrong in their.module_refusals(info):
        their.refuse_module(info, wrong)
