"""The self-checking testbench beside a generated core: Verilog text, and vectors as hex files for $readmemh.

Each job is a Product: its registers are written over AXI4-Lite, its beats sent, each output word compared with the
Python reference as it comes. Jobs with stalls pause every stream at random. It prints PASS or FAIL last. For Icarus,
and for Verilator (--binary --timing), which is faster from a few thousand cycles on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .beats import a_beats, b_beats
from .gemmconfig import REGISTERS, STATUS_DONE, STATUS_REFUSED, GemmConfig
from .product import Product

TIMEOUT_FACTOR = 20


@dataclass(frozen=True)
class Job:
    """A product and whether its streams stall at random."""

    name: str
    product: Product
    stall: bool


def words_of(config: GemmConfig, out: Tensor) -> list[int]:
    """(M, N) -> output beats in stream order, None where the receiver drops a padded row or column."""
    (m, n), mask = out.shape, (1 << config.word_bits) - 1
    rows = out.tolist()
    beats: list[int] = []
    for top in range(0, m, config.rows):
        for left in range(0, n, config.cols):
            for r in range(top, top + config.rows):
                for c in range(left, left + config.cols, config.post_lanes):
                    at = [(r, c + i) for i in range(config.post_lanes)]
                    word = 0
                    for i, (y, x) in enumerate(at):
                        if y < m and x < n:
                            word |= (rows[y][x] & mask) << (i * config.word_bits)
                    beats.append(word)
    return beats


def care_masks(config: GemmConfig, m: int, n: int) -> list[int]:
    """1 for each output bit that belongs to a row below M and a column below N."""
    return words_of(config, torch.full((m, n), -1))


def files(config: GemmConfig, jobs: list[Job], top: str) -> dict[str, str]:
    """File name -> text: tb.v, a.hex, b.hex, e.hex, c.hex (expected), care.hex."""
    a: list[int] = []
    b: list[int] = []
    e: list[int] = []
    c: list[int] = []
    care: list[int] = []
    calls = [_refusal(config)]
    for i, job in enumerate(jobs):
        p = job.product
        p.require(config)
        starts = [len(v) for v in (a, b, e, c)]
        a += a_beats(config, p.a)
        b += b_beats(config, p.b)
        e += p.shift_bytes(config)
        c += words_of(config, p.expected())
        care += care_masks(config, *p.sizes[:2])
        ranges = ", ".join(f"{s}, {len(v)}" for s, v in zip(starts, (a, b, e, c), strict=True))
        writes = [f"    write({REGISTERS[name]}, 32'h{v:08x});" for name, v in p.registers(config).items()]
        calls += [f"    // {job.name}", f"    prepare({ranges}, {int(job.stall)});", *writes]
        calls.append(f"    finish({i}, 64'h{int(p.accumulators().abs().max()):x});")
    verilog = _TEMPLATE
    values = {
        "TOP": top,
        "A_BITS": config.a_beat_bits,
        "B_BITS": config.b_beat_bits,
        "C_BITS": config.word_bits * config.post_lanes,
        "A_COUNT": len(a),
        "B_COUNT": len(b),
        "E_COUNT": max(1, len(e)),
        "C_COUNT": len(c),
        "TIMEOUT": TIMEOUT_FACTOR * (len(a) + len(b) + len(c)) + sum(_tiles(config, j.product) for j in jobs) * 8,
        "DONE": STATUS_DONE,
        "JOBS": "\n".join(calls),
        **{f"REG_{name}": offset for name, offset in REGISTERS.items()},
    }
    for name in sorted(values, key=len, reverse=True):
        verilog = verilog.replace(f"@{name}@", str(values[name]))
    out = {"tb.v": verilog}
    for name, beats in (("a", a), ("b", b), ("e", e or [0]), ("c", c), ("care", care)):
        out[f"{name}.hex"] = "".join(f"{beat:x}\n" for beat in beats)
    return out


def _tiles(config: GemmConfig, p: Product) -> int:
    return config.schedule_cycles(*p.sizes)


def _refusal(config: GemmConfig) -> str:
    values = {"M_PANELS": 1, "N_PANELS": 1, "SLOTS": config.max_slots + 1, "FLAGS": 0, "START": 1}
    writes = " ".join(f"write({REGISTERS[name]}, {value});" for name, value in values.items())
    return f"""    // sizes beyond the buffers are refused
    {writes}
    read({REGISTERS["START"]});
    if (got !== {STATUS_REFUSED}) begin errors = errors + 1; $display("an oversized product was not refused"); end"""


_TEMPLATE = """// Self-checking testbench of @TOP@, written by `subbyte rtl gemm`: prints PASS or FAIL.
`timescale 1ns/1ps
module tb;
  reg clk = 0, rst = 1;
  always #5 clk = ~clk;

  reg [@A_BITS@-1:0] a_mem [0:@A_COUNT@-1];
  reg [@B_BITS@-1:0] b_mem [0:@B_COUNT@-1];
  reg [7:0] e_mem [0:@E_COUNT@-1];
  reg [@C_BITS@-1:0] c_mem [0:@C_COUNT@-1];
  reg [@C_BITS@-1:0] care_mem [0:@C_COUNT@-1];
  initial begin
    $readmemh("a.hex", a_mem); $readmemh("b.hex", b_mem); $readmemh("e.hex", e_mem);
    $readmemh("c.hex", c_mem); $readmemh("care.hex", care_mem);
  end

  integer a_at = 0, a_end = 0, b_at = 0, b_end = 0, e_at = 0, e_end = 0, c_at = 0, c_end = 0;
  integer a_start = 0, b_start = 0, e_start = 0, c_start = 0;
  reg load = 0;
  integer errors = 0, cycle = 0, stall = 0, a_next, b_next, e_next;
  reg a_valid = 0, b_valid = 0, e_valid = 0, c_ready = 0;
  wire a_ready, b_ready, e_ready, c_valid, c_last;
  wire [@C_BITS@-1:0] c_data;
  reg [6:0] awaddr = 0, araddr = 0;
  reg [31:0] wdata = 0, got = 0;
  reg awvalid = 0, wvalid = 0, arvalid = 0;
  wire awready, wready, bvalid, arready, rvalid;
  wire [31:0] rdata;
  reg [63:0] amax;

  @TOP@ dut (
    .clk(clk), .rst(rst),
    .s_axis_a_tdata(a_mem[a_at < a_end ? a_at : 0]), .s_axis_a_tvalid(a_valid), .s_axis_a_tready(a_ready),
    .s_axis_b_tdata(b_mem[b_at < b_end ? b_at : 0]), .s_axis_b_tvalid(b_valid), .s_axis_b_tready(b_ready),
    .s_axis_e_tdata(e_mem[e_at < e_end ? e_at : 0]), .s_axis_e_tvalid(e_valid), .s_axis_e_tready(e_ready),
    .m_axis_c_tdata(c_data), .m_axis_c_tvalid(c_valid), .m_axis_c_tready(c_ready), .m_axis_c_tlast(c_last),
    .s_axil_awaddr(awaddr), .s_axil_awprot(3'b0), .s_axil_awvalid(awvalid), .s_axil_awready(awready),
    .s_axil_wdata(wdata), .s_axil_wstrb(4'hf), .s_axil_wvalid(wvalid), .s_axil_wready(wready),
    .s_axil_bresp(), .s_axil_bvalid(bvalid), .s_axil_bready(1'b1),
    .s_axil_araddr(araddr), .s_axil_arprot(3'b0), .s_axil_arvalid(arvalid), .s_axil_arready(arready),
    .s_axil_rdata(rdata), .s_axil_rresp(), .s_axil_rvalid(rvalid), .s_axil_rready(1'b1)
  );

  // Streams: valid falls only after a handshake; a stalling job pauses each stream one cycle in four.
  always @(posedge clk) begin
    cycle <= cycle + 1;
    a_next = a_at + (a_valid && a_ready);
    b_next = b_at + (b_valid && b_ready);
    e_next = e_at + (e_valid && e_ready);
    a_at <= load ? a_start : a_next; b_at <= load ? b_start : b_next; e_at <= load ? e_start : e_next;
    if (load) c_at <= c_start;
    if (!a_valid || a_ready) a_valid <= !load && a_next < a_end && !(stall && ($random & 3) == 0);
    if (!b_valid || b_ready) b_valid <= !load && b_next < b_end && !(stall && ($random & 3) == 0);
    if (!e_valid || e_ready) e_valid <= !load && e_next < e_end && !(stall && ($random & 3) == 0);
    c_ready <= !(stall && ($random & 3) == 0);
    if (c_valid && c_ready) begin
      if (c_at >= c_end || ((c_data ^ c_mem[c_at]) & care_mem[c_at]) !== 0) begin
        errors = errors + 1;
        if (errors < 10) $display("word %0d: %h, expected %h", c_at, c_data, c_mem[c_at]);
      end
      if (c_last !== (c_at == c_end - 1)) begin errors = errors + 1; $display("tlast is wrong at word %0d", c_at); end
      c_at <= c_at + 1;
    end
    if (cycle > @TIMEOUT@) begin $display("FAIL: no end after %0d cycles", cycle); $finish; end
  end

  // The tasks act at the falling edge, the streams and the core at the rising one: no order of processes matters.
  task write(input [6:0] address, input [31:0] value);
    begin
      @(negedge clk);
      awaddr = address; wdata = value; awvalid = 1; wvalid = 1;
      #1 while (!awready) begin @(negedge clk); #1; end
      @(negedge clk);
      awvalid = 0; wvalid = 0;
      while (!bvalid) @(negedge clk);
    end
  endtask

  task read(input [6:0] address);
    begin
      @(negedge clk);
      araddr = address; arvalid = 1;
      #1 while (!arready) begin @(negedge clk); #1; end
      @(negedge clk);
      arvalid = 0;
      while (!rvalid) @(negedge clk);
      got = rdata;
    end
  endtask

  task prepare(input integer a0, input integer a1, input integer b0, input integer b1, input integer e0,
               input integer e1, input integer c0, input integer c1, input integer stalls);
    begin
      @(negedge clk);
      a_start = a0; a_end = a1; b_start = b0; b_end = b1; e_start = e0; e_end = e1; c_start = c0; c_end = c1;
      stall = stalls; load = 1;
      @(negedge clk);
      load = 0;
    end
  endtask

  task finish(input integer job, input [63:0] expected_amax);
    begin
      while (c_at != c_end) @(negedge clk);
      read(@REG_START@);
      if (got !== @DONE@) begin errors = errors + 1; $display("job %0d ends with status %0d", job, got); end
      read(@REG_AMAX_LOW@); amax[31:0] = got;
      read(@REG_AMAX_HIGH@); amax[63:32] = got;
      if (amax !== expected_amax) begin errors = errors + 1; $display("job %0d: amax %0d", job, amax); end
      read(@REG_CYCLES@);
      $display("job %0d cycles %0d", job, got);
    end
  endtask

  initial begin
    repeat (4) @(negedge clk);
    rst = 0;
@JOBS@
    if (errors == 0) $display("PASS"); else $display("FAIL: %0d errors", errors);
    $finish;
  end
endmodule
"""
