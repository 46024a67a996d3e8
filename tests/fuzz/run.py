"""The loop of the fuzzer: draw a case, run it on the reference and on each ISA, compare, count."""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import multiprocessing
import os
import secrets
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fuzz.cases import arguments
from fuzz.draw import Draw
from subbyte import ops
from subbyte.backends import _native, cpu

PROGRESS_SECONDS = 20
_NAN = 0x7FF8 << 48  # the one that stands for all


class Finding(AssertionError):
    """A kernel and its reference differ; the message says where, and how to see it again."""


@dataclass
class Tally:
    """What ran: cases by op, and runs by kernel ("op: not covered" where the wrapper left a case to the reference)."""

    cases: Counter = field(default_factory=Counter)
    kernels: Counter = field(default_factory=Counter)


def fuzzed_ops() -> list[str]:
    """The ops that the CPU backend has a kernel for."""
    return sorted(name for name in ops.registered if hasattr(cpu, name))


def outcome(op: str, args: tuple, backend: str) -> list[Tensor] | Exception:
    """The results of a call, or what it raised."""
    try:
        with ops.use_backend(backend):
            out = getattr(torch.ops.subbyte, op).default(*args)
    except Exception as error:  # whatever it is, both sides have to agree on it
        return error
    return list(out) if isinstance(out, (tuple, list)) else [out]


def difference(got: list[Tensor] | Exception, want: list[Tensor] | Exception) -> str:
    """ "" for equal bits (any NaN equals any other), shapes, dtypes and strides; else what differs first."""
    if isinstance(got, Exception) or isinstance(want, Exception):
        if isinstance(got, Exception) and isinstance(want, Exception):
            return ""
        return f"kernel: {_shown(got)}; reference: {_shown(want)}"
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return f"result {i}: {a.dtype} {tuple(a.shape)} for {b.dtype} {tuple(b.shape)}"
        used = [j for j, n in enumerate(a.shape) if n > 1] if a.numel() else []
        if [a.stride(j) for j in used] != [b.stride(j) for j in used]:
            return f"result {i}: strides {a.stride()} for {b.stride()}"
        x, y = (bits(t) for t in (a, b))
        if not torch.equal(x, y):
            at = (x != y).nonzero()[0].tolist()
            return f"result {i}: {int((x != y).sum())} of {x.numel()} differ; at {at} {a[tuple(at)]} for {b[tuple(at)]}"
    return ""


def _shown(result: list[Tensor] | Exception) -> str:
    return repr(result) if isinstance(result, Exception) else "a result"


def bits(t: Tensor) -> Tensor:
    """Floats as integers, so that -0 differs from 0. Every NaN as one."""
    if not t.is_floating_point():
        return t
    wide = t.to(torch.float64, memory_format=torch.contiguous_format)
    return torch.where(wide.isnan(), _NAN, wide.view(torch.int64))


def described(args: tuple) -> str:
    return ", ".join(
        f"{str(a.dtype)[6:]}{list(a.shape)} strides {list(a.stride())} offset {a.storage_offset()}"
        if isinstance(a, Tensor)
        else repr(a)
        for a in args
    )


def again(seed: int, case: int, only: str | None) -> str:
    """The command that runs a case again."""
    return f"python tests/fuzz --seed {seed} --case {case}" + (f" --op {only}" if only else "")


def run_case(seed: int, case: int, tally: Tally, only: str | None = None) -> None:
    """One case on the reference and on every ISA. Finding where they differ, or where an argument was written to."""
    d = Draw(seed, case)
    op = only or d.of(fuzzed_ops())
    threads = d.of((1, 2, 3))
    args = arguments(op, d)
    before = [a.clone() if isinstance(a, Tensor) else a for a in args]
    torch.set_num_threads(threads)
    want = outcome(op, args, "reference")
    tally.cases[op] += 1
    for isa in _native.isas():
        with _native.forced_isa(isa):
            got = outcome(op, args, "cpu")
        if isinstance(got, ops.BackendError):
            tally.kernels[f"{op}: not covered"] += 1
            continue
        wrong = difference(got, want)
        tensors = [(a, b) for a, b in zip(args, before) if isinstance(a, Tensor)]
        if not wrong and any(not torch.equal(bits(a), bits(b)) for a, b in tensors):
            wrong = "an argument was written to"
        if wrong:
            call = f"{op}({described(args)})"
            raise Finding(f"{op} on {isa}, {threads} threads: {wrong}\n  {call}\n  again: {again(seed, case, only)}")
        tally.kernels[ops.last_kernel[op]] += 1


def fuzz(seed: int, seconds: float, only: str | None, first: int, last: int | None, current: Any) -> int:
    """Cases first, first + 1, ... until the time is over, or `last`; 1 for a finding. `current` is told each number."""
    tally = Tally()
    began = said = time.monotonic()
    for case in itertools.count(first):
        current.value = case
        try:
            run_case(seed, case, tally, only)
        except Finding as finding:
            print(f"FOUND after {time.monotonic() - began:.0f} s: {finding}", flush=True)
            return 1
        now = time.monotonic()
        if case == last or now - began >= seconds:
            break
        if now - said >= PROGRESS_SECONDS:
            said = now
            print(f"{now - began:.0f} s: {sum(tally.cases.values())} cases", flush=True)
    for name, runs in sorted(tally.kernels.items()):
        print(f"  {name:<44} {runs:>7} runs")
    here = _native.isas()
    never = [kernel for _, kernel, isa in _native.kernels() if isa in here and kernel not in tally.kernels]
    if never and only is None:
        print(f"  never ran: {', '.join(never)}")
    print(f"{sum(tally.cases.values())} cases, {now - began:.0f} s: no difference", flush=True)
    return 0


def _child(*arguments: Any) -> None:
    faulthandler.enable()
    sys.exit(fuzz(*arguments))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description="Fuzz every op on every ISA.")
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("FUZZ_SECONDS", "120")))
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    parser.add_argument("--case", type=int, default=None, help="run this case alone")
    parser.add_argument("--op", choices=fuzzed_ops(), default=None, help="this op alone")
    options = parser.parse_args(argv)
    if _native.lib is None:
        print(f"nothing to fuzz: {_native.reason}")
        return 1
    seed = secrets.randbits(32) if options.seed is None else options.seed
    print(f"seed {seed}; ISAs: {', '.join(_native.isas())}; {len(fuzzed_ops())} ops", flush=True)
    # In a process of its own: a kernel that crashes must not take with it which case that was.
    spawn = multiprocessing.get_context("spawn")
    current = spawn.Value("q", 0)
    child = spawn.Process(
        target=_child, args=(seed, options.seconds, options.op, options.case or 0, options.case, current)
    )
    child.start()
    child.join()
    if child.exitcode not in (0, 1):
        print(f"FOUND: the process ended with {child.exitcode}\n  again: {again(seed, current.value, options.op)}")
    return int(child.exitcode != 0)
