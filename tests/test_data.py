"""Data sets in memory: the digits, normalization, augmentation, batches and their purity."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from subbyte import data, models
from subbyte.data.augment import CROP_PAD
from subbyte.data.digits import held_out

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture
def colour():
    """A small colour set of its own, with the index of each image in its first pixel."""
    x = torch.randint(0, 256, (37, 3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    y = torch.arange(37) % 5
    return data.Dataset("toy", x, y, x[:11], y[:11], tuple("abcde"), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), "crop_flip")


# ---- names, digits, Dataset ---------------------------------------------------------------------------------------


def test_tasks_and_unknown_task():
    assert data.tasks() == ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "imagefolder")
    with pytest.raises(
        ValueError, match=r"unknown task 'cifar-10' \(did you mean 'cifar10'\?\); known are digits, mnist"
    ):
        data.load("cifar-10")


def test_digits_are_scikit_learns(digits):
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    source = sklearn_datasets.load_digits()
    images, labels = source.images, source.target
    test = np.zeros(len(labels), bool)
    for label in range(10):
        for count, index in enumerate(np.flatnonzero(labels == label), 1):
            test[index] = count % 5 == 0  # the documented split
    assert np.array_equal(test, held_out(labels))
    for x, y, part in ((digits.train_x, digits.train_y, ~test), (digits.test_x, digits.test_y, test)):
        assert np.array_equal(y.numpy(), labels[part])
        assert np.array_equal(x[:, 0].numpy(), np.floor(images[part] * 255 / 16 + 0.5).astype(np.uint8))
        assert np.array_equal(np.round(x[:, 0].numpy() / 255 * 16), images[part])  # nothing was lost


def test_digits_facts(digits):
    assert (len(digits.train_y), len(digits.test_y)) == (1442, 355)
    assert (digits.in_channels, digits.image_size, digits.num_classes, digits.augment) == (1, 8, 10, "shift")
    assert digits.in_memory
    x = digits.train_x.double() / 255
    assert x.mean().item() == pytest.approx(digits.mean[0], abs=5e-4)
    assert x.std().item() == pytest.approx(digits.std[0], abs=5e-4)


def test_smallcnn_learns_the_digits(digits):
    torch.manual_seed(0)
    model, epochs, batch = models.build("smallcnn", 10, in_channels=1), 8, 64
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    steps = epochs * data.num_batches(len(digits.train_y), batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        for x, y in data.batches(digits, batch, train=True, epoch=epoch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
    x, y = next(data.batches(digits, 355, train=False))
    assert (model.eval()(x).argmax(1) == y).float().mean() > 0.97


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_x": torch.zeros(4, 1, 8, 8)}, r"train_x must be uint8 .* found torch.float32"),
        ({"train_x": torch.zeros(4, 8, 8, dtype=torch.uint8)}, "train_x must be uint8"),
        ({"test_y": torch.zeros(3, dtype=torch.int64)}, r"test_y must be int64 \(4,\)"),
        ({"test_y": torch.full((4,), 7)}, r"test labels are in 7\.\.7, but there are 2 classes"),
    ],
)
def test_dataset_checks_itself(change, message):
    x, y = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    values = dict(name="toy", train_x=x, train_y=y, test_x=x, test_y=y, classes=("a", "b"), mean=(0.5,), std=(0.5,))
    data.Dataset(**values)
    with pytest.raises(data.DataError, match=message):
        data.Dataset(**{**values, **change})


def test_info_survives_json(digits):
    info = digits.info
    assert data.DatasetInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
    assert (info.name, info.classes[3], info.image_size, info.num_classes) == ("digits", "3", 8, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, r"unknown keys \['colour'\]"),
        ({"mean": None}, r"missing keys \['mean'\]"),
        ({"mean": [0.5, 0.5]}, "mean has 2 and std 1 values for 1 channels"),
        ({"std": [0.0]}, "every std must be positive"),
        ({"in_channels": 2}, "needs 1 or 3 channels"),
    ],
)
def test_info_from_bad_dict(digits, change, message):
    values = {key: value for key, value in {**digits.info.to_dict(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        data.DatasetInfo.from_dict(values)


# ---- normalize and augment ----------------------------------------------------------------------------------------


def test_normalize():
    x = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    y = data.normalize(x, mean, std)
    assert y.dtype == torch.float32
    for n, c, i, j in torch.cartesian_prod(*(torch.arange(s) for s in x.shape)).tolist():
        assert y[n, c, i, j].item() == pytest.approx((x[n, c, i, j].item() / 255 - mean[c]) / std[c], rel=1e-6)
    assert torch.equal(data.normalize(x.float() / 255, mean, std), y)
    assert data.normalize(x.double() / 255, mean, std).dtype == torch.float64
    assert data.normalize(x[:0], mean, std).shape == (0, 3, 2, 2)


def test_nan_and_inf_pass_through():
    x = torch.zeros(1, 1, 12, 12)
    x[0, 0, 6, 6], x[0, 0, 6, 7] = float("nan"), float("inf")
    y = data.normalize(x, (0.5,), (0.5,))
    assert y.isnan().sum() == 1
    assert y.isinf().sum() == 1
    assert data.augment(y, "shift", torch.Generator().manual_seed(0)).isnan().sum() == 1


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (3, 4, 4)])
def test_normalize_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"normalize needs x \(N, C, H, W\)"):
        data.normalize(torch.zeros(shape), (0.5,), (0.5,))


def plain_augment(x, kind, generator):
    """The definition, image by image, with draws in the documented order: corners, then mirrors."""
    n, c, h, w = x.shape
    pad = {"crop_flip": CROP_PAD, "shift": 1 if min(h, w) < 16 else 2}[kind]
    corner = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=generator)
    flip = torch.randint(0, 2, (n, 1), generator=generator).bool() if kind == "crop_flip" else torch.zeros(n, 1).bool()
    out = []
    for i in range(n):
        padded = torch.zeros(c, h + 2 * pad, w + 2 * pad, dtype=x.dtype)
        padded[:, pad : pad + h, pad : pad + w] = x[i]
        top, left = int(corner[0, i]), int(corner[1, i])
        image = padded[:, top : top + h, left : left + w]
        out.append(image.flip(2) if flip[i] else image)
    return torch.stack(out)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(20, 3, 32, 32), (20, 1, 8, 8), (9, 2, 5, 17), (1, 1, 1, 1)])
@pytest.mark.parametrize("kind", ["crop_flip", "shift"])
def test_augment_against_a_plain_loop(kind, shape, dtype):
    x = torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    for seed in range(3):
        y = data.augment(x, kind, torch.Generator().manual_seed(seed))
        assert y.dtype == dtype
        assert torch.equal(y, plain_augment(x, kind, torch.Generator().manual_seed(seed)))


def test_augment_other_memory_and_empty():
    x = torch.randn(6, 3, 32, 32)
    expected = data.augment(x, "crop_flip", torch.Generator().manual_seed(5))
    for same in (x.to(memory_format=torch.channels_last), x.repeat_interleave(2, 0)[::2]):
        assert torch.equal(data.augment(same, "crop_flip", torch.Generator().manual_seed(5)), expected)
    assert data.augment(x[:0], "crop_flip").shape == (0, 3, 32, 32)
    assert data.augment(x, "none") is x


@pytest.mark.parametrize(("kind", "side", "places"), [("shift", 8, 9), ("shift", 28, 25), ("crop_flip", 32, 162)])
def test_augment_draws_every_place_alike(kind, side, places):
    n = 200 * places
    x = torch.zeros(n, 1, side, side, dtype=torch.uint8)
    x[:, :, side // 2, side // 2 : side // 2 + 2] = torch.tensor([1, 2], dtype=torch.uint8)  # shows the mirror too
    y = data.augment(x, kind, torch.Generator().manual_seed(0)).flatten(1)
    counts = Counter(zip(y.eq(1).int().argmax(1).tolist(), y.eq(2).int().argmax(1).tolist()))
    assert len(counts) == places
    deviation = sum((count - 200) ** 2 / 200 for count in counts.values())  # chi-squared with places - 1 degrees
    assert deviation < places + 5 * (2 * places) ** 0.5


def test_augment_unknown_kind():
    x = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match="unknown augmentation 'mixup'; known are none, shift, crop_flip, imagenet"):
        data.augment(x, "mixup")
    with pytest.raises(ValueError, match="as they are decoded"):
        data.augment(x, "imagenet")


# ---- batches ------------------------------------------------------------------------------------------------------


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b))


def test_start_is_the_tail(colour, digits):
    for dataset, size in ((colour, 8), (digits, 100)):
        whole = list(data.batches(dataset, size, train=True, seed=3, epoch=2))
        for start in range(len(whole) + 1):
            assert equal(list(data.batches(dataset, size, train=True, seed=3, epoch=2, start=start)), whole[start:])
        for seed, epoch in ((3, 3), (4, 2), (2, 3)):
            assert not equal(list(data.batches(dataset, size, train=True, seed=seed, epoch=epoch)), whole)


def test_batches_leave_the_global_generator_alone(colour):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = list(data.batches(colour, 8, train=True))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert equal(list(data.batches(colour, 8, train=True)), first)


def test_an_epoch_has_each_image_once(colour):
    plain = data.normalize(colour.train_x, colour.mean, colour.std)
    seen = torch.cat([x for x, _ in data.batches(colour, 8, train=True, kind="none", seed=1)])
    labels = torch.cat([y for _, y in data.batches(colour, 8, train=True, seed=1)])
    order = (seen[:, None] == plain[None]).flatten(2).all(2).int().argmax(1)
    assert sorted(order.tolist()) == list(range(37))
    assert order.tolist() != list(range(37))
    assert torch.equal(labels, colour.train_y[order])


def test_order_depends_on_seed_and_epoch(colour):
    def order(seed, epoch):
        return torch.cat([x for x, _ in data.batches(colour, 8, train=True, kind="none", seed=seed, epoch=epoch)])

    first = order(0, 0)
    assert torch.equal(order(0, 0), first)
    for seed, epoch in ((0, 1), (1, 0)):
        assert not torch.equal(order(seed, epoch), first)


def test_border_is_mean_colour_or_ground(colour, digits):
    x, _ = next(data.batches(colour, 37, train=True))
    assert (x[:, :, 0] == 0).all(-1).any()  # an image that moved down shows a row of the mean colour
    x, _ = next(data.batches(digits, 1442, train=True))
    ground = data.normalize(torch.zeros(1, 1, 1, 1, dtype=torch.uint8), digits.mean, digits.std).item()
    assert x.min().item() == ground
    assert not (x == 0).any()


def test_test_batches_are_in_order_and_plain(colour):
    xs, ys = zip(*data.batches(colour, 4, train=False, seed=7))
    assert [len(x) for x in xs] == [4, 4, 3]
    assert torch.equal(torch.cat(xs), data.normalize(colour.test_x, colour.mean, colour.std))
    assert torch.equal(torch.cat(ys), colour.test_y)


def test_drop_last(colour):
    assert [len(x) for x, _ in data.batches(colour, 8, train=True)] == [8, 8, 8, 8, 5]
    assert [len(x) for x, _ in data.batches(colour, 8, train=True, drop_last=True)] == [8, 8, 8, 8]
    assert (data.num_batches(37, 8), data.num_batches(37, 8, drop_last=True)) == (5, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be positive, found 0"),
        ({"start": 6}, r"start must be in 0\.\.5, the number of batches, found 6"),
        ({"start": -1}, r"start must be in 0\.\.5"),
        ({"batch_size": 38, "drop_last": True}, "37 images give no batch of 38"),
        ({"kind": "imagenet"}, "augmentation 'imagenet' does not fit toy; possible are none, shift, crop_flip"),
    ],
)
def test_batches_bad_arguments_fail_at_once(colour, arguments, message):
    with pytest.raises(ValueError, match=message):
        data.batches(colour, **{"batch_size": 8, "train": True, **arguments})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_are_the_same_on_a_gpu(colour):
    expected = list(data.batches(colour, 8, train=True))
    for dataset in (colour, colour.to("cuda")):
        found = [(x.cpu(), y.cpu()) for x, y in data.batches(dataset, 8, train=True, device="cuda")]
        assert equal(found, expected)
