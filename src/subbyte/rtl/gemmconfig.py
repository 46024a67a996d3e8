"""What a GEMM core is, which products it holds, its registers, and how many cycles a product takes. No hardware here.

C (M, N) = A (M, K) B (K, N), left shifts along K      in tiles of R x C outputs, one slot of `lanes` k a cycle
"""

from __future__ import annotations

from dataclasses import dataclass

from . import dspbounds
from .spec import MAX_SIDE, BoundError, Spec

FLAG_GROUPED, FLAG_ROW_SHIFTS, FLAG_REQUANTIZE, FLAG_STOCHASTIC = (1 << i for i in range(4))
"""FLAGS register: left shifts come on the shift stream; so do row shifts; outputs are codes; rounded by Threefry."""

STATUS_BUSY, STATUS_DONE, STATUS_REFUSED = (1 << i for i in range(3))
"""STATUS register. REFUSED: a start whose sizes exceed the buffers; nothing ran."""

REGISTERS = {
    "START": 0x00,  # write 1; reads as STATUS
    "M_PANELS": 0x04,  # ceil(M / R)
    "N_PANELS": 0x08,  # ceil(N / C)
    "SLOTS": 0x0C,  # ceil(K / lanes)
    "FLAGS": 0x10,
    "SHIFT": 0x14,  # of requantize, 0..63; a row adds its own
    "QMIN": 0x18,  # clamp, two's complement
    "QMAX": 0x1C,
    "STREAM_LOW": 0x20,  # 64-bit key of the random stream
    "STREAM_HIGH": 0x24,
    "N": 0x28,  # the row stride of the element index that draws random bits
    "CYCLES": 0x2C,  # read: cycles from START to the last output of the last product
    "AMAX_LOW": 0x30,  # read: max |acc| of the last product, from which shift_to_fit follows
    "AMAX_HIGH": 0x34,
    "GEOMETRY": 0x38,  # read: rows, cols, lanes, groups, a byte each
    "BUFFERS": 0x3C,  # read: slots that a panel holds (low half), B panels of that length (high half)
}

MAX_SHIFT = 63


@dataclass(frozen=True)
class GemmConfig:
    """The parameters of a core; BoundError for what it could not hold.

    spec, rows, cols  the array
    max_k             the longest reduction: depth of the panel buffers (two of A, N / C of B)
    max_n             columns of B kept on chip at max_k; a shorter K leaves room for more
    max_m             rows with a shift of their own (grad_weight of ShiftQuant); any M without
    post_lanes        outputs a cycle through rescaling; a tile of R C outputs then takes R C / post_lanes cycles
    stochastic        include Threefry (one generator a lane)
    dsp               two multiply-accumulates in each DSP48E1 (dsptile.py) in place of LUT fabric; K runs in chunks
    """

    spec: Spec
    rows: int = 8
    cols: int = 8
    max_k: int = 256
    max_n: int = 64
    max_m: int = 64
    post_lanes: int = 1
    stochastic: bool = True
    dsp: bool = False

    def __post_init__(self) -> None:
        if not (1 <= self.rows <= MAX_SIDE and 1 <= self.cols <= MAX_SIDE):
            raise BoundError(f"an array of {self.rows} x {self.cols}: 1 to {MAX_SIDE} each way")
        if self.max_k % self.spec.lanes:
            raise BoundError(f"max_k = {self.max_k} is no multiple of {self.spec.lanes} lanes")
        self.spec.require_k(self.max_k)
        if not 1 <= self.max_n <= 1 << 15 or not 1 <= self.max_m <= 1 << 15 or self.max_slots > 1 << 15:
            raise BoundError(f"buffers for M {self.max_m}, N {self.max_n}, K {self.max_k}: 1 to {1 << 15} each")
        if self.post_lanes < 1 or self.cols % self.post_lanes:
            raise BoundError(f"{self.post_lanes} output lanes must divide the {self.cols} columns")
        if self.dsp:
            dspbounds.require(self.spec, self.rows)

    @property
    def drain_rows(self) -> int:
        """Rows that leave the array in one drain slot."""
        return 2 if self.dsp else 1

    @property
    def drains(self) -> int:
        """Drain slots of a tile, or of a chunk."""
        return self.rows // self.drain_rows

    @property
    def max_slots(self) -> int:
        return self.max_k // self.spec.lanes

    @property
    def max_panels(self) -> int:
        """B panels of max_k."""
        return -(-self.max_n // self.cols)

    @property
    def row_shifts(self) -> int:
        """Rows that can have a shift of their own: max_m in whole panels."""
        return -(-self.max_m // self.rows) * self.rows

    @property
    def word_bits(self) -> int:
        """An output on the stream: the accumulator or code, sign-extended to 32 or 64 bits."""
        return 32 if self.spec.acc_bits <= 32 else 64

    @property
    def a_beat_bits(self) -> int:
        """R x lanes codes of one slot, packed as pack_codes does, in whole bytes."""
        return _whole_bytes(self.rows * self.spec.lanes * self.spec.a.bits)

    @property
    def b_beat_bits(self) -> int:
        return _whole_bytes(self.cols * self.spec.lanes * self.spec.b.bits)

    def panels(self, m: int, n: int, k: int) -> tuple[int, int, int]:
        """(M / R, N / C, K / lanes), each rounded up."""
        return -(-m // self.rows), -(-n // self.cols), -(-k // self.spec.lanes)

    def require(self, m: int, n: int, k: int, row_shifts: bool = False) -> None:
        """BoundError when the product (M, K) (K, N) does not fit this core, with the bound."""
        self.spec.require_k(k)
        mp, np, slots = self.panels(m, n, k)
        if min(m, n) < 1 or mp >= 1 << 16:
            raise BoundError(f"a product {m} x {n} x {k}: sizes start at 1, M ends at {(1 << 16) * self.rows - 1}")
        if slots > self.max_slots:
            raise BoundError(f"K = {k} exceeds the panel buffers: K is at most {self.max_k}")
        if np * slots > self.max_panels * self.max_slots:
            most = self.max_panels * self.max_slots // slots * self.cols
            raise BoundError(f"B of K = {k}, N = {n} exceeds its buffer: at this K, N is at most {most}")
        if row_shifts and m > self.row_shifts:
            raise BoundError(f"M = {m} rows with a shift each: at most {self.row_shifts}")

    def ideal_cycles(self, m: int, n: int, k: int) -> int:
        """M N K / (R C lanes), rounded up: every multiplier busy in every cycle."""
        return -(-m * n * k // (self.rows * self.cols * self.spec.lanes))

    def schedule_cycles(self, m: int, n: int, k: int) -> int:
        """What the schedule takes without stalls: panel load, then for each tile its slots, R drains and one decision.

        Horner adds a cycle for each empty group below the largest used one; a DSP array one for every doubling, and
        R / 2 (with Horner, the doublings as well) for each chunk after the first; start and end add a few tens.
        """
        mp, np, slots = self.panels(m, n, k)
        tile = max(slots + self.drains + 1, self.rows * self.cols // self.post_lanes)
        return slots + mp * np * tile


def _whole_bytes(bits: int) -> int:
    return -(-bits // 8) * 8
