"""The table of kernels as tests use it: which kernel has to run, which ISAs this CPU has, and what did run."""

from __future__ import annotations

import functools
from pathlib import Path

from subbyte.backends import _native

_FLAGS = {
    "portable": (),
    "neon": ("asimd",),
    "neondot": ("asimddp",),
    "avx2": ("avx2", "bmi2"),
    "avxvnni": ("avx2", "bmi2", "avx_vnni"),
    "avx512vnni": ("avx2", "bmi2", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
}
"""ISA -> the flags in /proc/cpuinfo that it takes: a second opinion on the library's own detection."""

EVERY_ISA = tuple(_FLAGS)


def isas_of_cpu() -> tuple[str, ...]:
    """The ISAs that the system says this CPU has, plainest first."""
    flags: set[str] = set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags |= set(value.split())
    return tuple(isa for isa, needed in _FLAGS.items() if flags.issuperset(needed))


@functools.cache  # asked before every comparison, and a library on an emulator takes long for its table
def kernel_for(op: str, isa: str) -> str:
    """The kernel of `op` that has to run where `isa` is forced: its own, or that of the next lower ISA with one."""
    kernels = {(row_op, row_isa): kernel for row_op, kernel, row_isa in _native.kernels()}
    here = _native.isas()
    return next(kernels[op, name] for name in reversed(here[: here.index(isa) + 1]) if (op, name) in kernels)


def isas_of(kernels: set[str]) -> list[str]:
    """The ISAs that these kernels are written for, plainest first."""
    found = {isa for _, kernel, isa in _native.kernels() if kernel in kernels}
    return [isa for isa in EVERY_ISA if isa in found]
