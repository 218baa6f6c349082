"""The scoreboard of reliability: what is tried, how often, and what failed.

    python -m tests.reliability [--quick] [--only SECTION[:PROCESS] ...] [--jobs N]

One module per section; tests/reliability/__main__.py runs each in processes of its own, writes
docs/reliability.jsonl and, from nothing else, docs/reliability.md.
"""

SECTIONS = (
    "samples",
    "bad_input",
    "surface",
    "fuzz",
    "numerics",
    "determinism",
    "concurrency",
    "large",
    "sanitizers",
    "supply",
)
