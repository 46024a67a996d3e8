"""A quantized linear layer step of a real size, forward and both gradients, on an 8 x 8 core in Verilator: int4, int6.

Bit for bit against the reference of rtl_layer_step.py, and at least 85 % of R C multiply-accumulates a cycle. The small
step that every test run simulates, with quantizer and L1 norm, is tests/test_rtl_layer.py.
"""

from __future__ import annotations

import pytest
import torch

from rtl_layer_step import GROUPS, step
from subbyte.rtl import generate, testbench
from subbyte.rtl.gemm import GemmCore
from subbyte.rtl.gemmconfig import GemmConfig
from subbyte.rtl.spec import spec_for

TARGET = 0.85


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 6])
def test_layer_step_of_a_real_size(bits, tmp_path):
    s = step(bits, batch=64, inputs=256, outputs=64)
    products = s.products(s.codes())
    config = GemmConfig(spec_for(bits, GROUPS, "horner"), 8, 8, 256, 256, 64, post_lanes=2)
    jobs = [testbench.Job(name, product, False) for name, (product, _) in products.items()]
    for name, text in testbench.files(config, jobs, generate.TOP).items():
        (tmp_path / name).write_text(text)
    (tmp_path / f"{generate.TOP}.v").write_text(generate.verilog(GemmCore(config)))
    for (product, want), cycles in zip(products.values(), generate.run_verilator(tmp_path), strict=True):
        assert torch.equal(product.expected(), want)
        share = config.ideal_cycles(*product.sizes) / cycles
        print(f"int{bits} {product.sizes}: {cycles} cycles, {share:.1%} of the ideal")
        assert share >= TARGET
