"""Cuts a module's graph into regions, as large as they get; everything else is left to torch.

A region with a compact layer runs on the engine, its dense layers too. One of dense layers alone does so in training,
where it is timed to be faster (:mod:`regrow.compaction.timings.region_timings`).
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase

from regrow.compaction.capture.forward_reads import leaves
from regrow.compaction.capture.graph_operations import Step, Writer, has_hooks, recognise, shape
from regrow.compaction.capture.in_place_writes import redirect_readers, sort
from regrow.compaction.capture.observed_values import levels, observed
from regrow.compaction.capture.region import Region
from regrow.compaction.capture.tracing import Tracer, UnfaithfulError, trace
from regrow.compaction.capture.value_shapes import propagate
from regrow.compaction.compact_modules import CompactLayer
from regrow.compaction.timings.region_timings import Source, is_faster
from regrow.engine.program import Input, Program


def cut(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    left_to_torch: AbstractSet[nn.Module] = frozenset(),
) -> tuple[fx.GraphModule, list[Region]]:
    """A module's graph with its regions in place of their nodes, for inputs shaped like these.

    Args:
        module: with compact layers inside.
        args: of the call; only shapes, types and what is no tensor are looked at.
        kwargs: of the call.
        left_to_torch: layers that no region takes in.

    Raises:
        Exception: whatever tracing raises, or running the graph on tensors without content.
    """
    graph_module = trace(module, _not_given(module, args, kwargs))
    modules = dict(graph_module.named_modules())
    graph = graph_module.graph
    propagate(graph_module, args, kwargs)
    _flatten_without_asking(graph, modules, module.training)
    graph.eliminate_dead_code(lambda node: not _asks_for_form(node))
    unread = {node for node in graph.nodes if not node.users}  # dense storage computes these too, and calls their hooks
    readers = redirect_readers(graph, modules)
    training = module.training
    steps = {node: recognise(node, modules, training) for node in _behind_output(graph)}
    batched = _of_inputs(graph)  # a parameter has no images, whatever its first dimension
    seen = observed(graph, modules)
    known = {
        node: step
        for node, step in steps.items()
        if step is not None
        and batched.issuperset(step.sources)
        and not (_left(node, modules, left_to_torch) or (step.is_identity and node in seen))
    }
    regions: list[Region] = []
    calls: dict[fx.Node, fx.Node] = {}  # of what a region has taken in: that of the region
    made: dict[fx.Node, fx.Node] = {}  # of what left one: what gives it now
    for nodes in _partitions(graph_module, known, seen):
        draft = _write(nodes, known, training)
        sources = [Source(shape(node) or (), node.meta["differentiable"]) for node in draft.outer]
        compact = any(isinstance(layer, CompactLayer) for layer in draft.region.members[0])
        if compact or (training and is_faster(draft.region, sources)):
            calls |= dict.fromkeys(nodes, _replace(graph_module, nodes, draft, len(regions), made))
            regions.append(draft.region)
    written = readers.keys() - calls.keys()  # a region leaves what it reads as it is
    sort(graph, {node: {calls.get(reader, reader) for reader in readers[node]} for node in written})
    graph.eliminate_dead_code(lambda node: node in unread or node.op in ("placeholder", "call_module"))
    graph_module.recompile()
    return graph_module, regions


def _not_given(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call that keep their defaults, by name.

    Raises:
        UnfaithfulError: a flag or None is given, which a forward may ask for with ``is``, where no graph can follow;
            or an object, which may hold tensors of any shape.
    """
    for value in leaves([*args, *kwargs.values()]):
        if value is None or isinstance(value, bool):
            raise UnfaithfulError("its forward is given None, True or False")
        if not isinstance(value, (Tensor, int, float, str)):
            raise UnfaithfulError(f"its forward is given an object of class {type(value).__name__}")
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    left = [parameter for parameter in parameters[len(args) :] if parameter.name not in kwargs]
    return {parameter.name: parameter.default for parameter in left if parameter.default is not parameter.empty}


def _of_inputs(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose values depend on an input."""
    found = set[fx.Node]()
    for node in graph.nodes:
        if node.op == "placeholder" or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _behind_output(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that the output depends on: any other has no gradient, and its layer none either."""
    found = set[fx.Node]()
    for node in reversed(graph.nodes):
        if node.op == "output" or any(user in found for user in node.users):
            found.add(node)
    return [node for node in graph.nodes if node in found]


def _flatten_without_asking(graph: fx.Graph, modules: Mapping[str, nn.Module], training: bool) -> None:
    """``x.view(x.size(0), -1)`` becomes a flattening: the size would have to leave the region of x, and come back."""
    seen = observed(graph, modules)
    for node in graph.nodes:
        step = recognise(node, modules, training)
        if step is not None and step.is_identity and node in seen:
            continue  # a view of two dimensions is another tensor than what it views; flattened it is the same
        if step is not None and len(step.sources) == 1 < len(node.all_input_nodes):
            node.op, node.target, node.args, node.kwargs = "call_function", torch.flatten, (*step.sources, 1), {}


def _asks_for_form(node: fx.Node) -> bool:
    """Whether a node does nothing but read a shape or reckon with one."""
    builtin = getattr(node.target, "__module__", "") in ("builtins", "_operator")
    return bool(node.meta["form"]) and (node.op == "call_method" or builtin)


def _left(node: fx.Node, modules: Mapping[str, nn.Module], left_to_torch: AbstractSet[nn.Module]) -> bool:
    return node.op == "call_module" and modules[str(node.target)] in left_to_torch


class _Known(OperatorSupportBase):
    def __init__(self, known: Mapping[fx.Node, Step]) -> None:
        self.known = known

    def is_node_supported(self, submodules: Mapping[str, nn.Module], node: fx.Node) -> bool:
        return node in self.known


def _partitions(
    graph_module: fx.GraphModule, known: Mapping[fx.Node, Step], seen: AbstractSet[fx.Node]
) -> Iterator[list[fx.Node]]:
    partitioner = CapabilityBasedPartitioner(graph_module, _Known(known), allows_single_node_partition=True)
    partitions = partitioner.propose_partitions()
    order = list(graph_module.graph.nodes)
    for partition in partitions:
        for level in levels([node for node in order if node in partition.nodes], seen):
            yield from _connected(level)


def _connected(nodes: Sequence[fx.Node]) -> list[list[fx.Node]]:
    """The nodes in groups that no value joins: branches side by side may have other numbers of images."""
    groups: list[list[fx.Node]] = []
    for node in nodes:
        joined = [group for group in groups if any(source in group for source in node.all_input_nodes)]
        groups = [group for group in groups if group not in joined]
        groups.append([*(member for group in joined for member in group), node])
    order = {node: position for position, node in enumerate(nodes)}
    return [sorted(group, key=order.__getitem__) for group in groups]


@dataclass(frozen=True)
class _Draft:
    """The program of some nodes: what it reads, and the numbers that its values have in it."""

    region: Region
    outer: list[fx.Node]
    numbers: dict[fx.Node, int]
    leaving: list[fx.Node]


def _write(nodes: Sequence[fx.Node], known: Mapping[fx.Node, Step], training: bool) -> _Draft:
    """The nodes' program; the graph stays as it is."""
    inside = set(nodes)
    writer, numbers, outer = Writer(), dict[fx.Node, int](), list[fx.Node]()
    for node in nodes:
        for source in known[node].sources:
            if source not in inside and source not in numbers:
                size = shape(source)
                assert size is not None
                channels, height, width = (*size[1:], 1, 1)[:3]
                numbers[source] = writer.add(Input(len(outer), channels, height, width))
                outer.append(source)
    for node in nodes:
        step = known[node]
        numbers[node] = step.write(writer, tuple(numbers[source] for source in step.sources))
    leaving = [node for node in nodes if any(user not in inside for user in node.users)]
    values = sorted({numbers[node] for node in leaving} - {numbers[source] for source in outer})
    program = Program(tuple(writer.operations), tuple(values))
    region = Region(program, writer.layers, writer.offsets, writer.norms, training)
    return _Draft(region, outer, numbers, leaving)


def _replace(
    graph_module: fx.GraphModule, nodes: Sequence[fx.Node], draft: _Draft, number: int, made: dict[fx.Node, fx.Node]
) -> fx.Node:
    """Puts one call of the region in the place of its nodes, and returns it.

    Args:
        graph_module: with the nodes in its graph.
        nodes: to be taken in.
        draft: of the nodes, which may read what is no node of the graph any more.
        number: of the region.
        made: what gives the values that left the regions before; those of this one are added.
    """
    inside, numbers, values = set(nodes), draft.numbers, draft.region.program.outputs
    outer = [made.get(source, source) for source in draft.outer]
    name = f"region{number}"
    graph_module.add_module(name, draft.region)
    graph = graph_module.graph
    with graph.inserting_after(nodes[-1]):
        call = graph.call_module(name, tuple(outer))
    found = {numbers[before]: now for before, now in zip(draft.outer, outer, strict=True)}
    with graph.inserting_after(call):
        for position, value in enumerate(values):
            found[value] = call if len(values) == 1 else graph.call_function(_item, (call, position))
    for node in draft.leaving:
        made[node] = found[numbers[node]]
        node.replace_all_uses_with(made[node], delete_user_cb=lambda user: user not in inside)
    for node in reversed(nodes):
        graph.erase_node(node)
    return call


def _item(values: Sequence[Tensor], position: int) -> Tensor:
    return values[position]


def listened_to(module: nn.Module) -> bool:
    """Whether a module inside, not a leaf of the graph, has hooks, which a traced graph would pass by."""
    tracer = Tracer()
    return any(
        has_hooks(child) and not tracer.is_leaf_module(child, name)
        for name, child in module.named_modules()
        if child is not module
    )
