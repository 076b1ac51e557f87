"""Whether an optimizer trains a list of alive values as it trains the masked matrix: tried on a few numbers."""

import copy
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.storage import optimizers
from regrow.storage.optimizer_state import Held, obstacle

ELEMENTWISE = frozenset(
    getattr(torch.optim, name)
    for name in ("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta", "ASGD", "RMSprop", "Rprop")
)
"""Known to be, so not tried."""

STEPS = 3
SIDES = (7, 5, 4, 3, 2)
"""Of a few numbers in place of a weight; not two alike, as a square may hide what a matrix does."""
RATE = 0.01
TOLERANCE = 1e-3
"""Of the largest movement; two orders of summation differ by 1e-6."""


def check_elementwise(optimizer: Optimizer, weights: Iterable[Held]) -> None:
    """Refuses an optimizer that compact storage would change with a ValueError.

    A copy of it, with a few numbers in the place of each weight, takes some steps on masked matrices; another takes
    them on the lists of their alive values, which is what compact storage has. Both must move the values alike.

    Args:
        optimizer: any; nothing of it or of its weights is written to.
        weights: those that it holds and that may become compact.
    """
    kind = type(optimizer)
    if kind in ELEMENTWISE:
        return
    held = {id(weight.parameter): weight for weight in weights}
    try:
        masked = _movements(optimizer, held, as_lists=False)
    except Exception as error:
        raise ValueError(
            f"{kind.__name__} cannot be tried on a few numbers, to see whether it works elementwise as compact storage "
            f"needs it to ({_said(error)}): use storage='dense'"
        ) from error
    try:
        listed = _movements(optimizer, held, as_lists=True)
    except Exception as error:
        raise ValueError(f"{_refusal(kind)}: there it fails ({_said(error)})") from error
    if listed.odd:
        raise ValueError(listed.odd)
    random = masked.drew_numbers or listed.drew_numbers
    if not random and not all(map(_alike, masked.movements, listed.movements)):
        raise ValueError(f"{_refusal(kind)}: there it moves weights otherwise")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _refusal(kind: type[Optimizer]) -> str:
    return (
        f"{kind.__name__} works on weights as matrices, and compact storage has only a list of alive values (take an "
        "elementwise optimizer such as SGD or AdamW, or storage='dense')"
    )


def _alike(masked: Tensor, listed: Tensor) -> bool:
    largest = max(float(masked.abs().max()), float(listed.abs().max()))
    return float((masked - listed).abs().max()) <= TOLERANCE * largest


@dataclass(frozen=True)
class _Outcome:
    movements: list[Tensor]
    drew_numbers: bool
    odd: str


@dataclass(frozen=True)
class _Stand:
    """A few numbers in the place of a parameter: the matrix with its mask, or the list of its alive values."""

    parameter: nn.Parameter
    start: Tensor
    slope: Tensor
    mask: Tensor | None

    @classmethod
    def of(cls, parameter: nn.Parameter, dims: int | None, as_list: bool, seed: int) -> "_Stand":
        """Of a sparse weight of so many dimensions, or of another parameter."""
        sparse, dims = dims is not None, parameter.dim() if dims is None else dims
        shape = (*SIDES, *[2] * dims)[:dims]
        numbers = torch.Generator().manual_seed(seed)
        start, slope = (torch.randn(shape, generator=numbers).to(parameter.dtype) for _ in range(2))
        mask = (torch.rand(shape, generator=numbers) < 0.5) if sparse else None
        if mask is not None and as_list:
            start, slope, mask = start[mask], slope[mask], None
        elif mask is not None:
            start = start * mask
        made = nn.Parameter(start.clone(), requires_grad=parameter.requires_grad)
        made.__dict__.update(parameter.__dict__)  # marks that people put on parameters
        return cls(made, start, slope, mask)

    def fill_gradient(self) -> None:
        gradient = self.slope + 0.1 * self.parameter.detach()
        self.parameter.grad = gradient if self.mask is None else gradient * self.mask

    def mask_all(self, optimizer: Optimizer) -> None:
        if self.mask is not None:
            self.parameter.detach().mul_(self.mask)
            for value, _ in optimizers.elementwise_state(optimizer, self.parameter):
                if not optimizers.is_quantised(value):  # refused on the list
                    value.mul_(self.mask)

    def movement(self) -> Tensor:
        moved = self.parameter.detach() - self.start
        return moved if self.mask is None else moved[self.mask]


def _movements(optimizer: Optimizer, held: Mapping[int, Held], as_lists: bool) -> _Outcome:
    inside = optimizers.with_inner(optimizer)
    real = {id(parameter): parameter for each in inside for parameter in optimizers.parameters(each)}
    stands = {
        key: _Stand.of(parameter, len(held[key].shape) if key in held else None, as_lists, seed)
        for seed, (key, parameter) in enumerate(real.items())
    }
    copies = _copies(inside, {key: stand.parameter for key, stand in stands.items()})

    def fill_gradients() -> Tensor:
        for stand in stands.values():
            stand.fill_gradient()
        return torch.zeros(())

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), _uncompiled():
        warnings.simplefilter("ignore")
        before = torch.get_rng_state()
        for _ in range(STEPS):
            fill_gradients()
            try:
                copies[0].step()
            except (TypeError, AssertionError):  # it wants a closure
                copies[0].step(fill_gradients)  # type: ignore[arg-type]  # torch says float, and means a tensor
            for each in copies:
                for stand in stands.values():
                    stand.mask_all(each)
        drew_numbers = not torch.equal(before, torch.get_rng_state())
    sparse = {key: stand for key, stand in stands.items() if key in held}
    weights = [Held(held[key].name, each.parameter, tuple(each.parameter.shape)) for key, each in sparse.items()]
    odd = obstacle(copies[0], weights, compact=True) if as_lists else ""
    return _Outcome([stand.movement() for stand in sparse.values()], drew_numbers, odd)


def _copies(originals: list[Optimizer], stands: dict[int, nn.Parameter]) -> list[Optimizer]:
    """An optimizer and those inside it, as they are but for the parameters, without state or hooks."""
    copies: list[Optimizer] = [object.__new__(type(each)) for each in originals]
    memo: dict[int, Any] = dict(stands)
    for original, made in zip(originals, copies, strict=True):
        memo[id(original)] = made
        memo[id(getattr(original, "state", None))] = defaultdict(dict)
    for original, made in zip(originals, copies, strict=True):
        attributes = {
            name: copy.deepcopy(value, memo)
            for name, value in vars(original).items()
            if not name.endswith("_hooks") and not callable(getattr(type(original), name, None))
        }
        if "param_groups" in attributes:
            Optimizer.__setstate__(made, attributes)
        else:
            made.__dict__.update(attributes)
    for group in (group for made in copies for group in made.param_groups if "lr" in group):
        group["lr"] = torch.full_like(group["lr"], RATE) if isinstance(group["lr"], Tensor) else RATE
    return copies


def _uncompiled() -> AbstractContextManager[Any]:
    """Some compile their step; a few numbers are not worth it."""
    stance: AbstractContextManager[Any] = nullcontext()
    if "torch._dynamo" in sys.modules:
        stance = torch.compiler.set_stance("force_eager")
    return stance
