"""fuse_: chains of product - batch norm - (add) - ReLU run as one autograd.Function each, which chain.py computes."""

from .model import FUSION, FusedForward, Fusion, NothingToFuse, fuse_, unfuse_
from .run import Plan

__all__ = ["FUSION", "FusedForward", "Fusion", "NothingToFuse", "Plan", "fuse_", "unfuse_"]
