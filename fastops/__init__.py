"""fastops: hand-written kernels for the layers of vision networks, drop-in for ``torch.nn``.

import fastops
fastops.convert(model)                       # swap every supported layer of a model, in place
conv = fastops.Conv2d(3, 64, 3)              # or use the layers,
y = fastops.functional.avg_pool2d(x, 2)      # or the functions
"""

from fastops import functional
from fastops.backends import backend, explain
from fastops.convert import ConversionReport, convert, revert
from fastops.modules import *  # noqa: F403
from fastops.modules import __all__ as _modules

__version__ = "0.1.0"
__all__ = ["ConversionReport", "backend", "convert", "explain", "functional", "revert", *_modules]
