"""The one table of kernels: what it holds, that every row runs and equals the reference, and what the CPU has.

A row without a case here is a failure, so a kernel cannot be added without a test that runs it. What each ISA computes
on many more shapes is in test_backend_cpu_*.py.
"""

from __future__ import annotations

import doctest
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

import chain_calls
import norm_layer_calls
import op_calls
import token_calls
from kernel_table import EVERY_ISA, isas_of_cpu, kernel_for
from products_for_tests import FEW_BITS as FEW_BITS_OF
from subbyte import ops
from subbyte.backends import _native, cpu
from subbyte.numerics import IntFormat

pytestmark = pytest.mark.skipif(bool(cpu.available()), reason=cpu.available())

PRODUCTS = ("gemm", "conv2d", "conv2d_grad_input", "conv2d_grad_weight")
FEW_BITS = tuple(FEW_BITS_OF.values())
WINOGRAD = ("conv2d_winograd", "conv2d_winograd_grad_input")
PLANES = ("conv2d_planes", "conv2d_planes_grad_input", "conv2d_planes_grad_weight")
ELEMENTS = ("amax", "quantize_nearest", "quantize_sr", "norm_stats", "norm_apply", "norm_grad_stats", "norm_grad_apply")
PACKS = ("pack_codes", "unpack_codes", *token_calls.CALLS)
CHAINS = tuple(chain_calls.CALLS)
NORMS = ("norm_stats_uncentred", *norm_layer_calls.CALLS)
INTEGERS = ("integer_pass", "int_sgd")
OWN = {
    "portable": {*PRODUCTS, *PLANES, *ELEMENTS, *NORMS, *CHAINS, *PACKS, *INTEGERS, "narrow_codes"},
    "neon": {*PRODUCTS, *PLANES, *ELEMENTS, *NORMS, *CHAINS, "quantize_blocks"},
    "neondot": {*PRODUCTS, *WINOGRAD},
    "avx2": {*PRODUCTS, *FEW_BITS, *PLANES, *ELEMENTS, *NORMS, *CHAINS, *INTEGERS, *PACKS},
    "avxvnni": {*PRODUCTS, *WINOGRAD},
    "avx512vnni": {*INTEGERS, *PRODUCTS, *WINOGRAD, *PLANES, *ELEMENTS, *NORMS, *CHAINS, *PACKS},
}
"""ISA -> the ops that it has a kernel of its own for; the others it takes from the next lower ISA."""

S8, U8 = IntFormat(8), IntFormat(8, False)
LENGTH = 3 * 64 + 5  # bytes: three of the widest vectors, and a rest


def extremes(fmt: IntFormat, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Codes that are all at the ends of the format: runs of the same end, which overflow, and mixtures."""
    ends = torch.tensor([fmt.qmin, fmt.qmax])
    flat = ends[torch.randint(2, (torch.Size(shape).numel(),), generator=torch.Generator().manual_seed(seed))]
    flat[: len(flat) // 3] = fmt.qmax
    return flat.to(fmt.dtype).view(shape)


def operand(codes: Tensor, fmt: IntFormat) -> tuple:
    return codes, None, fmt.bits, fmt.signed, 0


def x_of(*shape: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    x.view(-1)[::7] = 3e38
    return x


FULL = ((S8, S8), (U8, S8), (S8, U8))
FEW = (
    *((IntFormat(4), IntFormat(4)), (IntFormat(6), IntFormat(6)), (IntFormat(4, False), IntFormat(6))),
    *((S8, IntFormat(6)), (IntFormat(5, False), S8)),  # two and four steps in 16 bits
)


def convolution(part: int, channels: int, outputs: int, groups: int, formats=FULL) -> list[tuple]:
    """part: 0 the output, 1 grad_input, 2 grad_weight."""
    calls = []
    for left, right in formats:
        x, w = extremes(left, (2, channels, 7, 9)), extremes(right, (outputs, channels // groups, 3, 3), 1)
        g, window = extremes(left, (2, outputs, 7, 9), 2), ([1, 1], [1, 1], [1, 1], groups)
        one = torch.full((1, 1, 1, 1), 0.7)
        calls.append(
            (
                (*operand(x, left), *operand(w, right), one, None, *window),
                (*operand(g, left), *operand(w, right), one, list(x.shape), *window),
                (*operand(g, left), *operand(extremes(right, x.shape), right), one, list(w.shape), *window),
            )[part]
        )
    return calls


def few_bits(part: int) -> list[tuple]:
    """Calls that Winograd's form takes: 4 bits, channels_last, large enough. part: 0 the output, 1 grad_input."""
    s4, u4, one = IntFormat(4), IntFormat(4, False), torch.full((1, 1, 1, 1), 0.7)
    w, window, calls = operand(extremes(s4, (64, 64, 3, 3), 1), s4), ([1, 1], [1, 1], [1, 1], 1), []
    for left in (s4, u4):
        x = extremes(left, (30, 64, 7, 9)).contiguous(memory_format=torch.channels_last)
        calls.append((*operand(x, left), *w, one, *((None,) if part == 0 else (list(x.shape),)), *window))
    return calls


def norm(name: str) -> list[tuple]:
    q = extremes(S8, (LENGTH, 3 * LENGTH))
    total, gamma = q.long().sum(1, keepdim=True), extremes(S8, (1, q.shape[1]), 1)
    floats = [x_of(len(q), 1).clamp(-1, 1) for _ in range(4)]
    return {
        "norm_stats": [(q, [1], False), (q.view(torch.uint8), [0], True)],
        "norm_stats_uncentred": [(q, [dim], l2) for dim in (0, 1) for l2 in (False, True)],
        "norm_apply": [(q, total, floats[0] * 100, q.shape[1], 6, gamma, floats[1], floats[2])],
        "norm_grad_stats": [(q, q.flip(0), gamma, [1], [0])],
        "norm_grad_apply": [(q, q.flip(0), gamma, *floats, l2) for l2 in (False, True)],
    }[name]


def matrices(formats=(*FULL, (U8, U8))) -> list[tuple]:
    return [
        (*operand(extremes(fa, (19, LENGTH)), fa), *operand(extremes(fb, (LENGTH, 67), 1), fb)) for fa, fb in formats
    ]


def quantize(stream: Tensor | None) -> list[tuple]:
    return [
        (x_of(3, LENGTH), torch.tensor([[1.5]]), None, stream, bits, signed) for bits, signed in ((4, True), (8, False))
    ]


CASES = {
    "amax": lambda: ("amax", [(x_of(3, LENGTH), axis) for axis in (-1, 0, 1)]),
    "quantize_nearest": lambda: ("quantize", quantize(None)),
    "quantize_sr": lambda: ("quantize", quantize(torch.tensor(-5))),
    "pack_codes": lambda: ("pack_codes", [(extremes(S8, (LENGTH,)), bits) for bits in range(2, 9)]),
    "unpack_codes": lambda: (
        "unpack_codes",
        [(extremes(U8, (LENGTH,)), LENGTH * 8 // bits, bits, signed) for bits in range(2, 9) for signed in (0, 1)],
    ),
    "narrow_codes": lambda: ("narrow_codes", [(extremes(S8, (LENGTH,)), 8 - bits, bits, True) for bits in range(2, 8)]),
    "gemm": lambda: ("int_matmul", matrices()),
    "conv2d": lambda: ("scaled_conv2d", convolution(0, 37, 35, 1)),
    "conv2d_grad_input": lambda: ("scaled_conv2d_grad_input", convolution(1, 37, 35, 1)),
    "conv2d_grad_weight": lambda: ("scaled_conv2d_grad_weight", convolution(2, 37, 35, 1)),
    "gemm_few_bits": lambda: ("int_matmul", matrices(FEW)),
    "conv2d_few_bits": lambda: ("scaled_conv2d", convolution(0, 37, 35, 1, FEW)),
    "conv2d_few_bits_grad_input": lambda: ("scaled_conv2d_grad_input", convolution(1, 37, 35, 1, FEW)),
    "conv2d_few_bits_grad_weight": lambda: ("scaled_conv2d_grad_weight", convolution(2, 37, 35, 1, FEW)),
    "conv2d_winograd": lambda: ("scaled_conv2d", few_bits(0)),
    "conv2d_winograd_grad_input": lambda: ("scaled_conv2d_grad_input", few_bits(1)),
    "conv2d_planes": lambda: ("scaled_conv2d", convolution(0, 6, 6, 6)),
    "conv2d_planes_grad_input": lambda: ("scaled_conv2d_grad_input", convolution(1, 6, 6, 6)),
    "conv2d_planes_grad_weight": lambda: ("scaled_conv2d_grad_weight", convolution(2, 6, 6, 6)),
    **{name: lambda name=name: (name, norm(name)) for name in ELEMENTS[3:]},
    **{name: lambda name=name: (name, chain_calls.CALLS[name](3)) for name in CHAINS},
    **{name: lambda name=name: (name, token_calls.CALLS[name](3)) for name in token_calls.CALLS},
    **{name: lambda name=name: (name, norm_layer_calls.CALLS[name](3)) for name in NORMS[1:]},
    "norm_stats_uncentred": lambda: ("norm_stats_uncentred", norm("norm_stats_uncentred")),
    "integer_pass": lambda: ("int_quantize", op_calls.int_quantize(3)),  # of the ops that share the table
    "int_sgd": lambda: ("int_sgd", op_calls.int_sgd(3)),
}
"""Op of the table -> the registered op that runs it, and its arguments."""


@pytest.mark.parametrize("row", _native.kernels(), ids=lambda row: row[1])
def test_every_row_runs_and_equals_the_reference(row):
    op, kernel, isa = row
    assert op in CASES, f"{kernel} has no case: add one for {op}"
    if isa not in _native.isas():
        pytest.skip(f"{isa} is not on this machine")
    name, calls = CASES[op]()
    function = getattr(torch.ops.subbyte, name).default
    for arguments in calls:
        with _native.forced_isa(isa), ops.use_backend("cpu"):
            got = function(*arguments)
        assert ops.last_kernel[name] == kernel
        with ops.use_backend("reference"):
            want = function(*arguments)
        for ours, theirs in zip(*((t,) if isinstance(t, Tensor) else t for t in (got, want)), strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours.view(torch.int32) if ours.is_floating_point() else ours,
                               theirs.view(torch.int32) if theirs.is_floating_point() else theirs)  # fmt: skip


def test_the_best_kernel_is_that_of_the_highest_isa():
    for isa in _native.isas():
        with _native.forced_isa(isa):
            for op in OWN["portable"]:
                assert _native.best_kernel(op) == kernel_for(op, isa)
    with pytest.raises(KeyError):
        _native.best_kernel("gemv")


def test_each_isa_has_its_kernels():
    """Of the ISAs that this library was compiled for; names are unique and say the ISA."""
    rows = _native.kernels()
    for isa in {isa for _, _, isa in rows}:
        assert {op for op, _, row_isa in rows if row_isa == isa} == OWN[isa]
    names = [kernel for _, kernel, _ in rows]
    assert len(set(names)) == len(names)
    assert all(kernel == f"{op}{kernel[len(op) : -len(isa)]}{isa}" for op, kernel, isa in rows)


def test_the_library_finds_what_the_cpu_has(request):
    if request.config.getoption("runner", None):
        pytest.skip("the kernels run on another machine")
    assert _native.isas() == isas_of_cpu()


def test_isas_are_in_the_order_of_preference():
    assert [isa for isa in EVERY_ISA if isa in _native.isas()] == list(_native.isas())


def test_the_page_on_kernels_names_every_isa_and_its_examples_run():
    page = Path(__file__).parents[1] / "docs" / "kernels.md"
    assert all(f"| `{isa}` |" in page.read_text() for isa in EVERY_ISA)
    result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted > 2
    assert result.failed == 0


def code_of(symbol: str) -> list[str]:
    """The disassembly of the functions of the built library whose name contains `symbol`."""
    try:
        done = subprocess.run(
            ["objdump", "-dC", "--no-show-raw-insn", str(_native.PATH)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("objdump is not here")
    inside, lines = False, []
    for line in done.stdout.splitlines():
        if line.endswith(">:"):
            inside = symbol in line
        elif inside and line.strip():
            lines.append(line)
    return lines


def test_avxvnni_is_256_bits_in_the_short_encoding(request):
    """No CPU at hand may have it, but its code can be read: VEX words of vpdpbusd, and nothing of AVX-512."""
    if request.config.getoption("runner", None) or "avxvnni" not in {isa for _, _, isa in _native.kernels()}:
        pytest.skip("not this library")
    code = code_of("sb::avxvnni::")
    assert any("{vex} vpdpbusd" in line for line in code)
    assert not any(register in line for line in code for register in ("%zmm", "%k1", "%ymm16", "%xmm16"))
