"""Suite memory: bytes that autograd keeps for backward, and the largest resident set of a process that trains.

Saved bytes are those of distinct storages that pass torch's saved-tensor hooks in a forward; and once more without the
parameters and buffers, which are there anyway (codes that ours packs from a weight count in both). The resident set is
that of a fresh process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subbyte.bench import evidence, impls, step
from subbyte.bench.timing import Refused, Skip

SAVED, ADDED, PEAK = "saved for backward", "saved besides parameters", "peak of the process"
IMPLS = ("torch-fp32", "torch-bf16", *(f"subbyte/{r}" for r in impls.RECIPES), *step.FUSED, impls.INTEGER_ONLY)
_STEPS = 3
_KIB = 1024
_CHILD = "import sys; from subbyte.bench.memory import main; main(*sys.argv[1:])"
_STATUS = Path("/proc/self/status")


def tasks(quick: bool) -> tuple[str, ...]:
    """The networks of this suite, as suite step calls them."""
    return ("smallcnn b8",) if quick else (step.RESNET18,)


def case_names(quick: bool) -> list[str]:
    return [f"{task}, {what}" for task in tasks(quick) for what in (SAVED, ADDED, PEAK)]


def measure(name: str, impl: str) -> dict[str, Any]:
    """The fields of the row of a case: its bytes and the proof. Skip or Refused as in every suite."""
    task, _, what = name.rpartition(", ")
    return _peak_of_process(task, impl) if what == PEAK else _saved(task, impl, with_parameters=what == SAVED)


def _build(task_name: str, impl: str) -> tuple[step.Task, nn.Module, step.Batch, torch.dtype]:
    task = (step.TASKS | step.QUICK_TASKS)[task_name]
    torch.manual_seed(0)
    model, batch = task.make(), task.batch()
    if impl in impls.FLOATS:
        return task, model, batch, impls.FLOATS[impl]
    return task, step.prepare_ours(task, model, batch[0], impl, torch.contiguous_format), batch, torch.float32


def saved_bytes(model: nn.Module, x: Tensor, dtype: torch.dtype = torch.float32, with_parameters: bool = True) -> int:
    """Bytes of the storages that a forward of the model in training mode keeps for its backward, each counted once."""
    own = set()
    if not with_parameters:
        own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), impls.autocast(dtype):
        out = model(x)
    total = sum(kept.values())
    del out  # only now: an address that is given back may be given out again
    return total


def _saved(task_name: str, impl: str, with_parameters: bool) -> dict[str, Any]:
    task, model, (x, y), dtype = _build(task_name, impl)
    if impl in impls.FLOATS:
        return {"bytes": saved_bytes(model, x, dtype, with_parameters)}

    def run() -> Tensor:
        out = model(x)
        task.loss(out, y).backward()
        return out

    _, ran, counter = evidence.watch(run)
    evidence.require_native(ran)
    evidence.require_integer(counter, task.allowed)
    return {"bytes": saved_bytes(model, x, dtype, with_parameters), "kernels": sorted(set(ran.values()))}


def _peak_of_process(task_name: str, impl: str) -> dict[str, Any]:
    """In a fresh Python, so that neither what ran here before nor the allocator's reserves count."""
    if not _STATUS.exists():
        raise Skip(f"the peak of a process is read from {_STATUS}, which this system does not have")
    done = subprocess.run([sys.executable, "-c", _CHILD, task_name, impl], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        kind = Skip if f"{Skip.__name__}:" in last else Refused
        raise kind(last.partition(": ")[2] or last)
    before, peak = (int(word) for word in done.stdout.split()[-2:])
    return {"bytes": peak, "layout": f"{before / (1 << 20):.0f} MiB before the first step"}


def main(task_name: str, impl: str) -> None:
    """Print the largest resident set of this process in bytes, before it trains a few steps and after."""
    task, model, batch, dtype = _build(task_name, impl)
    run = step.train_step(task, model, batch, dtype)
    before = _largest_resident_set()
    for _ in range(_STEPS):
        run()
    print(before, _largest_resident_set())


def _largest_resident_set() -> int:
    """Of this program alone, in bytes: ru_maxrss would begin with that of the process that started it."""
    return next(int(line.split()[1]) * _KIB for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
