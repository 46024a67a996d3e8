"""What training code does with layers: checkpointing, accumulation, tied and frozen weights, copies, compile."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import subbyte as sb
from models_for_tests import BITS, INTEGER, NETS, RECIPES, distance, equal, gradients, layers, mlp, quantized, ran
from subbyte import AbsMax, LayerScheme, Scheme, ShiftQuant
from subbyte.fusion.model import FusedForward
from subbyte.nn import quantized as quantized_layers

INT4 = Scheme.from_name("int4")


def consumed(run) -> bool:
    """Did run() draw from torch's generator?"""
    before = torch.get_rng_state()
    run()
    return not torch.equal(before, torch.get_rng_state())


# -------------------------------------------------------------------------------------------------------- randomness


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_eval_is_deterministic_and_draws_nothing(net, recipe):
    model, x = quantized(net, recipe)
    model(x)
    model.eval()
    first = model(x)
    assert not consumed(lambda: model(x))
    assert not consumed(lambda: model(x.requires_grad_()))
    with torch.no_grad():
        assert torch.equal(model(x), first)
        assert not consumed(lambda: model(x))
    assert distance(first, sb.dequantize_(copy.deepcopy(model))(x)) > 1e-3


@pytest.mark.parametrize("net", NETS)
def test_train_draws_the_same_with_and_without_gradients(net):
    model, x = quantized(net)
    states = []
    for run in (
        lambda: model(x),
        lambda: model(x.clone().requires_grad_()),
        lambda: torch.no_grad()(model)(x),
        lambda: torch.inference_mode()(model)(x),
        lambda: model.requires_grad_(False)(x),
    ):
        torch.manual_seed(0)
        run()
        states.append(torch.get_rng_state())
    assert all(torch.equal(states[0], s) for s in states)
    assert not torch.equal(states[0], torch.Generator().manual_seed(0).get_state())


@pytest.mark.parametrize("net", NETS)
def test_the_seed_decides_and_another_seed_differs(net):
    model, x = quantized(net)
    a, b, c = (gradients(model, lambda: model(x), seed) for seed in (1, 1, 2))
    assert equal(a, b)
    assert not equal(a, c)


@pytest.mark.parametrize("net", NETS)
def test_a_layer_in_eval_mode_rounds_its_gradients_stochastically(net):
    model, x = quantized(net)
    model(x)
    model.eval()
    a, b, c = (gradients(model, lambda: model(x), seed) for seed in (1, 1, 2))
    assert equal(a, b)
    assert not equal(a, c)


def test_nothing_stochastic_draws_nothing():
    layer = sb.nn.Linear(8, 4, scheme=LayerScheme(AbsMax(4), AbsMax(4), ShiftQuant(4)))
    assert not consumed(lambda: layer(torch.randn(2, 8, generator=torch.Generator())).sum().backward())


# ------------------------------------------------------------------------------------------------------- checkpointing


class Block(nn.Module):
    """A segment with everything in it: product, dropout, norm, product."""

    def __init__(self, frozen_norm=False):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)
        self.dropout = nn.Dropout(0.5)
        self.frozen_norm = frozen_norm

    def forward(self, x):
        x = self.dropout(self.a(x))
        x = self.norm(x).relu()
        return self.b(self.dropout(x))


@pytest.mark.parametrize("frozen_norm", [False, True])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_changes_no_bit(use_reentrant, frozen_norm):
    block = sb.quantize_(Block(), "int4")
    block(torch.randn(2, 3, 8, 8))
    block.norm.train(not frozen_norm)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)

    def run(through):
        x.grad = None
        found = gradients(block, lambda: through(block, x) + through(block, 2 * x))
        return [*found, x.grad.clone(), torch.get_rng_state()]

    plain = run(lambda f, *args: f(*args))
    block.norm.running_mean.zero_() if not frozen_norm else None
    again = run(lambda f, *args: checkpoint(f, *args, use_reentrant=use_reentrant))
    assert equal(plain, again)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_sequential(use_reentrant):
    model, x = quantized("conv")
    x.requires_grad_()
    plain = gradients(model, lambda: model(x))
    again = gradients(model, lambda: checkpoint_sequential(model, 3, x, use_reentrant=use_reentrant))
    assert equal(plain, again)


# --------------------------------------------------------------------------------------------- several calls and steps


@pytest.mark.parametrize("net", NETS)
def test_gradient_accumulation_is_the_sum_of_the_parts(net):
    model, x = quantized(net)
    parts = [gradients(model, lambda half=half: model(half), seed) for seed, half in enumerate(x.chunk(2))]
    model.zero_grad()
    for seed, half in enumerate(x.chunk(2)):
        torch.manual_seed(seed)
        model(half).square().sum().backward()
    assert equal([p.grad for p in model.parameters()], [a + b for a, b in zip(*parts, strict=True)])


def test_a_layer_called_twice():
    layer = sb.nn.Linear(8, 8, scheme=INT4.layer)
    x = torch.randn(5, 8)
    torch.manual_seed(0)
    y = layer(x)
    z = layer(y)
    g = torch.randn(5, 8)
    (grad,) = torch.autograd.grad(z, layer.weight, g)
    torch.manual_seed(0)
    first, second = layer(x), None
    leaf = first.detach().requires_grad_()
    second = layer(leaf)
    back, direct = torch.autograd.grad(second, (leaf, layer.weight), g)
    (through,) = torch.autograd.grad(first, layer.weight, back)
    assert torch.equal(z, second)
    assert torch.equal(grad, direct + through)


def test_tied_weights():
    model = mlp(norm=False)
    model[4] = nn.Linear(16, 16)
    model[4].weight = model[2].weight
    sb.quantize_(model, INT4.override("*", Scheme.from_name("int8").layer))
    assert model[4].weight is model[2].weight
    model.append(nn.Identity())
    grads = gradients(model, lambda: model(torch.ones(3, 12)))
    assert len(grads) == len(list(model.parameters())) == 5
    before = model[2].weight.detach().clone()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert torch.equal(model[4].weight, model[2].weight)
    assert not torch.equal(before, model[2].weight)


# -------------------------------------------------------------------------------------------------------------- memory


def saved_by(run) -> list[torch.Tensor]:
    """Every tensor that autograd keeps for the backward of run()."""
    kept: list[torch.Tensor] = []

    def keep(t):
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        run()
    return kept


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_backward_needs_is_packed_codes(recipe):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.Flatten(),
    )
    model.append(nn.Linear(8 * 196, 2))
    sb.quantize_(model, recipe)
    x, bits = torch.randn(3, 4, 16, 16, requires_grad=True), BITS[recipe]
    outputs = {}
    for i in (1, 2, 4):
        kept = saved_by(lambda x=x, i=i: outputs.__setitem__(i, model[i](x)))
        codes = [t for t in kept if t.dtype == torch.uint8]
        rest = [t for t in kept if t.dtype != torch.uint8]
        assert sum(t.numel() for t in rest) <= 3 * 8 + 8, i  # of a norm: gamma's codes, scales, D
        width = Scheme.from_name(recipe).norm.saved if i == 2 else bits
        activation = x.numel() * width // 8
        parameters = [] if i == 2 else [model[i].weight.numel() * bits // 8]
        if i != 2 and recipe == "int4":  # two bits for each block of weights, and for each token of the input
            parameters += [model[i].weight.numel() // 8 // 4, -(-x.numel() // x.shape[1] // 4)]
        assert sorted(t.nbytes for t in codes) == sorted([activation, *parameters]), i
        x = outputs[i].detach().relu().requires_grad_()


def test_the_int4_recipe_keeps_ten_bits_where_float_keeps_sixty_four():
    conv = sb.nn.Conv2d(8, 8, 3, padding=1, bias=False, scheme=INT4.layer)
    norm = sb.nn.BatchNorm2d(8, scheme=INT4.norm)
    x = torch.randn(8, 8, 16, 16, requires_grad=True)
    kept = saved_by(lambda: norm(conv(x)))
    tokens = x.numel() / 8 * 2 / 8  # two bits for each: a bit of a quarter where there are but 8 channels
    assert 1.25 * x.numel() + tokens <= sum(t.nbytes for t in kept) < 1.27 * x.numel() + tokens + 400
    floats = saved_by(lambda: nn.BatchNorm2d(8)(nn.Conv2d(8, 8, 3, padding=1, bias=False)(x)))
    assert sum(t.nbytes for t in floats) > 6 * sum(t.nbytes for t in kept)


def test_nothing_is_kept_without_gradients_or_for_frozen_operands():
    layer = sb.nn.Linear(64, 16, scheme=INT4.layer)
    x = torch.randn(32, 64, requires_grad=True)
    with torch.no_grad():
        layer(x)
    assert "pack_codes" not in layer.record.kernels
    inputs, weights, tokens, blocks = 32 * 64 // 2, 64 * 16 // 2, 32 // 4, 64 * 16 // 8 // 4  # 2 bits for each of these

    def codes(x):
        return sorted(t.nbytes for t in saved_by(lambda: layer(x)) if t.dtype == torch.uint8)

    assert codes(x) == [tokens, blocks, weights, inputs]
    assert codes(x.detach()) == [tokens, inputs]
    layer.weight.requires_grad_(False)
    assert codes(x) == [blocks, weights]  # the input is not kept: only the weight's gradient would need it
    assert codes(x.detach()) == []


def test_frozen_weights_get_no_gradient_and_pass_one_on():
    model, x = quantized("mlp")
    model[3].requires_grad_(False)
    model(x).sum().backward()
    assert model[3].weight.grad is None
    assert model[3].bias.grad is None
    assert model[0].weight.grad.abs().sum() > 0
    assert "grad_weight" not in ran(model[3])
    assert ran(model[3])["grad_input"] == "integer"


# -------------------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("net", NETS)
def test_deepcopy_and_pickle(net):
    model, x = quantized(net)
    model(x).sum().backward()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    expected = gradients(model, lambda: model(x))
    for other in copies:
        assert equal(expected, gradients(other, lambda other=other: other(x)))
        for a, b in zip(layers(model), layers(other), strict=True):
            assert a.scheme == b.scheme
            assert a.record is not b.record
            assert a.weight.data_ptr() != b.weight.data_ptr()
        assert sb.report(other).rows[0]["output"] == "integer"


def test_state_dict_through_a_file(tmp_path):
    model, x = quantized("conv")
    model(x)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other, _ = quantized("conv")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=True)
    assert torch.equal(model.eval()(x), other.eval()(x))


# ----------------------------------------------------------------------------------------------- transforms and compile


def test_transforms_that_do_not_apply_say_so():
    model, x = quantized("mlp")
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda x: model(x).sum())(x)
    x.requires_grad_()
    (g,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        model(torch.autograd.forward_ad.make_dual(x.detach(), torch.ones_like(x)))


@pytest.mark.skipif(torch.__version__ < quantized_layers.TRACED_FROM, reason="this torch cannot trace a layer")
@pytest.mark.parametrize(
    ("net", "training", "backend"),
    [("mlp", True, "eager"), ("mlp", False, "aot_eager"), ("conv", True, "aot_eager"), ("conv", False, "eager")],
)
@pytest.mark.filterwarnings("error:Dynamo")
def test_compile_is_one_graph_with_the_same_numbers(net, training, backend):
    """With aot_eager the partitioner draws streams in backward, in another order: its gradients have other noise."""
    model, x = quantized(net)
    model(x)
    model.train(training)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.manual_seed(0)
    expected = model(x)
    for _ in range(2):
        torch.manual_seed(0)
        assert torch.equal(compiled(x), expected)
    grads = gradients(model, lambda: model(x))
    for _ in range(2):
        again = gradients(model, lambda: compiled(x))
        if backend == "eager":
            assert equal(grads, again)
        else:
            assert distance(*(torch.cat([g.flatten() for g in found]) for found in (again, grads))) < 0.5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(("net", "fused"), [("mlp", False), ("conv", False), ("conv", True)])
def test_compile_with_an_older_torch_leaves_the_layers_outside_of_its_graphs(net, fused, monkeypatch):
    monkeypatch.setattr(quantized_layers, "TRACED_FROM", "99")
    for cls in (*sb.nn.REGISTRY.values(), FusedForward):
        if "forward" in vars(cls):
            monkeypatch.setattr(cls, "forward", quantized_layers.outside_of_graphs(vars(cls)["forward"]))
    model, x = quantized(net)
    if fused:
        sb.fuse_(model)
    expected = gradients(model, lambda: model(x))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        assert equal(expected, gradients(model, lambda: compiled(x)))
    assert torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(model, backend="eager", fullgraph=True)(x)


def test_a_step_of_training_lowers_the_loss():
    model, _ = quantized("conv")
    torch.manual_seed(0)
    x, y = torch.randn(64, 3, 8, 8), torch.randint(0, 5, (64,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert ran(model[3]) == INTEGER
