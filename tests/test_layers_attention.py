"""MultiheadAttention: equal to its parts bit for bit, in floats equal to torch's in every form of its arguments."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import subbyte as sb
from models_for_tests import BITS, ERROR_OF_BITS, RECIPES, distance, gradients, layers, ran, relative, scheme_of
from subbyte import AbsMax, LearnedStep, Scheme
from subbyte.convert import CONVERSION

FLOAT = Scheme.from_name("float").layer
B, T, S, E, H = 3, 5, 7, 16, 4


def pair(scheme, **kwargs):
    """(ours, torch's) with the same weights."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(E, H, **kwargs)
    if theirs.out_proj.bias is not None:
        nn.init.normal_(theirs.out_proj.bias)  # torch's is 0
    ours = sb.nn.MultiheadAttention(E, H, scheme=scheme, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs(batch_first=False, kdim=E, vdim=E):
    torch.manual_seed(1)
    shapes = [(T, B, E), (S, B, kdim), (S, B, vdim)]
    found = [torch.randn(*s) for s in shapes]
    return [(t.transpose(0, 1).contiguous() if batch_first else t).requires_grad_() for t in found]


# --------------------------------------------------------------------------------------------------- what is computed


@pytest.mark.parametrize("recipe", RECIPES)
def test_self_attention_is_two_linears_around_torchs_attention_bit_for_bit(recipe):
    scheme = Scheme.from_name(recipe).layer
    ours, theirs = pair(scheme, batch_first=True)
    first, last = sb.nn.Linear(E, 3 * E, scheme=scheme), sb.nn.Linear(E, E, scheme=scheme)
    first.load_state_dict({"weight": theirs.in_proj_weight, "bias": theirs.in_proj_bias})
    last.load_state_dict(theirs.out_proj.state_dict())
    x, g = torch.randn(B, T, E, requires_grad=True), torch.randn(B, T, E)

    torch.manual_seed(2)
    y, weights = ours(x, x, x, need_weights=False)
    found = torch.autograd.grad(y, (x, *ours.parameters()), g)
    assert weights is None

    torch.manual_seed(2)
    q, k, v = (t.view(B, T, H, E // H).transpose(1, 2) for t in first(x).split(E, -1))
    wanted = last(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, E))
    assert torch.equal(y, wanted)
    expected = torch.autograd.grad(wanted, (x, *first.parameters(), *last.parameters()), g)
    names = [n for n, _ in ours.named_parameters()]
    assert names == ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert ran(ours) == ran(ours.out_proj) == dict.fromkeys(("output", "grad_input", "grad_weight"), "integer")

    low, high = ERROR_OF_BITS[BITS[recipe]]
    assert low < distance(first(x), F.linear(x, theirs.in_proj_weight, theirs.in_proj_bias)) < high


def test_other_keys_and_values_are_three_products():
    scheme = Scheme.from_name("int8").layer
    ours, _ = pair(scheme, batch_first=True)
    parts = [sb.nn.Linear(E, E, scheme=scheme) for _ in range(3)]
    for part, w, b in zip(parts, ours.in_proj_weight.split(E), ours.in_proj_bias.split(E), strict=True):
        part.load_state_dict({"weight": w, "bias": b})
    query, key, value = inputs(batch_first=True)
    y, _ = ours(query, key, value, need_weights=False)
    q, k, v = (
        layer(t).view(B, -1, H, E // H).transpose(1, 2) for layer, t in zip(parts, (query, key, value), strict=True)
    )
    assert torch.equal(y, ours.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, E)))
    y.sum().backward()
    kernels = ours.record.kernels
    for part, product in itertools.product(("", "key_", "value_"), ("output", "grad_input", "grad_weight")):
        assert kernels[part + product] == "integer"


def forms():
    plain = {"batch_first": True}
    yield "self", plain, {}, True
    yield "lengths first", {}, {}, False
    yield "no bias", {"bias": False}, {}, False
    yield "other widths", {"kdim": 6, "vdim": 9}, {}, False
    yield "no weights", plain, {"need_weights": False}, False
    yield "weights of each head", plain, {"average_attn_weights": False}, False
    blocked = torch.arange(S).view(1, S) > torch.arange(T).view(T, 1) + 2
    yield "boolean mask", plain, {"attn_mask": blocked}, False
    yield "float mask", plain, {"attn_mask": torch.linspace(-2, 2, T * S).view(T, S), "need_weights": False}, False
    each = torch.linspace(-1, 1, B * H * T * S).view(B * H, T, S)
    yield "a mask for each head", plain, {"attn_mask": each}, False
    padding = torch.arange(S).view(1, S) >= torch.tensor([[3], [7], [5]])
    yield "padding", plain, {"key_padding_mask": padding, "need_weights": False}, False
    both = {"key_padding_mask": padding, "attn_mask": blocked}
    yield "both masks", plain, both, False
    causal = nn.Transformer.generate_square_subsequent_mask(T)
    yield "causal", plain, {"attn_mask": causal, "is_causal": True, "need_weights": False}, True


FORMS = {name: rest for name, *rest in forms()}


@pytest.mark.parametrize("name", FORMS)
def test_in_floats_it_is_torchs_layer(name):
    settings, arguments, alone = FORMS[name]
    ours, theirs = pair(FLOAT, **settings)
    found = inputs(settings.get("batch_first", False), settings.get("kdim", E), settings.get("vdim", E))
    given = [found[0]] * 3 if alone else found
    results = []
    for layer in (ours, theirs):
        y, weights = layer(*given, **arguments)
        y.square().sum().backward()
        grads = [p.grad.clone() for p in (*layer.parameters(), *(found[:1] if alone else found))]
        results.append((y, weights, grads))
        for t in found:
            t.grad = None
    (y, weights, grads), (y_torch, weights_torch, grads_torch) = results
    assert relative(y, y_torch) < 1e-5
    assert (weights is None) == (weights_torch is None)
    if weights is not None:
        assert weights.shape == weights_torch.shape
        assert relative(weights, weights_torch) < 1e-5
    for a, b in zip(grads, grads_torch, strict=True):
        assert relative(a, b) < 1e-4


def test_without_a_batch_and_with_dropout():
    ours, theirs = pair(FLOAT, dropout=0.5)
    x = torch.randn(T, E)
    padding = torch.tensor([False] * (T - 1) + [True])
    for arguments in ({}, {"need_weights": False}, {"key_padding_mask": padding}, {"average_attn_weights": False}):
        results = []
        for layer in (ours.eval(), theirs.eval()):
            y, weights = layer(x, x, x, **arguments)
            results.append((y, weights))
        (y, weights), (y_torch, weights_torch) = results
        assert y.shape == y_torch.shape
        assert relative(y, y_torch) < 1e-5
        assert weights is None or (weights.shape == weights_torch.shape and relative(weights, weights_torch) < 1e-5)
    ours.train()
    torch.manual_seed(0)
    dropped = ours(x, x, x)[1]
    assert (dropped == 0).any()
    assert not (ours.eval()(x, x, x)[1] == 0).any()


def test_signs_of_the_query_say_nothing_of_keys_values_and_the_result():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.attention = nn.Linear(E, E), nn.MultiheadAttention(E, H, batch_first=True)

        def forward(self, x, memory):
            return self.attention(self.first(x).relu(), memory, memory, need_weights=False)[0]

    model = sb.quantize_(Model(), "int8")
    assert not model.attention.scheme.activation.signed
    assert model.attention.out_proj.scheme.activation.signed
    x, memory = torch.randn(B, T, E), torch.randn(B, S, E)
    layers_seen = sb.report(model, (x, memory)).layers["attention"].operands
    formats = [layers_seen[f"{part}activation"].format for part in ("", "key_", "value_")]
    assert [f[0] for f in formats] == ["u", "s", "s"]
    assert all(layers_seen[f"{part}activation"].clipped_pct == 0 for part in ("", "key_", "value_"))


# ----------------------------------------------------------------------------------------------------------- converting


def encoder(**kwargs):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(E, H, 32, dropout=0.0, batch_first=True, **kwargs)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_is_all_integer_save_the_attention_itself(norm_first):
    model = sb.quantize_(encoder(norm_first=norm_first), "int4")
    assert getattr(model, CONVERSION).left_float == {}
    x = torch.randn(B, T, E)
    with sb.MacCounter() as counter:
        model(x).square().mean().backward()
    assert all("scaled_dot_product" in op for op in counter.floats)
    with sb.MacCounter() as floats:
        encoder(norm_first=norm_first)(x).square().mean().backward()
    products = {op: n for op, n in floats.floats.items() if "scaled_dot_product" not in op}
    assert counter.integer == sum(products.values())
    assert 0.8 < counter.integer_share < 1
    model.eval()
    with sb.MacCounter() as counter, torch.no_grad():  # torch's fused float kernel would be taken here
        model(x)
    assert counter.integer > 0
    assert all("scaled_dot_product" in op for op in counter.floats)


def test_there_and_back():
    model = encoder()
    before, keys = copy.deepcopy(model), list(model.state_dict())
    x = torch.randn(B, T, E)
    sb.quantize_(model, "int8")
    assert isinstance(model.layers[0].self_attn, nn.MultiheadAttention)
    assert isinstance(model.layers[0].self_attn.out_proj, nn.Linear)
    assert list(model.state_dict()) == list(sb.float_state_dict(model)) == keys
    before.load_state_dict(sb.float_state_dict(model))
    sb.dequantize_(model)
    types = [type(m) for m in before.modules()]
    same = [a is b for a, b in zip(types, [type(m) for m in model.modules()], strict=True)]
    assert [t.__name__ for t, s in zip(types, same, strict=True) if not s] == ["LayerNorm"] * 4  # trained with L1
    assert relative(model.layers[0].self_attn(x, x, x)[0], before.layers[0].self_attn(x, x, x)[0]) < 1e-6


def test_a_layer_that_stays_float_keeps_its_out_projection_float():
    attention = nn.MultiheadAttention(E, H)
    for make, options, why in (
        (lambda: nn.MultiheadAttention(E, H, add_bias_kv=True), {}, "add_bias_kv"),
        (lambda: nn.MultiheadAttention(E, H, add_zero_attn=True), {}, "add_zero_attn"),
        (lambda: copy.deepcopy(attention), {"filter_fn": lambda m, n: n != "1"}, "filter_fn"),
        (lambda: copy.deepcopy(attention), {"scheme": Scheme.from_name("int4").override("1", None)}, "scheme leaves"),
    ):
        model = nn.Sequential(nn.Linear(E, E), make(), nn.Linear(E, E))
        sb.quantize_(model, **{"scheme": "int4", **options})
        found = getattr(model, CONVERSION)
        assert found.converted == ("0", "2")
        assert why in found.left_float["1"]
        assert "is a part of stays float" in found.left_float["1.out_proj"]
        assert type(model[1]) is nn.MultiheadAttention
        assert not any(isinstance(m, sb.nn.QuantizedLayer) for m in model[1].modules())
    with pytest.raises(ValueError, match="add_zero_attn"):
        sb.nn.MultiheadAttention(E, H, add_zero_attn=True, scheme=FLOAT)


def test_a_learned_step_and_checkpointing():
    layer = sb.nn.MultiheadAttention(E, H, batch_first=True, scheme=scheme_of(AbsMax(8), weight=LearnedStep(8)))
    x = torch.randn(B, T, E)
    assert sorted(n for n, _ in layer.named_buffers()) == ["out_proj.weight_subbyte", "weight_subbyte"]
    model = sb.quantize_(encoder(), "int4")
    plain = gradients(model, lambda: model(x))
    again = gradients(model, lambda: torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert len(layers(model)) == 2 * 6


def test_under_autocast_and_in_bfloat16():
    ours, _ = pair(Scheme.from_name("int8").layer, batch_first=True)
    x = torch.randn(B, T, E)
    plain, _ = ours(x, x, x, need_weights=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = ours(x, x, x, need_weights=False)
    assert y.dtype == torch.bfloat16
    assert 0 < distance(y, plain) < 0.02
    low = copy.deepcopy(ours).bfloat16()
    assert low(x.bfloat16(), x.bfloat16(), x.bfloat16(), need_weights=True)[0].dtype == torch.bfloat16


def test_wrong_shapes_are_told():
    layer = sb.nn.MultiheadAttention(E, H, batch_first=True, scheme=FLOAT)
    x = torch.randn(B, T, E)
    for wrong in ((x[..., 1:], x, x), (x, x[:2], x[:2]), (x, x, x[:, 1:]), (x, x[0], x[0])):
        with pytest.raises(ValueError, match=r"expects \(B, T, 16\)"):
            layer(*wrong)
    with pytest.raises(ValueError, match="a mask here has shape"):
        layer(x, x, x, attn_mask=torch.zeros(2, 2))
    with pytest.raises(ValueError, match="a mask here has shape"):
        layer(x, x, x, key_padding_mask=torch.zeros(B, T + 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="needs the mask"):
        layer(x, x, x, is_causal=True)
