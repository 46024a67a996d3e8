"""Suite quantize: floats to codes in one pass, against a copy of the same floats.

A pass reads 4 bytes of an element and writes 1; a copy reads 4 and writes 4. The range is known beforehand, as a fused
producer leaves it (`range` is the pass that finds it).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from subbyte import ops
from subbyte.bench import evidence, impls
from subbyte.bench.timing import Candidate, Case, Prepared, Trial, quickest
from subbyte.numerics import draw_stream
from subbyte.quantizers import AbsMax

MIB = 1 << 20
SIZES = (16, 256)  # MiB of float32
QUICK_SIZES = (1,)
COPY = "copy"
RANGE = "subbyte/range"
STOCHASTIC = "-stochastic"
OURS = tuple(f"subbyte/{r}{s}" for r in impls.RECIPES for s in ("", STOCHASTIC))


def cases(quick: bool) -> list[Case]:
    return [
        Case("quantize", f"{size} MiB", partial(_candidates, size * MIB)) for size in (QUICK_SIZES if quick else SIZES)
    ]


def _candidates(size: int) -> list[Candidate]:
    x = torch.randn(size // 4 // 1024, 1024)
    n = x.numel()
    found = [Candidate(name, partial(_ours, name, x), bytes=(4 + 1) * n) for name in OURS]
    found.append(Candidate(RANGE, partial(_range, x), bytes=4 * n))
    found.append(Candidate(COPY, partial(_copy, x), bytes=(4 + 4) * n))
    return found


def _ours(name: str, x: Tensor) -> Prepared:
    bits = impls.layer_scheme(name.removesuffix(STOCHASTIC)).weight.bits  # type: ignore[union-attr]
    stream = draw_stream(1)[0] if name.endswith(STOCHASTIC) else None
    quantizer = AbsMax(bits, rounding="nearest" if stream is None else "stochastic")
    r = ops.amax(x, ops.WHOLE)
    call = partial(ops.quantize, x, r, None, stream, bits, True)
    codes, ran, _ = evidence.watch(call)
    evidence.require_native(ran)
    q = quantizer(x, stream)
    assert torch.equal(q.codes, codes)
    return Prepared([Trial(call)], {"kernels": list(ran.values()), "error": evidence.require_error(q.dequantize(), x)})


def _range(x: Tensor) -> Prepared:
    _, ran, _ = evidence.watch(lambda: ops.amax(x, ops.WHOLE))
    evidence.require_native(ran)
    return Prepared([Trial(lambda: ops.amax(x, ops.WHOLE))], {"kernels": list(ran.values())})


def _copy(x: Tensor) -> Prepared:
    out = torch.empty_like(x)
    return Prepared([Trial(lambda: out.copy_(x))])


def copy_bandwidth(mebibytes: int) -> float:
    """Bytes a second, read and written, of a copy that large: what this machine's memory gives a pass."""
    x = torch.ones(mebibytes * MIB // 4)
    out = torch.empty_like(x)
    return 2 * 4 * x.numel() / quickest(lambda: out.copy_(x))
