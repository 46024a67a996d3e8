"""The GEMM core: streams in, an array with its sequencer, rescaling, a stream out, AXI4-Lite registers to start it.

    s_axis_a    panels of A: for each R rows, `slots` beats of R x lanes packed codes
    s_axis_b    panels of B: for each C columns, `slots` beats, once a product
    s_axis_e    bytes: `slots` left shifts if GROUPED, then M row shifts if ROW_SHIFTS
    m_axis_c    tiles in row order of panels, within a tile row by row: words of 32 (64) bits, tlast on the last
    s_axil      registers: gemmconfig.REGISTERS; sizes must be written before START and stay until DONE

acc[m, n] = sum_k a[m, k] b[k, n] 2^left[k];  out = acc, or integer.requantize(acc, SHIFT + row_shift[m], QMIN..QMAX).
Rows and columns beyond M and N are zeros that the sender pads and outputs that the receiver drops.
"""

from __future__ import annotations

from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In

from . import gemmconfig
from .array import Array
from .axi import LiteRegisters, lite_ports, stream_in, stream_out
from .collector import Collector
from .dsptile import DspTile
from .element import delayed
from .gemmconfig import MAX_SHIFT, REGISTERS, GemmConfig
from .operands import READ_LATENCY, OperandBuffers
from .sequencer import Sequencer

ADDRESS_BITS = 7


def default_array(config: GemmConfig, primitive: bool = True) -> Array | DspTile:
    """LUT fabric, or the DSP tile (primitive: as DSP48E1 instances, which Amaranth cannot simulate)."""
    if config.dsp:
        return DspTile(config.spec, config.rows, config.cols, primitive)
    return Array(config.spec, config.rows, config.cols)


class GemmCore(wiring.Component):
    """One product at a time. Every handshake may stall: the array pauses, nothing is lost.

    array: another component with the slots of array.Array in place of it (a test counts cycles with an empty one).
    """

    def __init__(self, config: GemmConfig, array: wiring.Component | None = None) -> None:
        self.config = config
        self.array = array or default_array(config)
        super().__init__(
            {
                **stream_in("s_axis_a", config.a_beat_bits),
                **stream_in("s_axis_b", config.b_beat_bits),
                **stream_in("s_axis_e", 8),
                **stream_out("m_axis_c", config.word_bits * config.post_lanes, last=True),
                **lite_ports("s_axil", ADDRESS_BITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c = self.config
        m.submodules.registers = lite = LiteRegisters(ADDRESS_BITS)
        m.submodules.operands = operands = OperandBuffers(c)
        m.submodules.sequencer = sequencer = Sequencer(c)
        m.submodules.array = array = self.array
        m.submodules.collector = collector = Collector(c)
        for name in lite_ports("axi", ADDRESS_BITS):
            outer, inner = getattr(self, name.replace("axi", "s_axil", 1)), getattr(lite, name)
            outward = lite.signature.members[name].flow is not In
            m.d.comb += outer.eq(inner) if outward else inner.eq(outer)

        start, busy, registers = self._control(m, lite, collector)
        m.d.comb += [sequencer.start.eq(start), operands.clear.eq(start), collector.clear.eq(start)]
        m.d.comb += operands.active.eq(busy)
        for part in (operands, sequencer, collector):
            m.d.comb += [part.m_panels.eq(registers["M_PANELS"]), part.n_panels.eq(registers["N_PANELS"])]
        for part in (operands, sequencer):
            m.d.comb += part.slots.eq(registers["SLOTS"])

        for name in ("a", "b"):
            for field in ("tdata", "tvalid"):
                m.d.comb += getattr(operands, f"{name}_{field}").eq(getattr(self, f"s_axis_{name}_{field}"))
            m.d.comb += getattr(self, f"s_axis_{name}_tready").eq(getattr(operands, f"{name}_tready"))
        for field in ("tdata", "tvalid", "tlast"):
            m.d.comb += getattr(self, f"m_axis_c_{field}").eq(getattr(collector, f"c_{field}"))
        m.d.comb += collector.c_tready.eq(self.m_axis_c_tready)

        m.d.comb += [
            sequencer.grouped.eq(registers["FLAGS"][0] & int(c.spec.groups > 1)),
            sequencer.a_filled.eq(operands.a_filled),
            sequencer.b_filled.eq(operands.b_filled),
            sequencer.credit.eq(collector.credit),
            operands.a_release.eq(sequencer.a_release),
            operands.slot.eq(sequencer.slot),
            operands.bank.eq(sequencer.bank),
            operands.b_base.eq(sequencer.b_base),
            array.a.eq(operands.a_word),
            array.b.eq(operands.b_word),
            collector.row.eq(array.out),
            collector.row_valid.eq(array.out_valid),
            collector.tile_start.eq(sequencer.tile_start),
        ]
        for control in ("valid", "double", "left", "drain", *(("fresh", "last") if c.dsp else ())):
            m.d.comb += getattr(array, control).eq(delayed(m, getattr(sequencer, control), READ_LATENCY, control))
        self._shifts(m, start, busy, registers, sequencer, collector)
        return m

    def _control(
        self, m: Module, lite: LiteRegisters, collector: Collector
    ) -> tuple[Signal, Signal, dict[str, Signal]]:
        """The register file: START is refused when the sizes exceed the buffers."""
        c = self.config
        writable = list(REGISTERS)[1 : list(REGISTERS).index("CYCLES")]
        registers = {name: Signal(32, name=name.lower()) for name in writable}
        with m.If(lite.write), m.Switch(lite.address[2:]):
            for name, register in registers.items():
                with m.Case(REGISTERS[name] >> 2):
                    m.d.sync += register.eq(lite.data)
        busy, done, refused, cycles = Signal(), Signal(), Signal(), Signal(32)
        asked, start, fits = Signal(), Signal(), Signal()
        slots, m_panels, n_panels = (registers[n] for n in ("SLOTS", "M_PANELS", "N_PANELS"))
        b_words = Signal(32)
        row_shifts = (registers["FLAGS"] & gemmconfig.FLAG_ROW_SHIFTS).any()
        m.d.sync += b_words.eq(slots[:16] * n_panels[:16])  # settled: START comes by a later write
        m.d.comb += asked.eq(lite.write & (lite.address[2:] == REGISTERS["START"] >> 2) & lite.data[0] & ~busy)
        m.d.comb += fits.eq(
            (slots != 0) & (slots <= c.max_slots) & (m_panels != 0) & (m_panels < 1 << 16)
            & (n_panels != 0) & (n_panels < 1 << 16) & (b_words <= c.max_panels * c.max_slots)
            & (~row_shifts | (m_panels <= c.row_shifts // c.rows))
        )  # fmt: skip
        m.d.comb += start.eq(asked & fits)
        with m.If(asked):
            m.d.sync += [busy.eq(fits), refused.eq(~fits), done.eq(0), cycles.eq(0)]
        with m.Elif(busy):
            m.d.sync += cycles.eq(cycles + 1)
            with m.If(self.m_axis_c_tvalid & self.m_axis_c_tready & self.m_axis_c_tlast):
                m.d.sync += [busy.eq(0), done.eq(1)]
        readable = {
            "START": busy | (done << 1) | (refused << 2),
            **registers,
            "CYCLES": cycles,
            "AMAX_LOW": collector.amax[:32],
            "AMAX_HIGH": collector.amax[32:] if len(collector.amax) > 32 else Const(0),
            "GEOMETRY": Const(c.rows | c.cols << 8 | c.spec.lanes << 16 | c.spec.groups << 24, 32),
            "BUFFERS": Const(c.max_slots | c.max_panels << 16, 32),
        }
        with m.Switch(lite.read_address[2:]):
            for name, value in readable.items():
                with m.Case(REGISTERS[name] >> 2):
                    m.d.comb += lite.read_data.eq(value)
        flags = registers["FLAGS"]
        m.d.comb += [
            collector.requantize.eq((flags & gemmconfig.FLAG_REQUANTIZE).any()),
            collector.stochastic.eq((flags & gemmconfig.FLAG_STOCHASTIC).any()),
            collector.shift.eq(Mux(registers["SHIFT"] > MAX_SHIFT, MAX_SHIFT, registers["SHIFT"])),
            collector.qmin.eq(registers["QMIN"].as_signed()),
            collector.qmax.eq(registers["QMAX"].as_signed()),
            collector.stream[:32].eq(registers["STREAM_LOW"]),
            collector.stream[32:].eq(registers["STREAM_HIGH"]),
            collector.n.eq(registers["N"]),
        ]
        return start, busy, registers

    def _shifts(self, m: Module, start, busy, registers, sequencer: Sequencer, collector: Collector) -> None:
        """The shift stream: first the sequencer's left shifts, then a shift for each row, kept here."""
        c = self.config
        memory = Memory(shape=range(MAX_SHIFT + 1), depth=max(2, c.row_shifts), init=[])
        m.submodules.row_shifts = memory
        write, read = memory.write_port(), memory.read_port(domain="comb")
        wanted = (registers["FLAGS"] & gemmconfig.FLAG_ROW_SHIFTS).any()
        total, at = Signal(32), Signal(32)
        lefts = Signal()
        m.d.comb += total.eq(registers["M_PANELS"][:16] * c.rows)
        m.d.comb += collector.shifts_ready.eq(~wanted | (at == total))
        m.d.comb += [lefts.eq(sequencer.e_ready), sequencer.e_valid.eq(self.s_axis_e_tvalid & busy)]
        m.d.comb += sequencer.e_left.eq(self.s_axis_e_tdata)
        take_row = Signal()
        m.d.comb += take_row.eq(self.s_axis_e_tvalid & busy & ~lefts & wanted & (at != total))
        m.d.comb += self.s_axis_e_tready.eq(busy & (lefts | (wanted & (at != total))))
        m.d.comb += [write.addr.eq(at), write.en.eq(take_row), write.data.eq(self.s_axis_e_tdata)]
        with m.If(take_row):
            m.d.sync += at.eq(at + 1)
        with m.If(start):
            m.d.sync += at.eq(0)
        m.d.comb += [read.addr.eq(collector.row_address), collector.row_shift.eq(Mux(wanted, read.data, 0))]
