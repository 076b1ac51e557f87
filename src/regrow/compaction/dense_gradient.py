"""The dense gradient of compact weights: that of whatever ``.grad`` holds when a topology update comes.

A dead weight has no ``.grad``. So the backward passes before an update are kept: what each brought to the dense weight,
and to its alive entries. At the update ``.grad`` tells which combination of them it is: as a rule the latest ones, with
nothing done to them; else the coefficients are solved for (clipping, unscaling, sums over tasks, per-sample clipping,
gradients put together by hand). What is no combination of them is refused.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from regrow.compaction.gradient_combination import Combination, Equations, Part, Source, explain
from regrow.storage.stored_layer import on_gradient

MOST_BYTES = 2**30
"""Of dense gradients kept apart before one step. Beyond it, passes that gave their gradients away are forgotten, the
oldest first, and the two oldest of the others become one; at the update ``.grad`` must weigh them alike."""

MOST_PARTS = 128
"""The same as a number, for small nets."""


class BackwardPasses:
    """The backward passes since the last step, of all weights of a model that await an update.

    Passes between which nobody writes to any ``.grad`` accumulate, and are added up.

    Args:
        averaging: gives at an update what makes a tensor its mean over the ranks that share the model then, in place.
    """

    def __init__(self, averaging: Callable[[], Callable[[Tensor], object]] = lambda: lambda tensor: None) -> None:
        self.averaging = averaging
        self.average: Callable[[Tensor], object] = lambda tensor: None
        self.weights: list[DenseGradient] = []
        self._accumulation: int | None = None  # the present one, named after its first pass
        self._starts_at_zero = False
        self._accumulation_of: dict[int, int] = {}  # of each pass
        self._explained: dict[DenseGradient, Combination] = {}
        self._explained_at: object = None
        self.is_finite = True  # whether everything was, that `.grad` was held against

    def accumulation_of(self, number: int) -> int:
        """Where a pass belongs. Before the first gradient of a pass it is looked at what was done to ``.grad``."""
        if number not in self._accumulation_of:
            if self._accumulation is None or not all(weight.is_undisturbed() for weight in self.weights):
                self._accumulation = number
                self._starts_at_zero = not any(weight.holds_something() for weight in self.weights)
                for weight in self.weights:
                    weight.look()
            self._accumulation_of[number] = self._accumulation
            self._make_room()
        return self._accumulation_of[number]

    def next_step(self) -> None:
        """Everything before is over."""
        self._accumulation, self._explained_at = None, None
        self._accumulation_of.clear()

    def combination(self, weight: "DenseGradient") -> Combination | None:
        """What the gradient of a weight is made of; None where nobody knows."""
        counted = [each for each in self.weights if each.gradient is not None]
        moment = [
            len(self._accumulation_of),
            *((id(g), g._version) for each in counted if (g := each.gradient) is not None),
        ]
        if self._explained_at != moment:
            self._explained, self._explained_at = self._explain(counted), moment
        return self._explained.get(weight)

    def settle(self, weight: "DenseGradient", dense: Tensor) -> None:
        """The gradient of a weight is known: one part in place of all, which lets go their memory."""
        assert weight.gradient is not None
        source = Source(True, -1 if self._accumulation is None else self._accumulation)
        weight.parts = {source: Part(dense, weight.gradient.detach().clone())}
        self._explained[weight] = Combination({source: 1.0})

    def _sources(self) -> list[Source]:
        found = {source for weight in self.weights for source in weight.parts}
        return sorted(found, key=lambda source: (not source.arrived, source.number))

    def _explain(self, counted: "list[DenseGradient]") -> "dict[DenseGradient, Combination]":
        sources, self.average = self._sources(), self.averaging()
        self._agree(len(sources), len(counted))
        equations = [weight.equations(sources, self.average) for weight in counted]
        gradients = [each.gradient for each in equations]
        finite = [s for s in sources if all(bool(e.parts[s].own.isfinite().all()) for e in equations if s in e.parts)]
        self.is_finite = finite == sources and all(bool(gradient.isfinite().all()) for gradient in gradients)
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            return {}
        equations = [replace(each, sources=finite) for each in equations]
        latest = None if self._accumulation is None else Source(True, self._accumulation)
        untouched = self._starts_at_zero and all(weight.is_undisturbed() for weight in self.weights)
        guess = torch.tensor([float(source == latest) for source in finite], dtype=torch.float64) if untouched else None
        found = explain(equations, guess)
        agreed = torch.tensor([float(combination is not None) for combination in found])
        self.average(agreed)
        return {w: c for w, c, sure in zip(counted, found, agreed.tolist(), strict=True) if c is not None and sure == 1}

    def _agree(self, *numbers: int) -> None:
        """Refuses ranks that went through different passes, of which sums would be of different things."""
        values = torch.tensor([float(power) for n in numbers for power in (n, n * n)], dtype=torch.float64)
        self.average(values)
        if any(mean * mean != square for mean, square in values.view(-1, 2).tolist()):
            raise ValueError(
                "the ranks that share this model had different numbers of backward passes before this update, so that "
                "their dense gradients have no mean: let all run the same passes, or attach with storage='dense'"
            )

    def _make_room(self) -> None:
        while len(sources := self._sources()) > 2 and (len(sources) > MOST_PARTS or self._bytes() > MOST_BYTES):
            given_away = [source for source in sources if not source.arrived]
            older = [source for source in sources if source.arrived and source.number != self._accumulation]
            if given_away:
                for weight in self.weights:
                    weight.parts.pop(given_away[0], None)
            elif len(older) > 1:
                for weight in self.weights:
                    weight.put(older[0], weight.parts.pop(older[1], None))
            else:
                break

    def _bytes(self) -> int:
        return sum(part.dense.nbytes for weight in self.weights for part in weight.parts.values())


class DenseGradient:
    """What the backward passes before an update bring to one weight.

    Args:
        values: the parameter of the alive entries.
        shape: of the dense weight.
        name: of the weight, for messages.
        passes: shared by the weights of a model.
    """

    def __init__(self, values: nn.Parameter, shape: tuple[int, ...], name: str, passes: BackwardPasses) -> None:
        self.values, self.shape, self.name, self.passes = values, shape, name, passes
        self.parts: dict[Source, Part] = {}
        self._hook = on_gradient(values, self._arrive)
        passes.weights.append(self)
        self.next_step()

    def next_step(self) -> None:
        """Forgets every pass; what ``.grad`` goes on holding is that of the alive weights alone."""
        self.parts.clear()
        self.look()
        self._left_over = None if self.gradient is None else self.gradient.detach().clone()
        self.passes.next_step()

    def move(self, move: Callable[[Tensor], Tensor]) -> None:
        """The alive entries are others now, as ``.grad`` is; what is known of each has moved with it."""
        for part in self.parts.values():
            part.own = move(part.own)
        self._left_over = None if self._left_over is None else move(self._left_over)

    def release(self) -> None:
        """Listens no longer."""
        self._hook.remove()
        self.passes.weights.remove(self)

    @property
    def gradient(self) -> Tensor | None:
        """What ``.grad`` holds; None of a frozen weight."""
        return self.values.grad if self.values.requires_grad else None

    # In a backward pass

    def add(self, dense: Tensor, own: Tensor, ours: bool = False) -> None:
        """What a use of the weight brings in the backward pass under way.

        Args:
            dense: the gradient of the dense weight, of its shape.
            own: that of the alive entries, (nnz,), as autograd gets it.
            ours: nobody else holds the memory of ``dense``, which may be kept.
        """
        number = torch._C._current_graph_task_id()
        self.passes.accumulation_of(number)
        on_its_way = Source(False, number)
        kept = ours or on_its_way in self.parts
        self.put(on_its_way, Part(dense.detach() if kept else dense.detach().clone(), own.detach().clone()))

    def put(self, source: Source, part: Part | None) -> None:
        """Adds to a part."""
        if part is not None and source in self.parts:
            self.parts[source].add(part)
        elif part is not None:
            self.parts[source] = part

    def _arrive(self, _: Tensor) -> None:
        number = torch._C._current_graph_task_id()
        part = self.parts.pop(Source(False, number), None)
        if part is not None:
            self.put(Source(True, self.passes.accumulation_of(number)), part)
        self.look()

    # Whether somebody wrote to `.grad` between two passes

    def look(self) -> None:
        """Remembers ``.grad`` as it is."""
        gradient = self.values.grad
        self._seen = None if gradient is None else (weakref.ref(gradient), gradient._version, gradient.detach().clone())

    def is_undisturbed(self) -> bool:
        """Whether ``.grad`` is as it was then: the same tensor, and not written to since, not even the same numbers."""
        gradient = self.values.grad
        if gradient is None or self._seen is None:
            return gradient is None and self._seen is None
        seen, version, content = self._seen
        return seen() is gradient and gradient._version == version and torch.equal(gradient, content)

    def holds_something(self) -> bool:
        """Whether an entry of ``.grad`` is not 0."""
        return self.gradient is not None and bool(self.gradient.any())

    # At the update

    def value(self) -> Tensor | None:
        """The dense gradient of what ``.grad`` holds; None where that is nothing, NaN where a pass was not finite.

        Raises:
            ValueError: ``.grad`` is no combination of what the passes brought.
        """
        if self.gradient is None:
            return None
        combination = self.passes.combination(self)
        if combination is None and not self.passes.is_finite:
            return self.gradient.new_full(self.shape, torch.nan)
        if combination is None:
            raise ValueError(self._refusal())
        total = None
        for source, coefficient in combination.coefficients.items():
            if source in self.parts:
                dense = self.parts.pop(source).dense  # ours: what is not asked for twice needs no copy
                if total is None:
                    total = dense if coefficient == 1 else dense.mul_(coefficient)
                else:
                    total.add_(dense, alpha=coefficient)
        if total is None:
            total = self.gradient.new_zeros(self.shape)
        self.passes.average(total)
        if combination.limit < torch.inf:
            total.clamp_(-combination.limit, combination.limit)
        self.passes.settle(self, total)
        return total

    def _refusal(self) -> str:
        return (
            f"'{self.name}' is due to grow by its gradient, and .grad is not what backward passes brought to it "
            f"({len(self.parts)} are known): it is no sum of them, weighted or clipped. Noise, signs, rounding, hooks "
            "on the parameter, or gradients from elsewhere say nothing about dead weights, which have no .grad in "
            "compact storage: give .grad to the optimizer as the passes left it on this step (a mean over ranks comes "
            "from DistributedDataParallel alone, not from an all_reduce of your own), or use storage='dense'"
        )

    def equations(self, sources: Sequence[Source], average: Callable[[Tensor], object]) -> Equations:
        """What is known of the gradient, over all ranks."""
        assert self.gradient is not None
        gradient, weight = self.gradient.detach(), self.values.detach()
        left_over = torch.zeros_like(gradient) if self._left_over is None else self._left_over
        parts = {}
        for source in sources:
            part = self.parts.get(source)
            own = torch.zeros_like(gradient) if part is None else part.own.clone()
            average(own)
            if part is not None or bool(own.any()):  # another rank may have one
                parts[source] = Part(gradient.new_zeros(()).expand(self.shape) if part is None else part.dense, own)
        return Equations(gradient, sources, parts, [weight, weight.sign(), left_over])
