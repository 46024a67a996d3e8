"""ShiftMM in hardware: Amaranth components with the IntFormat and the numerics of everything else.

  spec.py         what a unit is: formats, groups, variant, accumulator; its bounds, and the refusals that quote them
  units.py        the constructors: multiplier, processing element, array, dot unit, DSP48E1 tile
  gemm.py         the matrix product around an array; its parts are sequencer.py, operands.py, requantizer.py, axi.py
  quantizer.py    stochastic rounding with numerics' Threefry; threefry.py
  l1norm.py       integer L1 normalization
  simulate.py     drives those cores in Amaranth's simulator with tensors
  cli.py          `subbyte rtl gemm`

Amaranth and pyosys come with `pip install subbyte[rtl]`; this file and spec.py need neither.
"""
