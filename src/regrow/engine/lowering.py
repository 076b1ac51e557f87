"""Writes a fused program into the native plan: steps forward, steps backward, and the memory they share."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from regrow.engine.fusion import (
    MOST_VIEWS,
    Fused,
    Node,
    Stored,
    Term,
    UnsupportedProgramError,
    View,
    pool_windows,
)
from regrow.engine.program import AveragePool, Convolution, Flatten, Input, MaxPool


class Kind(IntEnum):
    """Steps, numbered as in csrc/plan.hpp."""

    IMPORT, EXPORT, EXPORT_GRADIENT, CONVOLUTION, CONVOLUTION_BACKWARD = range(5)
    MATERIALISE, GRADIENT, POOL, POOL_BACKWARD, FLATTEN, FLATTEN_BACKWARD = range(5, 11)


@dataclass(frozen=True)
class Buffer:
    """The ``number``-th gradient buffer of a backward program, shaped as the stored tensor ``like``."""

    number: int
    like: int


Place = int | Buffer  # a stored tensor, or a buffer


@dataclass(frozen=True)
class Contribution:
    """A part of a tensor's gradient: a buffer, seen through the batch normalisation ``norm`` or as it is."""

    place: Buffer
    norm: int | None


@dataclass(frozen=True)
class Gradient:
    """The gradient of the stored tensor ``value``, kept in ``store`` as well if that is given."""

    value: int
    parts: tuple[Contribution, ...]
    store: Buffer | None = None


@dataclass(frozen=True)
class Target:
    """Where a step writes, what it adds, and the view whose masks it applies."""

    place: Place
    add: Place | None = None
    gate: View | None = None


@dataclass(frozen=True)
class Step:
    """One step of a native program."""

    kind: Kind
    node: Node | None = None
    view: View | None = None
    gradient: Gradient | None = None
    target: Target | None = None
    border: int = -1

    def places(self) -> list[Place]:
        """All that the step reads or writes."""
        places: list[Place] = []
        for view in (self.view, self.target.gate if self.target else None):
            places += [term.tensor for term in view.terms] if view else []
        if self.gradient:
            places += [part.place for part in self.gradient.parts]
            places += [self.gradient.store] if self.gradient.store else []
        if self.target:
            places += [self.target.place] + ([] if self.target.add is None else [self.target.add])
        return places


def forward_steps(fused: Fused, num_inputs: int) -> list[Step]:
    """The steps of the forward pass: one a node, and one for each output."""
    steps = []
    for node in fused.nodes:
        target = Target(node.tensor, node.add)
        if isinstance(node.operation, Input):
            steps.append(Step(Kind.IMPORT, node, target=target, border=node.operation.position))
        else:
            steps.append(Step(_FORWARD.get(type(node.operation), Kind.MATERIALISE), node, node.view, target=target))
    return steps + [Step(Kind.EXPORT, view=view, border=num_inputs + i) for i, view in enumerate(fused.outputs)]


_FORWARD = {Convolution: Kind.CONVOLUTION, AveragePool: Kind.POOL, MaxPool: Kind.POOL, Flatten: Kind.FLATTEN}
_BACKWARD = {
    Convolution: Kind.CONVOLUTION_BACKWARD,
    AveragePool: Kind.POOL_BACKWARD,
    MaxPool: Kind.POOL_BACKWARD,
    Flatten: Kind.FLATTEN_BACKWARD,
}


def backward_steps(fused: Fused, num_inputs: int, wanted_inputs: frozenset[int]) -> list[Step]:
    """The steps of the backward pass, for the inputs (by position) whose gradient is wanted."""
    return _Backward(fused, wanted_inputs).run(num_inputs)


@dataclass
class _Backward:
    """Walks the nodes backwards, collecting each tensor's gradient from those who read it.

    A view's gradient is summed in one buffer; whoever adds the last part (the first reader in forward order) applies
    the view's masks and collects the sums of its batch norms on the way.
    """

    fused: Fused
    wanted_inputs: frozenset[int]
    steps: list[Step] = field(default_factory=list)
    parts: dict[int, list[Contribution]] = field(default_factory=dict)
    buffers: dict[int, Buffer] = field(default_factory=dict)
    waiting: Counter[int] = field(default_factory=Counter)
    count: int = 0

    def run(self, num_inputs: int) -> list[Step]:
        self.needed = self._needed()
        readers = [node.view for node in self.fused.nodes] + [*self.fused.outputs]
        self.waiting.update(view.origin for view in readers if view and self._differentiable(view))
        for i, view in enumerate(self.fused.outputs):
            if self._differentiable(view):
                self._into(view, lambda target, border=num_inputs + i: Step(Kind.IMPORT, target=target, border=border))
        for node in reversed(self.fused.nodes):
            self._node(node)
        return self.steps

    def _needed(self) -> set[int]:
        """Tensors whose gradient something needs."""
        needed: set[int] = set()
        for node in self.fused.nodes:
            match node.operation:
                case Input(position):
                    wanted = position in self.wanted_inputs
                case Convolution():
                    wanted = True
                case _:
                    wanted = node.view is not None and self._differentiable(node.view, needed)
            if wanted:
                needed.add(node.tensor)
        return needed

    def _differentiable(self, view: View, needed: set[int] | None = None) -> bool:
        needed = self.needed if needed is None else needed
        return any(term.tensor in needed or term.norm is not None for term in view.terms)

    def _buffer(self, like: int) -> Buffer:
        self.count += 1
        return Buffer(self.count - 1, like)

    def _into(self, view: View, step: Any) -> None:
        """Add the step whose target is the view's gradient."""
        first = view.origin not in self.buffers
        buffer = (
            self.buffers.setdefault(view.origin, self._buffer(view.terms[0].tensor))
            if first
            else self.buffers[view.origin]
        )
        self.waiting[view.origin] -= 1
        last = self.waiting[view.origin] == 0
        self.steps.append(step(Target(buffer, None if first else buffer, view if last and not view.pure else None)))
        if last:
            for term in view.terms:
                self.parts.setdefault(term.tensor, []).append(Contribution(buffer, term.norm))

    def _gradient(self, tensor: int, keep: bool) -> tuple[Gradient, Buffer | None]:
        """The tensor's gradient; with ``keep`` also a buffer that holds (or will hold) its sum."""
        parts = sorted(self.parts[tensor], key=lambda part: -1 if part.norm is None else part.norm)
        while len(parts) > 2:
            norms = [part.norm for part in parts]
            pair = next(
                (i for i in range(len(parts) - 1) if norms[i] == norms[i + 1] and norms.count(norms[i]) == 2), 0
            )
            # A norm's factors go into one step: fusion has stored what more than two views show.
            assert all(norm is None or norms.count(norm) <= MOST_VIEWS for norm in norms)
            buffer = self._buffer(tensor)
            self.steps.append(
                Step(Kind.GRADIENT, gradient=Gradient(tensor, (parts[pair], parts[pair + 1])), target=Target(buffer))
            )
            parts[pair : pair + 2] = []
            parts.insert(0, Contribution(buffer, None))
        if not keep:
            return Gradient(tensor, tuple(parts)), None
        if len(parts) == 1 and parts[0].norm is None:
            return Gradient(tensor, tuple(parts)), parts[0].place
        buffer = self._buffer(tensor)
        return Gradient(tensor, tuple(parts), buffer), buffer

    def _node(self, node: Node) -> None:
        if node.tensor not in self.needed or node.tensor not in self.parts:
            return
        gradient, kept = self._gradient(node.tensor, keep=node.add is not None and node.add in self.needed)
        if isinstance(node.operation, Input):
            self.steps.append(Step(Kind.EXPORT_GRADIENT, gradient=gradient, border=node.operation.position))
            return
        assert node.view is not None
        kind = _BACKWARD.get(type(node.operation), Kind.GRADIENT)
        if self._differentiable(node.view):
            self._into(node.view, lambda target: Step(kind, node, node.view, gradient, target))
        else:
            self.steps.append(Step(kind, node, node.view, gradient))
        if kept is not None:
            assert node.add is not None
            self.parts.setdefault(node.add, []).append(Contribution(kept, None))


def assign_slots(steps: Sequence[Step], tensors: Sequence[Stored], movable: Any) -> dict[Place, int]:
    """Memory slots: a ``movable`` place shares one with others of its shape that live at other times."""
    last = {place: number for number, step in enumerate(steps) for place in step.places()}
    slots: dict[Place, int] = {}
    free: dict[tuple[int, int, int, bool], list[int]] = {}
    count = 0

    def shape(place: Place) -> tuple[int, int, int, bool]:
        return tensors[place.like if isinstance(place, Buffer) else place].shape

    for number, step in enumerate(steps):
        for place in step.places():
            if movable(place) is None or place in slots:
                continue
            spare = free.get(shape(place), [])
            if movable(place) and spare:
                slots[place] = spare.pop()
            else:
                slots[place] = count
                count += 1
        for place in dict.fromkeys(step.places()):
            if movable(place) and last[place] == number:
                free.setdefault(shape(place), []).append(slots[place])
    return slots


class Writer:
    """Writes lowered steps into a native plan. Stored tensors live in program 0.

    Args:
        native: the plan to write into.
        fused: the nodes and their tensors.
        norms: batch normalisations, for their ``eps`` and ``momentum``.
        slots: memory of the stored tensors in a pass that keeps what backward needs.
        light: the same in a pass that keeps nothing.
    """

    def __init__(
        self, native: Any, fused: Fused, norms: Sequence[Any], slots: dict[Place, int], light: dict[Place, int]
    ) -> None:
        self.native, self.fused = native, fused
        self.tensors: dict[int, int] = {}
        self.views: dict[int, int] = {}
        for node in fused.nodes:
            self.tensors[node.tensor] = self._tensor(
                0, slots[node.tensor], light[node.tensor], node.tensor, fused.tensors[node.tensor].statistics
            )
        views = [node.view for node in fused.nodes if node.view] + fused.outputs
        places = {term.norm: term.tensor for view in views for term in view.terms if term.norm is not None}
        for number, norm in enumerate(norms):
            if number not in places:
                raise UnsupportedProgramError(f"batch norm {number} is not read by any output")
            tensor = places[number]
            native.add_norm(self.tensors[tensor], fused.tensors[tensor].channels, norm.eps, norm.momentum)

    def _tensor(self, program: int, slot: int, light: int, like: int, statistics: bool) -> int:
        number: int = self.native.add_tensor(program, slot, light, *self.fused.tensors[like].shape, statistics)
        return number

    def view(self, view: View) -> int:
        if view.origin not in self.views:
            terms = [(self.tensors[t.tensor], -1 if t.norm is None else t.norm) for t in view.terms] + [(-1, -1)]
            self.views[view.origin] = self.native.add_view(terms[0], terms[1], view.relu, view.probability)
        return self.views[view.origin]

    def write(self, program: int, steps: Sequence[Step], slots: dict[Place, int]) -> None:
        """Add the steps to the native program; buffers get tensors of that program."""
        buffers = {
            place: self._tensor(program, slot, slot, place.like, False)
            for place, slot in slots.items()
            if isinstance(place, Buffer)
        }

        def place(p: Place | None) -> int:
            if p is None:
                return -1
            return buffers[p] if isinstance(p, Buffer) else self.tensors[p]

        for step in steps:
            numbers: dict[str, int] = {"border": step.border}
            if step.view:
                numbers["view"] = self.view(step.view)
            if step.gradient:
                parts = [
                    (place(part.place), -1 if part.norm is None else part.norm) for part in step.gradient.parts
                ] + [(-1, -1)]
                numbers["gradient"] = self.native.add_gradient(
                    self.tensors[step.gradient.value], parts[0], parts[1], place(step.gradient.store)
                )
            if step.target:
                gate = -1 if step.target.gate is None else self.view(step.target.gate)
                numbers["target"] = self.native.add_target(place(step.target.place), place(step.target.add), gate)
            operation = step.node.operation if step.node else None
            if isinstance(operation, Convolution):
                numbers["layer"] = operation.weight
                numbers["bias"] = -1 if operation.bias is None else operation.bias
            elif isinstance(operation, AveragePool | MaxPool) and step.kind in (Kind.POOL, Kind.POOL_BACKWARD):
                assert step.view is not None
                windows = pool_windows(operation, self.fused.tensors[step.view.terms[0].tensor])
                numbers["pool"] = self.native.add_pool(isinstance(operation, MaxPool), *windows)
            self.native.add_step(program, int(step.kind), **numbers)


def saved_tensors(fused: Fused) -> set[int]:
    """Tensors that backward reads: those that any view shows. (One that is only added to another is not among them.)"""
    views = [node.view for node in fused.nodes if node.view] + fused.outputs
    return {term.tensor for view in views for term in view.terms}


__all__ = ["Kind", "Term", "Writer", "assign_slots", "backward_steps", "forward_steps", "saved_tensors"]
