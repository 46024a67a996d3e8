"""BatchNorm1d/3d, GroupNorm, InstanceNorm, RMSNorm, L1 and L2: float64 models on codes, torch's layers, layouts."""

import math

import pytest
import torch
from torch import nn

import subbyte as sb
from models_for_tests import L1_FACTOR, relative
from subbyte import AbsMax, NormScheme, PerChannel, TokenShiftQuant
from subbyte.autograd import STREAMS
from subbyte.numerics import draw_stream

KINDS = ("l1", "l2")
CASES = {
    "BatchNorm1d": ((6,), (9, 6)),
    "BatchNorm1d, L": ((6,), (4, 6, 5)),
    "BatchNorm3d": ((6,), (3, 6, 2, 3, 4)),
    "GroupNorm, (N, C)": ((2, 6), (5, 6)),
    "GroupNorm, one group": ((1, 6), (3, 6, 5)),
    "GroupNorm": ((3, 6), (3, 6, 4, 5)),
    "InstanceNorm1d": ((6,), (3, 6, 9)),
    "InstanceNorm2d": ((6,), (3, 6, 4, 5)),
    "InstanceNorm3d": ((6,), (3, 6, 2, 3, 4)),
    "RMSNorm": ((12,), (3, 5, 12)),
    "RMSNorm, two axes": (((3, 4),), (7, 3, 4)),
}


def float_scheme(kind):
    return NormScheme(kind, None, None, None, None, None)


def few_bits(kind):
    """4 bits everywhere, the input clipped, the gradient by groups of tokens."""
    return NormScheme(kind, 4, 4, 4, 4, 4, clip=0.6, groups=5)


def make(case, scheme, **kwargs):
    name = case.split(",")[0]
    if name.startswith("Instance"):
        kwargs.setdefault("affine", True)
    torch.manual_seed(1)
    layer = getattr(sb.nn, name)(*CASES[case][0], scheme=scheme, **kwargs)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return layer


def input_of(case, dtype=torch.float32):
    torch.manual_seed(2)
    x = torch.randn(CASES[case][1], dtype=dtype)
    return x * torch.linspace(0.2, 3, x.shape[1], dtype=dtype).view(1, -1, *[1] * (x.ndim - 2)) + 0.5


def step(layer, x, seed=5):
    """((y, dx, *parameter gradients), g, the stream of g's rounding)."""
    layer.zero_grad()
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    torch.manual_seed(seed)
    y = layer(leaf)
    torch.manual_seed(seed)
    stream = draw_stream(STREAMS)[0]
    g = torch.randn(y.shape)
    y.backward(g.to(y.dtype))
    return [y.detach(), leaf.grad, *[p.grad.clone() for p in layer.parameters()]], g, stream


def view_of(layer, x):
    """(how to see x, the axes of a statistic, of a parameter's gradient, gamma's and beta's shape)."""
    if isinstance(layer, sb.nn.RMSNorm):
        n = math.prod(layer.normalized_shape)
        return (x.numel() // n, n), (1,), (0,), (1, n)
    if isinstance(layer, (sb.nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)):
        groups = getattr(layer, "num_groups", x.shape[1])
        split = (groups, x.shape[1] // groups)
        shape = (x.shape[0], *split, *x.shape[2:])
        return shape, tuple(range(2, len(shape))), (0, *range(3, len(shape))), (1, *split, *[1] * (x.ndim - 2))
    rest = (0, *range(2, x.ndim))
    return tuple(x.shape), rest, rest, (1, -1, *[1] * (x.ndim - 2))


def model(layer, x, g, stream):
    """(y, dx, dgamma, dbeta) in float64, each tensor that travels as codes rounded to them first."""
    s, centred = layer.scheme, not isinstance(layer, sb.nn.RMSNorm)
    shape, dims, param_dims, affine = view_of(layer, x)
    x = x.detach().reshape(shape)
    lead = [i for i in range(len(shape)) if i not in dims]
    rows = x.permute(*lead, *dims).reshape(math.prod(shape[i] for i in lead), -1)  # a row, a statistic, a scale
    codes = PerChannel(s.input, axis=0, clip=s.clip)(rows).dequantize(torch.float64)
    codes = codes.view([shape[i] for i in (*lead, *dims)]).permute(*torch.tensor([*lead, *dims]).argsort().tolist())
    gamma = layer.weight
    w = 1.0 if gamma is None else AbsMax(s.weight)(gamma.detach()).dequantize(torch.float64).reshape(affine)
    bias = getattr(layer, "bias", None)
    b = 0.0 if bias is None else bias.detach().double().reshape(affine)
    mu = codes.mean(dims, keepdim=True) if centred else 0.0
    d, eps = codes - mu, layer._eps(x)
    if s.kind == "l1":
        big = L1_FACTOR * d.abs().mean(dims, keepdim=True) + math.sqrt(eps)
    else:
        big = (d.square().mean(dims, keepdim=True) + eps).sqrt()
    xhat = d / big
    size = xhat.abs().amax(sorted({*dims, *param_dims}), keepdim=True) / (2 ** (s.normalized - 1) - 1)
    k = torch.round(torch.round(xhat / size * 2**16) / 2**16)  # through 16 fractional bits, half to even
    y = w * (k * size) + b
    drop, top = 2 ** (s.normalized - s.saved), 2 ** (s.saved - 1) - 1
    k = torch.round(k / drop).clamp(-top, top) * drop * size
    per_row = isinstance(layer, sb.nn.RMSNorm)
    if s.groups > 1:  # a token: a row, or an index of all axes but that of channels
        quantizer = TokenShiftQuant(s.gradient, rounding="stochastic", groups=s.groups)
    elif per_row:
        quantizer = AbsMax(s.gradient, rounding="stochastic")
    else:
        quantizer = PerChannel(s.gradient, rounding="stochastic", axis=1)
    g = g if s.groups > 1 and not per_row else g.reshape(shape)
    g = quantizer(g, stream).dequantize(torch.float64).reshape(shape)
    h = w * g
    mean_hk = (h * k).mean(dims, keepdim=True)
    t = k.sign()
    mean_h, mean_t = ((v.mean(dims, keepdim=True) if centred else 0.0) for v in (h, t))
    last = k * mean_hk if s.kind == "l2" else L1_FACTOR * (t - mean_t) * mean_hk
    found = [y, (h - mean_h - last) / big]
    if gamma is not None:
        found.append((g * k).sum(param_dims))
    if bias is not None:
        found.append(g.sum(param_dims))
    return found


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", [NormScheme, few_bits])
@pytest.mark.parametrize("case", CASES)
def test_equals_a_float64_model_of_the_same_codes(case, scheme, kind, affine):
    kwargs = {"elementwise_affine" if "RMS" in case else "affine": affine}
    layer, x = make(case, scheme(kind), **kwargs), input_of(case)
    ours, g, stream = step(layer, x)
    expected = model(layer, x, g, stream)
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        assert relative(a, b.reshape(a.shape)) < 1e-5
    layer.scheme = float_scheme(kind)
    exact, _, _ = step(layer, x)
    low, high = (1e-4, 0.1) if scheme is NormScheme else (0.05, 1)
    assert low < relative(ours[0], exact[0]) < high  # it was quantized


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", [NormScheme, few_bits])
@pytest.mark.parametrize("case", CASES)
def test_backends_and_memory_layouts_agree(case, scheme, kind):
    layer, x = make(case, scheme(kind)), input_of(case)
    want, _, _ = step(layer, x)
    with sb.ops.use_backend("reference"):
        alone, _, _ = step(layer, x)
    variants = [alone, step(layer, torch.empty(*x.shape[:-1], 2 * x.shape[-1])[..., ::2].copy_(x))[0]]
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    if last is not None:
        variants.append(step(layer, x.contiguous(memory_format=last))[0])
        assert variants[-1][0].is_contiguous(memory_format=last)
    for variant in variants:
        for a, b in zip(want, variant, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("case", CASES)
def test_float_l2_is_torchs_layer(case):
    layer = make(case, float_scheme("l2")).double()
    theirs = layer.replaces(*CASES[case][0], **({"affine": True} if case.startswith("I") else {})).double()
    theirs.load_state_dict(layer.state_dict())
    x = input_of(case, torch.float64)
    for a, b in zip(step(layer, x)[0], step(theirs, x)[0], strict=True):
        assert relative(a, b) < 1e-11


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_gradcheck(case, kind):
    layer = make(case, float_scheme(kind)).double()
    x = input_of(case, torch.float64)
    names, values = zip(*layer.named_parameters(), strict=True)

    def run(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *values), fast_mode=x.ndim > 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["BatchNorm1d", "BatchNorm1d, L", "BatchNorm3d", "InstanceNorm1d", "InstanceNorm2d"])
def test_running_statistics(case, kind):
    """In torch's units; eval mode is the float layer of the buffers."""
    kwargs = {"track_running_stats": True, "momentum": 0.3}
    ours = make(case, float_scheme(kind), **kwargs).double()
    theirs = ours.replaces(*CASES[case][0], **kwargs, **({"affine": True} if case.startswith("I") else {})).double()
    theirs.load_state_dict(ours.state_dict())
    for i in range(3):
        x = (i + 1) * input_of(case, torch.float64)
        ours(x), theirs(x)
    if kind == "l2":
        for name, value in theirs.state_dict().items():
            assert torch.allclose(ours.state_dict()[name], value), name
    else:
        assert torch.allclose(ours.running_mean, theirs.running_mean)
        assert not torch.allclose(ours.running_var, theirs.running_var)
    theirs.load_state_dict(ours.state_dict())
    x = input_of(case, torch.float64)
    for a, b in zip(step(ours.eval(), x)[0], step(theirs.eval(), x)[0], strict=True):
        assert relative(a, b) < 1e-11
    ours.scheme = NormScheme(kind)
    for a, b in zip(step(ours.float(), x.float())[0], step(theirs, x)[0], strict=True):
        assert 1e-5 < relative(a, b) < 0.05


@pytest.mark.parametrize("case", CASES)
def test_empty_input(case):
    layer, x = make(case, NormScheme()), input_of(case)[:0]
    found, _, _ = step(layer, x)
    assert found[0].shape == x.shape
    assert all(not t.any() for t in found[1:])


def test_instance_norm_without_a_batch_axis():
    layer, x = make("InstanceNorm2d", NormScheme()), input_of("InstanceNorm2d")[:1]
    assert torch.equal(layer(x[0]), layer(x)[0])


@pytest.mark.parametrize(
    ("case", "shape", "message"),
    [
        ("BatchNorm1d", (4, 5), r"\(N, 6\)"),
        ("BatchNorm1d", (4, 5, 7), r"\(N, 6, L\)"),
        ("BatchNorm3d", (4, 5, 7, 2, 2), r"\(N, 6, D, H, W\)"),
        ("BatchNorm1d", (1, 6), "more than 1 value per channel"),
        ("BatchNorm3d", (4, 6, 7), "5D"),
        ("GroupNorm", (4, 5, 3), r"\(N, 6, \.\.\.\)"),
        ("GroupNorm, one group", (1, 6), None),
        ("InstanceNorm2d", (2, 6, 1, 1), "more than 1 value per channel and sample"),
        ("InstanceNorm2d", (2, 5, 3, 3), "num_features"),
        ("RMSNorm", (2, 11), r"RMSNorm expects inputs \(\.\.\., 12\)"),
    ],
)
def test_wrong_inputs(case, shape, message):
    layer = make(case, NormScheme())
    if message is None:
        assert layer(torch.randn(shape)).shape == shape
        return
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(shape))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_dequantize_keeps_what_was_trained(case, kind):
    """L1 statistics that eval mode measures on its input have no layer in torch: ours stays, in floats."""
    name = case.split(",")[0]
    torch.manual_seed(0)
    affine = {"affine": True} if name.startswith("Instance") else {}
    model = nn.Sequential(nn.Identity(), getattr(nn, name)(*CASES[case][0], **affine))
    scheme = sb.Scheme("float norms", norm=NormScheme(kind))
    sb.quantize_(model, scheme)
    assert kind in repr(model[1])
    row = sb.report(model, input_of(case)).layers["1"].row()
    assert row["type"] == name
    assert row["kernels"]
    assert row["activation_format"] == row["gradient_format"] == "s8"
    sb.dequantize_(model)
    measured = kind == "l1" and not name.startswith("Batch")
    assert type(model[1]) is getattr(sb.nn if measured else nn, name)
    model.eval()
    assert torch.equal(model(input_of(case)), model(input_of(case)))


def test_batch_norm_without_running_statistics_stays_ours_with_l1():
    model = sb.quantize_(nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False)), sb.Scheme(norm=NormScheme("l1")))
    x = input_of("BatchNorm1d")
    sb.dequantize_(model)
    assert type(model[0]) is sb.nn.BatchNorm1d
    assert model[0].scheme.is_float
    mu = x.mean(0)
    want = (x - mu) / (L1_FACTOR * (x - mu).abs().mean(0) + math.sqrt(1e-5))
    assert relative(model(x), want) < 1e-5


def test_rms_norm_of_half_precision_takes_the_epsilon_of_float32():
    layer = make("RMSNorm", float_scheme("l2")).bfloat16()
    x = 1e-4 * input_of("RMSNorm").bfloat16()
    eps = torch.finfo(torch.float32).eps  # newer torches default to it
    theirs = nn.functional.rms_norm(x, (12,), layer.weight, eps)
    assert relative(layer(x), theirs) < 0.01


@pytest.mark.parametrize("l2", [True, False])
@pytest.mark.parametrize("dims", [[1], [0, 2], [0, 1, 2]])
def test_uncentred_statistics_against_python(dims, l2):
    torch.manual_seed(0)
    q = torch.randint(-127, 128, (3, 4, 5), dtype=torch.int8)
    q[0] = 127  # extremes
    total, top = torch.ops.subbyte.norm_stats_uncentred(q, dims, l2)
    size = q.long().abs()
    for index in torch.cartesian_prod(*[torch.arange(n) for n in total.shape]).tolist():
        where = tuple(slice(None) if i in dims else index[i] for i in range(3))
        values = [int(v) for v in size[where].flatten()]
        assert int(total[tuple(index)]) == sum(v * v if l2 else v for v in values)
        assert int(top[tuple(index)]) == max(values)
    torch.library.opcheck(torch.ops.subbyte.norm_stats_uncentred.default, (q, dims, l2))
