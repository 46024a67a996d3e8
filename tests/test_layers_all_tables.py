"""Embedding, EmbeddingBag, Bilinear: float64 models of the same codes, torch's options, the integer sum behind them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import subbyte as sb
from models_for_tests import INTEGER, relative, scheme_of
from subbyte import AbsMax, PerChannel, Scheme, ShiftQuant
from subbyte.autograd import STREAMS
from subbyte.numerics import draw_stream

FLOAT = Scheme.from_name("float").layer
INT4 = Scheme.from_name("int4").layer
INT8 = Scheme.from_name("int8").layer
BAG_MODES = ("sum", "mean", "max")


def embedding(scheme, rows=10, **kwargs):
    torch.manual_seed(1)
    return sb.nn.Embedding(rows, 6, scheme=scheme, **kwargs)


def bag(scheme, mode="sum", **kwargs):
    torch.manual_seed(1)
    return sb.nn.EmbeddingBag(10, 6, mode=mode, scheme=scheme, **kwargs)


def codes_of(layer, g, seed):
    """The weight and the gradient as the layer sees them, in float64, from the state that its call began with."""
    torch.manual_seed(seed)
    streams = draw_stream(STREAMS)
    w = layer.scheme.weight(layer.weight.detach(), streams[2]).dequantize(torch.float64)
    return w, layer.scheme.gradient(g, streams[0]).dequantize(torch.float64)


def documented_gradient(index, g, rows, padding=None, by_frequency=False):
    """dw[i] = sum of g over the tokens of row i, by a loop; by_frequency: over their number."""
    dw = torch.zeros(rows, g.shape[1], dtype=torch.float64)
    for i, row in zip(index.flatten().tolist(), g, strict=True):
        if i != padding:
            dw[i] += row
    if by_frequency:
        dw /= torch.bincount(index.flatten(), minlength=rows).clamp(min=1).unsqueeze(1)
    return dw


@pytest.mark.parametrize("recipe", ["int4", "int6", "int8"])
@pytest.mark.parametrize("by_frequency", [False, True])
@pytest.mark.parametrize("padding", [None, 3, -1])
def test_embedding_equals_a_float64_model_of_the_same_codes(recipe, padding, by_frequency):
    layer = embedding(Scheme.from_name(recipe).layer, padding_idx=padding, scale_grad_by_freq=by_frequency)
    index = torch.randint(0, 10, (4, 5))
    torch.manual_seed(2)
    y = layer(index)
    g = torch.randn(y.shape) * torch.logspace(-2, 0, 6)
    y.backward(g)
    w, qg = codes_of(layer, g.view(-1, 6), seed=2)
    assert torch.equal(y, w[index].float())
    dw = documented_gradient(index, qg, 10, layer.padding_idx, by_frequency)
    assert relative(layer.weight.grad, dw) < 1e-6
    assert layer.record.kernels["output"] == layer.record.kernels["grad_weight"] == "integer"
    assert layer.record.kernels["scatter_sum"]
    assert "grad_input" not in layer.record.kernels
    assert relative(y, layer.weight[index]) > 1e-4  # it was quantized


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_indices_of_any_shape_and_integer_type(dtype):
    layer = embedding(INT4)
    for shape in ((), (3,), (2, 3, 4), (0,), (2, 0)):
        index = torch.randint(0, 10, shape, dtype=dtype)
        assert layer(index).shape == (*shape, 6)
    wide = torch.randint(0, 10, (4, 6))[:, ::2]
    assert torch.equal(layer(wide), layer(wide.contiguous()))
    with pytest.raises(TypeError, match="integer indices"):
        layer(torch.randn(3))
    for wrong in (-1, 10):
        with pytest.raises((IndexError, RuntimeError), match="out of range"):
            layer(torch.tensor([wrong]))


def test_a_scale_for_each_row_or_token():
    """For each row: still a look-up of codes. For each token: inside the gradient's sum, so emulated."""
    layer = embedding(scheme_of(AbsMax(8), weight=PerChannel(4, axis=0), gradient=PerChannel(8, axis=0)))
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(-3, 0, 10).unsqueeze(1))
    index = torch.randint(0, 10, (12,))
    y = layer(index)
    g = torch.randn(12, 6) * torch.logspace(-3, 0, 12).unsqueeze(1)
    y.backward(g)
    w = PerChannel(4, axis=0)(layer.weight.detach()).dequantize()
    assert torch.equal(y, w[index])
    dw = documented_gradient(index, PerChannel(8, axis=0)(g).dequantize(torch.float64), 10)
    assert relative(layer.weight.grad, dw) < 1e-6
    assert layer.record.kernels["output"] == "integer"
    assert layer.record.kernels["grad_weight"] == "emulated"


def test_a_shift_along_the_tokens_is_emulated_and_right():
    layer = embedding(scheme_of(AbsMax(8), gradient=ShiftQuant(8, groups=4, axis=0)))
    index, g = torch.randint(0, 10, (12,)), torch.randn(12, 6) * torch.logspace(-2, 0, 12).unsqueeze(1)
    layer(index).backward(g)
    dw = documented_gradient(index, ShiftQuant(8, groups=4, axis=0)(g).dequantize(torch.float64), 10)
    assert relative(layer.weight.grad, dw) < 1e-6


def test_max_norm_renormalizes_the_rows_that_are_looked_up_as_torch_does():
    layer, theirs = embedding(INT8, max_norm=1.0), nn.Embedding(10, 6, max_norm=1.0)
    theirs.load_state_dict(layer.state_dict())
    index = torch.tensor([1, 4, 4])
    layer(index), theirs(index)
    assert torch.equal(layer.weight, theirs.weight)


@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_sparse_is_refused_clearly(kind):
    with pytest.raises(ValueError, match="sparse=True"):
        getattr(sb.nn, kind)(5, 3, sparse=True, scheme=INT4)
    model = nn.Sequential(getattr(nn, kind)(5, 3, sparse=True), nn.Linear(3, 2))
    sb.quantize_(model, "int4")
    assert type(model[0]) is getattr(nn, kind)
    assert "sparse=True" in sb.report(model).conversion.left_float["0"]
    assert type(model[1]) is sb.nn.Linear


# ------------------------------------------------------------------------------------------------------------- bags


def bags_of(shape):
    torch.manual_seed(4)
    if shape == "rows":
        return (torch.randint(0, 10, (4, 5)),), torch.arange(4).repeat_interleave(5), 4
    index = torch.randint(0, 10, (9,))
    if shape == "offsets":
        return (index, torch.tensor([0, 3, 3, 7])), torch.tensor([0, 0, 0, 2, 2, 2, 2, 3, 3]), 4
    return (index, torch.tensor([0, 3, 3, 7, 9])), torch.tensor([0, 0, 0, 2, 2, 2, 2, 3, 3]), 4


def reduced(rows, owner, bags, mode):
    """The definition: the sum, mean or maximum of each bag's rows; zeros for an empty one."""
    out = []
    for b in range(bags):
        mine = rows[owner == b]
        if len(mine) == 0:
            out.append(rows.new_zeros(rows.shape[1]))
        else:
            out.append({"sum": mine.sum(0), "mean": mine.mean(0), "max": mine.max(0).values}[mode])
    return torch.stack(out)


@pytest.mark.parametrize("padding", [None, 4])
@pytest.mark.parametrize("shape", ["rows", "offsets", "last offset"])
@pytest.mark.parametrize("mode", BAG_MODES)
def test_bag_equals_a_float64_model_of_the_same_codes(mode, shape, padding):
    layer = bag(INT8, mode, padding_idx=padding, include_last_offset=shape == "last offset")
    args, owner, bags = bags_of(shape)
    index = args[0].flatten()
    owner = owner if padding is None else torch.where(index == padding, -1, owner)
    torch.manual_seed(2)
    y = layer(*args)
    g = torch.randn(y.shape)
    y.backward(g)
    sizes = torch.stack([(owner == b).sum() for b in range(bags)]).clamp(min=1).unsqueeze(1)
    w, qg = codes_of(layer, g / sizes if mode == "mean" else g, seed=2)
    leaf = w.requires_grad_()
    want = reduced(leaf[index], owner, bags, mode)
    want.backward(qg * sizes if mode == "mean" else qg)
    assert relative(y, want) < 1e-6
    assert layer.record.kernels["output"] == layer.record.kernels["grad_weight"] == "integer"
    if mode != "max":  # codes tie often: torch and this layer may take different tokens of equal rows
        assert relative(layer.weight.grad, leaf.grad) < 1e-6
    assert float(layer.weight.grad.double().sum()) == pytest.approx(float(leaf.grad.sum()), abs=1e-4)


@pytest.mark.parametrize("shape", ["rows", "offsets"])
@pytest.mark.parametrize("mode", BAG_MODES)
def test_float_bag_is_torchs_layer(mode, shape):
    layer, theirs = bag(FLOAT, mode).double(), nn.EmbeddingBag(10, 6, mode=mode).double()
    theirs.load_state_dict(layer.state_dict())
    args, _, _ = bags_of(shape)
    g = torch.randn(4, 6, dtype=torch.float64)
    layer(*args).backward(g), theirs(*args).backward(g)
    assert torch.equal(layer(*args), theirs(*args)) or relative(layer(*args), theirs(*args)) < 1e-14
    assert relative(layer.weight.grad, theirs.weight.grad) < 1e-14


@pytest.mark.parametrize("mode", BAG_MODES)
def test_gradcheck_of_tables(mode):
    args, _, _ = bags_of("offsets")
    layer = bag(FLOAT, mode).double()
    run = lambda w: torch.func.functional_call(layer, {"weight": w}, args)  # noqa: E731
    assert torch.autograd.gradcheck(run, layer.weight)
    single = embedding(FLOAT, padding_idx=2).double()
    weight = single.weight.detach().clone().requires_grad_()
    mask = (args[0] != 2).unsqueeze(1)  # the padding row has a value but no gradient
    assert torch.autograd.gradcheck(
        lambda w: torch.func.functional_call(single, {"weight": w}, (args[0],)) * mask, weight
    )


def test_scale_grad_by_freq_of_a_bag_is_what_torch_documents():
    """torch 2.13's CPU kernel divides by the count of another row: pytorch/pytorch issue 190063."""
    layer = bag(scheme_of(AbsMax(8)), scale_grad_by_freq=True)
    index = torch.tensor([[1, 1, 1], [2, 5, 5]])
    y = layer(index)
    y.backward(torch.ones_like(y))
    assert torch.allclose(layer.weight.grad[:, 0], torch.tensor([0.0, 1, 1, 0, 0, 1, 0, 0, 0, 0]))


def test_a_scale_for_each_row_of_a_bag_is_emulated():
    layer = bag(scheme_of(AbsMax(8), weight=PerChannel(4, axis=0)))
    args, owner, bags = bags_of("rows")
    w = PerChannel(4, axis=0)(layer.weight.detach()).dequantize(torch.float64)
    assert relative(layer(*args), reduced(w[args[0].flatten()], owner, bags, "sum")) < 1e-6
    assert layer.record.kernels["output"] == "emulated"


def test_what_a_bag_refuses():
    layer = bag(INT4)
    index = torch.randint(0, 10, (6,))
    with pytest.raises(NotImplementedError, match="per_sample_weights"):
        layer(index, torch.tensor([0, 2]), torch.ones(6))
    with pytest.raises(ValueError, match="with offsets"):
        layer(index)
    with pytest.raises(ValueError, match="offsets must be None"):
        layer(index.view(2, 3), torch.tensor([0]))
    with pytest.raises(ValueError, match="offsets run from 0"):
        layer(index, torch.tensor([0, 7]))
    with pytest.raises(ValueError, match="scale_grad_by_freq"):
        bag(INT4, "max", scale_grad_by_freq=True)(index.view(2, 3))


@pytest.mark.parametrize("mode", BAG_MODES)
def test_bag_without_tokens(mode):
    layer = bag(INT4, mode)
    y = layer(torch.zeros(0, dtype=torch.int64), torch.tensor([0, 0]))
    assert torch.equal(y, torch.zeros(2, 6))
    y.sum().backward()
    assert not layer.weight.grad.any()


@pytest.mark.parametrize("columns", [1, 6])
def test_scatter_sum_against_python(columns):
    torch.manual_seed(0)
    codes = torch.randint(-127, 128, (40, 6), dtype=torch.int8)
    index = torch.randint(-1, 5, (40, columns))
    acc = torch.ops.subbyte.scatter_sum(codes, index, 5)
    assert acc.dtype == torch.int32
    want = [[0] * 6 for _ in range(5)]
    for t in range(40):
        for d in range(6):
            i = int(index[t, d if columns > 1 else 0])
            if i >= 0:
                want[i][d] += int(codes[t, d])
    assert acc.tolist() == want
    torch.library.opcheck(torch.ops.subbyte.scatter_sum.default, (codes, index, 5))


def test_scatter_sum_widens_before_an_int32_could_overflow():
    codes = torch.full((1, 1), 127, dtype=torch.int8).expand(8_421_505, 1)
    acc = torch.ops.subbyte.scatter_sum(codes, torch.zeros(1, 1, dtype=torch.int64).expand(8_421_505, 1), 1)
    assert (acc.dtype, int(acc)) == (torch.int64, 127 * 8_421_505)


# --------------------------------------------------------------------------------------------------------- bilinear


def bilinear(scheme, **kwargs):
    torch.manual_seed(1)
    return sb.nn.Bilinear(5, 7, 4, scheme=scheme, **kwargs)


@pytest.mark.parametrize("bits", [4, 8])
def test_bilinear_equals_a_float64_model_of_the_same_codes(bits):
    q = AbsMax(bits)
    layer = bilinear(scheme_of(q))
    x1, x2 = torch.randn(6, 5, requires_grad=True), torch.randn(6, 7, requires_grad=True)
    y = layer(x1, x2)
    g = torch.randn(6, 4)
    y.backward(g)

    def codes(t):
        return q(t.detach().float()).dequantize(torch.float64)

    w, a, b, dy = codes(layer.weight), codes(x1), codes(x2), codes(g)
    p = torch.einsum("bi,oij->bjo", a, w)
    qp = codes(p)
    want = torch.einsum("bj,bjo->bo", b, qp) + layer.bias.detach().double()
    dp = codes(torch.einsum("bj,bo->bjo", b, dy))
    expected = {
        "x1": (x1.grad, torch.einsum("bjo,oij->bi", dp, w)),
        "x2": (x2.grad, torch.einsum("bjo,bo->bj", qp, dy)),
        "w": (layer.weight.grad, torch.einsum("bi,bjo->oij", a, dp)),
        "b": (layer.bias.grad, dy.sum(0)),
    }
    assert relative(y, want) < 3e-6
    for name, (ours, theirs) in expected.items():
        assert relative(ours, theirs) < 3e-6, name
    assert {k: v for k, v in layer.record.kernels.items() if k in INTEGER} == INTEGER
    assert all(layer.record.kernels[f"pair_{k}"] == "integer" for k in INTEGER)
    assert relative(y, F.bilinear(x1, x2, layer.weight, layer.bias)) > 1e-3


def test_bilinear_shapes_layouts_and_float():
    layer = bilinear(FLOAT).double()
    x1, x2 = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 3, 7, dtype=torch.float64)
    assert relative(layer(x1, x2), F.bilinear(x1, x2, layer.weight, layer.bias)) < 1e-13
    small = sb.nn.Bilinear(2, 3, 2, scheme=FLOAT).double()
    leaves = (torch.randn(3, 2).double().requires_grad_(), torch.randn(3, 3).double().requires_grad_())

    def run(a, b, w, c):
        return torch.func.functional_call(small, {"weight": w, "bias": c}, (a, b))

    assert torch.autograd.gradcheck(run, (*leaves, small.weight, small.bias))
    layer = bilinear(INT4, bias=False)
    wide = torch.randn(4, 10)[:, ::2]
    x2 = torch.randn(4, 7)
    torch.manual_seed(0)
    y = layer(wide, x2)
    torch.manual_seed(0)
    assert torch.equal(y, layer(wide.contiguous(), x2))
    assert layer(torch.randn(0, 5), torch.randn(0, 7)).shape == (0, 4)
    with pytest.raises(ValueError, match="Bilinear expects"):
        layer(torch.randn(3, 5), torch.randn(2, 7))


def test_bilinear_keeps_its_second_input_signed_behind_a_relu():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Bilinear(5, 7, 4)

        def forward(self, a, b):
            return self.mix(a.relu(), b)

    torch.manual_seed(0)
    net = sb.quantize_(Net(), "int8")
    assert not net.mix.scheme.activation.signed
    a, b = torch.randn(64, 5), -torch.rand(64, 7)
    want = F.bilinear(a.relu(), b, net.mix.weight, net.mix.bias)
    assert relative(net(a, b), want) < 0.05
    found = sb.report(net, (a, b))
    assert found.integer_share == 1.0
    kinds = {k: v.format for k, v in found.layers["mix"].operands.items()}
    assert kinds["activation"] == "u8"
    assert kinds["pair_activation"] == kinds["pair_weight"] == "s8"


def test_multiply_accumulates_of_bilinear_and_embedding_are_counted_exactly():
    layer = bilinear(INT4)
    x1, x2 = torch.randn(6, 5, requires_grad=True), torch.randn(6, 7, requires_grad=True)
    with sb.MacCounter() as counter:
        layer(x1, x2).sum().backward()
    assert counter.integer == 3 * 6 * (5 * 7 * 4 + 7 * 4)
    assert counter.floats == {}
    with sb.MacCounter() as counter:
        embedding(INT4)(torch.randint(0, 10, (8,))).sum().backward()
    assert (counter.integer, counter.floats) == (0, {})  # look-ups and sums multiply nothing


@pytest.mark.parametrize("name", ["Embedding", "EmbeddingBag", "Bilinear"])
def test_quantize_and_dequantize(name):
    sizes = (5, 7, 4) if name == "Bilinear" else (10, 6)
    model = nn.ModuleDict({"layer": getattr(nn, name)(*sizes)})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    sb.quantize_(model, "int4")
    assert type(model["layer"]) is getattr(sb.nn, name)
    assert "w=s8 AbsMax" in repr(model["layer"])
    sb.dequantize_(model)
    assert type(model["layer"]) is getattr(nn, name)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
