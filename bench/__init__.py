"""The benchmark: fastops beside torch, row by row. ``python -m bench --help``."""
