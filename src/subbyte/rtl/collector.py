"""From the array's drain to the output stream: tiles in natural row order, rescaled, a few values a cycle.

Two tiles fit: one drains in (R cycles, last row first) while the other is read out, R C / lanes cycles. Each value gets
its shift (the product's and its row's) and its row-major element index m N + n, and passes a Requantizer a lane.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, EnableInserter, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .axi import stream_out
from .gemmconfig import MAX_SHIFT, GemmConfig
from .requantizer import INDEX_BITS, Requantizer


class Collector(wiring.Component):
    """row, row_valid: out of the array (a row, or a DSP tile's row pair). credit, tile_start: as in Sequencer.

    row_address -> row_shift: the extra shift of output row m, read combinationally by whoever keeps them;
    shifts_ready: they are all there.
    """

    def __init__(self, config: GemmConfig) -> None:
        self.config = config
        width = config.spec.acc_bits
        super().__init__(
            {
                "clear": In(1),
                "m_panels": In(16),
                "n_panels": In(16),
                "row": In(data.ArrayLayout(signed(width), config.drain_rows * config.cols)),
                "row_valid": In(1),
                "tile_start": In(1),
                "credit": Out(1),
                "shifts_ready": In(1),
                "row_address": Out(range(max(2, config.row_shifts))),
                "row_shift": In(range(MAX_SHIFT + 1)),
                "shift": In(range(MAX_SHIFT + 1)),
                "requantize": In(1),
                "stochastic": In(1),
                "stream": In(64),
                "qmin": In(signed(width)),
                "qmax": In(signed(width)),
                "n": In(32),
                "amax": Out(width),
                **stream_out("c", config.word_bits * config.post_lanes, last=True),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c, width, rows = self.config, self.config.spec.acc_bits, self.config.rows
        drains, together = c.drains, c.drain_rows
        row_bits = max(1, (drains - 1).bit_length())
        tiles = Memory(shape=width * c.cols * together, depth=2 << row_bits, init=[])
        m.submodules.tiles = tiles
        write, read = tiles.write_port(), tiles.read_port(domain="comb")

        reserved, full = Signal(2), Signal(2)
        write_bank, read_bank = Signal(), Signal()
        write_row, read_row = Signal(row_bits, init=drains - 1), Signal(range(max(2, rows)))
        read_drain = read_row[1:] if together == 2 else read_row
        written, freed = Signal(), Signal()
        m.d.comb += [self.credit.eq(reserved != 2), written.eq(self.row_valid & (write_row == 0))]
        m.d.sync += [reserved.eq(reserved + self.tile_start - freed), full.eq(full + written - freed)]
        m.d.comb += [write.addr.eq(Cat(write_row, write_bank)), write.en.eq(self.row_valid), write.data.eq(self.row)]
        with m.If(self.row_valid):
            m.d.sync += write_row.eq(write_row - 1)
            with m.If(write_row == 0):
                m.d.sync += [write_row.eq(drains - 1), write_bank.eq(~write_bank)]

        # Read out row by row, `lanes` columns at a time; everything stalls with the stream.
        lanes, steps = c.post_lanes, c.cols // c.post_lanes
        advance, available, reading = Signal(), Signal(), Signal()
        read_step = Signal(range(max(2, steps)))
        tile_m, tile_n, m_index = Signal(16), Signal(16), Signal(self.row_address.shape())
        panel_start, row_start, column = (Signal(INDEX_BITS, name=n) for n in ("panel_start", "row_start", "column"))
        m_start = Signal.like(m_index)
        last_step, last_row, last_n = Signal(), Signal(), Signal()
        m.d.comb += [last_step.eq(read_step == steps - 1), last_row.eq(read_row == rows - 1)]
        m.d.comb += [last_n.eq(tile_n == self.n_panels - 1), read.addr.eq(Cat(_sized(read_drain, row_bits), read_bank))]
        m.d.comb += [self.row_address.eq(m_index), freed.eq(reading & last_step & last_row)]
        m.d.comb += [available.eq((full != 0) & self.shifts_ready), reading.eq(advance & available)]
        last = last_step & last_row & last_n & (tile_m == self.m_panels - 1)
        with m.If(reading):
            m.d.sync += read_step.eq(read_step + 1)
            with m.If(last_step):
                m.d.sync += [read_step.eq(0), read_row.eq(read_row + 1)]
                m.d.sync += [row_start.eq(row_start + self.n), m_index.eq(m_index + 1)]
                with m.If(last_row):
                    m.d.sync += [read_row.eq(0), read_bank.eq(~read_bank), row_start.eq(panel_start)]
                    m.d.sync += [m_index.eq(m_start), tile_n.eq(tile_n + 1), column.eq(column + c.cols)]
                    with m.If(last_n):
                        m.d.sync += [tile_n.eq(0), column.eq(0), tile_m.eq(tile_m + 1)]
                        m.d.sync += [panel_start.eq(row_start + self.n), row_start.eq(row_start + self.n)]
                        m.d.sync += [m_start.eq(m_index + 1), m_index.eq(m_index + 1)]

        # One register, then the requantizers.
        valid, is_last = Signal(), Signal()
        index, shift = Signal(INDEX_BITS), Signal(range(MAX_SHIFT + 1))
        total = Signal(range(2 * MAX_SHIFT + 1))
        m.d.comb += total.eq(self.shift + self.row_shift)
        values = [Signal(signed(width), name=f"value{i}") for i in range(lanes)]
        with m.If(advance):
            m.d.sync += [valid.eq(available), is_last.eq(last)]
            m.d.sync += [index.eq(row_start + column + read_step * lanes)]
            m.d.sync += shift.eq(Mux(total > MAX_SHIFT, MAX_SHIFT, total))
            words: list[Value] = [read.data[i * width : (i + 1) * width] for i in range(c.cols * together)]
            if together == 2:
                words = [Mux(read_row[0], words[2 * i + 1], words[2 * i]) for i in range(c.cols)]
            with m.Switch(read_step):
                for s in range(steps):
                    with m.Case(s):
                        m.d.sync += [v.eq(words[s * lanes + i]) for i, v in enumerate(values)]
        units = [Requantizer(width, c.stochastic) for _ in range(lanes)]
        for i, (unit, value) in enumerate(zip(units, values, strict=True)):
            m.submodules[f"requantizer{i}"] = EnableInserter(advance)(unit)
            m.d.comb += [unit.valid.eq(valid), unit.last.eq(is_last), unit.value.eq(value), unit.shift.eq(shift)]
            m.d.comb += [unit.index.eq(index + i), unit.enable.eq(self.requantize), unit.stream.eq(self.stream)]
            m.d.comb += [unit.stochastic.eq(self.stochastic), unit.qmin.eq(self.qmin), unit.qmax.eq(self.qmax)]
            word = Signal(signed(c.word_bits), name=f"word{i}")
            m.d.comb += word.eq(unit.out)
            m.d.comb += self.c_tdata[i * c.word_bits : (i + 1) * c.word_bits].eq(word)
        m.d.comb += [self.c_tvalid.eq(units[0].out_valid), self.c_tlast.eq(units[0].out_last)]
        m.d.comb += advance.eq(~self.c_tvalid | self.c_tready)

        for value in values:
            size = Signal(width)
            m.d.comb += size.eq(Mux(value < 0, -value, value))
            _raise_to(m, self.amax, size, valid & advance)
        with m.If(self.clear):
            m.d.sync += [self.amax.eq(0), tile_m.eq(0), tile_n.eq(0), column.eq(0), panel_start.eq(0)]
            m.d.sync += [row_start.eq(0), m_start.eq(0), m_index.eq(0)]
        return m


def _sized(v: Value, width: int) -> Value:
    """v zero-extended or cut to `width` bits."""
    return Cat(v, Const(0, width - len(v))) if len(v) < width else v[:width]


def _raise_to(m: Module, maximum: Signal, v: Signal, when: Signal) -> None:
    with m.If(when & (v > maximum)):
        m.d.sync += maximum.eq(v)
