"""The raw ops and their derivatives, one file per family.

A raw op takes tensors and a *spec*: a hashable tuple of normalised options. It derives the output's
shape and the kernel's params struct (cached per shapes, dtype and layout), allocates the output, and
hands both to a backend. The autograd Functions of a family are each other's adjoints, so gradients of
any order fall out. Functions' ``forward`` is the raw op itself: ``call`` skips autograd where no
gradient is asked for.
"""
