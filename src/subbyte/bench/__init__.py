"""Benchmarks: integer kernels, layers and training steps against torch's own and torchao's, in one process, in turns.

    timing      implementations, and how they take turns
    evidence    the proof that an integer implementation is one
    impls       who is compared
    gemm, layers, quantize, step, memory, crossover    the suites
    rows        results/bench.jsonl        targets    what must be reached, and the verdict
    runner      cases -> rows              tables, plots    rows -> pages and pictures

`subbyte bench` is its command line.
"""

from subbyte.bench.rows import Row, append, read
from subbyte.bench.runner import ALL, SUITES, Options, run
from subbyte.bench.targets import Goal, Verdict, goals, judge

__all__ = ["ALL", "SUITES", "Goal", "Options", "Row", "Verdict", "append", "goals", "judge", "read", "run"]
