"""Lottery tickets: iterative magnitude pruning around a training loop of your own, and its controls.

The report's lottery needs no procedure: ``from_masks(sparsifier.masks)`` of a finished run of gradual pruning, attached
to a net made again from the same seed.
"""

import math
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.arguments import real_number, whole_number
from regrow.layers import Layer, find_layers, unwrap
from regrow.parts.scores import uniform_numbers
from regrow.parts.topk import select
from regrow.procedures.saliency import largest
from regrow.procedures.snapshot import Snapshot, Stateful
from regrow.procedures.stage_files import StageFolder, once
from regrow.recipes import from_masks
from regrow.storage import optimizers
from regrow.storage.distributed import Ranks
from regrow.storage.mask_bits import pack, unpack
from regrow.training.attach import attach

Scope = Literal["layer", "global"]
WHOLE_TRAINING = "the steps of a whole training"
FRACTION = "the share of the alive weights that each round prunes, in (0, 1), such as 0.2"
DENSITY = "the share of all weights that stay, in (0, 1], such as 0.1"


@dataclass(frozen=True, eq=False)
class Ticket:
    """One level of iterative pruning, trained.

    Attributes:
        level: rounds of pruning that led to its masks; 0 is the dense net.
        masks: parameter name → bool tensor on the CPU, True where alive; they lie within those of the level before.
        start: where every level starts from, at the rewind step: ``start.restore()`` brings model, optimizer and the
            others there (to the dense weights; attach ``from_masks(masks)`` to train the ticket again).
        trained: the end of this level's training; ``trained.restore()``.
    """

    level: int
    masks: dict[str, Tensor]
    start: Snapshot
    trained: Snapshot

    @property
    def density(self) -> float:
        """Share of alive weights."""
        return sum(int(mask.sum()) for mask in self.masks.values()) / sum(mask.numel() for mask in self.masks.values())


def iterative_pruning(
    model: nn.Module,
    optimizer: Optimizer,
    train: Callable[[int, int], object],
    *,
    total_steps: int,
    levels: int,
    rewind: int | float | None = 0,
    fraction: float = 0.2,
    scope: Scope = "global",
    fine_tune_steps: int | None = None,
    others: Sequence[Stateful | torch.Generator] = (),
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    folder: str | os.PathLike[str] | None = None,
) -> Iterator[Ticket]:
    """IMP: train, prune the smallest weights, rewind, repeat; after L rounds floor((1 − fraction)^L · N) are alive.

    Each level is yielded when it is trained, the model then holding its trained weights, plain and detached. Rewinding
    brings back model (train or eval mode included), optimizer, ``others`` and torch's generators as they were at the
    rewind step, bit for bit; gradients that lie there when a level begins are dropped.

    Args:
        model: the net, freshly initialised: its state at the call is step 0.
        optimizer: over its parameters.
        train: your loop over the steps first, first + 1, …, last − 1, as ``train(first, last)``. What changes besides
            model and optimizer must follow from the step (the data, a learning rate) or be among ``others``.
        total_steps: T, steps of a whole training.
        levels: L, rounds of pruning after the dense training.
        rewind: the step to go back to, 0 ≤ k < T; or that step as a share of T (a float under 1: 0.02); None keeps the
            trained weights and fine-tunes them.
        fraction: share of the alive weights pruned in each round.
        scope: "global": one threshold over all layers, at least one weight alive in each; "layer": each its share.
        fine_tune_steps: without rewinding, steps of every level after the first, counted on from T; by default T.
        others: a list of schedulers, data loaders, anything with ``state_dict`` and ``load_state_dict``; and of
            generators (``torch.Generator``).
        include: globs of layers, as for :func:`regrow.find_layers`.
        exclude: globs of layers to leave dense.
        folder: each level is written there when it is trained, and one that lies there is not trained again. Where
            several ranks train the model each has files of its own, as its generators are its own.

    Raises:
        ValueError: an argument is outside its range; a file in the folder is damaged or of another procedure.

    Frankle & Carlin 2019, section 2; late rewinding: Frankle, Dziugaite, Roy & Carlin 2020, section 4.
    """
    names = find_layers(model, include, exclude)
    parameters = dict(unwrap(model).named_parameters())
    optimizers.check(optimizer)
    if not isinstance(others, Sequence):
        raise ValueError(f"others is a {type(others).__name__}; expected a list, such as others=[scheduler]")
    plan = _Plan.checked(total_steps, levels, rewind, fraction, scope, fine_tune_steps)
    settings = {**asdict(plan), "layers": {name: list(layer.shape) for name, layer in names.items()}}
    settings["initial weights"] = _checksum([parameters[name] for name in names])
    del settings["levels"]  # a folder can take more of them
    store = None if folder is None else _store(Path(folder), settings, Ranks.of(model))

    def train_dense(first: int, last: int) -> None:
        # A loop of micro-batches may leave some, which another run that takes the level up does not have.
        optimizer.zero_grad()
        model.zero_grad()
        train(first, last)

    def train_sparse(masks: Mapping[str, Tensor], first: int, last: int) -> None:
        sparsifier = attach(model, optimizer, from_masks(masks), include=include, exclude=exclude)
        try:
            train_dense(first, last)
        finally:
            sparsifier.detach()

    objects = (unwrap(model), optimizer, *others)
    return _levels(plan, objects, names, train_dense, train_sparse, Snapshot(*objects), store)


def _store(folder: Path, settings: Mapping[str, Any], ranks: Ranks | None) -> StageFolder:
    if ranks is None:
        return StageFolder(folder, settings)
    suffix = f"-rank-{torch.distributed.get_rank()}"
    return StageFolder(folder, {**settings, "ranks": ranks.number()}, suffix, ranks.everywhere)


@dataclass(frozen=True)
class _Plan:
    total_steps: int
    levels: int
    rewind_step: int
    fraction: float
    scope: Scope
    fine_tune_steps: int | None

    @classmethod
    def checked(
        cls,
        total_steps: int,
        levels: int,
        rewind: int | float | None,
        fraction: float,
        scope: Scope,
        fine_tune_steps: int | None,
    ) -> "_Plan":
        step = rewind_step(rewind, total_steps)
        steps = whole_number(total_steps, "total_steps", WHOLE_TRAINING, least=1)
        rounds = whole_number(levels, "levels", "rounds of pruning after the dense training")
        share = real_number(fraction, "fraction", FRACTION)
        if not 0 < share < 1:
            raise ValueError(f"fraction is {fraction}; expected {FRACTION}")
        _check_scope(scope)
        tuning = None if rewind is not None else steps
        if fine_tune_steps is not None:
            if rewind is not None:
                raise ValueError(f"fine_tune_steps is {fine_tune_steps}; expected rewind=None beside it")
            tuning = whole_number(fine_tune_steps, "fine_tune_steps", "steps of every level after the first", least=1)
        return cls(steps, rounds, step, share, scope, tuning)

    def steps(self, level: int) -> tuple[int, int]:
        """First step of a level's training, and the one after its last."""
        if level == 0 or self.fine_tune_steps is None:
            return self.rewind_step, self.total_steps
        first = self.total_steps + (level - 1) * self.fine_tune_steps
        return first, first + self.fine_tune_steps


def _levels(
    plan: _Plan,
    objects: tuple[Stateful | torch.Generator, ...],
    layers: Mapping[str, Layer],
    train_dense: Callable[[int, int], object],
    train_sparse: Callable[[Mapping[str, Tensor], int, int], object],
    initial: Snapshot,
    store: StageFolder | None,
) -> Iterator[Ticket]:
    def begin() -> dict[str, Any]:
        initial.restore()
        if plan.rewind_step:
            train_dense(0, plan.rewind_step)
        return {"snapshot": Snapshot(*objects).state}

    def whole_level(origin: Snapshot, masks: Mapping[str, Tensor], level: int) -> dict[str, Any]:
        origin.restore()
        train_sparse(masks, *plan.steps(level))
        return {"snapshot": Snapshot(*objects).state, "masks": {name: pack(mask) for name, mask in masks.items()}}

    def taken_up(saved: Mapping[str, Any]) -> Snapshot:
        snapshot = Snapshot.of_state(saved["snapshot"], *objects)
        snapshot.restore()
        return snapshot

    start = trained = once(store, "start", begin, taken_up)
    masks = {name: torch.ones(layer.shape, dtype=torch.bool) for name, layer in layers.items()}
    for level in range(plan.levels + 1):
        if level:
            weights = trained.state["objects"][0]
            masks = prune_by_magnitude(weights, masks, (1 - plan.fraction) ** level, scope=plan.scope)
        origin = start if plan.fine_tune_steps is None else trained
        make = partial(whole_level, origin, masks, level)
        masks, trained = once(
            store, f"level-{level:02d}", make, lambda saved: (_unpacked(saved["masks"], layers), taken_up(saved))
        )
        yield Ticket(level, masks, start, trained)


def _unpacked(saved: Mapping[str, Tensor], layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    for name, layer in layers.items():
        if saved[name].dtype != torch.uint8 or saved[name].shape != (-(-layer.size // 8),):
            raise ValueError(f"the mask of '{name}' is not {-(-layer.size // 8)} bytes")
    return {name: unpack(saved[name], layer.shape) for name, layer in layers.items()}


def rewind_step(rewind: int | float | None, total_steps: int) -> int:
    """The step that is meant by a step, a share of all steps, or None (then 0).

    >>> rewind_step(0.02, 1000), rewind_step(100, 1000)
    (20, 100)

    Raises:
        ValueError: it is none of these, or there are no steps.
    """
    steps = whole_number(total_steps, "total_steps", WHOLE_TRAINING, least=1)
    if rewind is None:
        return 0
    expected = f"a step from 0 to {steps - 1}, a share of them such as 0.02, or None"
    position = real_number(rewind, "rewind", expected)
    try:
        step = operator.index(rewind)  # type: ignore[arg-type]  # raises for a share
    except TypeError:
        # A share of nearly 1 is the last step, not the end: nothing would be left to train.
        step = min(round(position * steps), steps - 1) if 0 <= position < 1 else -1
    if not 0 <= step < steps:
        raise ValueError(f"rewind is {rewind!r}; expected {expected}")
    return step


def prune_by_magnitude(
    weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], density: float, *, scope: Scope = "global"
) -> dict[str, Tensor]:
    """The largest |w| among the alive, so many that floor(density · N) weights are left; exact whatever the ties.

    Args:
        weights: parameter name → tensor, a ``state_dict()`` for example.
        masks: who is alive now; the result lies within.
        density: of all N weights of the masks, not of those alive, in (0, 1].
        scope: "global": one threshold over all layers, at least one weight alive in each; "layer": floor(density · N_l)
            in each layer, at least one.

    Raises:
        ValueError: the masks have fewer weights alive than that, or none in a layer; a weight is missing or not finite;
            the density or the scope is none.

    >>> masks = {"a": torch.ones(5, dtype=torch.bool)}
    >>> prune_by_magnitude({"a": torch.tensor([3.0, -5.0, 1.0, 1.0, 2.0])}, masks, 0.8)["a"].tolist()
    [True, True, True, False, True]
    """
    share = real_number(density, "density", DENSITY)
    if not 0 < share <= 1:
        raise ValueError(f"density is {density}; expected {DENSITY}")
    _check_scope(scope)
    if not masks:
        raise ValueError("masks are empty; expected one for each layer that shall be pruned")
    for name, mask in masks.items():
        if not bool(mask.any()):
            raise ValueError(f"masks['{name}'] has no weight alive, and one stays in each layer: leave the layer out")
        if name not in weights or weights[name].shape != mask.shape or not bool(weights[name].isfinite().all()):
            raise ValueError(f"weights['{name}'] must be finite and of shape {tuple(mask.shape)}, as its mask is")
    scores = {name: weights[name].detach().to(mask.device).abs() for name, mask in masks.items()}
    sizes = {name: mask.numel() for name, mask in masks.items()}
    alive = {name: int(mask.sum()) for name, mask in masks.items()}
    if scope == "global":
        count = max(len(masks), _floor(share * sum(sizes.values())))
        _check_alive(sum(alive.values()), count, density)
        return largest(scores, count, masks)
    counts = {name: max(1, _floor(share * size)) for name, size in sizes.items()}
    for name, count in counts.items():
        _check_alive(alive[name], count, density)
    return {name: select(scores[name], counts[name], mask) for name, mask in masks.items()}


def shuffle_masks(masks: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Every layer's mask permuted at random: as many weights, other places. A function of (seed, layer name).

    The control of Frankle, Dziugaite, Roy & Carlin 2021 ("Pruning neural networks at initialization"), section 5.
    """
    shuffled = {}
    for name, mask in masks.items():
        order = uniform_numbers((mask.numel(),), seed=seed, step=0, name=f"shuffle {name}").argsort()
        shuffled[name] = mask.flatten()[order.to(mask.device)].view(mask.shape)
    return shuffled


def reinitialized(build: Callable[[], nn.Module], seed: int) -> dict[str, Tensor]:
    """The state of a fresh net from another seed: with a ticket's masks, the control "random re-initialisation".

    Args:
        build: makes the net from torch's generator, which is left as it was.
        seed: of the new weights.

    Frankle & Carlin 2019, section 2.
    """
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        return dict(build().state_dict())


def _checksum(weights: Sequence[Tensor]) -> int:
    """Tells one initialisation from another: a sum of bytes does not depend on the order of summation."""
    sums = [int(weight.detach().contiguous().view(torch.uint8).sum(dtype=torch.int64)) for weight in weights]
    return sum(position * value for position, value in enumerate(sums, start=1))


def _floor(count: float) -> int:
    # 0.7 ** 2 * 100 is 48.99999999999999 in floats, and 49 weights are meant.
    return math.floor(count + 1e-6)


def _check_scope(scope: Any) -> None:
    if scope not in ("layer", "global"):
        raise ValueError(f"scope is {scope!r}; expected 'layer' or 'global'")


def _check_alive(alive: int, count: int, density: float) -> None:
    if count > alive:
        raise ValueError(f"density {density} asks for {count} weights, but {alive} are alive: ask for less")
