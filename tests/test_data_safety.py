"""Files that attack: pickles that would run code, archives that would write elsewhere. Nothing of it may happen."""

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from subbyte.data import DataError
from subbyte.data.cifar import safe_unpickle
from subbyte.data.files import File, unpack


def facts(name: str, content: bytes) -> File:
    return File(name, hashlib.md5(content).hexdigest(), len(content))


def tar_gz(members: dict[str, bytes], *extra: tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for info in extra:
            tar.addfile(info)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_unpickles_arrays_of_every_protocol(protocol):
    value = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3), b"names": ["a", 1, 2.5, None, (True,)]}
    if protocol < 5:
        found = safe_unpickle(pickle.dumps(value, protocol), "test")
        assert np.array_equal(found["data"], value["data"])
    else:  # numpy's out-of-band form, which no CIFAR file has
        with pytest.raises(DataError, match=r"forbidden global numpy\.\S+\._frombuffer"):
            safe_unpickle(pickle.dumps(value, protocol), "test")


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_pickle_does_not_run(tmp_path, protocol):
    victim = tmp_path / "victim"
    attack = pickle.dumps({"data": Evil(os.system, f"touch {victim}")}, protocol)
    with pytest.raises(DataError, match=r"^f: the pickle asks for the forbidden global (posix|nt)\.system; allowed: "):
        safe_unpickle(attack, "f")
    for function, name in ((eval, r"\w+\.eval"), (getattr, r"\w+\.getattr"), (np.load, r"numpy\S*\.load")):
        with pytest.raises(DataError, match=rf"forbidden global {name}"):
            safe_unpickle(pickle.dumps(Evil(function, "1"), protocol), "f")
    assert not victim.exists()
    pickle.loads(attack)  # the attack is real
    assert victim.exists()


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"hello", pickle.dumps({"a": np.zeros(9)}, 2)[:-20], b"c_codecs\nencode\n(Vx\nVzip\ntR."]
)
def test_damaged_pickle(content):
    with pytest.raises(DataError, match=r"^f: not a readable pickle"):
        safe_unpickle(content, "f")


# ---- archives -----------------------------------------------------------------------------------------------------


def test_unpack_leaves_the_folder_alone(tmp_path):
    link = tarfile.TarInfo("set/good")
    link.type, link.linkname = tarfile.SYMTYPE, "../../outside"
    hostile = {name: b"evil" for name in ("../evil", "/tmp/evil-subbyte", "set/../../evil", "set/other")}
    (tmp_path / "a.tar.gz").write_bytes(tar_gz({**hostile, "./set/good": b"good"}, link))
    unpack(tmp_path / "a.tar.gz", {"set/good": facts("good", b"good")}, tmp_path / "in" / "set")
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir()}
    assert files == {"a.tar.gz", "in/set/good"}
    assert (tmp_path / "in/set/good").read_bytes() == b"good"
    assert not Path("/tmp/evil-subbyte").exists()


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (b"no archive", "cannot unpack"),
        (tar_gz({"set/good": bytes(range(256)) * 400})[:-300], "cannot unpack"),
        (tar_gz({"set/else": b"good"}), "lacks set/good; get it again"),
        (tar_gz({"set/good": b"goob"}), r"its member set/good is MD5 \w+, 4 bytes .* expected good \(4 bytes, MD5"),
    ],
)
def test_bad_archive_leaves_no_file(tmp_path, archive, message):
    (tmp_path / "a.tar.gz").write_bytes(archive)
    with pytest.raises(DataError, match=message):
        unpack(tmp_path / "a.tar.gz", {"set/good": facts("good", b"good")}, tmp_path / "set")
    assert not (tmp_path / "set/good").exists()
