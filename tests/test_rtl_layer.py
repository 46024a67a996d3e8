"""A whole quantized linear layer in RTL, forward and both gradients, bit for bit: int4 and int6.

    y = requantize(x w^T),  z = L1 norm of y                    the GEMM core, the L1 unit
    q = round(g 2^-n_o), stochastic, n_o by output channel      the quantizer: ShiftQuant with power-of-two scales
    dx = requantize(q w)       reduces over o: left shifts      the GEMM core, Horner
    dw = requantize(q^T x)     o is a row: a shift for each     the GEMM core, row shifts

Everything between is integers (integer.py); the only numbers that the host chooses are shifts, from amax and max |g|.
The same step at 64 x 64 x 256 runs in the hardware suite (tests/rtl).
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("amaranth", reason="the circuits need Amaranth: pip install 'subbyte[rtl]'")

from rtl_layer_step import GRADIENT, GROUPS, step
from subbyte import integer
from subbyte.numerics import IntFormat
from subbyte.rtl import simulate
from subbyte.rtl.gemmconfig import GemmConfig
from subbyte.rtl.spec import spec_for


@pytest.mark.parametrize("bits", [4, 6])
def test_layer_step_forward_and_both_gradients(bits):
    s = step(bits, batch=6, inputs=7, outputs=5)
    n, left = s.channel_shifts()
    assert int(left.max()) == GROUPS - 1  # the case is worth its name: every group range is used
    q, _ = simulate.quantize(s.g, n, s.fmt, GRADIENT)
    assert torch.equal(q, s.codes())

    config = GemmConfig(spec_for(bits, GROUPS, "horner", acc_bits=24), 2, 2, 8, 8, 8)
    for product, want in s.products(q).values():
        run = simulate.gemm(config, product)
        assert torch.equal(run.out, want)
        assert int(integer.shift_to_fit(torch.tensor(run.amax), s.fmt)) == product.rescale.shift

    y = s.products(q)["output"][1]
    z, _ = simulate.l1_normalize(y, s.fmt, IntFormat(8), fraction=5, max_n=8)
    assert torch.equal(z, integer.l1_normalize(y, [1], IntFormat(8), fraction=5).long())
