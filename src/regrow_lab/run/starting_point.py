"""What a run starts from besides its configuration: the end of an earlier run, or scores of its first batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import regrow
from regrow_files import shown
from regrow_lab.config import RunConfig
from regrow_lab.data.batches import Parts
from regrow_lab.methods import IMP_FRACTION, Scoring, imp_level, imported, method_of
from regrow_lab.run import checkpoint_files
from regrow_lab.run.data_order import rewind_step
from regrow_lab.run.evaluation import loss_of
from regrow_lab.store import folders

SAMPLES = 10
"""Training samples a class whose loss the scores are taken of. Wang, Zhang & Grosse 2020, section 5."""
OTHER_SEED = 1000
"""Added to the seed for the weights of a random re-initialisation, so that no seed of a study is met."""

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Origin:
    """The end of the run that had to be finished before: its weights, its masks (none of a dense net), its result."""

    path: Path
    model: State
    masks: State
    result: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path, device: torch.device) -> Origin:
        """What that run left in its folder. Raises ValueError if it is damaged."""
        path = folder / "weights.pt"
        saved = checkpoint_files.load(path, checkpoint_files.WEIGHTS, device)
        return cls(path, saved.get("model", {}), saved.get("masks", {}), folders.read_result(folder))

    def check(self, net: nn.Module) -> None:
        """Refuse what is not the end of that run: weights that are not of `net`, masks that are not of its result.

        Raises ValueError.
        """
        weights, densities = net.state_dict(), self.result.get("densities", {})
        self._expect_names("weights", self.model, weights)
        self._expect_names("masks", self.masks, densities)
        for name, like in weights.items():
            self._expect_like(name, self.model[name], like.dtype, like.shape)
            self._expect(bool(self.model[name].isfinite().all()), f"{name} has values that are not finite")
        for name, density in densities.items():
            self._expect(name in weights, f"it has a mask of {name}, which is no weight")
            mask, weight = self.masks[name], self.model[name]
            self._expect_like(f"the mask of {name}", mask, torch.bool, weight.shape)
            alive = int(mask.count_nonzero())
            self._expect(
                alive / mask.numel() == density,
                f"{alive:,} of {mask.numel():,} weights of {name} are alive, its result says a share of {density}",
            )
            self._expect(not weight[~mask].any(), f"dead weights of {name} are not 0")

    def _expect_names(self, what: str, found: Any, expected: Mapping[str, Any]) -> None:
        names = found.keys() if isinstance(found, dict) else None
        self._expect(
            names == expected.keys(), f"its {what} are {_listed(names)}, {_listed(expected.keys())} were expected"
        )

    def _expect_like(self, what: str, found: Any, dtype: torch.dtype, shape: torch.Size) -> None:
        there = isinstance(found, Tensor) and found.layout == torch.strided and not found.is_meta
        self._expect(
            there and (found.dtype, found.shape) == (dtype, shape), f"{what} is not {dtype} of shape {tuple(shape)}"
        )

    def _expect(self, condition: bool, found: str) -> None:
        if not condition:
            raise ValueError(
                f"{self.path} is not the end of its run: {shown(found)}; delete its folder to have the run done again"
            )


def _listed(names: Collection[object] | None) -> str:
    return "no table" if names is None else ", ".join(sorted(map(str, names)))[:80] or "none"


def check_end(config: RunConfig, needed: RunConfig, result: Mapping[str, Any]) -> None:
    """Raise ValueError if the run that `config` starts from diverged: its masks are not those that were asked for."""
    if result["status"] == "diverged":
        raise ValueError(
            f"{config.run_id} starts from the end of {needed.run_id}, which diverged at step {result['diverged_at']}: "
            "give settings that it can be trained with, such as a smaller learning_rate"
        )


def masks_of(config: RunConfig, origin: Origin | None, model: nn.Module, data: Parts) -> dict[str, Tensor] | None:
    """The masks that the run begins with, where its method does not draw them itself."""
    method = method_of(config.method)
    if method.scoring is not None:
        return scored_masks(config, method.scoring, model, data)
    if origin is None:
        return None
    if config.start == "shuffled" and not config.data_order:
        return regrow.shuffle_masks(origin.masks, config.seed)
    if method.masks is None or config.data_order or config.start == "reinitialized":
        return dict(origin.masks)
    masks: dict[str, Tensor] = imported(method.masks)(config, origin, model)
    return masks


def pruned_further(config: RunConfig, origin: Origin, model: nn.Module) -> dict[str, Tensor]:
    """The masks of a round of iterative pruning: the largest weights that the round before ended with."""
    names = regrow.find_layers(model)
    masks = {name: origin.masks.get(name, torch.ones_like(origin.model[name], dtype=torch.bool)) for name in names}
    return regrow.prune_by_magnitude(origin.model, masks, (1 - IMP_FRACTION) ** imp_level(config.sparsity))


def begun_with(config: RunConfig, algorithm: regrow.Algorithm, masks: State | None) -> regrow.Algorithm:
    """The algorithm of a run that is given `masks`."""
    if masks is None:
        return algorithm
    goes_on = method_of(config.method).starts.get(str(config.start))
    if goes_on is None:
        return replace(regrow.from_masks(masks), name=config.method)
    begun: regrow.Algorithm = imported(goes_on)(algorithm, masks)
    return begun


def first_weights(config: RunConfig, origin: Origin | None, build: Callable[[], nn.Module]) -> State | None:
    """The state of the net at step 0, where it is not the seed's own initialisation."""
    if config.start == "reinitialized":
        return regrow.reinitialized(build, config.seed + OTHER_SEED)
    if config.start == "trained" and origin is not None:
        assert not config.data_order
        return origin.model
    return None


def mask_step(config: RunConfig, total_steps: int) -> int:
    """The step at which the masks are put on: where a method that rewinds goes back to; else 0."""
    return rewind_step(config, total_steps) if method_of(config.method).rewinds and config.start != "trained" else 0


def scored_masks(config: RunConfig, scoring: Scoring, model: nn.Module, data: Parts) -> dict[str, Tensor]:
    """Masks of the largest scores over the first batches of the training, some ten samples a class."""
    order = torch.arange(len(data.train))
    number = scored_batches(config, data)
    batches = list(itertools.islice(data.train.batches(order, config.batch_size, seed=config.seed), number))
    model.train()
    find = partial(imported(scoring.scores), **scoring.arguments)
    return regrow.masks_from_scores(
        find(model, lambda outputs, labels: loss_of(outputs.float(), labels), batches), config.sparsity
    )


def scored_batches(config: RunConfig, data: Parts) -> int:
    """How many batches that takes."""
    return -(-SAMPLES * data.num_classes // config.batch_size)
