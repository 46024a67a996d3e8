"""Every quantizer in every role: still the formula on dequantized operands, and the record says how it was computed."""

import pytest
import torch
import torch.nn.functional as F

import subbyte as sb
from models_for_tests import INTEGER, assert_product, product_model, ran, relative, scheme_of
from subbyte import AbsMax, GroupOracle, LayerScheme, PerChannel, ShiftQuant
from subbyte.autograd import channel_sum
from subbyte.numerics import draw_stream

PLAIN = AbsMax(8)
STOCHASTIC = dict(rounding="stochastic")

E, F_, I = "emulated", "float", "integer"  # noqa: E741
CASES = {  # roles -> (output, grad_input, grad_weight) of a Linear
    "everything AbsMax": (scheme_of(PLAIN), (I, I, I)),
    "PSQ: one scale for each sample": (scheme_of(PLAIN, gradient=PerChannel(8, axis=0, **STOCHASTIC)), (I, I, E)),
    "one scale for each gradient channel": (scheme_of(PLAIN, gradient=PerChannel(8, axis=1)), (I, E, I)),
    "GroupOracle": (scheme_of(PLAIN, gradient=GroupOracle(8, groups=3, **STOCHASTIC)), (I, E, I)),
    "ShiftQuant": (scheme_of(PLAIN, gradient=ShiftQuant(4, groups=9, **STOCHASTIC)), (I, I, I)),
    "ShiftQuant, chosen": (scheme_of(PLAIN, gradient=ShiftQuant(4, groups=3, exponents="chosen")), (I, I, I)),
    "ShiftQuant along samples": (scheme_of(PLAIN, gradient=ShiftQuant(4, groups=9, axis=0)), (I, I, I)),
    "ShiftQuant activations": (scheme_of(PLAIN, activation=ShiftQuant(4, groups=4)), (I, I, I)),
    "ShiftQuant on all": (scheme_of(ShiftQuant(4, groups=5)), (I, I, I)),
    "weights by output channel": (scheme_of(PLAIN, weight=PerChannel(8, axis=0)), (I, E, I)),
    "weights by input channel": (scheme_of(PLAIN, weight=PerChannel(8, axis=1)), (E, I, I)),
    "activations by sample": (scheme_of(PLAIN, activation=PerChannel(8, axis=0)), (I, I, E)),
    "2 bits": (scheme_of(AbsMax(2), gradient=AbsMax(2, **STOCHASTIC)), (I, I, I)),
    "float gradient": (LayerScheme(PLAIN, PLAIN, None), (I, E, E)),
    "float activation": (LayerScheme(PLAIN, None, PLAIN), (E, I, E)),
    "float weight": (LayerScheme(None, PLAIN, PLAIN), (E, E, I)),
    "only weights": (LayerScheme(PLAIN, None, None), (E, E, F_)),
    "only activations": (LayerScheme(None, PLAIN, None), (E, F_, E)),
    "only gradients": (LayerScheme(None, None, PLAIN), (F_, E, E)),
}


def spread(*shape) -> torch.Tensor:
    """Normal numbers whose ranges differ by sample and by channel."""
    x = torch.randn(shape)
    ones = [1] * (len(shape) - 2)
    return x * torch.logspace(-1, 1, shape[0]).view(-1, 1, *ones) * torch.logspace(1, -1, shape[1]).view(1, -1, *ones)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_linear(case):
    scheme, expected = case
    torch.manual_seed(0)
    layer = sb.nn.Linear(12, 10, scheme=scheme)
    found = product_model(layer, spread(9, 12), lambda y: spread(*y.shape), F.linear)
    assert_product(found)
    assert tuple(ran(layer)[k] for k in INTEGER) == expected
    assert any(relative(found[k], found[f"float_{k}"]) > 1e-4 for k in "yxw")


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_conv(case, groups):
    scheme, expected = case
    torch.manual_seed(0)
    layer = sb.nn.Conv2d(6, 6, 3, padding=1, groups=groups, scheme=scheme)

    def formula(x, w, b):
        return F.conv2d(x, w, b, padding=1, groups=groups)

    found = product_model(layer, spread(5, 6, 7, 7), lambda y: spread(*y.shape), formula)
    assert_product(found)
    forms = tuple(ran(layer)[k] for k in INTEGER)
    if groups == 1:
        assert forms == expected
    if groups == 6:  # a channel is its own reduction: scales by channel are outer factors
        assert all(f == I or e != I for f, e in zip(forms, expected, strict=True))


def test_depthwise_keeps_integers_with_a_scale_for_each_channel():
    q = PerChannel(8, axis=1)
    layer = sb.nn.Conv2d(6, 6, 3, groups=6, scheme=LayerScheme(PerChannel(8, axis=0), q, q))
    found = product_model(
        layer, spread(5, 6, 7, 7), lambda y: spread(*y.shape), lambda x, w, b: F.conv2d(x, w, b, groups=6)
    )
    assert_product(found)
    assert ran(layer) == INTEGER


@pytest.mark.parametrize("shape", [(9, 10), (5, 6, 4, 4)])
@pytest.mark.parametrize(
    "quantizer",
    [AbsMax(4), PerChannel(4, axis=0), PerChannel(4, axis=1), ShiftQuant(4), ShiftQuant(4, axis=0), GroupOracle(4)],
    ids=str,
)
def test_bias_gradient(shape, quantizer):
    q = quantizer(spread(*shape))
    rest = [i for i in range(len(shape)) if i != 1]
    assert relative(channel_sum(q), q.dequantize(torch.float64).sum(rest)) < 1e-6


def test_the_weight_is_quantized_once_and_the_gradient_once():
    layer = sb.nn.Conv2d(12, 10, 1, scheme=sb.Scheme.from_name("int4").layer)
    calls: list[tuple] = []
    names = ("quantize", "quantize_tokens", "quantize_blocks", "absmax_codes", "shift_codes")
    quantizers = [getattr(torch.ops.subbyte, name).default for name in names]

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in quantizers:
                calls.append(tuple(args[0].shape))
            return func(*args, **(kwargs or {}))

    with Watch():
        layer(torch.randn(3, 12, 5, 5, requires_grad=True)).sum().backward()
    assert calls == [(3, 12, 5, 5), (10, 12, 1, 1), (3, 10, 5, 5)]


def test_stochastic_gradients_are_unbiased():
    layer = sb.nn.Linear(6, 5, bias=False, scheme=LayerScheme(None, None, ShiftQuant(2, groups=3, **STOCHASTIC)))
    x, g = torch.randn(4, 6), spread(4, 5)
    total, runs = torch.zeros(5, 6, dtype=torch.float64), 4000
    torch.manual_seed(0)
    for _ in range(runs):
        (grad,) = torch.autograd.grad(layer(x), layer.weight, g)
        total += grad.double()
    expected = g.double().T @ x.double()
    single = (grad.double() - expected).norm()
    assert single > 0
    assert (total / runs - expected).norm() < 4 * single / runs**0.5


def test_streams_are_drawn_as_a_tensor():
    torch.manual_seed(0)
    streams = draw_stream(3)
    assert streams.dtype == torch.int64
    assert len(set(streams.tolist())) == 3
