"""Differential fuzzing: random calls, each on fastops' backends and on torch.

call.py      what a call is, and the tensors that it is made with
strategies.py   hypothesis draws calls of an op
compare.py   what must hold of one: the same values, gradients, layouts or errors as torch
past.py      calls that have failed once: they are asked first, always
"""
