"""fastops: hand-written kernels for the layers of vision networks, drop-in for ``torch.nn``.

import fastops
fastops.convert(model)                       # swap every supported layer of a model, in place
conv = fastops.Conv2d(3, 64, 3)              # or use the layers,
y = fastops.functional.avg_pool2d(x, 2)      # or the functions
"""

import sys as _sys

__version__ = "0.1.0"

try:
    import torch as _torch  # noqa: F401  (first: its libraries are shared)

    import fastops._C  # noqa: F401
except ImportError as _error:
    # `python -m fastops.doctor` goes on, to report this instead of dying of it.
    if "fastops.doctor" not in _sys.orig_argv:
        raise ImportError(
            f"fastops in {__path__[0]} cannot be imported: {_error}. In a source tree, build it with "
            "`pip install -e . --no-build-isolation`; `python -m fastops.doctor` says more."
        ) from _error
else:
    from fastops import functional
    from fastops.backends import backend
    from fastops.convert import ConversionReport, convert, revert
    from fastops.explain import explain
    from fastops.fuse import fuse
    from fastops.modules import *  # noqa: F403
    from fastops.modules import __all__ as _modules
    from fastops.modules import convert_sync_batchnorm

    __all__ = [
        "ConversionReport",
        "backend",
        "convert",
        "convert_sync_batchnorm",
        "explain",
        "functional",
        "fuse",
        "revert",
        *_modules,
    ]
