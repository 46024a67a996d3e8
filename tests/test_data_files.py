"""Data sets on disk: layouts, checksums, damaged files, downloads of whole sets, the real files.

The small sets made here have facts (sizes, MD5) of their own. The published ones are tested on the real files, found in
the folder that the environment variable SUBBYTE_TEST_DATA names.
"""

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from subbyte import data
from subbyte.data.cifar import CIFAR10, CIFAR100, CifarSpec, load_cifar
from subbyte.data.files import File, problem
from subbyte.data.idx import MNIST, Part, load_idx, read_idx

DataError = data.DataError


def facts(name: str, content: bytes, *urls: str) -> File:
    return File(name, hashlib.md5(content).hexdigest(), len(content), urls)


# ---- a small MNIST and a small CIFAR ------------------------------------------------------------------------------


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def mnist():
    """(spec, {file name: content}, arrays) with 6 training and 3 test images."""
    generator = np.random.default_rng(0)
    shapes = ((6, 28, 28), (6,), (3, 28, 28), (3,))
    arrays = [generator.integers(0, 10 if len(shape) == 1 else 256, shape, dtype=np.uint8) for shape in shapes]
    contents, parts = {}, []
    for part, array in zip(MNIST.parts, arrays):
        plain = idx_bytes(array)
        packed = gzip.compress(plain, mtime=0)
        contents |= {part.plain.name: plain, part.packed.name: packed}
        url = f"http://127.0.0.1:9/{part.packed.name}"
        parts.append(Part(facts(part.packed.name, packed, url), facts(part.plain.name, plain)))
    return replace(MNIST, parts=tuple(parts)), contents, arrays


def check_mnist(dataset, arrays):
    for tensor, array in zip((dataset.train_x[:, 0], dataset.train_y, dataset.test_x[:, 0], dataset.test_y), arrays):
        assert np.array_equal(tensor.numpy(), array)


def cifar_files(spec: CifarSpec, protocol: int = 2) -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    contents = {}
    for file in (*spec.train, spec.test):
        batch = {"data": generator.integers(0, 256, (4, 3072), dtype=np.uint8), spec.labels: [0, 1, 2, 1]}
        contents[file.name] = pickle.dumps(batch, protocol)
    contents[spec.meta.name] = pickle.dumps({spec.names: ["cat", "dog", "frog"]}, protocol)
    return contents


def tar_gz(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def small_cifar(spec: CifarSpec, contents: dict[str, bytes], archive: bytes | None = None) -> tuple[CifarSpec, bytes]:
    """`spec` with the facts of `contents` and of an archive that holds them."""
    if archive is None:
        archive = tar_gz({f"{spec.folder}/{name}": content for name, content in contents.items()})
    files = {name: facts(name, content) for name, content in contents.items()}
    spec = replace(
        spec,
        archive=facts(spec.archive.name, archive, "http://127.0.0.1:9/x.tar.gz"),
        train=tuple(files[file.name] for file in spec.train),
        test=files[spec.test.name],
        meta=files[spec.meta.name],
    )
    return spec, archive


def write(folder: Path, contents: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


# ---- idx ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["MNIST/raw", "raw", "."])
@pytest.mark.parametrize("packed", [True, False])
def test_idx_layouts(tmp_path, mnist, layout, packed):
    spec, contents, arrays = mnist
    write(tmp_path / layout, {name: content for name, content in contents.items() if name.endswith(".gz") == packed})
    check_mnist(load_idx(spec, tmp_path), arrays)


def test_idx_takes_the_right_one_of_two(tmp_path, mnist):
    spec, contents, arrays = mnist
    write(tmp_path, contents)
    name = spec.parts[0].plain.name
    (tmp_path / name).write_bytes(contents[name][:-1])  # an unpacking that was cut off; the .gz beside it is right
    check_mnist(load_idx(spec, tmp_path), arrays)


def test_idx_says_what_is_wrong(tmp_path, mnist):
    spec, contents, _ = mnist
    for folder, found in ((tmp_path / "gone", "gone does not exist"), (tmp_path, f"{tmp_path.name} is empty")):
        with pytest.raises(DataError) as error:
            load_idx(spec, folder)
        text = str(error.value)
        assert found in text
        for part in spec.parts:
            assert f"expected {part.packed} or {part.plain}\n    found: no such file\n    from: http://" in text
        assert "download=True, --download" in text
    packed = {name: content for name, content in contents.items() if name.endswith(".gz")}
    write(tmp_path, packed)
    names = list(packed)
    (tmp_path / names[1]).write_bytes(packed[names[1]][:20])
    (tmp_path / names[2]).write_bytes(b"x" + packed[names[2]][1:])
    with pytest.raises(DataError) as error:
        load_idx(spec, tmp_path)
    assert f"{names[1]}: 20 bytes (half-downloaded?)" in str(error.value)
    assert f"{names[2]}: MD5 " in str(error.value)
    assert names[0] not in str(error.value).split("\n", 1)[1]
    with pytest.raises(DataError, match="is a file; give the folder"):
        load_idx(spec, tmp_path / names[0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a", b"", "begins with nothing"),
        ("a", b"\x89PNG....", "not an idx file of uint8, it begins with 89 50 4e 47"),
        ("a", b"\0\0\x0d\1" + bytes(8), "not an idx file of uint8"),
        ("a", b"\0\0\x08\3" + bytes(4), "header of 3 dimensions, 8 bytes"),
        ("a", idx_bytes(np.zeros((2, 3), np.uint8))[:-1], r"says \(2, 3\), but 5 bytes follow"),
        ("a.gz", b"no gzip", "cannot be read"),
        ("a.gz", gzip.compress(idx_bytes(np.zeros((2, 3), np.uint8)))[:-9], "cannot be read"),
    ],
)
def test_bad_idx(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / name)


def test_idx_labels_where_images_should_be(tmp_path, mnist):
    spec, contents, _ = mnist
    labels = contents[spec.parts[1].plain.name]
    contents[spec.parts[0].plain.name] = labels
    wrong = Part(spec.parts[0].packed, facts(spec.parts[0].plain.name, labels))
    write(tmp_path, {part.plain.name: contents[part.plain.name] for part in spec.parts})
    with pytest.raises(DataError, match=r"expected images \(N, H, W\), found an array of shape \(6,\)"):
        load_idx(replace(spec, parts=(wrong, *spec.parts[1:])), tmp_path)


# ---- CIFAR --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["folder", "inside", "archive", "archive inside"])
@pytest.mark.parametrize("original", [CIFAR10, CIFAR100])
def test_cifar_layouts(tmp_path, original, how):
    contents = cifar_files(original)
    spec, archive = small_cifar(original, contents)
    inside = tmp_path / spec.folder
    if how.startswith("archive"):
        write(inside if "inside" in how else tmp_path, {spec.archive.name: archive})
    else:
        write(inside, contents)
    root = inside if "inside" in how else tmp_path
    for _ in range(2):  # the second time from the unpacked folder
        dataset = load_cifar(spec, root)
    assert sorted(path.name for path in inside.iterdir() if path.name != spec.archive.name) == sorted(contents)
    batches = [pickle.loads(contents[file.name]) for file in spec.train]
    assert np.array_equal(dataset.train_x.flatten(1).numpy(), np.concatenate([batch["data"] for batch in batches]))
    assert dataset.train_x.shape == (4 * len(batches), 3, 32, 32)
    assert dataset.train_y.tolist() == [0, 1, 2, 1] * len(batches)
    assert (dataset.classes, dataset.augment) == (("cat", "dog", "frog"), "crop_flip")


def test_cifar_says_what_is_wrong(tmp_path):
    contents = cifar_files(CIFAR10)
    spec, archive = small_cifar(CIFAR10, contents)
    (tmp_path / "else.txt").touch()
    with pytest.raises(DataError, match=r"holds else\.txt\n  expected .*data_batch_1.* MD5 .*\n    found: missing"):
        load_cifar(spec, tmp_path)
    write(tmp_path / spec.folder, {**contents, "data_batch_3": contents["data_batch_3"][:99]})
    write(tmp_path, {spec.archive.name: archive[:50]})
    with pytest.raises(DataError) as error:
        load_cifar(spec, tmp_path)
    text = str(error.value)
    assert "data_batch_3" in text
    assert "found: 99 bytes (half-downloaded?)" in text
    assert "found: 50 bytes (half-downloaded?)" in text
    assert "data_batch_1" not in text
    assert spec.archive.urls[0] in text
    write(tmp_path, {spec.archive.name: archive})  # with the archive whole, the damaged file is replaced
    assert len(load_cifar(spec, tmp_path).train_y) == 20
    assert problem(tmp_path / spec.folder / "data_batch_3", spec.train[2]) is None


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1, 2], "expected a dictionary, found list"),
        ({"data": np.zeros((4, 9), np.uint8)}, r"'data' must be uint8 \(N, 3072\), found uint8 \(4, 9\)"),
        ({"labels": [0] * 4}, r"'data' must be uint8 .* found NoneType"),
        ({"data": np.zeros((4, 3072), np.uint8), "labels": [0] * 3}, "'labels' must be a list of 4 labels"),
        ({"data": np.zeros((4, 3072), np.uint8), "labels": [9] * 4}, r"labels are in 0\.\.9, but there are 3"),
    ],
)
def test_cifar_bad_batch(tmp_path, batch, message):
    contents = cifar_files(CIFAR10) | {"data_batch_2": pickle.dumps(batch)}
    write(tmp_path, contents)
    with pytest.raises(DataError, match=message):
        load_cifar(small_cifar(CIFAR10, contents)[0], tmp_path)


def test_malicious_pickle_in_a_data_set(tmp_path):
    attack = f"cposix\nsystem\n(Vtouch {tmp_path}/victim\ntR.".encode()
    contents = cifar_files(CIFAR10) | {"test_batch": attack}
    write(tmp_path / "set", contents)
    with pytest.raises(DataError, match=r"test_batch: the pickle asks for the forbidden global posix\.system"):
        load_cifar(small_cifar(CIFAR10, contents)[0], tmp_path / "set")
    assert not (tmp_path / "victim").exists()


def test_download_of_whole_sets(tmp_path, mnist):
    spec, contents, arrays = mnist
    source, target = tmp_path / "source", tmp_path / "target"
    write(source, contents)
    urls = {part: ((source / part.packed.name).as_uri(),) for part in spec.parts}
    spec = replace(spec, parts=tuple(replace(p, packed=replace(p.packed, urls=urls[p])) for p in spec.parts))
    write(target / "MNIST/raw", {spec.parts[0].packed.name: b"half"})
    check_mnist(load_idx(spec, target, download=True), arrays)
    for file in source.iterdir():
        file.unlink()
    check_mnist(load_idx(spec, target, download=True), arrays)  # nothing is fetched twice

    spec, archive = small_cifar(CIFAR10, cifar_files(CIFAR10))
    write(source, {"x.tar.gz": archive})
    spec = replace(spec, archive=replace(spec.archive, urls=((source / "x.tar.gz").as_uri(),)))
    assert len(load_cifar(spec, target, download=True).train_y) == 20
    assert len(load_cifar(spec, target).train_y) == 20


# ---- the real files -----------------------------------------------------------------------------------------------


def real_data(*folders: str) -> Path:
    root = Path(os.environ.get("SUBBYTE_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not all((root / folder).exists() for folder in folders):
        pytest.skip(f"SUBBYTE_TEST_DATA names no folder with {' and '.join(folders)}")
    return root


@pytest.mark.parametrize(
    ("task", "needs", "sizes", "counts"),
    [
        ("mnist", "MNIST/raw", (60000, 10000), [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        ("fashion-mnist", "FashionMNIST/raw", (60000, 10000), [6000] * 10),
        ("cifar10", "cifar-10-batches-py/data_batch_1", (50000, 10000), [5000] * 10),
    ],
)
def test_real(task, needs, sizes, counts):
    dataset = data.load(task, real_data(needs))
    assert (len(dataset.train_y), len(dataset.test_y)) == sizes
    assert dataset.train_y.bincount().tolist() == counts
    for channel, (mean, std) in enumerate(zip(dataset.mean, dataset.std)):
        pixels = dataset.train_x[:, channel].float() / 255
        assert pixels.mean().item() == pytest.approx(mean, abs=1e-4)
        assert pixels.std().item() == pytest.approx(std, abs=1e-4)


def test_load_finds_the_folder_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBBYTE_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"cifar100: {tmp_path} is empty"):
        data.load("cifar100")
    monkeypatch.delenv("SUBBYTE_DATA")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="mnist: data does not exist"):
        data.load("mnist")
