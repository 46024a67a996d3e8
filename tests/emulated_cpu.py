"""Runs a Linux program for x86-64 on an emulated CPU, which may have instructions that this machine lacks.

    python tests/emulated_cpu.py [--cpu sapphire_rapids] [--count FILE] PROGRAM ARGUMENTS...

The CPU is that of Bochs, as a library (bochscpu-python); this file is the little that a program needs around it:

- Memory. The program lives in this process: whatever it maps lies at the same address here, and the page tables that
  its CPU walks lead there. They have pages of 1 GiB, as many as come into use, since physical addresses are too narrow
  for an identity; a page of 4 KiB is handed to the emulator when it is first touched.
- The kernel. LSTAR, where `syscall` jumps to, holds `hlt`. That stops the emulator, the system call is made here with
  the same arguments, and the program goes on behind it. Calls that would change this process instead of the program
  (TLS, signals, threads) are answered below: it cannot start a thread.
- The start. What runs first is the program's dynamic loader, given the program as its argument: it loads the rest by
  itself, so that all that a program asks its CPU (CPUID, the choice of a memcpy) is answered by the emulated one.

--count FILE slows it down by far and writes how many instructions of which encoding were executed, as JSON.

What this is not: a sandbox, or a model of time. It knows nothing of the library: isas.mk puts the kernels' tests on it.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import mmap
import os
import struct
import sys
from collections import Counter
from collections.abc import Callable
from ctypes import c_uint16, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import NoReturn

PAGE, GIB = 1 << 12, 1 << 30
ENTRIES = 512  # of a page table

TABLES = 1 << 20  # physical address of the page tables
FIRST_REGION = 4  # GiB: below lie the page tables and the interrupt controller
PRESENT, WRITABLE, LARGE = 1, 2, 1 << 7

STACK = 8 << 20
HLT = b"\xf4"

TUNABLES = "glibc.cpu.x86_rep_movsb_threshold=0x40000000:glibc.cpu.x86_rep_stosb_threshold=0x40000000"
"""For the program's C library: memory is copied in vectors, since `rep movsb` is emulated byte by byte."""

MODELS = {"skylake_x": 26, "tigerlake": 29, "sapphire_rapids": 30, "arrow_lake": 31}
"""Some of Bochs' CPUs and their numbers there: AVX-512 without VNNI, with it, with AVX-VNNI too, AVX-VNNI alone."""

CONTROL = {
    "cr0": 1 << 31 | 1 << 5 | 1 << 4 | 1 << 1 | 1,  # PG NE ET MP PE
    "cr4": 1 << 5 | 1 << 9 | 1 << 10 | 1 << 18,  # PAE OSFXSR OSXMMEXCPT OSXSAVE
    "efer": 1 << 10 | 1 << 8 | 1,  # LMA LME SCE
    "cr3": TABLES,
    "star": 8 << 32,  # the code segment that `syscall` loads, with the stack's behind it
    "fmask": 0,
    "mxcsr": 0x1F80,
    "mxcsr_mask": 0xFFFF,
    "fp_cw": 0x37F,
    "fp_tw": 0xFFFF,
}
"""Registers as Linux leaves them to a program, but for its privilege: it runs in ring 0, where `hlt` is allowed."""

ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")  # of a system call
REGISTERS = (*ARGUMENTS, "rax", "rcx", "rip", "rsp", "rflags", "cr2")

X87, SSE, AVX, AVX512 = 1, 1 << 1, 1 << 2, 7 << 5  # in XCR0
CODE_SEGMENT, DATA_SEGMENT = (8, 0xA09B), (16, 0xC093)  # selector and attributes: flat, 64 bits

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = [ctypes.c_long, *[c_uint64] * 6]
_libc.mmap.restype = c_void_p
_libc.mmap.argtypes = [c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.dlopen.restype = c_void_p
_libc.dlopen.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.dlerror.restype = ctypes.c_char_p

ENOSYS = 38
MMAP, MREMAP, BRK, ARCH_PRCTL, EXIT, EXIT_GROUP = 9, 25, 12, 158, 60, 231
ARCH_SET_FS = 0x1002
ANSWERS = {
    BRK: 0,  # never grows: malloc takes mmap then
    13: 0,  # rt_sigaction
    14: 0,  # rt_sigprocmask
    218: 1,  # set_tid_address
    273: 0,  # set_robust_list
    **dict.fromkeys((56, 57, 58, 59, 334, 435), -ENOSYS),  # clone fork vfork execve rseq clone3
}
"""System call -> what it returns without being made."""


class Stopped(Exception):
    """The program cannot go on: the message says where and why."""


def library() -> ctypes.CDLL:
    """The shared library inside bochscpu-python. ImportError without it.

    Not imported: its C functions are what is used. It is bound lazily, because it names two functions of a newer C
    library than many machines have, and never calls them.
    """
    spec = importlib.util.find_spec("bochscpu")
    folders = (spec and spec.submodule_search_locations) or ()
    path = next((str(p) for folder in folders for p in Path(folder).glob("_bochscpu*.so")), None)
    if path is None:
        raise ImportError("bochscpu-python is not installed")
    handle = _libc.dlopen(path.encode(), os.RTLD_LAZY)
    if not handle:
        raise ImportError(_libc.dlerror().decode())
    return ctypes.CDLL(path, handle=handle)


_Hooks = c_void_p * 26  # a context, and a function for each kind of event
_ON_HLT, _ON_EXCEPTION, _BEFORE_EXECUTION = 2, 10, 16  # those used here


class _Segment(ctypes.Structure):
    _fields_ = [
        ("present", ctypes.c_bool),
        *(("selector", c_uint16), ("base", c_uint64), ("limit", c_uint32), ("attributes", c_uint16)),
    ]


def allocate(size: int) -> int:
    """Address of zeroed memory that may be written and executed."""
    access = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    address = _libc.mmap(None, size, access, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if address in (None, 2**64 - 1):
        raise MemoryError(f"no {size} bytes")
    return address


class Memory:
    """Page tables from a program's addresses to the same ones in this process, filled as regions come into use."""

    def __init__(self) -> None:
        self.regions: list[int] = []  # number of the GiB that physical GiB FIRST_REGION + i shows
        self.tables = 1
        self.host = allocate((1 + ENTRIES) * PAGE)  # the top table and all below it
        self.words = (c_uint64 * (ENTRIES * (1 + ENTRIES))).from_address(self.host)

    def show(self, address: int, size: int) -> None:
        """Let the program reach these addresses."""
        for region in range(address // GIB, (address + max(size, 1) - 1) // GIB + 1):
            if region in self.regions:
                continue
            top, low = divmod(region, ENTRIES)
            if not self.words[top]:
                self.words[top] = TABLES + self.tables * PAGE | PRESENT | WRITABLE
                self.tables += 1
            table = (self.words[top] - TABLES) // PAGE
            physical = (FIRST_REGION + len(self.regions)) * GIB
            self.words[table * ENTRIES + low] = physical | PRESENT | WRITABLE | LARGE
            self.regions.append(region)

    def host_page(self, physical: int) -> int:
        """Where the page of a physical address lies in this process."""
        page = physical // PAGE * PAGE
        if page < GIB:
            return self.host + page - TABLES
        return self.regions[page // GIB - FIRST_REGION] * GIB + page % GIB


class Machine:
    """One CPU, its memory, and the program in it."""

    def __init__(self, model: str, count: bool = False) -> None:
        self.bochs = bochs = library()
        self.memory = Memory()
        self.executed: Counter[str] = Counter()
        self.fault = ""
        bochs.sim_get_param_enum.restype = bochs.bochscpu_cpu_new.restype = c_void_p
        choice = c_void_p(bochs.sim_get_param_enum(b"cpu.model"))
        bochs._ZN14bx_param_num_c15set_initial_valEl(choice, ctypes.c_long(MODELS[model]))
        self.getters = {name: bochs[f"bochscpu_cpu_{name}"] for name in REGISTERS}
        self.setters = {name: bochs[f"bochscpu_cpu_set_{name}"] for name in REGISTERS}
        for name in REGISTERS:
            self.getters[name].argtypes, self.getters[name].restype = (c_void_p,), c_uint64
            self.setters[name].argtypes, self.setters[name].restype = (c_void_p, c_uint64), None
        self.hooks = self._hooks(count)
        self.chain = (c_void_p * 2)(ctypes.addressof(self.hooks), None)
        bochs.bochscpu_mem_missing_page(self.on_missing_page)
        self.cpu = c_void_p(bochs.bochscpu_cpu_new(0))
        self._set_up()

    def _hooks(self, count: bool) -> ctypes.Array[c_void_p]:
        """The functions that the emulator calls; the objects that keep them alive are attributes."""
        word, number = c_uint64, c_uint32

        @ctypes.CFUNCTYPE(None, word)
        def missing_page(physical: int) -> None:
            page = self.memory.host_page(physical)
            self.bochs.bochscpu_mem_page_insert(word(physical // PAGE * PAGE), c_void_p(page))

        @ctypes.CFUNCTYPE(None, c_void_p, number)
        def halt(context: int, cpu: int) -> None:
            self.bochs.bochscpu_cpu_stop(self.cpu)

        @ctypes.CFUNCTYPE(None, c_void_p, number, number, number)
        def exception(context: int, cpu: int, vector: int, error: int) -> None:
            at, about = self["rip"], self["cr2"]
            self.fault = self.fault or f"exception {vector} (error {error:#x}) at {at:#x}, address {about:#x}"
            self.bochs.bochscpu_cpu_stop(self.cpu)

        @ctypes.CFUNCTYPE(None, c_void_p, number, c_void_p)
        def before_execution(context: int, cpu: int, instruction: int) -> None:
            if kind := encoding(ctypes.string_at(self["rip"], 6)):
                self.executed.update(kind)

        self.on_missing_page = missing_page
        self.kept: tuple[Callable, ...] = (halt, exception, before_execution)
        hooks = _Hooks()
        hooks[_ON_HLT], hooks[_ON_EXCEPTION] = ctypes.cast(halt, c_void_p), ctypes.cast(exception, c_void_p)
        if count:
            hooks[_BEFORE_EXECUTION] = ctypes.cast(before_execution, c_void_p)
        return hooks

    def __getitem__(self, register: str) -> int:
        return self.getters[register](self.cpu)

    def __setitem__(self, register: str, value: int) -> None:
        self.setters[register](self.cpu, value)

    def segment(self, name: str, base: int = 0) -> None:
        selector, attributes = CODE_SEGMENT if name == "cs" else DATA_SEGMENT
        value = _Segment(True, selector, base, 2**32 - 1, attributes)
        getattr(self.bochs, f"bochscpu_cpu_set_{name}")(self.cpu, ctypes.byref(value))

    def _set_up(self) -> None:
        kernel = allocate(PAGE)
        self.memory.show(kernel, PAGE)
        ctypes.memmove(kernel, HLT, 1)
        for name, value in {**CONTROL, "lstar": kernel}.items():
            getattr(self.bochs, f"cpu_set_{name}")(0, c_uint64(value))
        for name in ("cs", "ss", "ds", "es", "fs", "gs"):
            self.segment(name)
        self["rflags"] = 1 << 1  # a bit that is always set
        self.bochs.bochscpu_cpu_set_mode(self.cpu)
        self.bochs.cpu_set_xcr0(0, c_uint64(self.states()))
        self.bochs.bochscpu_cpu_set_mode(self.cpu)

    def states(self) -> int:
        """XCR0 with all that this CPU has of x87, SSE, AVX and AVX-512, which it says itself."""
        code = allocate(PAGE)
        self.memory.show(code, PAGE)
        ctypes.memmove(code, b"\x0f\xa2" + HLT, 3)  # cpuid
        self["rip"], self["rax"], self["rcx"] = code, 0xD, 0
        self.run()
        return self["rax"] & (X87 | SSE | AVX | AVX512)

    def run(self) -> None:
        """Until the next `hlt`."""
        self.bochs.bochscpu_cpu_run(self.cpu, self.chain)
        if self.fault:
            raise Stopped(self.fault)

    def serve(self) -> int:
        """Run the program to its end -> its exit status."""
        while True:
            self.run()
            number = self["rax"]
            arguments = [self[name] for name in ARGUMENTS]
            if number in (EXIT, EXIT_GROUP):
                return arguments[0] & 0xFF
            self["rax"] = self.system_call(number, arguments) % 2**64
            self["rip"] = self["rcx"]  # where `syscall` left the address behind it

    def system_call(self, number: int, arguments: list[int]) -> int:
        if number in ANSWERS:
            return ANSWERS[number]
        if number == ARCH_PRCTL:
            if arguments[0] != ARCH_SET_FS:
                return -ENOSYS
            self.segment("fs", arguments[1])
            return 0
        result = _libc.syscall(number, *arguments)
        if result == -1:
            return -ctypes.get_errno()
        if number in (MMAP, MREMAP):
            self.memory.show(result, arguments[2 if number == MREMAP else 1])
        return result

    def start(self, program: str, arguments: list[str]) -> None:
        """Load the program's dynamic loader, and lay out its stack as Linux does."""
        loader = interpreter(Path(program).read_bytes())
        image = Path(loader).read_bytes()
        entry, table, entry_size, entries = _header(image)
        segments = [s for s in _segments(image) if s[0] == PT_LOAD]
        size = max(address + in_memory for _, _, address, _, in_memory in segments)
        base, stack = allocate(size), allocate(STACK)
        for _, offset, address, in_file, _ in segments:
            ctypes.memmove(base + address, image[offset : offset + in_file], in_file)
        self.memory.show(base, size)
        self.memory.show(stack, STACK)

        strings = [s.encode() + b"\0" for s in (loader, program, *arguments)]
        environment = {"GLIBC_TUNABLES": TUNABLES, **os.environ}
        variables = [f"{k}={v}".encode() + b"\0" for k, v in environment.items()]
        top = stack + STACK - sum(map(len, strings + variables)) - 16
        addresses, at = [], top + 16
        for text in strings + variables:
            ctypes.memmove(at, text, len(text))
            addresses.append(at)
            at += len(text)
        ctypes.memmove(top, os.urandom(16), 16)
        auxiliary = {3: base + table, 4: entry_size, 5: entries, 6: PAGE, 7: 0, 9: base + entry, 23: 0, 25: top, 0: 0}
        words = [len(strings), *addresses[: len(strings)], 0, *addresses[len(strings) :], 0]
        words += [word for pair in auxiliary.items() for word in pair]
        pointer = (top - 8 * len(words)) // 64 * 64
        ctypes.memmove(pointer, struct.pack(f"<{len(words)}Q", *words), 8 * len(words))
        self["rsp"], self["rip"] = pointer, base + entry


PT_LOAD, PT_INTERP = 1, 3


def _header(image: bytes) -> tuple[int, int, int, int]:
    """(entry point, offset of the program headers, size of one, how many) of an ELF file for x86-64."""
    if image[:5] != b"\x7fELF\x02" or image[18] != 62:
        raise ValueError("not a program for x86-64")
    entry, table = struct.unpack_from("<QQ", image, 24)
    return entry, table, *struct.unpack_from("<HH", image, 54)


def _segments(image: bytes) -> list[tuple[int, int, int, int, int]]:
    """(type, offset, address, size in the file, size in memory) of each."""
    _, table, size, count = _header(image)
    found = []
    for i in range(count):
        kind, _, offset, address, _, in_file, in_memory = struct.unpack_from("<IIQQQQQ", image, table + i * size)
        found.append((kind, offset, address, in_file, in_memory))
    return found


def interpreter(image: bytes) -> str:
    """The dynamic loader that a program names."""
    for kind, offset, _, size, _ in _segments(image):
        if kind == PT_INTERP:
            return image[offset : offset + size].rstrip(b"\0").decode()
    raise ValueError("a program without a dynamic loader")


def encoding(code: bytes) -> tuple[str, ...]:
    """What the instruction that begins with these bytes counts as, for the extensions that are emulated.

    >>> encoding(bytes.fromhex("62f27d4850c1"))
    ('evex', 'zmm', 'evex vpdpbusd')
    >>> encoding(bytes.fromhex("c4e27550c2"))
    ('vex vpdpbusd',)
    >>> encoding(bytes.fromhex("c5f5fec2"))
    ()
    """
    vpdpbusd, map_0f38 = 0x50, 2
    if code[0] == 0x62:
        found = ["evex"]
        if code[3] >> 5 & 3 == 2:
            found.append("zmm")
        if code[1] & 7 == map_0f38 and code[4] == vpdpbusd:
            found.append("evex vpdpbusd")
        return tuple(found)
    if code[0] == 0xC4 and code[1] & 31 == map_0f38 and code[3] == vpdpbusd:
        return ("vex vpdpbusd",)
    return ()


def main() -> NoReturn:
    parser = argparse.ArgumentParser(description="Run a program on an emulated CPU.")
    parser.add_argument("--cpu", choices=MODELS, default="sapphire_rapids", help="one of Bochs' models")
    parser.add_argument("--count", type=Path, help="file for counts of executed instructions, as JSON")
    parser.add_argument("program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    status = 1
    try:
        machine = Machine(options.cpu, count=options.count is not None)
        machine.start(options.program, options.arguments)
        status = machine.serve()
        if options.count:
            options.count.write_text(json.dumps(machine.executed))
    except (Stopped, ImportError, ValueError, OSError) as error:
        print(f"emulated_cpu: {error}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(status)  # the emulator's own destructors are not wanted


if __name__ == "__main__":
    main()
