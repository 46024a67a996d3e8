"""Integer-only training: no float arithmetic between the input and the logits, nor on the way back to the gradients.

A quantized model becomes one with attach: its graph is run node by node on integers with one power of two for a tensor.
  carrier   IntTensor, addition     operand   quantization     steps, products, norms   the kinds of node
  program   graph -> steps                                      network                  the autograd.Function

The arithmetic is that of subbyte.integer. Not here: what a scheme is, and when a model is converted (convert.py).
"""

from .network import IntegerOnly, attach, detach
from .program import UnsupportedError

__all__ = ["IntegerOnly", "UnsupportedError", "attach", "detach"]
