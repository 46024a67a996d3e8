"""Synthesis harness, resource table, bars, proofs and Vivado reports: the part that needs pip packages only."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("amaranth", reason="pip install subbyte[rtl]")
pytest.importorskip("pyosys", reason="pip install subbyte[rtl]")

from subbyte.rtl import ecp5, resources, synth, units, vivado
from subbyte.rtl.proofs import ProductEquals, holds, multiplier_is_exact
from subbyte.rtl.proofs_mutants import list_mutations
from subbyte.rtl.resources import Row, compared, markdown, merged, read_jsonl, write_jsonl
from subbyte.rtl.resources_bars import bars
from subbyte.rtl.resources_cases import SECTIONS, cases

pytestmark = pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")

RESULTS = Path(__file__).resolve().parents[1] / "results" / "rtl.jsonl"


def element(bits: int, variant: str = "plain") -> Any:
    return units.element(units.spec_for(bits, 1 if variant == "plain" else 4, variant))


# ------------------------------------------------------------------------------------------------------- synthesis


def test_horner_takes_no_lut_more_than_plain_int4(tmp_path: Path) -> None:
    plain, horner = (synth.synth_xc7(element(4, v), cache=tmp_path) for v in ("plain", "horner"))
    assert horner.lut == plain.lut
    assert plain.dsp == 0
    assert 30 <= plain.lut <= 60
    assert plain.delay_ps is not None
    assert 1000 < plain.delay_ps < 6000
    assert horner.ff == plain.ff + 2  # `double`, delayed to the product's stage


def test_a_circuit_is_synthesized_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def fake(commands: list[str], directory: Path) -> str:
        calls.append(directory)
        cells = {"LUT6": 3, "FDRE": 2, "CARRY4": {"count": 1}}
        (directory / "stat.json").write_text(json.dumps({"design": {"num_cells_by_type": cells}}))
        (directory / "stat.txt").write_text("   Estimated number of LCs:          3\n")
        (directory / "sta.txt").write_text("Latest arrival time in 'top' is 1234:\n")
        return ""

    monkeypatch.setattr(synth, "run_yosys", fake)
    first = synth.synth_xc7(element(4), cache=tmp_path)
    assert first == synth.Resources(lut=3, lc=3, ff=2, dsp=0, carry4=1, muxf=0, memory=0, bram=0, delay_ps=1234)
    assert synth.synth_xc7(element(4), cache=tmp_path) == first
    assert len(calls) == 1
    synth.synth_xc7(element(5), cache=tmp_path)
    synth.synth_xc7(element(4), dsp=True, cache=tmp_path)
    synth.synth_xc7(element(4))
    assert len(calls) == 4


def test_the_key_is_of_circuit_flow_and_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    design = synth.to_rtlil(element(4))
    key = synth.Synthesis(design).key
    assert key == synth.Synthesis(synth.to_rtlil(element(4))).key
    assert len({key, synth.Synthesis(design, dsp=True).key, synth.Synthesis(design, delay=False).key}) == 3
    monkeypatch.setattr(synth, "tool_version", lambda: "yosys 9.99")
    assert synth.Synthesis(design).key != key


def test_memory_and_shift_registers_count_as_luts() -> None:
    counted = synth.count_cells({"LUT2": 1, "RAM32M": 2, "SRL16E": 3, "DSP48E1": 4, "RAMB36E1": 1, "MUXF7": 5}, 1, None)
    assert (counted.lut, counted.memory, counted.lc) == (12, 11, 12)
    assert (counted.dsp, counted.bram, counted.muxf) == (4, 2, 5)


def test_a_failing_yosys_command_is_an_error_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(synth.SynthesisError, match="No such command: nonsense"):
        synth.run_yosys(["nonsense"], tmp_path)


def test_verilog_is_one_module_with_the_ports() -> None:
    text = synth.to_verilog(element(4, "horner"))
    assert "module top(" in text
    assert re.search(r"input (signed )?\[31:0\] d_in;", text)


# ------------------------------------------------------------------------------------------------ proofs and faults


@pytest.mark.parametrize("widths", [(2, 2), (3, 3), (4, 4), (5, 5)], ids=str)
def test_booth_multipliers_are_proved(widths: tuple[int, int]) -> None:
    assert multiplier_is_exact(*widths)


def test_a_proof_of_a_faulty_multiplier_fails() -> None:
    faults = list_mutations(ProductEquals(4, 4), 6, seed=1)
    refuted = [not holds(ProductEquals(4, 4), "equal", fault) for fault in faults]
    assert sum(refuted) >= 5  # a fault may happen to change nothing


# ------------------------------------------------------------------------------------------------------- the table


def row(case: str, lut: int, plain: str = "array/int6", **more: Any) -> Row:
    return Row(case, case.split("/")[1], more.pop("kind", "synthesis"), "yosys 0", 64, plain, lut=lut, **more)


ROWS = [
    row("array/int6", 100),
    row("array/int6-horner", 101),
    row("array/fp16-fp16-serial", 500),
    row("array/fp16-fp16-pipelined", 510),
    row("array/fp16-fp32-serial", 1000),
    row("array-dsp/int6", 0, "array-dsp/int6"),
    row("array-dsp/int6-folded", 64, "array-dsp/int6"),
]


def test_rows_are_compared_with_plain_and_the_smaller_fp16() -> None:
    table = {r.case: r for r in compared(ROWS)}
    horner = table["array/int6-horner"]
    assert horner.lut_over_plain == pytest.approx(0.01)
    assert horner.lut_under_fp16 == pytest.approx(1 - 101 / 500)
    assert horner.lut_under_fp32 == pytest.approx(1 - 101 / 1000)
    folded = table["array-dsp/int6-folded"]
    assert folded.lut_over_plain is None
    assert folded.lut_more == 64


def test_kinds_are_never_compared_with_each_other() -> None:
    other = [row("array/int6-horner", 90, kind="vivado")]
    mine = next(r for r in compared([*ROWS, *other]) if r.kind == "vivado")
    assert mine.lut_over_plain is None
    assert mine.lut_under_fp16 is None


def test_markdown_puts_the_overhead_first_and_names_what_a_figure_is() -> None:
    text = markdown(compared(ROWS))
    assert "not routed" in text
    assert "| int6 | = | 100 |" in text
    assert "| int6-horner | +1.0 % | 101 |" in text
    assert "| int6-folded | +64 LUT | 64 |" in text
    assert "-79.8 % | -89.9 % |" in text


def test_rows_survive_a_file_and_new_ones_replace_old(tmp_path: Path) -> None:
    path = tmp_path / "rtl.jsonl"
    routed = row("element/int6", 9, "element/int6", kind="routed", fmax_mhz=100.0, fmax_seeds=(99.0, 100.0, 101.0))
    rows = compared([*ROWS, routed])
    write_jsonl(rows, path, "subbyte rtl report")
    assert read_jsonl(path) == rows
    assert json.loads(path.read_text().splitlines()[0])["study"] == "rtl"
    newer = {r.case: r for r in merged(rows, [row("array/int6", 200)]) if r.kind == "synthesis"}
    assert newer["array/int6"].lut == 200
    assert newer["array/int6-horner"].lut_over_plain == pytest.approx(-0.495)
    assert read_jsonl(tmp_path / "none.jsonl") == []


def test_a_known_row_with_the_same_key_is_not_measured_again() -> None:
    case = cases()["element/int4"]
    key = synth.Synthesis(synth.to_rtlil(case.make()), case.dsp, case.delay).key
    known = replace(row("element/int4", 7, "element/int4"), key=key)
    assert resources.measure(case, None, {key: known}).lut == 7


def test_cases_name_their_section_and_a_plain_unit_that_exists() -> None:
    table = cases()
    assert {c.section for c in table.values()} == set(SECTIONS)
    for case in table.values():
        assert table[case.plain].plain == case.plain
        assert table[case.plain].section == case.section
    assert {"dot/mxint6", "dot/mxint8", "dot/mxfp4", "dot/int6-scaled", "element/fp8-e4m3-fixed"} <= set(table)


@pytest.mark.parametrize("bar", bars(), ids=lambda b: b.what)
def test_the_stored_table_meets_the_bars(bar: Any) -> None:
    rows = {r.case: r for r in read_jsonl(RESULTS) if r.kind == "synthesis"}
    figure = bar.figure(rows)
    assert bar.met(figure), bar.line(figure)


def test_a_missed_bar_says_so() -> None:
    bar = bars()[0]
    worse = {"array/int6": row("array/int6", 100), "array/int6-horner": row("array/int6-horner", 103)}
    assert not bar.met(bar.figure(worse))
    assert bar.line(bar.figure(worse)).startswith("MISSED    3.00 %")


# ------------------------------------------------------------------------------------------------ other tools' reports


def test_ecp5_cells_carries_count_two(tmp_path: Path) -> None:
    cells = {"LUT4": 100, "CCU2C": 10, "TRELLIS_FF": 50, "MULT18X18D": 1, "PFUMX": 9}
    (tmp_path / "stat.json").write_text(json.dumps({"design": {"num_cells_by_type": cells}}))
    assert ecp5.count_ecp5(tmp_path / "stat.json") == (120, 50, 1)


def test_the_ecp5_harness_feeds_every_input_and_folds_every_output() -> None:
    text = synth.to_rtlil(ecp5.Harness(element(4, "horner")))
    assert "wire width 44 \\chain" in text  # a 4, b 4, double 1, left 2, drain 1, d_in 32
    assert len(re.findall(r"\\chain\$\d+|\\chain ", text)) >= 1


UTILIZATION = """Copyright 1986-2023 Xilinx, Inc. All Rights Reserved.
------------------------------------------------------------------------------------------------
| Tool Version : Vivado v.2023.2 (lin64) Build 4029153 Fri Oct 13 20:13:54 MDT 2023
| Date         : Mon Jan  1 12:00:00 2024
| Host         : example running 64-bit Linux
| Command      : report_utilization -file utilization.rpt
| Design       : top
| Device       : xc7z045ffg900-2
| Speed File   : -2
| Design State : Routed
------------------------------------------------------------------------------------------------

Utilization Design Information

1. Slice Logic
--------------

+----------------------------+------+-------+------------+-----------+-------+
|          Site Type         | Used | Fixed | Prohibited | Available | Util% |
+----------------------------+------+-------+------------+-----------+-------+
| Slice LUTs                 | 3409 |     0 |          0 |    218600 |  1.56 |
|   LUT as Logic             | 3401 |     0 |          0 |    218600 |  1.56 |
|   LUT as Memory            |    8 |     0 |          0 |     70400 |  0.01 |
| Slice Registers            | 2915 |     0 |          0 |    437200 |  0.67 |
|   Register as Flip Flop    | 2913 |     0 |          0 |    437200 |  0.67 |
|   Register as Latch        |    2 |     0 |          0 |    437200 |  0.00 |
| F7 Muxes                   |    0 |     0 |          0 |    109300 |  0.00 |
+----------------------------+------+-------+------------+-----------+-------+

3. Memory
---------

+----------------+------+-------+------------+-----------+-------+
|    Site Type   | Used | Fixed | Prohibited | Available | Util% |
+----------------+------+-------+------------+-----------+-------+
| Block RAM Tile |  1.5 |     0 |          0 |       545 |  0.28 |
+----------------+------+-------+------------+-----------+-------+

4. DSP
------

+-----------+------+-------+------------+-----------+-------+
| Site Type | Used | Fixed | Prohibited | Available | Util% |
+-----------+------+-------+------------+-----------+-------+
| DSPs      |   32 |     0 |          0 |       900 |  3.56 |
+-----------+------+-------+------------+-----------+-------+

7. Primitives
-------------

+----------+------+---------------------+
| Ref Name | Used | Functional Category |
+----------+------+---------------------+
| FDRE     | 2913 |        Flop & Latch |
| LUT6     | 1216 |                 LUT |
| CARRY4   | 1088 |          CarryLogic |
+----------+------+---------------------+
"""

TIMING = """
------------------------------------------------------------------------------------------------
| Design Timing Summary
| ---------------------
------------------------------------------------------------------------------------------------

    WNS(ns)      TNS(ns)  TNS Failing Endpoints  TNS Total Endpoints      WHS(ns)      THS(ns)
    -------      -------  ---------------------  -------------------      -------      -------
     -0.166       -1.024                     12                 5824        0.081        0.000

------------------------------------------------------------------------------------------------
| Clock Summary
| -------------
------------------------------------------------------------------------------------------------

Clock  Waveform(ns)       Period(ns)      Frequency(MHz)
-----  ------------       ----------      --------------
clk    {0.000 2.000}        4.000           250.000
"""


def test_a_vivado_report_is_read() -> None:
    used = vivado.parse_utilization(UTILIZATION)
    assert (used.lut, used.lut_memory, used.ff, used.dsp, used.carry4, used.bram_tiles) == (
        3409,
        8,
        2913,
        32,
        1088,
        1.5,
    )
    assert (used.tool, used.device, used.state) == ("Vivado v.2023.2", "xc7z045ffg900-2", "Routed")
    timing = vivado.parse_timing(TIMING)
    assert timing.fmax_mhz == pytest.approx(1000 / 4.166)


def test_reports_of_older_vivados_and_unplaced_designs_are_read() -> None:
    old = UTILIZATION.replace(" Prohibited |", "").replace("|          0 ", "").replace("Slice LUTs ", "Slice LUTs*")
    assert vivado.parse_utilization(old).lut == 3409


@pytest.mark.parametrize("text", ["", "| Slice LUTs | many |", TIMING])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(vivado.ReportError, match="report_utilization"):
        vivado.parse_utilization(text)
    with pytest.raises(vivado.ReportError, match="report_timing_summary"):
        vivado.parse_timing(UTILIZATION)


def test_a_users_report_becomes_a_row_beside_the_synthesis_rows(tmp_path: Path) -> None:
    table = cases()
    (folder,) = vivado.write_projects([table["element/int4"]], tmp_path)
    assert "NOT RUN" in (folder / "run.tcl").read_text()
    assert "-max_dsp 0" in (folder / "run.tcl").read_text()
    assert "module top(" in (folder / "top.v").read_text()
    with pytest.raises(vivado.ReportError, match=r"no \*/utilization.rpt"):
        vivado.rows_from_folder(tmp_path, table)
    (folder / "utilization.rpt").write_text(UTILIZATION)
    (folder / "timing.rpt").write_text(TIMING)
    rows = merged([row("element/int4", 44, "element/int4")], vivado.rows_from_folder(tmp_path, table))
    assert [(r.kind, r.lut, r.fmax_mhz) for r in rows] == [("synthesis", 44, None), ("vivado", 3409, 240.0)]
    assert "Vivado v.2023.2, xc7z045ffg900-2, Routed" in markdown(rows)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "circuit": "another"}))
    with pytest.raises(vivado.ReportError, match="another version"):
        vivado.rows_from_folder(tmp_path, table)


def test_a_report_of_another_device_is_refused() -> None:
    with pytest.raises(vivado.ReportError, match="xcku5p"):
        vivado.row_from_reports(
            cases()["element/int4"], UTILIZATION.replace("xc7z045ffg900-2", "xcku5p-ffvb676-2-e"), None
        )
