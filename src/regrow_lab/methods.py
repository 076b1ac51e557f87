"""One record a method: all that configurations, runs, tables and figures know of it. Nothing here imports torch.

A new method of the lab is one more record in `METHODS`. What is to be computed is named by an import string such as
``regrow:rigl``, and imported where a run is built (`regrow_lab.run.build`).
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regrow_lab.config import RunConfig

IMPORT = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
IMP_FRACTION = 0.2
"""Share of the alive weights that a round of iterative pruning takes."""
OBD_PROBES = 100
SPARE = (("#6a3d9a", "h"), ("#b15928", "H"), ("#1f9e89", "8"), ("#e7298a", "*"))
"""Colours and markers of methods that have no record, as they are somebody's own."""


@dataclass(frozen=True)
class Scoring:
    """Scores of the initial weights whose largest live, and what they cost in forward passes over their samples."""

    scores: str
    """Import string of a function from (net, loss, batches) to the scores of each layer."""
    passes: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What else the function is given."""


@dataclass(frozen=True)
class Method:
    """What a method is called, how it is drawn, what it takes and costs, and how a run of it is built."""

    name: str
    """In a configuration."""
    label: str
    """In tables and figures."""
    colour: str
    marker: str
    """Of its lines in every figure. (Dashes tell apart lines of one method.)"""
    recipe: str | None
    """Import string of the function that returns the algorithm. It is called with those of sparsity, total_steps,
    every, drop_fraction, distribution, stop and start that it names. None: nothing is masked."""
    _: KW_ONLY
    takes_sparsity: bool = True
    """False of the dense net, which all others are compared with."""
    takes_distribution: bool | None = True
    """Whether layers share the sparsity by a distribution, erk where none is given. None: the recipe knows."""
    finds_densities: bool = False
    """Whether it chooses the density of each layer itself, with or without a distribution to begin with."""
    sparse_throughout: bool | None = None
    """Whether a step costs about 3 f_s, with an f_s that stays the same. None: judged by the FLOPs that it took."""
    storages: tuple[str, ...] = ("dense", "compact")
    """Where its weights can live."""
    narrow: bool = False
    """Whether the net has fewer channels in place of masks."""
    scoring: Scoring | None = None
    """How masks are chosen before training, where a score does that once."""
    prerequisite: Callable[[RunConfig], RunConfig | None] = lambda config: None
    """The run that must be finished before a run of this method can begin."""
    includes_prerequisite: bool = False
    """Whether the training of the prerequisite counts as training of this one."""
    masks: str | None = None
    """Import string of a function from (configuration, end of the prerequisite, net) to the masks. None: those that
    the prerequisite ended with."""
    starts: Mapping[str, str | None] = field(default_factory=dict)
    """What else a run can start from -> import string of a function from (algorithm, masks) to the algorithm that goes
    on from there. None: the masks stay as they are."""
    takes_data_order: bool = False
    """Whether a run can leave its order of the data, to measure the error on the line between the two."""
    rewinds: bool = False
    """Whether the masks are put on at the step `rewind`, the net being dense until there."""
    check: Callable[[RunConfig], None] = lambda config: None
    """Raises ValueError for a configuration that the method cannot be combined with."""

    @property
    def given_masks(self) -> bool:
        """Whether a run is given the masks that it keeps, so that its densities are not known beforehand."""
        return self.scoring is not None or self.includes_prerequisite


def is_import(name: str) -> bool:
    """Whether a name is an import string, package.module:function.

    >>> is_import("mine:build"), is_import("pkg.nets:build"), is_import("rigl"), is_import("c:/data")
    (True, True, False, False)
    """
    return IMPORT.fullmatch(name) is not None


def imported(name: str, expected: str = "package.module:function") -> Any:
    """What an import string stands for, looked for in the current folder first, then in the environment.

    Raises ValueError, which says what was `expected`, where there is no such module or nothing of that name in it, and
    where importing the module fails.
    """
    module, _, attribute = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:  # as `python -m` has it
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            why = f"there is no module {error.name} in {here} or in the environment"
        else:
            why = f"importing {module} fails with {type(error).__name__}: {error}"
        raise ValueError(f"{name} cannot be imported, as {why}: give {expected}") from error
    if not hasattr(found, attribute):
        where = getattr(found, "__file__", None) or module
        near = ", ".join(sorted(each for each in vars(found) if not each.startswith("_"))) or "nothing"
        raise ValueError(f"{name} cannot be imported, as {where} has {near:.200}, not {attribute}: give {expected}")
    return getattr(found, attribute)


def method_of(name: str) -> Method:
    """The record of a method: of the lab, or of somebody's own, which is known by its import string alone.

    Raises ValueError for a name that is neither.

    >>> method_of("rigl").label, method_of("mine:recipe").label
    ('RigL', 'mine:recipe')
    """
    if name in METHODS:
        return METHODS[name]
    if not is_import(name):
        known = ", ".join(METHODS)
        raise ValueError(f"unknown method {name!r}: choose one of {known}, or package.module:recipe of your own")
    colour, marker = SPARE[zlib.crc32(name.encode()) % len(SPARE)]
    return Method(
        name=name, label=name, colour=colour, marker=marker, recipe=name, takes_distribution=None, finds_densities=True
    )


def imp_sparsity(level: int) -> float:
    """The sparsity after `level` rounds of iterative pruning.

    >>> round(imp_sparsity(10), 6)
    0.892626
    """
    return 1 - (1 - IMP_FRACTION) ** level


def imp_level(sparsity: float) -> int:
    """The rounds of iterative pruning that lead to a sparsity.

    >>> imp_level(imp_sparsity(10))
    10
    """
    return max(1, round(math.log(1 - sparsity) / math.log(1 - IMP_FRACTION)))


def _check_rounds(config: RunConfig) -> None:
    level = imp_level(config.sparsity)
    if abs(config.sparsity - imp_sparsity(level)) > 1e-6:
        near = ", ".join(f"{imp_sparsity(each):.6g}" for each in (level, level + 1))
        raise ValueError(f"imp reaches the sparsities 1 - 0.8^L, given {config.sparsity:g}: take one such as {near}")


def _round_before(config: RunConfig) -> RunConfig:
    if config.start in ("reinitialized", "shuffled"):
        return dataclasses.replace(config, start=None)
    level = imp_level(config.sparsity)
    if level > 1:
        return dataclasses.replace(config, sparsity=imp_sparsity(level - 1), timed=False)
    plain: dict[str, Any] = {"start": None, "rewind": 0.0, "storage": "dense", "timed": False}
    return dataclasses.replace(config, method="dense", sparsity=0.0, **plain)


def _pruning(config: RunConfig) -> RunConfig:
    return dataclasses.replace(config, method="pruning", timed=False)


def _rigl_sm(config: RunConfig) -> RunConfig | None:
    return dataclasses.replace(config, method="rigl-sm", start=None, timed=False) if config.start else None


GIVEN_MASKS = "regrow_lab.run.build:given_masks"
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "dense",
            "Dense",
            "#333333",
            "h",
            None,
            takes_sparsity=False,
            takes_distribution=False,
            storages=("dense",),
            takes_data_order=True,
        ),
        Method(
            "small-dense",
            "Small Dense",
            "#8c6d31",
            "P",
            None,
            takes_distribution=False,
            sparse_throughout=True,
            storages=("dense",),
            narrow=True,
        ),
        Method("static", "Static", "#7f7f7f", "s", "regrow:static", sparse_throughout=True),
        Method(
            "snip",
            "SNIP",
            "#d55e00",
            "D",
            "regrow:snip",
            takes_distribution=False,
            finds_densities=True,
            sparse_throughout=True,
        ),
        Method(
            "grasp",
            "GraSP",
            "#882255",
            "p",
            GIVEN_MASKS,
            takes_distribution=False,
            finds_densities=True,
            sparse_throughout=True,
            scoring=Scoring("regrow:grasp_scores", passes=3 + 9),  # a gradient, and a product with the Hessian
        ),
        Method(
            "obd",
            "OBD",
            "#999933",
            "d",
            GIVEN_MASKS,
            takes_distribution=False,
            finds_densities=True,
            sparse_throughout=False,
            scoring=Scoring("regrow:obd_scores", passes=9 * OBD_PROBES, arguments={"probes": OBD_PROBES}),
        ),
        Method("set", "SET", "#e69f00", "^", "regrow:set_", sparse_throughout=True),
        Method(
            "rigl",
            "RigL",
            "#0072b2",
            "o",
            "regrow:rigl",
            sparse_throughout=True,
            prerequisite=_rigl_sm,
            starts={"rigl-sm": "regrow:starting_from", "rigl-sm-densities": "regrow:with_densities"},
        ),
        Method(
            "rigl-struct",
            "RigL-struct",
            "#332288",
            "H",
            "regrow:rigl_struct",
            sparse_throughout=True,
            storages=("dense",),  # whole channels
        ),
        Method(
            "snfs",
            "SNFS",
            "#009e73",
            "v",
            "regrow:snfs",
            finds_densities=True,
            sparse_throughout=False,
            storages=("dense",),  # dense gradients at every step
        ),
        Method("rigl-sg", "RigL-SG", "#56b4e9", "<", "regrow:rigl_sg", finds_densities=True, sparse_throughout=False),
        Method("rigl-sm", "RigL-SM", "#cc79a7", ">", "regrow:rigl_sm", finds_densities=True, sparse_throughout=False),
        Method(
            "pruning",
            "Pruning",
            "#000000",
            "X",
            "regrow:gradual_pruning",
            takes_distribution=False,
            finds_densities=True,
            sparse_throughout=False,
        ),
        Method(
            "lottery",
            "Lottery",
            "#aa4499",
            "*",
            GIVEN_MASKS,
            takes_distribution=False,
            sparse_throughout=False,
            prerequisite=_pruning,
            includes_prerequisite=True,
        ),
        Method(
            "imp",
            "IMP",
            "#661100",
            "8",
            GIVEN_MASKS,
            takes_distribution=False,
            sparse_throughout=False,
            prerequisite=_round_before,
            includes_prerequisite=True,
            masks="regrow_lab.run.starting_point:pruned_further",
            starts=dict.fromkeys(("trained", "reinitialized", "shuffled")),
            takes_data_order=True,
            rewinds=True,
            check=_check_rounds,
        ),
    )
}
"""Name -> record, in the order of the rows of a table."""
