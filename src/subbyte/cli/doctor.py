"""`subbyte doctor`: what this machine can run, and what will run."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import typer

from subbyte.cli.options import JsonOption, make_console

# The instruction sets that decide how fast small integers multiply.
_FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)
_EXTRAS = {
    "matplotlib": "plots",
    "tensorboard": "TensorBoard events",
    "PIL": "image files (imagefolder, predict)",
    "torchao": "its int8 training, to compare with (bench)",
    "triton": "GPU kernels",
}


def command(as_json: JsonOption = False) -> None:
    """Show what this machine can run and will run: versions, CPU, threads, compiler, backends, GPUs, extras."""
    import json

    from rich.table import Table

    sections = {
        "versions": _versions(),
        "CPU": _cpu(),
        "OpenMP": _openmp(),
        "compiler": _compiler(),
        "GPU": _gpus(),
        "backends": _backends(),
        "CPU kernels": _kernels(),
        "ops": _ops(),
        "extras": _extras(),
    }
    if as_json:
        typer.echo(json.dumps(sections, indent=2))
        return
    table = Table(show_header=False)
    for title, rows in sections.items():
        for i, (name, value) in enumerate(rows.items()):
            table.add_row(title if i == 0 else "", name, str(value))
        table.add_section()
    make_console().print(table)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    import torch

    names = ("subbyte", "torch", "numpy", "safetensors", "typer", "rich")
    found = {name: version(name) for name in names}
    # its metadata may leave out for which CUDA it was built
    return {"python": platform.python_version(), **found, "torch": str(torch.__version__)}


def _cpu() -> dict[str, str]:
    import torch

    from subbyte import provenance

    flags = provenance.cpu_flags()
    return {
        "machine": platform.machine(),
        "name": provenance.cpu_name(),
        "instruction sets": " ".join(flag for flag in _FLAGS if flag in flags) or "unknown",
        "torch uses": torch.backends.cpu.get_cpu_capability(),
        "threads": f"{torch.get_num_threads()} in an op, {torch.get_num_interop_threads()} between ops",
    }


def _openmp() -> dict[str, str]:
    import torch

    torch.ones(1 << 16).sum()  # the pool starts with the first parallel op
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return {"runtimes": "unknown on this system"}
    files = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "omp" in line.rpartition("/")[2]}
    libraries = sorted(f for f in files if Path(f).name.startswith(("libgomp", "libomp", "libiomp")))
    rows = {Path(library).name: library for library in libraries} or {"runtimes": "none loaded"}
    if len(libraries) > 1:
        rows["warning"] = "two runtimes in one process compete for the cores; keep the one that torch brings"
    return rows


def _compiler() -> dict[str, str]:
    import os
    import shutil
    import subprocess

    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        path = shutil.which(name)
        if path:
            answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            return {name: (answer.stdout or answer.stderr).partition("\n")[0]}
    return {"C++": "none found; set CXX or install one (g++ or clang++) to build the CPU kernels"}


def _gpus() -> dict[str, str]:
    import torch

    if not torch.cuda.is_available():
        return {"CUDA": "none that this torch can use"}
    rows = {}
    for i in range(torch.cuda.device_count()):
        gpu: Any = torch.cuda.get_device_properties(i)
        rows[f"cuda:{i}"] = (
            f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability {gpu.major}.{gpu.minor}"
        )
    return rows


def _backends() -> dict[str, str]:
    from subbyte import backends

    rows = {name: module.available() or "available" for name, module in backends.discover().items()}
    return {name: f"not available: {why}" if why != "available" else why for name, why in rows.items()} | {
        "reference": "available"
    }


def _kernels() -> dict[str, str]:
    from subbyte.backends import _native

    if _native.lib is None:
        return {"library": _native.reason}
    table = _native.kernels()
    return {
        "ISAs here": " ".join(_native.isas()),
        "ISAs compiled": " ".join(sorted({isa for _, _, isa in table})),
        **{op: _kernel_of(op, table) for op in sorted({op for op, _, _ in table})},
    }


def _kernel_of(op: str, table: list[tuple[str, str, str]]) -> str:
    """The kernel that a call of `op` takes now, or the ISAs that it has kernels for where none of them is here."""
    from subbyte.backends import _native

    try:
        return _native.best_kernel(op)
    except KeyError:
        return f"none here; needs {' or '.join(sorted(isa for row_op, _, isa in table if row_op == op))}"


def _ops() -> dict[str, str]:
    from subbyte import backends, ops

    return {
        name: ", else ".join([*(m.NAME for m in backends.usable() if hasattr(m, name)), "reference"])
        for name in sorted(ops.registered)
    }


def _extras() -> dict[str, str]:
    from importlib.util import find_spec

    return {name: f"{'installed' if find_spec(name) else 'missing'}: {use}" for name, use in _EXTRAS.items()}
