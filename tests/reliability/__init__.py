"""The scoreboard of reliability: what is tried, how often, and what failed.

    python -m tests.reliability [--quick] [--only SECTION ...]

One module per section; tests/reliability/__main__.py lists them, runs each in processes of its own, writes
docs/reliability.jsonl and, from nothing else, docs/reliability.md.
"""
