"""What one training run is: a frozen record whose identity is the hash of what differs from the defaults.

Nothing here imports torch, so the command line can answer at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import posixpath
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from regrow_lab.methods import METHODS, Method, method_of

DISTRIBUTIONS = ("uniform", "er", "erk", "flop-aware")
SCHEDULES = ("cosine", "constant", "step", "one-cycle")
OPTIMIZERS = ("sgd", "adam", "adamw")
AUGMENTATIONS = ("none", "crop-flip", "resized-crop-flip")
PRECISIONS = ("float32", "bf16")
STORAGES = ("dense", "compact")
MOST_SEEDS = 1000
"""Of a study: its runs are all listed before the first is trained."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run. Two runs with equal fields are the same run and share one folder, a 1 being equal to a 1.0.

    The defaults are the dense run of the digits study.

    >>> RunConfig(method="rigl", sparsity=0.95).run_id
    'rigl-erk-s0.95-seed0-'
    """

    model: str = "lenet-300-100"
    """Network, by name or package.module:build."""
    data: str = "digits"
    """Data set: the name of a published one; a folder of images or a text, under the folder of all data or wherever its
    path leads from the current folder; or package.module:load."""
    method: Annotated[str, tyro.conf.arg(help=f"{', '.join(METHODS)}, or package.module:recipe.")] = "dense"
    """How its weights become few, by name or import string."""
    sparsity: float = 0.0
    """Share of the weights that are zero, in [0, 1); for imp 1 - 0.8^L after L rounds."""
    distribution: str | None = None
    """How the sparsity is shared among the layers: uniform, er, erk (taken where none is given) or flop-aware; none for
    a method that finds it, such as snip or pruning."""
    multiplier: float = 1
    """Training length as a multiple of `epochs`: 2 for a 2x run; rounded to whole epochs. Stretches the learning rate
    schedule and the last update, not `every` nor `drop_fraction`."""
    seed: int = 0
    """Seed of the initial weights, the masks and the order of the data."""
    epochs: int = 60
    """Passes over the training data, before the multiplier."""
    batch_size: int = 64
    """Samples a step; the last batch of an epoch may be smaller."""
    learning_rate: float = 0.1
    """Learning rate; what `schedule` and the warm-up say is a share of it."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov's form of the momentum."""
    weight_decay: float = 5e-4
    """L2 penalty of the parameters with two dimensions or more; the others have none."""
    schedule: str = "cosine"
    """Learning rate over the steps: cosine (to 0), constant, step (× `decay` every `decay_steps`), or one-cycle (up
    from 1/25 over 30 % of the steps, then to 0)."""
    every: int = 20
    """Steps between two updates of the masks (dT)."""
    drop_fraction: float = 0.3
    """Share of the alive weights that the first update replaces (alpha)."""
    stop: float = 0.75
    """Share of the training after which the masks stay as they are (T_end / T)."""
    pruning_start: float = 0.05
    """Share of the training before gradual pruning begins."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0, linearly; not stretched by the multiplier."""
    decay_steps: int = 30_000
    """Steps between two decays of the schedule step, before the multiplier."""
    decay: float = 0.2
    """Factor of a decay of the schedule step."""
    optimizer: str = "sgd"
    """sgd, adam or adamw. Momentum and Nesterov's form are of sgd alone."""
    clip: float = 0.0
    """Largest norm of the whole gradient; longer ones are shortened to it. 0 for no limit."""
    label_smoothing: float = 0.0
    """Share of each training label that is spread over all classes, in [0, 1)."""
    augmentation: str = "none"
    """Random changes of training images: none, crop-flip (reflect-pad 4, crop, flip) or resized-crop-flip."""
    validation: int = 0
    """Training samples that are held out to be measured at the end, the same for every seed."""
    image_size: int = 0
    """Side in pixels to which the images of a folder are scaled and cut; 0 leaves them as they are."""
    sequence_length: int = 512
    """Characters in a sample of a text."""
    precision: str = "float32"
    """float32, or bf16: autocast of the forward pass."""
    dropout: float = 0.3
    """Probability of dropout in a wide residual net; other nets have none. Of a dense fp32 step it is 15 %."""
    storage: Literal["dense", "compact"] = "dense"
    """dense: weights with zeros and masks. compact: only alive weights exist, and the sparse engine runs them (CPU)."""
    compiled: bool = False
    """Have torch.compile compile the forward and backward pass."""
    start: str | None = None
    """What the run starts from in place of its method's own beginning. rigl: rigl-sm (the final masks of that run) or
    rigl-sm-densities (their counts alone). imp: trained (the weights of the round before, not rewound), reinitialized
    (the masks with other initial weights) or shuffled (the masks permuted in each layer)."""
    rewind: float = 0.0
    """Share of the training to which imp rewinds, and at which another data order begins, in [0, 1)."""
    data_order: int = 0
    """Another number than 0: another order of the data from the step `rewind` on, and at the end the error along the
    line to the run that kept its order. For dense and imp."""
    timed: bool = False
    """Measure at the end the time of a step beside the dense net's, of rigl-struct with its dead channels removed."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.type in KINDS:
                object.__setattr__(self, field.name, _as_kind(getattr(self, field.name), KINDS[str(field.type)]))
        object.__setattr__(self, "data", data_name(self.data))
        method = method_of(self.method)
        if isinstance(self.multiplier, float) and self.multiplier.is_integer():
            object.__setattr__(self, "multiplier", int(self.multiplier))  # 2.0 is the same run as 2
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("augmentation", self.augmentation, AUGMENTATIONS)
        _one_of("precision", self.precision, PRECISIONS)
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity {self.sparsity:g} is outside [0, 1): give the share of zero weights, e.g. 0.9")
        if self.sparsity and not method.takes_sparsity:
            given = f"{self.method} takes no sparsity, given {self.sparsity:g}"
            raise ValueError(f"method {given}: leave it out or choose a sparse method")
        if self.distribution is None and method.takes_distribution:
            object.__setattr__(self, "distribution", "erk")
        if self.distribution is not None:
            if method.takes_distribution is False:
                given = f"{self.method} takes no distribution, given {self.distribution!r}"
                raise ValueError(f"method {given}: leave it out")
            _one_of("distribution", self.distribution, DISTRIBUTIONS)
        if not 1 <= self.multiplier < 2**31:
            raise ValueError(f"multiplier must be 1 or more, and less than 2^31, given {self.multiplier}")
        for name in ("epochs", "batch_size", "every", "decay_steps", "sequence_length"):
            if not 1 <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} must be 1 or more, and less than 2^31, given {getattr(self, name)}")
        if self.epochs * self.multiplier >= 2**31:
            given = f"{self.epochs} and {self.multiplier}"
            raise ValueError(f"epochs times multiplier must be less than 2^31, given {given}: give a shorter training")
        for name in ("learning_rate", "momentum", "weight_decay", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number, 0 or more, given {value}")
        for name in ("drop_fraction", "stop", "pruning_start", "decay", "dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], given {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), given {self.label_smoothing}")
        for name in ("seed", "warmup_steps", "validation", "image_size", "data_order"):
            if not 0 <= getattr(self, name) < 2**63:
                raise ValueError(f"{name} must be 0 or more, and less than 2^63, given {getattr(self, name)}")
        if self.nesterov and self.optimizer != "sgd":
            raise ValueError(f"nesterov is of sgd alone, the optimizer is {self.optimizer}: leave it out")
        self._check_start(method)
        method.check(self)
        _one_of("storage", self.storage, STORAGES)
        if self.storage not in method.storages:
            only = " or ".join(method.storages)
            raise ValueError(f"method {self.method} cannot run in {self.storage} storage: choose storage {only}")
        if self.storage == "compact" and self.compiled:
            raise ValueError("compact storage is not for compiled nets, it has an engine of its own: leave one out")

    def _check_start(self, method: Method) -> None:
        if self.start is not None:
            if not method.starts:
                raise ValueError(f"method {self.method} takes no start, given {self.start!r}: leave it out")
            _one_of("start", self.start, tuple(method.starts))
        if not 0 <= self.rewind < 1:
            raise ValueError(f"rewind must be a share of the training in [0, 1), given {self.rewind}")
        if self.data_order and (not method.takes_data_order or self.start == "trained"):
            able = " and ".join(each.name for each in METHODS.values() if each.takes_data_order)
            raise ValueError(
                f"data_order is for {able}, unless it starts from trained weights, the method is {self.method}: "
                "leave it out"
            )
        if self.rewind and not (self.data_order or method.rewinds):
            raise ValueError(f"method {self.method} takes no rewind, given {self.rewind:g}: leave it out")

    @property
    def total_epochs(self) -> int:
        """Passes over the training data, multiplied."""
        return round(self.epochs * self.multiplier)

    @property
    def prerequisite(self) -> RunConfig | None:
        """The run that must be finished before this one can begin, as its end is needed; None for most."""
        method = method_of(self.method)
        if self.data_order:
            return dataclasses.replace(self, data_order=0, rewind=self.rewind if method.rewinds else 0.0)
        return method.prerequisite(self)

    @property
    def run_id(self) -> str:
        """A readable name and a hash of the fields that differ from the defaults: the name of the run's folder."""
        different = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }
        digest = hashlib.sha256(json.dumps(different, sort_keys=True).encode()).hexdigest()[:8]
        words = [
            self.method,
            f"{self.multiplier:g}x" if self.multiplier > 1 else "",
            self.distribution or "",
            f"s{self.sparsity:g}" if self.sparsity else "",
            f"seed{self.seed}",
            digest,
        ]
        return "-".join(word for word in words if word)

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, as config.json holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> RunConfig:
        """The record of `to_dict`; fields that it leaves out keep their defaults.

        Raises ValueError for a field that this version does not know.
        """
        unknown = sorted(fields.keys() - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(
                f"unknown field {', '.join(unknown)} in a run's configuration: written by another version?"
            )
        return cls(**fields)


KINDS: dict[object, type[int] | type[float]] = {"float": float, "int": int, "bool": bool}
"""What a field of such an annotation holds."""


def _as_kind(value: Any, kind: type[int] | type[float]) -> Any:
    """The value as one of this kind where it is equal to one; else as it is, for whoever checks it.

    >>> _as_kind(1, float), _as_kind(60.0, int), _as_kind(0.5, int), _as_kind("1", float)
    (1.0, 60, 0.5, '1')
    """
    try:
        same = kind(value)
    except (TypeError, ValueError, OverflowError):
        return value
    return same if same == value else value


def data_name(given: str) -> str:
    """The one name of a data set: a path has no detours.

    Raises ValueError for no name, and for characters that are not shown.

    >>> data_name("birds/./small/"), data_name("fish/../birds"), data_name("//data/birds")
    ('birds/small', 'birds', '/data/birds')
    """
    if not given or not given.isprintable():
        raise ValueError(
            f"data {given!r} is no name of a data set: give that of a set or folder, or package.module:load"
        )
    name = posixpath.normpath(given)
    return f"/{name.lstrip('/')}" if name.startswith("/") else name


def check_seconds(name: str, seconds: float) -> None:
    """Raise ValueError for what is no time, such as nan."""
    if not seconds >= 0:
        raise ValueError(f"{name} must be a number of seconds, 0 or more, given {seconds}")


def check_seeds(what: str, seeds: int) -> None:
    """Raise ValueError for no seeds, and for more than can be listed."""
    if not 1 <= seeds <= MOST_SEEDS:
        needed = "1 seed or more" if seeds < 1 else f"{MOST_SEEDS:,} seeds or fewer"
        raise ValueError(f"{what} needs {needed}, given {seeds}")


def _one_of(what: str, given: object, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ValueError(f"unknown {what} {given!r}: choose one of {', '.join(known)}")
