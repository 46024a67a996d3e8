"""ShiftMM in hardware: Amaranth components with the IntFormat and the numerics of everything else.

  spec.py         what a unit is: formats, groups, variant, accumulator; its bounds, and the refusals that quote them
  units.py        the constructors: multiplier, processing element, array, dot unit, DSP48E1 tile
  gemm.py         the matrix product around an array: sequencer.py, operands.py, collector.py, requantizer.py, axi.py
  product.py      one product: what a core is asked for, and what it must answer by numerics and integer
  quantizer.py    stochastic rounding with numerics' Threefry; threefry.py
  l1norm.py       integer L1 normalization
  simulate.py     drives those cores in Amaranth's simulator with tensors
  generate.py     Verilog with testbench.py's self-checking bench, a manifest, a README; cli.py: `subbyte rtl gemm`

Amaranth and pyosys come with `pip install subbyte[rtl]`; this file and spec.py need neither.
"""
