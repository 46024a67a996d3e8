"""A pytest plugin that puts the kernels of ANOTHER build under the same tests: cross-compiled, or with other flags.

    pytest -p native_runner --runner "COMMAND" tests/test_backend_cpu_products.py

COMMAND starts native_runner.cc with a library, on an emulator for instance. Everything else of a test stays in this
process: torch, the wrappers, the reference. A call goes to the runner with the memory of the tensors whose addresses
were taken for it, and what the kernel changed there comes back; so new kernels and new tests need nothing here.
"""

from __future__ import annotations

import ctypes
import itertools
import shlex
import struct
import subprocess
from typing import IO

import pytest
import torch

NONE = 2**32 - 1
STRUCT = 1 << 63
"""Address of a block that is no tensor's: bytes that hold a struct."""

_FLOATS = {ctypes.c_double: "<d", ctypes.c_float: "<fxxxx"}
"""How a float argument lies in its register of 8 bytes."""

_data_ptr = torch.Tensor.data_ptr
_taken: dict[int, torch.UntypedStorage] = {}
"""Address -> storage of the tensors asked for their address since the last call; kept alive until the next one."""


def _noted_data_ptr(tensor: torch.Tensor) -> int:
    address = _data_ptr(tensor)
    if address and type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.device.type == "cpu":
        storage = tensor.untyped_storage()
        _taken[storage.data_ptr()] = storage
    return address


class Library:
    """What ctypes.CDLL is for a library in this process: its attributes are the exported functions."""

    def __init__(self, command: str, stderr: IO | None = None) -> None:
        words, pipe = shlex.split(command), subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=stderr)

    def __getattr__(self, name: str) -> Function:
        if not name.startswith("sb_"):
            raise AttributeError(name)
        found = Function(self, name)
        setattr(self, name, found)
        return found

    def write(self, *parts: bytes) -> None:
        assert self.process.stdin is not None
        for part in parts:
            self.process.stdin.write(part)

    def read(self, n: int) -> bytes:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.flush()
        data = self.process.stdout.read(n)
        if len(data) != n:
            pytest.exit(f"the runner ended with {self.process.wait()}; what it said is above", returncode=1)
        return data

    def number(self) -> int:
        return struct.unpack("<I", self.read(4))[0]


class Function:
    """One exported function: argtypes and restype as in ctypes."""

    def __init__(self, library: Library, name: str) -> None:
        self.library, self.name = library, name
        self.argtypes: list[type] = []
        self.restype: type = ctypes.c_int

    def __call__(self, *arguments: int | float | bytes | None) -> int | bytes | None:
        blocks = [(address, ctypes.string_at(address, s.nbytes())) for address, s in _taken.items()]
        words, floats = [], []
        for i, (value, kind) in enumerate(itertools.zip_longest(arguments, self.argtypes)):
            if kind in _FLOATS:
                floats.append(struct.pack(_FLOATS[kind], value))
                continue
            if isinstance(value, bytes):
                blocks.append((STRUCT | i << 32, value + b"\0"))
                value = STRUCT | i << 32
            words.append((value or 0) % 2**64)
        name = self.name.encode()
        out = self.library
        out.write(struct.pack("<I", len(name)), name, struct.pack(f"<I{len(words)}Q", len(words), *words))
        out.write(struct.pack("<I", len(floats)), *floats)
        out.write(struct.pack("<I", len(blocks)))
        for address, content in blocks:
            out.write(struct.pack("<QQ", address, len(content)), content)
        out.write(struct.pack("<I", self.restype is ctypes.c_char_p))
        number = out.number()
        result: int | bytes | None = number
        if self.restype is ctypes.c_char_p:
            result = None if number == NONE else out.read(number)
        for address, content in blocks:
            if out.number():
                ctypes.memmove(address, out.read(len(content)), len(content))
        _taken.clear()
        return result


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runner", required=True, help="the command that starts the runner, with its library")


def pytest_configure(config: pytest.Config) -> None:
    from subbyte.backends import _native

    torch.Tensor.data_ptr = _noted_data_ptr  # type: ignore[method-assign]
    _native.lib, _native.reason = Library(config.getoption("--runner")), ""  # type: ignore[assignment]
    _native.lib.sb_isa_name.restype = ctypes.c_char_p
    _native.thread_runtime = ""
    pytest.register_assert_rewrite("products_for_tests")
    import products_for_tests  # which looks kernels up in the library, and so comes behind it
    from fuzz.run import bits

    if "neon" in _native.isas():  # there 0 * inf has another sign than in this process: compare without a NaN's
        products_for_tests.bits = bits
