"""A fuzzer of the kernels: every op, every ISA of this machine, equal to the reference bit for bit.

    python tests/fuzz [--seconds 120] [--seed N] [--op NAME]     fuzz, and stop at the first failure
    python tests/fuzz --seed N --case K                          run one case again

A case is (seed, number): it draws an op, its arguments and a number of threads. Exit code 1 for a failure.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.run import main

if __name__ == "__main__":
    sys.exit(main())
