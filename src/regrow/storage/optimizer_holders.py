"""The optimizers that hold the weights of an attached model: the attached one, those inside it, and any that steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.storage import optimizers
from regrow.storage.optimizer_state import Held, is_square, matrix_keys, obstacle


@dataclass(frozen=True)
class _Relation:
    signature: list[tuple[int, int]]
    weights: tuple[Held, ...]
    encloses: bool


class Holders:
    """Every optimizer that is known to step the weights, and the state that they keep of them.

    The attached one and those inside it are known from the start, another from its first step on, until it is dropped.

    Args:
        given: what the user attached to.
        weights: the sparsified weights, still dense.

    Attributes:
        stepper: the one whose step is the weight step: ``given``, or the optimizer that it wraps.
    """

    def __init__(self, given: Optimizer, weights: Sequence[Held]) -> None:
        self.given = given
        self.stepper = optimizers.stepper(given, (held.parameter for held in weights))
        self._weights = {id(held.parameter): held for held in weights}
        self._relations: WeakKeyDictionary[Optimizer, _Relation] = WeakKeyDictionary()
        self._known: list[ref[Optimizer]] = []
        self._matrix_keys: list[frozenset[str]] = []
        for each in (self.stepper, *reversed(optimizers.with_inner(given))):
            if self.held_by(each):
                self.add(each)

    def __iter__(self) -> Iterator[Optimizer]:
        return (optimizer for known in self._known if (optimizer := known()) is not None)

    def knows(self, optimizer: Optimizer) -> bool:
        """Whether the state that it keeps is taken care of."""
        state = getattr(optimizer, "state", None)
        return state is None or any(state is each.state for each in self)

    def add(self, optimizer: Optimizer) -> None:
        """Takes care of another one's state too; a wrapper that shows the state of what it wraps adds nothing."""
        if not self.knows(optimizer):
            left = (number for number, known in enumerate(self._known) if known() is None)
            number = next(left, len(self._known))
            self._known[number : number + 1] = [ref(optimizer)]
            self._matrix_keys[number : number + 1] = [matrix_keys(optimizer, self.held_by(optimizer))]

    def obstacle(self, compact: bool) -> str:
        """Why state that one of them keeps by now cannot follow the masks; empty where all can."""
        for number, known in enumerate(self._known):
            optimizer = known()
            if optimizer is not None:
                held = self.held_by(optimizer)
                self._matrix_keys[number] = matrix_keys(optimizer, held)
                found = obstacle(optimizer, held, compact)
                if found:
                    return found
        return ""

    def held_by(self, optimizer: Optimizer) -> tuple[Held, ...]:
        """The weights that an optimizer holds."""
        return self._relation(optimizer).weights

    def encloses(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer wraps the stepper, so that a weight step may be part of its own step."""
        return self._relation(optimizer).encloses

    def _relation(self, optimizer: Optimizer) -> "_Relation":
        """Looked up anew only where the optimizer's groups have changed: this is asked at every step of any."""
        groups = [group["params"] for group in getattr(optimizer, "param_groups", ())]
        signature = [(id(members), len(members)) for members in groups]
        known = self._relations.get(optimizer)
        if known is None or known.signature != signature:
            found = {id(each): self._weights[id(each)] for members in groups for each in members if self._has(each)}
            inside = optimizers.with_inner(optimizer)[1:] if found else []
            encloses = any(each is self.stepper for each in inside)
            known = self._relations[optimizer] = _Relation(signature, tuple(found.values()), encloses)
        return known

    def replaces(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer holds all that the stepper holds, as one does that was built in its place."""
        return optimizers.holds(optimizer, optimizers.parameters(self.stepper))

    # What they keep of one weight

    def elementwise_state(self, parameter: nn.Parameter) -> Iterator[tuple[Tensor, float]]:
        """State with one entry a weight, each with what its optimizer starts it with."""
        for known, matrices in zip(self._known, self._matrix_keys, strict=True):
            optimizer = known()
            if optimizer is not None:
                for key, value, initial in optimizers.named_state(optimizer, parameter):
                    if key not in matrices or not is_square(value):
                        yield value, initial

    def momentum_factor(self, parameter: nn.Parameter) -> float | None:
        """The stepper's momentum or first beta; None where it keeps no momentum."""
        return optimizers.momentum_factor(self.stepper, parameter)

    def momentum(self, parameter: nn.Parameter) -> Tensor:
        """The first-moment buffer of the first that keeps one; zeros before the first step."""
        return next(
            (found for each in self if (found := optimizers.momentum(each, parameter)) is not None),
            parameter.new_zeros(parameter.shape),
        )

    def gradient_scale(self) -> float:
        """What a GradScaler has multiplied the gradients by, where the stepper undoes it itself; else 1."""
        return optimizers.gradient_scale(self.stepper)

    def _has(self, parameter: nn.Parameter) -> bool:
        return id(parameter) in self._weights
