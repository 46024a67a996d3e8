"""Suite memory: bytes that autograd keeps for backward, and the largest resident set of a process that trains.

Saved bytes are those of distinct storages that pass torch's saved-tensor hooks in a forward, without the parameters and
buffers, which are there anyway; codes that ours packs from a weight count. The resident set is a fresh process's.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor, nn

from subbyte.bench import evidence, impls, step
from subbyte.bench.timing import Refused, Skip

SAVED, PEAK = "saved for backward", "peak of the process"
IMPLS = ("torch-fp32", "torch-bf16", *(f"subbyte/{r}" for r in impls.RECIPES), *step.FUSED)
_STEPS = 3
_KIB = 1024  # ru_maxrss counts those on Linux


def tasks(quick: bool) -> tuple[str, ...]:
    """The networks of this suite, as suite step calls them."""
    return ("smallcnn b8",) if quick else (step.RESNET18,)


def case_names(quick: bool) -> list[str]:
    return [f"{task}, {what}" for task in tasks(quick) for what in (SAVED, PEAK)]


def measure(name: str, impl: str) -> dict[str, Any]:
    """The fields of the row of a case: its bytes and the proof. Skip or Refused as in every suite."""
    task, _, what = name.rpartition(", ")
    return _saved(task, impl) if what == SAVED else _peak_of_process(task, impl)


def _build(task_name: str, impl: str) -> tuple[step.Task, nn.Module, step.Batch, torch.dtype]:
    task = (step.TASKS | step.QUICK_TASKS)[task_name]
    torch.manual_seed(0)
    model, batch = task.make(), task.batch()
    if impl in impls.FLOATS:
        return task, model, batch, impls.FLOATS[impl]
    return task, step.prepare_ours(task, model, batch[0], impl, torch.contiguous_format), batch, torch.float32


def saved_bytes(model: nn.Module, x: Tensor, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of the storages that a forward of the model in training mode keeps for its backward."""
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


def _saved(task_name: str, impl: str) -> dict[str, Any]:
    task, model, (x, y), dtype = _build(task_name, impl)
    if impl in impls.FLOATS:
        return {"bytes": saved_bytes(model, x, dtype)}

    def run() -> Tensor:
        out = model(x)
        task.loss(out, y).backward()
        return out

    _, ran, counter = evidence.watch(run)
    evidence.require_native(ran)
    evidence.require_integer(counter, task.allowed)
    return {"bytes": saved_bytes(model, x, dtype), "kernels": sorted(set(ran.values()))}


def _peak_of_process(task_name: str, impl: str) -> dict[str, Any]:
    """In a fresh Python, so that neither what ran here before nor the allocator's reserves count."""
    done = subprocess.run(
        [sys.executable, "-m", "subbyte.bench.memory", task_name, impl], capture_output=True, text=True, check=False
    )
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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB


if __name__ == "__main__":
    main(*sys.argv[1:])
