"""Scheme: recipes, overrides, JSON round trip, errors, and the table with every bit in it."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import subbyte as sb
from subbyte import AbsMax, GroupOracle, LayerScheme, NormScheme, PerChannel, Scheme, ShiftQuant, TokenShiftQuant
from subbyte.quantizers import Quantizer
from subbyte.scheme import RECIPES, VERSION

NAMES = ("float", "int8", "int6", "int4", "int4-wide", "int4-integer-only")

# -------------------------------------------------------------------------------------------------------- generators

bits = st.integers(2, 8)
common = dict(bits=bits, signed=st.booleans(), rounding=st.sampled_from(["nearest", "stochastic"]))
quantizers = st.one_of(
    st.builds(AbsMax, **common),
    st.builds(PerChannel, **common, axis=st.integers(0, 1)),
    st.builds(GroupOracle, **common, groups=st.integers(1, 9)),
    st.builds(ShiftQuant, **common, groups=st.integers(1, 9), axis=st.integers(0, 1)),
    st.builds(
        ShiftQuant,
        **common,
        groups=st.integers(1, 4),
        exponents=st.just("chosen"),
        max_exponent=st.integers(3, 23),
    ),
)
roles = st.none() | quantizers
layers = st.builds(LayerScheme, roles, roles, roles)


@st.composite
def norms(draw) -> NormScheme:
    kind, granularity = draw(st.sampled_from(["l1", "l2"])), draw(st.sampled_from(["channel", "tensor"]))
    if draw(st.booleans()):
        return NormScheme(kind, None, None, None, None, None, granularity)
    normalized = draw(bits)
    saved, gradient = draw(st.integers(2, normalized)), draw(bits)
    clip, groups = draw(st.sampled_from([1.0, 0.6])), draw(st.integers(1, 9 - gradient))
    return NormScheme(kind, draw(bits), normalized, saved, draw(bits), gradient, granularity, clip, groups)


patterns = st.sampled_from(["fc", "layer?.*", "*", "re:layer[1-3]\\..*", "re:(a|b)", "[ab]"])
schemes = st.builds(
    Scheme,
    name=st.text(max_size=8),
    layer=layers,
    norm=norms(),
    first=st.none() | layers,
    last=st.none() | layers,
    overrides=st.lists(st.tuples(patterns, st.none() | layers | norms()), max_size=3).map(tuple),
)


# --------------------------------------------------------------------------------------------------------- round trip


@settings(max_examples=150, deadline=None)
@given(schemes)
def test_json_round_trip(scheme):
    again = Scheme.from_json(scheme.to_json())
    assert again == scheme
    assert hash(again) == hash(scheme)
    assert again.is_float == scheme.is_float


@settings(max_examples=25, deadline=None)
@given(schemes)
def test_the_table_holds_every_bit_of_every_tensor(scheme):
    text = str(scheme)
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    formats = [c[2] for c in cells if c[2]]
    expected = []
    layers = [scheme.first, scheme.layer, scheme.last]
    layers += [s for _, s in scheme.overrides if not isinstance(s, NormScheme)]
    for i, layer in enumerate(layers):
        if layer is None and i < 3:
            continue
        for role in ("weight", "activation", "gradient") if layer is not None else ("all",):
            q = None if layer is None else getattr(layer, role)
            expected.append("float" if q is None else str(q.format))
    for norm in (scheme.norm, *(s for _, s in scheme.overrides if isinstance(s, NormScheme))):
        tensors = (norm.input, norm.normalized, norm.saved, norm.weight, norm.gradient)
        expected += ["float" if b is None else f"s{b}" for b in tensors]
    assert [f.split(",")[0] for f in formats] == expected
    assert len(scheme.rows()) == len(expected)


def test_the_table_prints_patterns_that_look_like_markup_or_are_long():
    pattern = "re:[a-z]+[/]" + "long" * 20
    text = str(Scheme("x", overrides=((pattern, NormScheme()),)))
    assert pattern in re.sub(r"[\s│]|l1\w+|s\d|nearest", "", "".join(line[:33] for line in text.splitlines()))


def test_files_are_versioned():
    assert json.loads(Scheme.from_name("int4").to_json())["version"] == VERSION
    plain = Scheme.from_name("int4").to_dict()
    for version in (VERSION + 1, 99, None, "1", 0, True):
        with pytest.raises(ValueError, match="version"):
            Scheme.from_dict({**plain, "version": version})


def test_what_a_file_leaves_out_has_its_default():
    scheme = Scheme.from_json('{"version": 1, "layer": {"weight": {"type": "AbsMax", "bits": 5}}}')
    assert scheme == Scheme("custom", LayerScheme(weight=AbsMax(5)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSON"),
        ("[1]", r"object, not \[1\]"),
        ('{"version": 1, "layers": {}}', "did you mean 'layer'"),
        ('{"version": 1, "layer": {"wieght": null}}', "did you mean 'weight'"),
        ('{"version": 1, "layer": {"weight": "AbsMax"}}', "weight is an object.*'AbsMax'"),
        ('{"version": 1, "layer": {"weight": {"type": "AbsMin"}}}', "did you mean 'AbsMax'"),
        ('{"version": 1, "layer": {"weight": {"bits": 4}}}', "unknown quantizer None"),
        ('{"version": 1, "layer": {"weight": {"type": "AbsMax", "bit": 4}}}', "did you mean 'bits'"),
        ('{"version": 1, "layer": {"weight": {"type": "AbsMax", "bits": 9}}}', "2 to 8 bits, not 9"),
        ('{"version": 1, "layer": 4}', "object, not 4"),
        ('{"version": 1, "norm": null}', "object, not None"),
        ('{"version": 1, "norm": {"kinds": "l1"}}', "did you mean 'kind'"),
        ('{"version": 1, "norm": {"input": "8"}}', "2 to 8 bits"),
        ('{"version": 1, "overrides": [{"layer": {}}]}', "pattern"),
        ('{"version": 1, "overrides": [{"pattern": "a"}]}', "one of layer, norm, float"),
        ('{"version": 1, "overrides": [{"pattern": "a", "float": true, "norm": {}}]}', "one of layer, norm, float"),
        ('{"version": 1, "overrides": {"a": 1}}', "an override is a JSON object"),
        ('{"version": 1, "overrides": [{"pattern": "re:(", "float": true}]}', "regular expression"),
    ],
)
def test_bad_files(text, message):
    with pytest.raises(ValueError, match=message):
        Scheme.from_json(text)


# ------------------------------------------------------------------------------------------------------------ recipes


def test_recipes_by_name():
    assert Scheme.names() == tuple(RECIPES)
    assert set(Scheme.names()) == set(NAMES)
    for name in NAMES:
        scheme = Scheme.from_name(name)
        assert scheme.name == name
        assert scheme.is_float == (name == "float")


@pytest.mark.parametrize(("wrong", "closest"), [("int5", "int"), ("Int4", "int4"), ("flaot", "float"), (4, None)])
def test_unknown_names_get_the_closest(wrong, closest):
    with pytest.raises(ValueError, match=f"did you mean '{closest}" if closest else "known are float"):
        Scheme.from_name(wrong)


@pytest.mark.parametrize(("name", "bits"), [("int4", 4), ("int6", 6), ("int8", 8)])
def test_recipes_leave_nothing_float(name, bits):
    scheme = Scheme.from_name(name)
    for layer, b in ((scheme.first, 8), (scheme.layer, bits), (scheme.last, 8)):
        assert [q.bits for q in (layer.weight, layer.activation, layer.gradient)] == [b] * 3
        assert [q.rounding for q in (layer.weight, layer.activation, layer.gradient)] == [
            *("nearest", "nearest", "stochastic")
        ]
        assert isinstance(layer.gradient, TokenShiftQuant if b < 8 else ShiftQuant)
    assert not scheme.norm.is_float
    assert scheme.norm.kind == "l1"
    assert "float" not in str(scheme)


def test_the_int4_recipe_saves_few_bits_and_folds():
    scheme = Scheme.from_name("int4")
    assert scheme.norm.saved <= 6
    for recipe in ("int4", "int6"):
        gradient = Scheme.from_name(recipe).layer.gradient
        assert gradient.bits + gradient.top == 8


# ---------------------------------------------------------------------------------------------------------- overrides


def test_overrides_by_glob_and_regular_expression():
    other, none = LayerScheme(AbsMax(2)), None
    scheme = Scheme.from_name("int4").override("re:layer[12]\\.conv\\d", other).override("*.fc?", none)
    assert scheme.for_layer("layer1.conv2") is other
    assert scheme.for_layer("layer3.conv2") == scheme.layer
    assert scheme.for_layer("layer1.conv2x") == scheme.layer  # the whole name must match
    assert scheme.for_layer("head.fc1") is None
    assert scheme.for_layer("head.fc") == scheme.layer
    assert scheme.for_layer("layer1.conv1", "first") is other
    assert scheme.for_layer("conv1", "first") == scheme.first
    assert scheme.for_layer("fc", "last") == scheme.last


def test_the_last_override_that_was_added_wins():
    a, b = LayerScheme(AbsMax(2)), LayerScheme(AbsMax(3))
    scheme = Scheme.from_name("int4").override("*", a).override("fc", b)
    assert (scheme.for_layer("fc"), scheme.for_layer("x")) == (b, a)


def test_an_override_applies_to_its_kind_of_layer():
    norm = NormScheme("l2")
    scheme = Scheme.from_name("int4").override("*", norm)
    assert scheme.for_norm("a") is norm
    assert scheme.for_layer("a") == scheme.layer
    assert scheme.override("*", None).for_norm("a") is None


def test_without_first_and_last_edges_are_as_the_rest():
    scheme = Scheme("x", LayerScheme(AbsMax(4)))
    assert scheme.for_layer("a", "first") == scheme.for_layer("a", "last") == scheme.layer


@pytest.mark.parametrize("how", [lambda p, s: Scheme(overrides=((p, s),)), Scheme().override])
def test_wrong_overrides_are_refused_at_once(how):
    with pytest.raises(ValueError, match="regular expression"):
        how("re:(", None)
    with pytest.raises(TypeError, match="LayerScheme, a NormScheme or None"):
        how("fc", AbsMax(4))


# ------------------------------------------------------------------------------------------------------ wrong settings


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 32, 4.0, "4", True])
@pytest.mark.parametrize("make", [AbsMax, PerChannel, ShiftQuant, GroupOracle, lambda b: NormScheme(input=b)])
def test_bits_outside_2_to_8(make, bits):
    with pytest.raises(ValueError, match=f"2 to 8 bits, not {bits!r}"):
        make(bits)


def test_wrong_norms():
    with pytest.raises(ValueError, match=r"'l3'.*did you mean 'l"):
        NormScheme("l3")
    with pytest.raises(ValueError, match="all numbers or all None"):
        NormScheme(input=None)
    with pytest.raises(ValueError, match=r"saved .8 bits. cannot exceed normalized .4"):
        NormScheme(normalized=4, saved=8)
    with pytest.raises(ValueError, match="did you mean 'channel'"):
        NormScheme(granularity="chanel")
    with pytest.raises(ValueError, match=r"clip is a share .* not 1.5"):
        NormScheme(clip=1.5)
    with pytest.raises(ValueError, match="4 bits leave room in 8 for 1 to 5 groups, not 6"):
        NormScheme(gradient=4, groups=6)
    with pytest.raises(ValueError, match="a float norm has no codes"):
        NormScheme("l1", None, None, None, None, None, groups=2)


@pytest.mark.parametrize("wrong", [4, "AbsMax", AbsMax, True])
def test_a_role_takes_a_quantizer(wrong):
    with pytest.raises(TypeError, match="takes a quantizer"):
        LayerScheme(weight=wrong)


# --------------------------------------------------------------------------------------------------------------- rest


@settings(max_examples=50, deadline=None)
@given(layers)
def test_eval_has_no_randomness_in_its_forward(layer):
    still = layer.deterministic_forward()
    assert not any(q is not None and q.stochastic for q in (still.weight, still.activation))
    assert still.gradient == layer.gradient
    for a, b in ((layer.weight, still.weight), (layer.activation, still.activation)):
        assert (a is None) == (b is None)
        assert a is None or a.nearest() == b
    unsigned = layer.unsigned_activation()
    assert (unsigned.weight, unsigned.gradient) == (layer.weight, layer.gradient)
    assert unsigned.activation is None or str(unsigned.activation.format) == f"u{layer.activation.bits}"


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (Scheme(), False),  # its norms are quantized
        (Scheme(norm=RECIPES["float"].norm), True),
        (Scheme(norm=RECIPES["float"].norm, last=LayerScheme(gradient=AbsMax(8))), False),
        (Scheme(norm=RECIPES["float"].norm, overrides=(("a", None),)), True),
        (Scheme(norm=RECIPES["float"].norm, overrides=(("a", LayerScheme(AbsMax(8))),)), False),
    ],
)
def test_is_float(scheme, expected):
    assert scheme.is_float is expected


def test_every_quantizer_is_exercised_here():
    assert {AbsMax, PerChannel, ShiftQuant, GroupOracle} <= set(Quantizer.registry.values())
    assert sb.Scheme is Scheme
