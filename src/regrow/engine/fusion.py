"""Fuses a program's operations into the few kinds of nodes the engine runs.

Only what a node writes is ever stored: outputs of convolutions, pools and flattenings, and a value that no *view* can
say. A view is ``dropout(relu(x + x'))`` of one or two stored tensors, each perhaps behind a batch norm's affine map;
nodes evaluate it row by row whenever they read. So in a pre-activation block (BN, ReLU, convolution, add) and in a
post-activation block alike, batch norm, ReLU, dropout and add cost no memory of their own.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from regrow.engine.program import (
    Add,
    AveragePool,
    BatchNorm,
    Convolution,
    Dropout,
    Flatten,
    Input,
    MaxPool,
    Operation,
    Program,
    Relu,
)

MOST_VIEWS = 2
"""Of one batch norm's output: a gradient has two contributions."""
MOST_RING_LINES = 2**16
"""Kernels have 16 bits for a place in a ring of rows (csrc/convolution_plan.cpp)."""


class UnsupportedProgramError(ValueError):
    """The engine cannot run this program; the message says which operation and why."""


@dataclass
class Stored:
    """A tensor in memory. ``flat``: one pixel, with image tiles as columns. ``statistics``: a batch norm follows."""

    channels: int
    height: int
    width: int
    flat: bool
    statistics: bool = False

    @property
    def shape(self) -> tuple[int, int, int, bool]:
        return self.channels, self.height, self.width, self.flat


@dataclass(frozen=True)
class Term:
    """A stored tensor, behind the affine map of a batch norm or as it is."""

    tensor: int
    norm: int | None = None


@dataclass(frozen=True)
class View:
    """``dropout(relu(sum of terms))``; ``origin`` names it: the operation whose value this is,
    or -1 - that number once the value is stored."""

    origin: int
    terms: tuple[Term, ...]
    relu: bool = False
    probability: float = 0.0

    @property
    def linear(self) -> bool:
        return not self.relu and not self.probability

    @property
    def pure(self) -> bool:
        """Nothing but a stored tensor."""
        return self.linear and len(self.terms) == 1 and self.terms[0].norm is None


@dataclass(frozen=True)
class Node:
    """``operation`` applied to ``view`` (None for an input) and written to ``tensor``, after adding the tensor ``add``.

    Relu, Dropout, BatchNorm and Add as operations mean that their value itself is stored.
    """

    operation: Operation
    view: View | None
    tensor: int
    add: int | None = None


@dataclass
class Fused:
    """Stored tensors, the nodes that write them in order, and the views that leave."""

    tensors: list[Stored] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    outputs: list[View] = field(default_factory=list)


class _MustStoreError(Exception):
    def __init__(self, operation: int) -> None:
        self.operation = operation


def fuse(program: Program, shapes: Sequence[tuple[int, ...]]) -> Fused:
    """The program as fused nodes, without those that no output needs.

    Equal views count as one: three branches that begin with a ReLU of one value read one view of it.

    Args:
        program: what to compute.
        shapes: of the weights: (out, in, kernel height, kernel width) or (out, in).

    Raises:
        UnsupportedProgramError: for an operation that the engine cannot run.
    """
    stored: set[int] = set()
    while True:
        try:
            fused = _without_dead_nodes(_Fusion(program, shapes, stored).run())
        except _MustStoreError as error:
            stored.add(error.operation)
            continue
        crowded = _crowded_norms(fused)
        if not crowded:
            return fused
        stored.update(
            number for number, op in enumerate(program.operations) if isinstance(op, BatchNorm) and op.norm in crowded
        )


def _crowded_norms(fused: Fused) -> set[int]:
    """Norms that more views show than a tensor's gradient can be gathered from; their values must be stored."""
    views = {view.origin: view for view in [*(node.view for node in fused.nodes), *fused.outputs] if view}
    shown = Counter(term.norm for view in views.values() for term in view.terms if term.norm is not None)
    return {norm for norm, count in shown.items() if count > MOST_VIEWS}


class _Fusion:
    """One pass over the operations, with the values known to need storing."""

    def __init__(self, program: Program, shapes: Sequence[tuple[int, ...]], stored: set[int]) -> None:
        self.program, self.shapes, self.stored = program, shapes, stored
        self.fused = Fused()
        self.views: list[View | None] = []
        self.known: dict[tuple[tuple[Term, ...], bool], View] = {}
        self.uses = Counter(program.outputs)
        for operation in program.operations:
            self.uses.update(_sources(operation))
        self.hosts = self._hosts()

    def run(self) -> Fused:
        seen: Counter[tuple[str, int]] = Counter()
        for number, operation in enumerate(self.program.operations):
            if isinstance(operation, Convolution):
                seen["weight", operation.weight] += 1
                if operation.bias is not None:
                    seen["bias", operation.bias] += 1
            elif isinstance(operation, BatchNorm):
                seen["norm", operation.norm] += 1
            view = self._view(number, operation)
            if view is not None and not view.probability:
                view = self.known.setdefault((view.terms, view.relu), view)
            if number in self.stored and view is not None and not view.pure:
                view = View(-1 - number, (Term(self._node(operation, view, self._tensor(view).shape)),))
            self.views.append(view)
        for (kind, index), count in seen.items():
            if count > 1:
                raise UnsupportedProgramError(f"{kind} {index} is used {count} times; the engine takes each once")
        self.fused.outputs = [self._of(number) for number in self.program.outputs]
        return self.fused

    def _hosts(self) -> dict[int, int]:
        """Add → the convolution that adds the other side while it writes: the later one that nobody else reads."""
        operations, hosts = self.program.operations, {}
        for number, operation in enumerate(operations):
            if not isinstance(operation, Add) or operation.left == operation.right:
                continue
            sides = [
                side
                for side in (operation.left, operation.right)
                if isinstance(operations[side], Convolution) and self.uses[side] == 1
            ]
            if sides:
                hosts[number] = max(sides)
        return hosts

    def _of(self, number: int) -> View:
        view = self.views[number]
        assert view is not None
        return view

    def _tensor(self, view: View) -> Stored:
        return self.fused.tensors[view.terms[0].tensor]

    def _node(
        self, operation: Operation, view: View | None, shape: tuple[int, int, int, bool], add: int | None = None
    ) -> int:
        self.fused.tensors.append(Stored(*shape))
        self.fused.nodes.append(Node(operation, view, len(self.fused.tensors) - 1, add))
        return len(self.fused.tensors) - 1

    def _pure(self, number: int) -> int:
        view = self._of(number)
        if not view.pure:
            raise _MustStoreError(number)
        return view.terms[0].tensor

    def _view(self, number: int, operation: Operation) -> View | None:
        """The operation's value as a view, after adding the node that computes it if it takes one."""
        match operation:
            case Input(_, channels, height, width):
                flat = height == width == 1
                return View(number, (Term(self._node(operation, None, (channels, height, width, flat))),))
            case Convolution():
                if number in self.hosts.values():
                    return None
                return View(number, (Term(self._convolution(operation)),))
            case BatchNorm(source, norm):
                tensor = self._pure(source)
                self.fused.tensors[tensor].statistics = True
                return View(number, (Term(tensor, norm),))
            case Relu(source):
                view = self._of(source)
                if view.probability:
                    raise _MustStoreError(source)
                return replace(view, origin=number, relu=True)
            case Dropout(source, probability):
                view = self._of(source)
                if view.probability:
                    raise _MustStoreError(source)
                return replace(view, origin=number, probability=probability) if probability else view
            case Add(left, right):
                return self._add(number, left, right)
            case AveragePool() | MaxPool():
                return self._pool(number, operation)
            case Flatten(source):
                view = self._of(source)
                image = self._tensor(view)
                if image.flat:
                    return view
                features = image.channels * image.height * image.width
                return View(number, (Term(self._node(operation, view, (features, 1, 1, True))),))
        raise UnsupportedProgramError(f"operation {number}, {operation}, is not known to the engine")

    def _add(self, number: int, left: int, right: int) -> View:
        host = self.hosts.get(number)
        if host is not None:
            other = self._pure(right if host == left else left)
            operation = self.program.operations[host]
            assert isinstance(operation, Convolution)
            return View(number, (Term(self._convolution(operation, other)),))
        for side in (left, right):
            view = self._of(side)
            if not view.linear or len(view.terms) > 1:
                raise _MustStoreError(side)
        a, b = self._of(left), self._of(right)
        if self._tensor(a).shape != self._tensor(b).shape:
            raise UnsupportedProgramError(
                f"operation {number} adds values of shapes {self._tensor(a)} and {self._tensor(b)}"
            )
        return View(number, a.terms + b.terms)

    def _convolution(self, operation: Convolution, add: int | None = None) -> int:
        view, shape = self._of(operation.source), self.shapes[operation.weight]
        tensor = self._tensor(view)
        kernel = (shape[2], shape[3]) if len(shape) == 4 else (1, 1)
        matrix = kernel == (1, 1) and operation.stride == (1, 1) and operation.padding == (0, 0)
        if shape[1] != tensor.channels:
            raise UnsupportedProgramError(
                f"weight {operation.weight} of shape {shape} reads {tensor.channels} channels"
            )
        if tensor.flat and not matrix:
            raise UnsupportedProgramError(
                f"weight {operation.weight} of shape {shape} slides over an image of one pixel"
            )
        height, width = (
            convolved(size, kernel[i], operation.stride[i], operation.padding[i], operation.dilation[i])
            for i, size in enumerate((tensor.height, tensor.width))
        )
        if height < 1 or width < 1:
            raise UnsupportedProgramError(
                f"weight {operation.weight} of shape {shape} is larger than its padded input {tensor}"
            )
        reach = tensor.width + 2 * operation.padding[1] + operation.dilation[1] * (kernel[1] - 1) + operation.stride[1]
        if not matrix and (1 + operation.dilation[0] * (kernel[0] - 1)) * reach > MOST_RING_LINES:
            raise UnsupportedProgramError(
                f"weight {operation.weight} of shape {shape} spans more than 65,536 lines of rows of {tensor.width}"
            )
        out = (shape[0], height, width, tensor.flat)
        if add is not None and self.fused.tensors[add].shape != out:
            raise UnsupportedProgramError(
                f"the output {out} of weight {operation.weight} is added to {self.fused.tensors[add]}"
            )
        return self._node(operation, view, out, add)

    def _pool(self, number: int, operation: AveragePool | MaxPool) -> View:
        view = self._of(operation.source)
        tensor = self._tensor(view)
        kernel, stride, padding = pool_windows(operation, tensor)
        if tensor.flat:
            if kernel == (1, 1) and stride == (1, 1) and padding == (0, 0):
                return view
            raise UnsupportedProgramError(f"operation {number} pools an image of one pixel")
        height, width = (
            convolved(size, kernel[i], stride[i], padding[i], 1) for i, size in enumerate((tensor.height, tensor.width))
        )
        if height < 1 or width < 1:
            raise UnsupportedProgramError(f"operation {number}, {operation}, is larger than its padded input {tensor}")
        return View(
            number, (Term(self._node(operation, view, (tensor.channels, height, width, height == width == 1))),)
        )


def convolved(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Output size of a window sliding over ``size`` elements."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def pool_windows(
    operation: AveragePool | MaxPool, tensor: Stored
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Kernel, stride and padding; a kernel of None covers the image."""
    if operation.kernel is None:
        return (tensor.height, tensor.width), (1, 1), (0, 0)
    return operation.kernel, operation.stride, operation.padding


def _sources(operation: Operation) -> tuple[int, ...]:
    match operation:
        case Input():
            return ()
        case Add(left, right):
            return left, right
        case _:
            return (operation.source,)


def _without_dead_nodes(fused: Fused) -> Fused:
    live = {term.tensor for view in fused.outputs for term in view.terms}
    nodes = []
    for node in reversed(fused.nodes):
        if node.tensor in live or isinstance(node.operation, Input):
            nodes.append(node)
            live.update(term.tensor for term in (node.view.terms if node.view else ()))
            live.update(() if node.add is None else (node.add,))
    return replace(fused, nodes=nodes[::-1])
