"""regrow: train sparse neural networks in PyTorch. The public API, nothing else."""

from regrow.algorithm import Algorithm
from regrow.attach import attach
from regrow.distributions import er, erk, uniform
from regrow.flops import Flops, LayerFlops, count_flops, train_flops
from regrow.layers import Layer, find_layers
from regrow.recipes import from_masks, gradual_pruning, rigl, rigl_sg, rigl_sm, set_, snfs, snip, static
from regrow.small_dense import SmallDense, small_dense
from regrow.sparsifier import Sparsifier

__version__ = "0.1.0"

__all__ = [
    "Algorithm",
    "Flops",
    "Layer",
    "LayerFlops",
    "SmallDense",
    "Sparsifier",
    "attach",
    "count_flops",
    "er",
    "erk",
    "find_layers",
    "from_masks",
    "gradual_pruning",
    "rigl",
    "rigl_sg",
    "rigl_sm",
    "set_",
    "small_dense",
    "snfs",
    "snip",
    "static",
    "train_flops",
    "uniform",
]
