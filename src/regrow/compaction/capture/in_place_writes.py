"""Writes in place in a traced graph, whose regions know values alone: later readers get the writer's result.

Where torch does the write, earlier readers must have run before; the order of the graph says so no longer once regions
stand in it.
"""

import operator
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from regrow.compaction.capture.tracing import ASSIGNMENTS, UnfaithfulError

INPLACE_POSITION: dict[Any, int] = {F.relu: 1, F.dropout: 3}
"""Function -> where its flag stands among the positional arguments."""
SPECIAL = {"__setitem__", "__delitem__", *(f"__{assignment.__name__}__" for assignment in ASSIGNMENTS)}
"""Methods that write in place without a name that says so."""
VIEWS = {
    *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "ravel"),
    *("expand_as", "transpose", "permute", "swapaxes", "swapdims", "movedim", "t", "getattr", "detach", "alias"),
    *("getitem", "narrow", "select", "chunk", "split", "unbind", "tensor_split", "diagonal", "unfold", "as_strided"),
    *("contiguous", "to", "type", "float", "double", "bfloat16", "identity", "dropout", "dropout2d", "channelshuffle"),
    *("dropout1d", "dropout3d", "alphadropout", "alpha_dropout", "featurealphadropout", "feature_alpha_dropout"),
    *("type_as", "broadcast_to", "moveaxis", "hsplit", "vsplit", "dsplit", "adjoint", "pos", "positive"),
}
"""What may give its input's own memory: names of functions and methods, and of modules in lower case."""


def redirect_readers(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> dict[fx.Node, set[fx.Node]]:
    """What reads a tensor after it was written to reads the writer's result.

    Args:
        graph: with ``meta["shape"]`` (None but of a tensor), ``meta["tensors"]`` (whether the value has any in it) and
            ``meta["form"]`` (whether it is a number or a shape) of each node.
        modules: the model's, by name.

    Returns:
        For each writer the nodes that read the tensor, or a view of it, before.

    Raises:
        UnfaithfulError: a view of it, made before, is read after; or it is the caller's, or the module's.
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    aliases: dict[fx.Node, set[fx.Node]] = {}  # of each node: all that may share its memory
    readers: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        if node.target in ASSIGNMENTS and node.all_input_nodes[0].meta["shape"] is None:
            node.target = _without_assignment(node.target)  # code made of a graph assigns to the number's own name
        writes = writes_in_place(node, modules)
        source = _written(node) if writes else next(iter(node.all_input_nodes), None)
        if source is None:
            continue
        if writes:
            family = aliases.get(source, {source})
            _refuse_foreign(family)
            views = {user for alias in family - {source} for user in alias.users}
            if any(order[user] > order[node] and not user.meta["form"] for user in views):
                raise UnfaithfulError("its forward writes to a tensor that it also reads through a view")
            later = {user for user in source.users if order[user] > order[node]}
            source.replace_all_uses_with(node, delete_user_cb=later.__contains__)
            readers[node] = {user for user in (*views, *source.users) if order[user] < order[node]}
        if writes or (is_view(node, modules) and node.meta["tensors"]):
            family = aliases.setdefault(source, {source})
            family.add(node)
            aliases[node] = family
    return readers


def _without_assignment(assignment: Any) -> Any:
    return getattr(operator, f"__{assignment.__name__[1:]}__")


def _written(node: fx.Node) -> fx.Node:
    found = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(found, fx.Node) or node.kwargs.get("out") is not None:
        raise UnfaithfulError("its forward writes to several tensors at once, or to one that it gives as out")
    return found


def _refuse_foreign(family: AbstractSet[fx.Node]) -> None:
    if any(member.op == "placeholder" for member in family):
        raise UnfaithfulError("its forward writes to a tensor that it was given")
    if any(member.op == "get_attr" for member in family):
        raise UnfaithfulError("its forward writes to a buffer or parameter")


def sort(graph: fx.Graph, readers: Mapping[fx.Node, AbstractSet[fx.Node]]) -> None:
    """Puts the nodes in an order in which they can run, as near to that of the forward as can be.

    Args:
        graph: sorted afterwards.
        readers: for each node that writes in place, those that must run before it.

    Raises:
        UnfaithfulError: there is no such order.
    """
    nodes = list(graph.nodes)
    place = {node: position for position, node in enumerate(nodes)}
    sorter = TopologicalSorter({node: {*node.all_input_nodes, *readers.get(node, ())} for node in nodes})
    try:
        sorter.prepare()
    except CycleError:
        raise UnfaithfulError("its forward reads a tensor for a region and then writes to it") from None
    ready, ordered = list[int](), list[fx.Node]()
    while sorter.is_active():
        for node in sorter.get_ready():
            heappush(ready, place[node])
        ordered.append(nodes[heappop(ready)])
        sorter.done(ordered[-1])
    *body, output = ordered
    for node in body:
        output.prepend(node)


def writes_in_place(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node changes a tensor that it is given, its first input."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op == "call_method":
        return _ends_in_place(str(node.target)) or node.target in SPECIAL
    if node.op == "call_function":
        last = INPLACE_POSITION.get(node.target)
        given = node.args[last] if last is not None and len(node.args) > last else node.kwargs.get("inplace", False)
        flagged = bool(given) or node.kwargs.get("out") is not None
        return flagged or node.target in ASSIGNMENTS or _named_in_place(node.target)
    return False


def is_view(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node may give its first input's own memory."""
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__.lower() in VIEWS
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.rstrip("_") in VIEWS


def _named_in_place(function: Any) -> bool:
    keyword = getattr(function, "__module__", "") == "_operator"  # and_, or_ and not_ are named for what they are not
    return not keyword and _ends_in_place(getattr(function, "__name__", ""))


def _ends_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")
