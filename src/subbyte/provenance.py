"""Where a measured figure comes from: the processor, the commit, the versions. No names of hosts or users."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]


def cpu_name() -> str:
    """What the system calls this processor."""
    return next(_cpuinfo("model name"), platform.processor() or "unknown")


def cpu_flags() -> set[str]:
    """The instruction sets that the system names."""
    return set(next(_cpuinfo("flags"), next(_cpuinfo("Features"), "")).split())


def _cpuinfo(key: str) -> Iterator[str]:
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == key:
            yield value.strip()


def machine(threads: int) -> str:
    """The machine of a row in results/: processor, threads, versions."""
    import torch

    return f"{cpu_name()}, {threads} threads, torch {torch.__version__}, Python {platform.python_version()}"


def commit() -> str:
    """The short commit of the checkout that this package lies in, "-dirty" where src or csrc differ from it.

    Of an installed package: its version.
    """
    short = _git("rev-parse", "--short", "HEAD") if (_CHECKOUT / ".git").exists() else ""
    if not short:
        from importlib.metadata import version

        return f"version {version('subbyte')}"
    return short + ("-dirty" if _git("status", "--porcelain", "src", "csrc") else "")


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=_CHECKOUT, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return ""
    return done.stdout.strip()
