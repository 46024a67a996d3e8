"""Image files: folders in ImageNet's layout, decoding, cropping, and one file made a model's input."""

import sys

import numpy as np
import pytest
import torch

from subbyte import data
from subbyte.data.imagefolder import random_area
from subbyte.data.images import resize_and_crop

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b))


@pytest.fixture
def image_tree(tmp_path):
    image = pytest.importorskip("PIL.Image")
    generator = np.random.default_rng(0)
    for part, count in (("train", 5), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (20 + 3 * i, 31, 3), dtype=np.uint8)
                image.fromarray(pixels).save(folder / f"{i}.{'JPEG' if i else 'png'}")
            (folder / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    return tmp_path


def test_imagefolder(image_tree):
    dataset = data.load("imagefolder", image_tree, image_size=16)
    assert (dataset.classes, dataset.in_channels, dataset.image_size) == (("cat", "dog"), 3, 16)
    assert not dataset.in_memory
    assert dataset.train_y.tolist() == [0] * 5 + [1] * 5
    assert dataset.test_y.tolist() == [0, 0, 1, 1]
    x, y = dataset.train_x[7]
    assert (x.dtype, x.shape, y) == (torch.uint8, (3, 16, 16), 1)
    loader = torch.utils.data.DataLoader(dataset.train_x, batch_size=4)
    assert [len(x) for x, _ in loader] == [4, 4, 2]
    # evaluation and `predict` see the same pixels
    x, _ = next(data.batches(dataset, 4, train=False, workers=0))
    assert dataset.info.resize == 18
    assert torch.equal(x[2:3], data.preprocess_image(image_tree / "val/dog/0.png", dataset.info))


@pytest.mark.parametrize("workers", [0, 2])
def test_imagefolder_batches_are_pure(image_tree, workers):
    dataset = data.load("imagefolder", image_tree, image_size=16)
    whole = list(data.batches(dataset, 3, train=True, seed=1, epoch=4, workers=0))
    before = torch.get_rng_state()
    for start in (0, 2):
        tail = list(data.batches(dataset, 3, train=True, seed=1, epoch=4, start=start, workers=workers))
        assert equal(tail, whole[start:])
    assert torch.equal(torch.get_rng_state(), before)
    assert not equal(list(data.batches(dataset, 3, train=True, seed=1, epoch=5, workers=0)), whole)
    with pytest.raises(ValueError, match="'crop_flip' does not fit imagefolder; possible are none, imagenet"):
        data.batches(dataset, 3, train=True, kind="crop_flip")


@pytest.mark.parametrize("workers", [0, 1])
def test_imagefolder_names_the_corrupt_file(image_tree, workers):
    path = image_tree / "train/dog/1.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    dataset = data.load("imagefolder", image_tree, image_size=16)
    with pytest.raises(data.DataError, match=r"^\S*train/dog/1\.JPEG: cannot be read as an image"):
        list(data.batches(dataset, 3, train=True, workers=workers))
    with pytest.raises(data.DataError, match=r"1\.JPEG: cannot be read"):
        dataset.train_x[6]


def test_imagefolder_bad_layouts(tmp_path, image_tree):
    with pytest.raises(data.DataError, match=r"expected .*train/CLASS.*but .*nowhere does not exist"):
        data.load("imagefolder", tmp_path / "nowhere")
    (image_tree / "val/bird").mkdir()
    with pytest.raises(data.DataError, match="no training class: bird"):
        data.load("imagefolder", image_tree)
    (image_tree / "train/bird").mkdir()
    with pytest.raises(data.DataError, match=r"class folder .*train/bird has no image"):
        data.load("imagefolder", image_tree)
    flat = tmp_path / "flat"
    (flat / "train").mkdir(parents=True)
    (flat / "val").mkdir()
    with pytest.raises(data.DataError, match=r"expected folders .*train/CLASS/ with images, but .*train is empty"):
        data.load("imagefolder", flat)
    with pytest.raises(ValueError, match="image_size must be positive"):
        data.load("imagefolder", image_tree, image_size=0)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (40, 40), (1, 1), (300, 2), (2, 300)])
def test_random_area_stays_inside(width, height):
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        left, top, w, h = random_area(width, height, generator)
        assert left >= 0
        assert top >= 0
        assert 0 < w <= width - left
        assert 0 < h <= height - top
        if min(width, height) >= 40:
            assert 0.06 < w * h / (width * height) <= 1
            assert 0.7 < w / h < 1.43


def test_resize_and_crop_geometry():
    image = pytest.importorskip("PIL.Image")
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 10:30] = 255  # the central square
    out = np.asarray(resize_and_crop(image.fromarray(pixels), 20, 20))
    assert out.shape == (20, 20, 3)
    assert (out == 255).all()
    for size in ((1, 1), (3, 1000), (1000, 3)):
        assert resize_and_crop(image.new("L", size), 9, 8).size == (8, 8)


def test_preprocess_image(tmp_path, digits):
    image = pytest.importorskip("PIL.Image")
    info, grey = digits.info, digits.test_x[0, 0].numpy()
    expected = data.normalize(digits.test_x[:1], info.mean, info.std)
    deep = image.fromarray(grey.astype(np.uint16) * 257)  # 16 bits a pixel
    rgb = image.fromarray(np.dstack([grey] * 3))
    for name, picture in (("grey.png", image.fromarray(grey)), ("rgb.png", rgb), ("deep.png", deep)):
        picture.save(tmp_path / name)
        assert torch.equal(data.preprocess_image(tmp_path / name, info), expected)
    image.new("RGBA", (50, 70)).save(tmp_path / "other.png")
    assert data.preprocess_image(str(tmp_path / "other.png"), info).shape == (1, 1, 8, 8)


def test_preprocess_turns_the_image_upright(tmp_path):
    image = pytest.importorskip("PIL.Image")
    info = data.DatasetInfo("toy", ("a",), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), in_channels=3, image_size=12)
    picture = image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8))
    picture.rotate(-90).save(tmp_path / "upright.png")
    exif = image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees clockwise
    picture.save(tmp_path / "lying.png", exif=exif)
    upright, lying = (data.preprocess_image(tmp_path / name, info) for name in ("upright.png", "lying.png"))
    assert torch.equal(upright, lying)


def test_preprocess_bad_files(tmp_path, digits, monkeypatch):
    pytest.importorskip("PIL")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    for name, message in (("text.png", "cannot be read as an image"), ("empty.png", "cannot be read as an image")):
        with pytest.raises(data.DataError, match=rf"{name}: {message}"):
            data.preprocess_image(tmp_path / name, digits.info)
    with pytest.raises(data.DataError, match=r"gone\.png: no such image file"):
        data.preprocess_image(tmp_path / "gone.png", digits.info)
    with pytest.raises(data.DataError, match="is a folder, not an image file"):
        data.preprocess_image(tmp_path, digits.info)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'pip install "subbyte\[images\]"'):
        data.preprocess_image(tmp_path / "text.png", digits.info)
