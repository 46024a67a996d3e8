"""Small networks of four families on real digits: 50 steps in integers lower the loss as 50 steps in floats do.

MobileNet (depthwise), ConvNeXt (LayerNorm, GELU, depthwise 7x7, Linear), U-Net (transposed convolutions), and a WGAN
without norms. Every multiply-accumulate that a layer makes is an integer one: counted, forward and backward.
"""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import subbyte as sb
from subbyte import data

STEPS, BATCH = 50, 64
RECIPES = ("int8", "int6", "int4")


def mobile_net() -> nn.Module:
    def block(c, o, stride):
        depthwise = nn.Conv2d(c, c, 3, stride, 1, groups=c, bias=False), nn.BatchNorm2d(c), nn.ReLU6()
        return nn.Sequential(*depthwise, nn.Conv2d(c, o, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU6())

    stem = nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
    body = block(16, 32, 1), block(32, 48, 2), block(48, 48, 1)
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


class ConvNeXtBlock(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c)
        self.expand, self.contract = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.contract(F.gelu(self.expand(y))).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self, c: int = 24) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(1, c, 2, 2), nn.Sequential(ConvNeXtBlock(c), ConvNeXtBlock(c))
        self.norm, self.head = nn.LayerNorm(c), nn.Linear(c, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x)).mean((2, 3))))


class UNet(nn.Module):
    """Cleans a noisy image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, 2, 1)
        self.deep, self.middle = nn.Conv2d(32, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, padding=1)
        self.up, self.join = nn.ConvTranspose2d(32, 32, 2, 2), nn.Conv2d(64, 32, 3, padding=1)
        self.top, self.last = nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.Conv2d(32, 1, 3, padding=1)
        self.norm = nn.GroupNorm(4, 32)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x).relu()
        b = self.down(a).relu()
        c = self.middle(self.norm(self.deep(b)).relu()).relu()
        b = self.join(torch.cat((self.up(c).relu(), b), 1)).relu()
        return self.last(torch.cat((self.top(b).relu(), a), 1))


def generator() -> nn.Module:
    return nn.Sequential(
        *(nn.ConvTranspose2d(16, 32, 2), nn.ReLU(), nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU()),
        nn.ConvTranspose2d(16, 1, 4, 2, 1),
    )


def critic() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 4, 2, 1), nn.LeakyReLU(0.2)),
        *(nn.Flatten(), nn.Linear(128, 1)),
    )


# --------------------------------------------------------------------------------------------------------- training


@functools.cache
def digits() -> list[tuple[Tensor, Tensor]]:
    found = data.load("digits")
    epochs = (data.batches(found, BATCH, train=True, seed=0, epoch=e) for e in range(3))
    return [batch for epoch in epochs for batch in epoch][:STEPS]


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def clean(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(int(y.sum())))
    return F.mse_loss(model(x + noise), x)


def train(model: nn.Module, step, lr: float) -> tuple[float, float]:
    """(mean loss of the first five steps, of the last ten)."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    losses = []
    for x, y in digits():
        loss = step(model, x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[:5]) / 5, sum(losses[-10:]) / 10


def built(make, recipe: str | None) -> nn.Module:
    torch.manual_seed(0)
    model = make()
    return model if recipe is None else sb.quantize_(model, recipe)


@functools.cache
def in_floats(name: str) -> tuple[float, float]:
    make, step, lr = NETS[name][:3]
    return train(built(make, None), step, lr)


def train_wgan(recipe: str | None) -> tuple[float, float]:
    """The critic's loss D(fake) - D(real), minus the distance that it sees: (mean of the first five, of the last ten).

    Arjovsky et al., arXiv 1701.07875: RMSprop and clipped weights; the generator moves every fifth step.
    """
    torch.manual_seed(0)
    make, judge = (m if recipe is None else sb.quantize_(m, recipe) for m in (generator(), critic()))
    optimizers = [torch.optim.RMSprop(m.parameters(), 2e-3) for m in (make, judge)]
    noise = torch.Generator().manual_seed(1)
    losses = []
    for i, (x, _) in enumerate(digits()):
        fake = make(torch.randn(len(x), 16, 1, 1, generator=noise))
        loss = judge(fake.detach()).mean() - judge(x).mean()
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        with torch.no_grad():
            for p in judge.parameters():
                p.clamp_(-0.05, 0.05)
        losses.append(loss.item())
        if i % 5 == 4:
            moved = -judge(fake).mean()
            optimizers[0].zero_grad()
            moved.backward()
            optimizers[0].step()
    return sum(losses[:5]) / 5, sum(losses[-10:]) / 10


NETS = {
    "MobileNet": (mobile_net, classify, 5e-3),
    "ConvNeXt": (ConvNeXt, classify, 5e-3),
    "U-Net": (UNet, clean, 3e-3),
}

BELOW = {"MobileNet": 1.3, "ConvNeXt": 1.65, "U-Net": 0.35}
MARGIN = {"int8": 0.1, "int6": 0.15, "int4": 0.45}
"""How far above the last loss in floats; measured: at most 0.00, 0.03, 0.32."""


@pytest.fixture(autouse=True)
def _one_thread():
    """These steps are short: a second thread would mostly wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", NETS)
def test_the_loss_falls_as_in_floats(name, recipe):
    make, step, lr = NETS[name]
    model = built(make, recipe)
    first, last = train(model, step, lr)
    float_first, float_last = in_floats(name)
    assert abs(first - float_first) < 0.1
    assert last < BELOW[name]
    assert last < float_last + MARGIN[recipe]


@pytest.mark.parametrize("name", NETS)
def test_every_multiply_accumulate_is_an_integer_one(name):
    make, step, _ = NETS[name]
    model = built(make, "int4")
    with sb.MacCounter() as counter:
        step(model, *digits()[0]).backward()
    assert counter.floats == {}
    with sb.MacCounter() as floats:
        step(built(make, None), *digits()[0]).backward()
    assert sum(floats.floats.values()) == counter.integer > 0


@pytest.mark.parametrize("name", NETS)
def test_the_trained_network_goes_back_to_floats(name):
    make, step, lr = NETS[name]
    model = built(make, "int8")
    train(model, step, lr)
    model.eval()
    x, _ = digits()[0]
    with torch.no_grad():
        before = model(x)
        floats = sb.dequantize_(copy.deepcopy(model)).eval()
        after = floats(x)
    assert float((after - before).norm() / before.norm()) < 0.1
    kept = {type(m).__name__ for m in floats.modules() if isinstance(m, sb.nn.QuantizedLayer)}
    assert kept == {"MobileNet": set(), "ConvNeXt": {"LayerNorm"}, "U-Net": {"GroupNorm"}}[name]  # L1: torch has none


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_wgan_without_norms_trains(recipe):
    first, last = train_wgan(recipe)
    float_first, float_last = in_floats_wgan()
    # int4 clips weights at 0.7 of their range, and a critic's, clamped, lie at both ends of it: it sees less at first.
    assert abs(first - float_first) < (0.25 if recipe == "int4" else MARGIN[recipe] / 2)
    assert last < first - 0.3
    assert last < float_last + MARGIN[recipe]  # 4 bits end lower: their generator gives itself away


@functools.cache
def in_floats_wgan() -> tuple[float, float]:
    return train_wgan(None)
