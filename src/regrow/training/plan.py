"""Budgets and FLOPs of a sparse net from the shapes of its weights alone, before there is memory for it."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from regrow.accounting.flops import Flops, LayerFlops, count_flops
from regrow.algorithm import Algorithm
from regrow.layers import Layer, find_layers, unwrap
from regrow.parts.distributions import total_alive
from regrow.parts.redistribution import apportion
from regrow.topology import grids, unit_counts
from regrow.training.attach import assign
from regrow.training.coverage import DenseWeight, dense_weights
from regrow.training.layer_table import layer_table

AFTER_TRAINING = sys.maxsize


@dataclass(frozen=True)
class Plan:
    """What :func:`plan` found; ``print`` shows it as a table.

    Attributes:
        layers: name → layer.
        num_alive: name → alive weights after the last update.
        flops: of one forward pass with them; None without an example input.
        estimated: whether the numbers are not known before training: it will share the budget among the layers itself
            (a global threshold, redistribution; their shares are then those of the start, or equal densities, and
            their sum is exact all the same), or choose between whole and short blocks (then the mean is taken).
        algorithms: name → the record's name.
        first_updates: name → weight step of the first update, None if there is none.
        dense: name → shape of every other weight with two or more dimensions, and why it stays dense.
    """

    layers: Mapping[str, Layer]
    num_alive: Mapping[str, int]
    flops: Flops | None
    estimated: bool
    algorithms: Mapping[str, str]
    first_updates: Mapping[str, int | None]
    dense: Mapping[str, DenseWeight]

    @property
    def densities(self) -> dict[str, float]:
        """Share of alive weights of each layer."""
        return {name: self.num_alive[name] / layer.size for name, layer in self.layers.items()}

    @property
    def sparsity(self) -> float:
        """Share of zeros among all weights of these layers."""
        return 1 - sum(self.num_alive.values()) / sum(layer.size for layer in self.layers.values())

    def __str__(self) -> str:
        moment = "after the last update" + (" (shares of the layers are estimated)" if self.estimated else "")
        return layer_table(
            self.layers, self.num_alive, self.algorithms, self.first_updates, self.flops, {}, self.dense, moment
        )


def plan(
    model: nn.Module,
    algorithm: Algorithm | Mapping[str, Algorithm],
    example_input: Any = None,
    *,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
) -> Plan:
    """Alive weights of each layer and FLOPs of the forward pass that :func:`regrow.attach` and training lead to.

    Only shapes are read: a model of any size on the ``meta`` device takes neither memory nor time. FLOPs of a layer are
    f_l · k_l / N_l, the mean over all masks of that size.

    Args:
        model: any module, on any device.
        algorithm: as for :func:`regrow.attach`.
        example_input: as for :func:`regrow.count_flops`; None: no FLOPs.
        include: as for :func:`regrow.attach`.
        exclude: as for :func:`regrow.attach`.

    Raises:
        ValueError: as :func:`regrow.attach` does for patterns and budgets.

    >>> import torch, regrow
    >>> with torch.device("meta"):
    ...     model = nn.Linear(2**17, 2**17, bias=False)
    >>> planned = plan(model, regrow.rigl(sparsity=0.99, total_steps=1000), torch.empty(1, 2**17, device="meta"))
    >>> planned.num_alive, planned.flops.sparse / planned.flops.dense
    ({'weight': 171798692}, 0.010000000009313226)
    """
    layers = find_layers(model, include, exclude)
    num_alive, algorithms = dict[str, int](), dict[str, str]()
    first_updates, estimated = dict[str, int | None](), False
    for chosen, record in assign(layers, algorithm):
        units = _units(record, chosen)
        num_alive |= _weights(record, chosen, units)
        algorithms |= dict.fromkeys(chosen, record.name)
        first_updates |= dict.fromkeys(chosen, record.when.following(0))
        estimated |= len(chosen) > 1 and (record.scope == "global" or record.redistribute is not None)
        estimated |= any(_are_of_several_sizes(record, layer, units[name]) for name, layer in chosen.items())
    layers = {name: layer for name, layer in layers.items() if name in num_alive}
    flops = None if example_input is None else _flops(count_flops(model, example_input), layers, num_alive)
    dense = dense_weights(unwrap(model), layers, include, exclude)
    return Plan(layers, num_alive, flops, estimated, algorithms, first_updates, dense)


def _units(algorithm: Algorithm, layers: Mapping[str, Layer]) -> dict[str, int]:
    """Alive weights, blocks or channels of each layer."""
    sparsity = algorithm.sparsity_at(AFTER_TRAINING)
    if algorithm.scope == "layer":
        return unit_counts(algorithm, layers, sparsity)
    units = grids(algorithm, layers)
    sizes = [grid.size for grid in units.values()]
    return dict(zip(layers, apportion(total_alive(units, sparsity), sizes, sizes), strict=True))


def _weights(algorithm: Algorithm, layers: Mapping[str, Layer], units: Mapping[str, int]) -> dict[str, int]:
    """The alive weights that these units have, on average over all masks of that many."""
    sizes = grids(algorithm, layers)
    return {name: units[name] * layer.size // sizes[name].size for name, layer in layers.items()}


def _are_of_several_sizes(algorithm: Algorithm, layer: Layer, units: int) -> bool:
    """Whether it depends on which units live how many weights do."""
    return not algorithm.pattern.is_whole(layer.shape) and units < math.prod(algorithm.pattern.grid(layer.shape))


def _flops(dense: Flops, layers: Mapping[str, Layer], num_alive: Mapping[str, int]) -> Flops:
    found = {
        name: LayerFlops(
            entry.dense, entry.dense * num_alive[name] // layers[name].size if name in layers else entry.dense
        )
        for name, entry in dense.layers.items()
    }
    return Flops(dense.dense, sum(entry.sparse for entry in found.values()), found)
