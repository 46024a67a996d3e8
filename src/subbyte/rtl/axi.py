"""AXI4-Stream ports under their usual names, and an AXI4-Lite register file.

Only what the cores need: streams of whole beats (tdata, tvalid, tready, perhaps tlast; no tkeep: every byte counts),
and 32-bit registers with one write and one read under way; byte strobes are honoured by whole words only.
"""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out


def stream_in(name: str, width: int, last: bool = False) -> dict:
    """Ports of a receiving stream `name`."""
    ports = {f"{name}_tdata": In(width), f"{name}_tvalid": In(1), f"{name}_tready": Out(1)}
    return ports | ({f"{name}_tlast": In(1)} if last else {})


def stream_out(name: str, width: int, last: bool = False) -> dict:
    """Ports of a sending stream `name`."""
    ports = {f"{name}_tdata": Out(width), f"{name}_tvalid": Out(1), f"{name}_tready": In(1)}
    return ports | ({f"{name}_tlast": Out(1)} if last else {})


def lite_ports(name: str, address_bits: int) -> dict:
    """Ports of an AXI4-Lite slave `name`, 32 bits wide."""
    fields = {
        **{"awaddr": In(address_bits), "awvalid": In(1), "awready": Out(1), "awprot": In(3)},
        **{"wdata": In(32), "wstrb": In(4), "wvalid": In(1), "wready": Out(1)},
        **{"bresp": Out(2), "bvalid": Out(1), "bready": In(1)},
        **{"araddr": In(address_bits), "arvalid": In(1), "arready": Out(1), "arprot": In(3)},
        **{"rdata": Out(32), "rresp": Out(2), "rvalid": Out(1), "rready": In(1)},
    }
    return {f"{name}_{field}": port for field, port in fields.items()}


class LiteRegisters(wiring.Component):
    """An AXI4-Lite slave as two plain ports: a write is a pulse, a read is combinational.

    write, address, data    one cycle for each write
    read_address -> read_data   the owner's multiplexer; registered here
    """

    def __init__(self, address_bits: int) -> None:
        self.address_bits = address_bits
        super().__init__(
            {
                **lite_ports("axi", address_bits),
                "write": Out(1),
                "address": Out(address_bits),
                "data": Out(32),
                "read_address": Out(address_bits),
                "read_data": In(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # A write is taken when address and data are both there and no response waits.
        both = Signal()
        m.d.comb += both.eq(self.axi_awvalid & self.axi_wvalid & ~self.axi_bvalid)
        m.d.comb += [self.axi_awready.eq(both), self.axi_wready.eq(both)]
        m.d.comb += [self.write.eq(both & self.axi_wstrb.all()), self.address.eq(self.axi_awaddr)]
        m.d.comb += self.data.eq(self.axi_wdata)
        with m.If(both):
            m.d.sync += self.axi_bvalid.eq(1)
        with m.Elif(self.axi_bready):
            m.d.sync += self.axi_bvalid.eq(0)

        take = Signal()
        m.d.comb += [take.eq(self.axi_arvalid & ~self.axi_rvalid), self.axi_arready.eq(take)]
        m.d.comb += self.read_address.eq(self.axi_araddr)
        with m.If(take):
            m.d.sync += [self.axi_rdata.eq(self.read_data), self.axi_rvalid.eq(1)]
        with m.Elif(self.axi_rready):
            m.d.sync += self.axi_rvalid.eq(0)
        return m
