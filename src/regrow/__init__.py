"""regrow: train sparse neural networks in PyTorch. The public API, nothing else."""

from regrow.accounting.flops import Flops, LayerFlops, count_flops, train_flops
from regrow.accounting.targets import er_sparsity, flop_aware, sparsity_at_flops
from regrow.algorithm import Algorithm
from regrow.channel_removal.removal import remove_dead_channels
from regrow.compaction.convert import compact, sparse_tensors, to_dense
from regrow.compaction.file_format import FileSize, load_compact, save_compact
from regrow.layers import Layer, find_layers
from regrow.parts import distributions, patterns, schedules, scores
from regrow.parts.distributions import er, erk, uniform
from regrow.parts.patterns import Pattern, channels, output_blocks, unstructured
from regrow.procedures.connectivity import Line, error_along_line
from regrow.procedures.saliency import grasp_scores, masks_from_scores, obd_scores, snip_scores
from regrow.procedures.small_dense import SmallDense, small_dense
from regrow.procedures.snapshot import Snapshot
from regrow.procedures.tickets import Ticket, iterative_pruning, prune_by_magnitude, reinitialized, shuffle_masks
from regrow.recipes import (
    from_masks,
    gradual_pruning,
    rigl,
    rigl_sg,
    rigl_sm,
    rigl_struct,
    set_,
    snfs,
    snip,
    starting_from,
    static,
    with_densities,
)
from regrow.training.attach import attach
from regrow.training.plan import Plan, plan
from regrow.training.sparsifier import Sparsifier

__version__ = "0.1.0"

__all__ = [
    "Algorithm",
    "FileSize",
    "Flops",
    "Layer",
    "LayerFlops",
    "Line",
    "Pattern",
    "Plan",
    "SmallDense",
    "Snapshot",
    "Sparsifier",
    "Ticket",
    "attach",
    "channels",
    "compact",
    "count_flops",
    "distributions",
    "er",
    "er_sparsity",
    "erk",
    "error_along_line",
    "find_layers",
    "flop_aware",
    "from_masks",
    "gradual_pruning",
    "grasp_scores",
    "iterative_pruning",
    "load_compact",
    "masks_from_scores",
    "obd_scores",
    "output_blocks",
    "patterns",
    "plan",
    "prune_by_magnitude",
    "reinitialized",
    "remove_dead_channels",
    "rigl",
    "rigl_sg",
    "rigl_sm",
    "rigl_struct",
    "save_compact",
    "schedules",
    "scores",
    "set_",
    "shuffle_masks",
    "small_dense",
    "snfs",
    "snip",
    "snip_scores",
    "sparse_tensors",
    "sparsity_at_flops",
    "starting_from",
    "static",
    "to_dense",
    "train_flops",
    "uniform",
    "unstructured",
    "with_densities",
]
