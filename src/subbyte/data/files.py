"""Files that must be what they claim to be: checksums, downloads that resume, unpacking of named members.

A file enters its final name only by `os.replace` after its checksum was right, so an interrupted run leaves a `.part`
file and never half a data set.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import tarfile
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from subbyte.data.dataset import DataError

CHUNK = 1 << 20
TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class File:
    """A published file: its name, its MD5 (the publishers give no stronger sum), its size in bytes, where it is."""

    name: str
    md5: str
    size: int | None = None
    urls: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({'' if self.size is None else f'{self.size} bytes, '}MD5 {self.md5})"


def md5(path: Path) -> str:
    """The MD5 of a file as 32 hexadecimal digits. It finds damage; it is no protection against an attacker."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def problem(path: Path, file: File) -> str | None:
    """None if `path` holds exactly `file`, otherwise what is wrong with it in a few words."""
    try:
        if not path.exists():
            return "missing"
        if not path.is_file():
            return "not a file"
        size = path.stat().st_size
        if file.size is not None and size != file.size:
            return f"{size} bytes" + (" (half-downloaded?)" if size < file.size else "")
        found = md5(path)
    except OSError as error:
        return f"unreadable ({error})"
    return None if found == file.md5 else f"MD5 {found}, {size} bytes (damaged, or another file)"


def require_folder(folder: Path, task: str) -> None:
    """DataError if `folder` exists but is no folder."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{task}: the data directory {folder} is a file; give the folder that holds the data set")


def describe_folder(folder: Path) -> str:
    """'does not exist', 'is empty' or the first few names in it: what a person needs to see a wrong path."""
    if not folder.is_dir():
        return f"{folder} does not exist"
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return f"{folder} is empty"
    return f"{folder} holds {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"


def fetch(file: File, path: Path) -> None:
    """Downloads `file` to `path`: into `path.part`, resumed if that exists, checked, then renamed.

    Each of file.urls is tried in turn. DataError if none gives the right file; a `.part` that is only short is kept for
    the next attempt. Not for two processes at once: with several ranks, download in one of them first.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder for {file}: {error}") from error
    part = path.with_name(path.name + ".part")
    failures = []
    for url in file.urls:
        try:
            _receive(url, part, file)
        except (OSError, http.client.HTTPException, ValueError) as error:  # a bad URL is a ValueError
            failures.append(f"{url}: {error}")
            continue
        wrong = problem(part, file)
        if wrong is None:
            os.replace(part, path)
            return
        failures.append(f"{url}: received {wrong}")
        if file.size is None or part.stat().st_size >= file.size:
            part.unlink()  # complete and wrong: resuming it cannot help
    raise DataError(
        f"could not download {file}\n"
        + "".join(f"  {line}\n" for line in failures)
        + f"Run it again to resume, or fetch the file yourself and put it at {path}."
    )


def _receive(url: str, part: Path, file: File) -> None:
    have = part.stat().st_size if part.exists() else 0
    if file.size is not None and have >= file.size:
        if problem(part, file) is None:
            return
        have = 0
    request = urllib.request.Request(url, headers={"User-Agent": "subbyte"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if have and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # the server's file ends before ours: start again
            return _receive(url, part, file)
        raise
    with response:
        content_range = response.headers.get("Content-Range", "")
        # A server may ignore Range and send the whole file: then the old part must not stay in front of it.
        resumed = response.status == http.client.PARTIAL_CONTENT and content_range.startswith(f"bytes {have}-")
        length = response.headers.get("Content-Length")
        done = have if resumed else 0
        total = file.size if file.size is not None else (done + int(length) if length else None)
        with part.open("ab" if resumed else "wb") as stream:
            _copy(response, stream, file.name, done, total)


def _copy(source: IO[bytes], target: IO[bytes], label: str, done: int, total: int | None) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total, completed=done)
        while block := source.read(CHUNK):
            target.write(block)
            progress.advance(task, len(block))


def unpack(archive: Path, members: dict[str, File], folder: Path) -> None:
    """Writes the named members of a .tar.gz, and nothing else, into `folder`, each checked before it gets its name.

    members: name in the archive -> the file it must be. Only these names are looked up and the targets are ours, so no
    path in the archive (absolute, with '..', a link) leads outside `folder`. DataError if it is damaged or incomplete.
    """
    unpacked = set()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                file = members.get(name)
                if file is None or not member.isfile():
                    continue
                source = tar.extractfile(member)
                if source is None:
                    continue
                part = folder / (file.name + ".part")
                with source, part.open("wb") as stream:
                    while block := source.read(CHUNK):
                        stream.write(block)
                if wrong := problem(part, file):
                    part.unlink()
                    raise DataError(f"{archive}: its member {member.name} is {wrong}; expected {file}")
                os.replace(part, folder / file.name)
                unpacked.add(name)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"cannot unpack {archive} into {folder}: {error}") from error
    if missing := [name for name in members if name not in unpacked]:
        raise DataError(f"{archive} lacks {', '.join(missing)}; get it again")
