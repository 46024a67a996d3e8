"""Which inputs get unsigned codes: all that surely cannot be negative, and never one that can."""

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import subbyte as sb
from models_for_tests import conv_net
from subbyte import models
from subbyte.convert import CONVERSION
from subbyte.signs import nonnegative_inputs


class Net(nn.Module):
    """forward is given; `fc` is the layer in question, everything else is at hand."""

    def __init__(self, run):
        super().__init__()
        self.run = run
        self.pre, self.fc, self.other = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.relu, self.relu_ = nn.ReLU(), nn.ReLU(inplace=True)
        self.leaky_, self.leaky = nn.LeakyReLU(inplace=True), nn.LeakyReLU()
        self.dropout, self.pool, self.flatten = nn.Dropout(), nn.MaxPool2d(2), nn.Flatten()
        self.odd_pool = nn.AvgPool2d(1, divisor_override=-1)
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.run(self, x)


def is_unsigned(run, layer="fc") -> bool:
    model = Net(run)
    names, reason = nonnegative_inputs(model)
    assert reason == ""
    return layer in names


def images(n, x):
    """(B, 4) -> (B, 4, 2, 2) of any sign."""
    return n.bn(n.conv(x.view(-1, 4, 1, 1).expand(-1, 4, 2, 2)))


CERTAIN = {
    "relu": lambda n, x: n.fc(n.relu(x)),
    "relu in place": lambda n, x: n.fc(n.relu_(x)),
    "functional": lambda n, x: n.fc(F.relu(x)),
    "torch.relu": lambda n, x: n.fc(torch.relu(x)),
    "method": lambda n, x: n.fc(x.relu()),
    "method in place": lambda n, x: n.fc(x.relu_()),
    "sigmoid": lambda n, x: n.fc(torch.sigmoid(x)),
    "softmax": lambda n, x: n.fc(F.softmax(x, dim=-1)),
    "abs": lambda n, x: n.fc(abs(x)),
    "dropout": lambda n, x: n.fc(n.dropout(n.relu(x))),
    "functional dropout": lambda n, x: n.fc(F.dropout(n.relu(x), 0.5, n.training)),
    "pool": lambda n, x: n.fc(n.flatten(n.pool(n.relu(images(n, x))))),
    "functional pool": lambda n, x: n.fc(torch.flatten(F.max_pool2d(n.relu(images(n, x)), 2), 1)),
    "average": lambda n, x: n.fc(F.avg_pool2d(n.relu(images(n, x)), 2).flatten(1)),
    "adaptive": lambda n, x: n.fc(F.adaptive_avg_pool2d(n.relu(images(n, x)), 1)[:, :, 0, 0]),
    "mean": lambda n, x: n.fc(n.relu(images(n, x)).mean((-2, -1))),
    "reshape": lambda n, x: n.fc(n.relu(x).view(x.shape[0], -1).reshape(-1, 4).unsqueeze(0).squeeze(0)),
    "residual": lambda n, x: n.fc(n.relu(n.pre(n.relu(x)) + x)),
    "sum of nonnegative": lambda n, x: n.fc(n.relu(x) + n.relu(n.pre(x))),
    "sum in place": lambda n, x: n.fc(operator.iadd(n.relu(x), n.relu(n.pre(x)))),
    "scaled": lambda n, x: n.fc(n.relu(x) * 2.0 + 1),
    "cat": lambda n, x: n.fc(torch.cat((n.relu(x), torch.sigmoid(x)), dim=-1)[:, :4]),
    "chunk": lambda n, x: n.fc(n.relu(torch.cat((x, x), 1)).chunk(2, dim=1)[1]),
    "padded": lambda n, x: n.fc(F.pad(n.relu(x)[:, :3], (0, 1))),
    "padded by a positive": lambda n, x: n.fc(F.pad(n.relu(x)[:, :3], (0, 1), "constant", 0.5)),
    "named input": lambda n, x: n.fc(input=n.relu(x)),
    "twice": lambda n, x: n.fc(n.relu(n.fc(n.relu(x)))),
    "to": lambda n, x: n.fc(n.relu(x).to(torch.float32).contiguous()),
}

POSSIBLE = {
    "the model's input": lambda n, x: n.fc(x),
    "norm": lambda n, x: n.fc(n.flatten(n.pool(images(n, x)))),
    "linear": lambda n, x: n.fc(n.pre(n.relu(x))),
    "leaky": lambda n, x: n.fc(n.leaky(x)),
    "average of signed": lambda n, x: n.fc(F.avg_pool2d(images(n, x), 2).flatten(1)),
    "mean of signed": lambda n, x: n.fc(images(n, x).mean((2, 3))),
    "to of signed": lambda n, x: n.fc(x.to(torch.float32)),
    "getitem of signed": lambda n, x: n.fc((x, n.relu(x))[0]),
    "chunk of signed": lambda n, x: n.fc(torch.cat((x, n.relu(x)), 1).chunk(2, 1)[1]),
    "difference": lambda n, x: n.fc(n.relu(x) - n.relu(n.pre(x))),
    "residual": lambda n, x: n.fc(n.relu(x) + x),
    "x - relu": lambda n, x: n.fc(x - n.relu(x)),
    "add with alpha": lambda n, x: n.fc(torch.add(n.relu(x), n.relu(n.pre(x)), alpha=-1)),
    "method add with alpha": lambda n, x: n.fc(n.relu(x).add(n.relu(n.pre(x)), alpha=-2)),
    "times -1": lambda n, x: n.fc(n.relu(x) * -1),
    "-1 times": lambda n, x: n.fc(-1 * n.relu(x)),
    "plus -1": lambda n, x: n.fc(n.relu(x) + -1.0),
    "named negative": lambda n, x: n.fc(torch.mul(n.relu(x), other=-2)),
    "negated": lambda n, x: n.fc(-n.relu(x)),
    "divided": lambda n, x: n.fc(n.relu(x) / -2),
    "1 - relu": lambda n, x: n.fc(1 - n.relu(x)),
    "sub": lambda n, x: n.fc(n.relu(x).sub(1)),
    "times a parameter": lambda n, x: n.fc(n.relu(x) * n.weight),
    "plus a tensor": lambda n, x: n.fc(n.relu(x) + torch.tensor(-1.0)),
    "cat with signed": lambda n, x: n.fc(torch.cat((n.relu(x), x))),
    "padded by a negative": lambda n, x: n.fc(F.pad(n.relu(x)[:, :3], (0, 1), value=-1.0)),
    "padded by a negative, by place": lambda n, x: n.fc(F.pad(n.relu(x)[:, :3], (0, 1), "constant", -1.0)),
    "a pool that divides by -1": lambda n, x: n.fc(n.odd_pool(n.relu(images(n, x)))[:, :, 0, 0]),
    "functional pool that divides by -1": lambda n, x: n.fc(
        F.avg_pool2d(n.relu(images(n, x)), 2, divisor_override=-1)[:, :, 0, 0]
    ),
    "one call of two": lambda n, x: n.fc(n.fc(n.relu(x))),
    "one call of two, the other way": lambda n, x: n.fc(n.relu(n.fc(x))),
    "one call by name": lambda n, x: n.fc(n.relu(x)) + n.fc(input=x),
    "relu of another tensor": lambda n, x: (n.relu(x), n.fc(x))[1],
    "log of sigmoid": lambda n, x: n.fc(torch.sigmoid(x).log()),
    "gelu": lambda n, x: n.fc(F.gelu(x)),
    "out=": lambda n, x: n.fc(torch.abs(x, out=x)),
}


def mutated(change):
    """A layer reads `a`, which was nonnegative until `change` reached it."""

    def run(n, x):
        a = n.relu(x)
        b = change(n, a)
        return n.fc(a) + b

    return run


MUTATED = {
    "augmented": mutated(lambda n, a: operator.isub(a, 1)),
    "augmented product": mutated(lambda n, a: operator.imul(a, -1)),
    "augmented sum": mutated(lambda n, a: operator.iadd(a, n.pre(a))),
    "method": mutated(lambda n, a: a.sub_(1)),
    "of a view": mutated(lambda n, a: a.view(-1).neg_()),
    "of a part": mutated(lambda n, a: a[:, :2].sub_(1)),
    "module": mutated(lambda n, a: n.leaky_(n.pre(a).view_as(a)) + n.leaky_(a.mul_(-1))),
    "function with a flag": mutated(lambda n, a: F.leaky_relu(F.hardtanh(a, -2, -1, True))),
    "function with a named flag": mutated(lambda n, a: F.hardtanh(a, -2, -1, inplace=True)),
    "out": mutated(lambda n, a: torch.neg(a, out=a)),
}


@pytest.mark.parametrize("run", CERTAIN.values(), ids=CERTAIN)
def test_surely_nonnegative(run):
    assert is_unsigned(run)
    values = []
    model = Net(run)
    model.fc.register_forward_pre_hook(
        lambda m, args, kwargs: values.append(next(iter((*args, *kwargs.values()))).min()), with_kwargs=True
    )
    model(torch.randn(8, 4))
    assert all(v >= 0 for v in values)


@pytest.mark.parametrize("run", POSSIBLE.values(), ids=POSSIBLE)
def test_possibly_negative(run):
    assert not is_unsigned(run)


@pytest.mark.parametrize("run", MUTATED.values(), ids=MUTATED)
def test_changed_in_place_before_the_layer_reads_it(run):
    assert not is_unsigned(run)


def test_what_is_changed_afterwards_does_not_matter():
    def run(n, x):
        a = n.relu(x)
        y = n.fc(a)
        a -= 1
        return n.other(a) + y

    assert is_unsigned(run)
    assert not is_unsigned(run, "other")


def test_an_unrelated_change_does_not_matter():
    """A residual block in place: `out += identity` changes out, which shares no memory with the skip connection."""

    def run(n, x):
        a = n.relu(x)
        out = n.pre(a)
        out += x
        return n.fc(a) + n.other(n.relu(out))

    assert is_unsigned(run)
    assert is_unsigned(run, "other")


# ----------------------------------------------------------------------------------------------------- hooks and types


class NegativeReLU(nn.ReLU):
    def forward(self, x):
        return super().forward(x) - 1


def relu(x):
    """Only the name is that of a ReLU."""
    return x - 1


torch.fx.wrap("relu")


@pytest.mark.parametrize("subclass", [NegativeReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))])
def test_subclasses_and_namesakes(subclass):
    model = nn.Sequential(nn.Linear(4, 4), subclass, nn.Linear(4, 4))
    assert nonnegative_inputs(model) == (set(), "")
    assert not is_unsigned(lambda n, x: n.fc(relu(x)))


def test_a_subclass_that_torchs_parametrizations_renamed():
    odd = NegativeReLU()
    odd.weight = nn.Parameter(torch.ones(1))
    nn.utils.parametrize.register_parametrization(odd, "weight", nn.Identity())
    assert nonnegative_inputs(nn.Sequential(odd, nn.Linear(4, 4)))[0] == set()


def test_hooks_make_a_sign_unknown():
    def build():
        return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

    assert nonnegative_inputs(build())[0] == {"2"}
    for change in (
        lambda m: m[1].register_forward_hook(lambda m, a, y: y - 1),
        lambda m: m[1].register_forward_pre_hook(lambda m, a: a),
        lambda m: m[2].register_forward_pre_hook(lambda m, a: (a[0] - 1,)),
    ):
        model = build()
        change(model)
        assert nonnegative_inputs(model)[0] == set()
    model = nn.Sequential(build(), nn.Linear(4, 4))
    model[0].add_module("3", nn.ReLU())
    assert "1" in nonnegative_inputs(model)[0]
    model[0].register_forward_hook(lambda m, a, y: y - 1)
    assert "1" not in nonnegative_inputs(model)[0]


# --------------------------------------------------------------------------------------------------- modes and tracing


@pytest.mark.parametrize("training", [True, False])
def test_a_branch_on_the_mode(training):
    """Converted in one mode, the model must be right in the other too."""
    for wrong in (True, False):
        model = Net(lambda n, x, wrong=wrong: n.fc(n.relu(x) - 1 if n.training is wrong else n.relu(x)))
        assert nonnegative_inputs(model.train(training)) == (set(), "")
        assert model.training is training


def test_a_branch_on_a_default():
    class Optional(Net):
        def forward(self, x, mask=None):
            return self.fc(self.relu(x) * 1 if mask is not None else self.relu(x) - 1)

    assert nonnegative_inputs(Optional(None)) == (set(), "")


def test_tracing_leaves_no_trace():
    class Keeps(Net):
        calls = 0

        def forward(self, x):
            self.calls += 1
            self.last = self.relu(x)
            return self.fc(self.last + torch.rand(1).item() * 0)

    model = Keeps(None)
    model.fc.eval()
    state = torch.get_rng_state()
    assert nonnegative_inputs(model)[0] == {"fc"}
    assert not hasattr(model, "last")
    assert model.calls == 0
    assert (model.training, model.fc.training) == (True, False)
    assert torch.equal(state, torch.get_rng_state())
    copy.deepcopy(model)


def test_models_that_cannot_be_traced_keep_signed_codes_and_say_why():
    class Branches(Net):
        def forward(self, x):
            return self.fc(self.relu(x)) if x.sum() > 0 else self.fc(x)

    model = Branches(None)
    names, reason = nonnegative_inputs(model)
    assert names == set()
    assert "torch.fx cannot trace the model (TraceError" in reason
    sb.quantize_(model, "int4")
    assert model.fc.scheme.activation.signed
    assert getattr(model, CONVERSION).signs == reason
    assert f"activations are signed throughout: {reason}" in str(sb.report(model))


def test_a_single_layer_has_no_known_producer():
    assert nonnegative_inputs(nn.Linear(4, 4)) == (set(), "a single module: its producer is not known")


def test_a_model_that_was_converted_before_is_traced_too():
    model = conv_net()
    expected, _ = nonnegative_inputs(model)
    assert expected == {"3", "6", "7"}
    sb.quantize_(model, "float")
    assert nonnegative_inputs(model) == (expected, "")


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet50"])
def test_resnets_use_unsigned_codes_behind_every_relu(name):
    with torch.device("meta"):
        model = models.build(name, num_classes=10)
    names, reason = nonnegative_inputs(model)
    assert reason == ""
    layers = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert [n for n in layers if n not in names] == layers[:1]


def test_unsigned_codes_in_a_converted_model():
    model = sb.quantize_(conv_net(), "int6")
    assert [m.scheme.activation.signed for m in (model[0], model[3], model[7])] == [True, False, False]
    sb.observe(model.modules())
    model(torch.randn(4, 3, 8, 8))
    for layer, signed in ((model[0], True), (model[3], False), (model[7], False)):
        assert layer.record.operands["activation"].format.startswith("s" if signed else "u")
        assert layer.record.operands["activation"].clipped_pct == 0
