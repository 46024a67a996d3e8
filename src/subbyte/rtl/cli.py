"""`subbyte rtl gemm`: a GEMM core as Verilog, with testbench, manifest and README. Also `python -m subbyte.rtl`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="rtl",
    help="ShiftMM in hardware: Verilog generators.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback()
def main() -> None:
    """ShiftMM in hardware: Verilog generators. Needs `pip install subbyte[rtl]`."""


@app.command()
def gemm(
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    bits: Annotated[int, typer.Option(help="Bits of both operands, 2 to 8.")] = 6,
    groups: Annotated[int, typer.Option(help="Left shifts 0 .. groups - 1, 1 to 8.")] = 4,
    variant: Annotated[str, typer.Option(help="plain, horner, folded, product or tree.")] = "horner",
    rows: Annotated[int, typer.Option(help="Rows of the array.")] = 8,
    cols: Annotated[int, typer.Option(help="Columns of the array.")] = 8,
    lanes: Annotated[int, typer.Option(help="Products a cycle in each element (plain, horner, tree).")] = 1,
    acc_bits: Annotated[int, typer.Option(help="Accumulator width.")] = 32,
    m: Annotated[int, typer.Option(help="Largest M with a shift for each row; M of the testbench.")] = 64,
    n: Annotated[int, typer.Option(help="Columns of B kept on chip; N of the testbench.")] = 64,
    k: Annotated[int, typer.Option(help="Longest reduction; K of the testbench.")] = 256,
    post_lanes: Annotated[int, typer.Option(help="Outputs a cycle.")] = 1,
    stochastic: Annotated[bool, typer.Option(help="Include Threefry for stochastic rounding.")] = True,
    dsp: Annotated[bool, typer.Option(help="Two multiply-accumulates in each DSP48E1: plain, folded, horner.")] = False,
    target: Annotated[str, typer.Option(help="xc7 (Booth multipliers in LUT6) or generic (inferred).")] = "xc7",
    run: Annotated[bool, typer.Option(help="Run the testbench if Icarus or Verilator is installed.")] = True,
) -> None:
    """Write a GEMM core: Verilog, self-checking testbench, manifest, README. What it cannot hold is refused."""
    from ..numerics import IntFormat
    from .gemmconfig import GemmConfig
    from .spec import BoundError, Spec

    multipliers = {"xc7": "booth", "generic": "inferred"}
    try:
        if target not in multipliers:
            raise BoundError(f"target {target!r}: there are {', '.join(multipliers)}")
        fmt = IntFormat(bits)
        spec = Spec(fmt, fmt, groups, variant, acc_bits, lanes, multipliers[target])
        config = GemmConfig(spec, rows, cols, k, n, m, post_lanes, stochastic, dsp)
        config.require(m, n, k)
    except ValueError as error:
        typer.echo(f"refused: {error}", err=True)
        raise typer.Exit(2) from None
    try:
        from .generate import generate
    except ImportError as error:
        typer.echo(f"{error}: install the generator with  pip install 'subbyte[rtl]'", err=True)
        raise typer.Exit(1) from None
    facts = generate(config, out, (m, n, k), target, run)
    t = facts["throughput"]
    if t["simulated_cycles"] is None:
        typer.echo(f"{out}: written; testbench not run")
    else:
        typer.echo(
            f"{out}: testbench passed; {m} x {n} x {k} in {t['simulated_cycles']} cycles, "
            f"{100 * t['efficiency']:.1f} % of {config.rows * config.cols * spec.lanes} multiply-accumulates a cycle"
        )
