"""Weights that a forward reads itself, past the layers they belong to, by whatever name.

While a forward is traced, :class:`Watch` sees what it does with parameters. Where a forward runs as it is, without a
graph, :class:`DenseReads` gives it the dense weight, with a gradient, in place of the list of alive values.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from regrow.compaction.compact_weight import CompactWeight, dense_weight

HARMLESS = {"dtype", "device", "is_cpu", "is_cuda", "is_meta", "layout", "requires_grad"}
"""What is the same of a weight and of its alive entries."""
OF_THE_PARAMETER = {"is_leaf", "register_hook", "register_post_accumulate_grad_hook", "requires_grad_", "retain_grad"}
"""What is asked of the parameter, and not of its content."""
ARITHMETIC = {"add", "sub", "mul", "truediv"}
_here = threading.local()


def named(func: Any) -> tuple[str, bool]:
    """A torch function's name without underscores and ``foreach``, and whether it writes to its first argument."""
    full = getattr(func, "__name__", "")
    if full in ("__get__", "__set__"):
        return str(func.__self__.__name__), full == "__set__"
    name = full.strip("_").removeprefix("foreach_")
    writes = name in {"i" + operation for operation in ARITHMETIC} if full.endswith("__") else full.endswith("_")
    return name, writes


def leaves(value: Any) -> Iterator[Any]:
    """What is in lists, tuples and dicts, however deep."""
    if isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from leaves(part)
    else:
        yield value


class Watch(TorchFunctionMode):
    """Sees what happens to a module's parameters themselves while its forward runs on stand-ins.

    Attributes:
        read: identities of the parameters that something was asked of.
        computes: whether something was computed from parameters alone, which a graph would hold as a constant.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.parameters = {id(parameter) for parameter in module.parameters()}
        self.read = set[int]()
        self.computes = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if named(func)[0] not in HARMLESS | OF_THE_PARAMETER:
            values = list(leaves([*args, *kwargs.values()]))
            found = self.parameters.intersection(map(id, values))
            self.read |= found
            self.computes |= bool(found) and not any(isinstance(value, fx.Proxy) for value in values)
        return func(*args, **kwargs)

    def add_graph(self, graph: fx.Graph, module: nn.Module) -> None:
        """Adds the parameters that a graph of the forward reads as attributes."""
        named_ones = dict(module.named_parameters(remove_duplicate=False))
        for node in graph.nodes:
            if node.op == "get_attr" and node.target in named_ones and not all(map(_is_harmless, node.users)):
                self.read.add(id(named_ones[node.target]))


def _is_harmless(node: fx.Node) -> bool:
    return node.target is getattr and len(node.args) > 1 and node.args[1] in HARMLESS


class DenseReads(TorchFunctionMode):
    """Gives a forward dense weights in place of lists of alive values, in every function of torch.

    A write in place to such a parameter is one to its alive values.
    """

    def __init__(self, weights: Mapping[int, CompactWeight]) -> None:
        super().__init__()
        self.weights = weights
        self.handed_out: list[tuple[Tensor, int]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _here.aside or not any(id(value) in self.weights for value in leaves([*args, *kwargs.values()])):
            return func(*args, **kwargs)
        name, writes = named(func)
        if name in HARMLESS | OF_THE_PARAMETER or (writes and id(args[0]) in self.weights):
            return func(*args, **kwargs)
        if name == "grad":
            return None if args[0].grad is None else self.weights[id(args[0])].dense(args[0].grad)
        result = func(*self._dense(list(args)), **self._dense(dict(kwargs)))
        if name in ("data", "detach"):
            self.handed_out.append((result, result._version))
        return result

    def _dense(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._dense(part) for key, part in value.items()}
        if type(value) in (list, tuple):
            return type(value)(map(self._dense, value))
        weight = self.weights.get(id(value))
        return value if weight is None else dense_weight(value, weight)

    def check(self) -> None:
        """Raises RuntimeError where the forward wrote to what ``.data`` or ``detach()`` of a weight gave it."""
        if any(tensor._version != version for tensor, version in self.handed_out):
            raise RuntimeError(
                "the forward writes to a weight of a compact layer through .data or detach(), which has only a list "
                "of alive values: leave that layer out with exclude=, or attach with storage='dense'"
            )


def reading(module: nn.Module) -> AbstractContextManager[None]:
    """Within it a forward of the module finds dense weights; once for all modules inside."""
    if watching():
        return nullcontext()
    found = [(child._parameters.get("weight"), child.__dict__.get("compact")) for child in module.modules()]
    weights = {id(values): weight for values, weight in found if weight is not None and values is not None}
    return _reading(weights) if weights else nullcontext()


@contextmanager
def _reading(weights: Mapping[int, CompactWeight]) -> Iterator[None]:
    mode = DenseReads(weights)
    _here.watching, _here.aside = True, False
    try:
        with mode:
            yield
    finally:
        _here.watching = False
    mode.check()


def watching() -> bool:
    """Whether a forward that runs at the moment, in this thread, is given dense weights."""
    return bool(getattr(_here, "watching", False))


@contextmanager
def aside() -> Iterator[None]:
    """Within it compact layers find their own lists, whoever watches."""
    before = getattr(_here, "aside", False)
    _here.aside = True
    try:
        yield
    finally:
        _here.aside = before
