"""Which channels of a traced net belong together, and which of them hold the same values whatever the input."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from regrow.channel_removal.channel_operations import (
    CONVOLUTIONS,
    POSITIONS,
    RESIZES,
    SUMS,
    Channels,
    along_positions,
    is_zero_padded,
    name_of,
    nonzero,
    same_channels,
)


@dataclass(frozen=True)
class Use:
    """One call of a module with channels: the atoms that index its inputs and its outputs (None: not followed)."""

    name: str
    inputs: Channels | None
    outputs: list[int]
    example: Tensor | None = None
    """Input of a module that mixes channels, for one sample."""


@dataclass
class Atoms:
    """A union-find over channels: two that must be kept or removed together share a root."""

    parents: list[int] = field(default_factory=list)

    def new(self, number: int) -> list[int]:
        first = len(self.parents)
        self.parents.extend(range(first, first + number))
        return list(range(first, first + number))

    def root(self, atom: int) -> int:
        while self.parents[atom] != atom:
            self.parents[atom] = self.parents[self.parents[atom]]
            atom = self.parents[atom]
        return atom

    def join(self, one: Sequence[int], other: Sequence[int]) -> None:
        for a, b in zip(one, other, strict=True):
            self.parents[self.root(a)] = self.root(b)


class ChannelGraph(fx.Interpreter):
    """Runs a traced net on an example, and follows the channels of every tensor through it.

    Args:
        graph_module: of a net in eval mode.
        alive: parameter name → bool tensor, False where a weight is dead.
    """

    def __init__(self, graph_module: fx.GraphModule, alive: Mapping[str, Tensor]) -> None:
        super().__init__(graph_module)
        self.extra_traceback = False  # torch's lines about the node, after the one that people are told
        self.alive = alive
        self.atoms = Atoms()
        self.uses: list[Use] = []
        self.pinned: list[int] = []
        self.blocked: list[tuple[int, str]] = []
        """Fixed channels that go into an operation which is not known."""
        self.needed: list[int] = []
        """Channels that are read while their values depend on the input."""
        self._known: dict[fx.Node, Channels] = {}
        self._values: dict[fx.Node, Tensor] = {}
        self._calls = Counter(node.target for node in graph_module.graph.nodes if node.op == "call_module")
        owners = Counter(id(p) for _, p in graph_module.named_parameters(remove_duplicate=False))
        self._shared = {identity for identity, number in owners.items() if number > 1}

    def run_node(self, n: fx.Node) -> Any:
        """Runs it, and notes the channels of what it gives."""
        example = self._example(n)
        result = super().run_node(n)
        if n.op == "output":
            for source in n.all_input_nodes:
                self.pinned += self._known[source].atoms if source in self._known else []
        elif isinstance(result, Tensor):
            self._values[n] = result
            self._known[n] = self._follow(n, result, example) or self._unknown(n, result)
        elif any(isinstance(part, Tensor) for part in pytree.tree_leaves(result)):
            self._keep_sources(n)  # chunk, max with indices, a GRU: what is taken out of them is not followed
        return result

    def removable(self) -> set[int]:
        """Roots of the channels that no one reads but while they are fixed; at least one stays in each layer.

        Raises:
            ValueError: some could be removed but for an operation that is not known.
        """
        root = self.atoms.root
        kept = {root(atom) for atom in (*self.pinned, *self.needed)}
        for atom, operation in self.blocked:
            if root(atom) not in kept:
                raise ValueError(
                    f"dead channels reach {operation}, and what it does with channels is not known: leave the layers "
                    "before it out of the masks, or write it with what is followed (Conv1d/2d/3d, Linear and "
                    "BatchNorm, each called once, activations, pools, sums, concatenation, flatten)"
                )
        everyone = {root(atom) for atom in range(len(self.atoms.parents))}
        # A layer cannot be left without channels; one kept for its sake stays in others too, so look until none is.
        while True:
            empty = next((atoms for atoms in self._layers() if not any(root(atom) in kept for atom in atoms)), None)
            if empty is None:
                return everyone - kept
            kept.add(root(empty[0]))

    def _layers(self) -> Iterator[list[int]]:
        for use in self.uses:
            yield use.outputs
            if use.inputs is not None:
                yield use.inputs.atoms

    # What each operation does with channels

    def _example(self, node: fx.Node) -> Tensor | None:
        """A copy of the first sample of the input: an operation may write on it."""
        if node.op != "call_module" or not node.all_input_nodes:
            return None
        value = self._values.get(node.all_input_nodes[0])
        return value[:1].clone() if value is not None and value.dim() > 0 else None

    def _follow(self, node: fx.Node, result: Tensor, example: Tensor | None) -> Channels | None:
        sources = [self._known[source] for source in node.all_input_nodes if source in self._known]
        if node.op == "call_module":
            module = self.fetch_attr(str(node.target))
            if isinstance(module, (*CONVOLUTIONS, nn.Linear, _BatchNorm)):
                return self._parametrised(node, module, sources, example) if len(sources) == 1 else None
        if not sources or any(parameter is not None for parameter in self._parameters(node)):
            return None
        operation = name_of(node, self)
        if operation in ("cat", "concat"):
            return self._concatenated(node, sources)
        if operation in SUMS and len(sources) == len(node.all_input_nodes) == 2:
            return self._joined(node, sources)
        if len(sources) != 1:
            return None
        (value,) = (self._values[source] for source in node.all_input_nodes if source in self._values)
        if operation in POSITIONS or operation in RESIZES:
            module = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
            return along_positions(operation, node, module, value, sources[0], result)
        return same_channels(operation, node, value, sources[0], result)

    def _parametrised(
        self, node: fx.Node, module: nn.Module, sources: list[Channels], example: Tensor | None
    ) -> Channels | None:
        name, (source,) = str(node.target), sources
        whole = all(id(parameter) not in self._shared for parameter in module.parameters(recurse=False))
        computed = hasattr(module, "parametrizations") or "weight" not in module._parameters
        if not whole or self._calls[node.target] > 1 or computed:
            return None
        shape = tuple(self._values[node.all_input_nodes[0]].shape)
        if len(shape) < (module.weight.dim() if isinstance(module, CONVOLUTIONS) else 2):
            raise ValueError(
                f"'{name}' is given a tensor of shape {shape}, without a batch dimension: make the example_input with "
                "one, such as example_input.unsqueeze(0)"
            )
        if isinstance(module, _BatchNorm):
            if source.dim != 1:
                return None
            self.uses.append(Use(name, source, source.atoms))
            return source
        assert isinstance(module, (*CONVOLUTIONS, nn.Linear))
        if isinstance(module, nn.Linear):
            dim = self._values[node.all_input_nodes[0]].dim() - 1
        else:
            dim = 1
            if module.groups > 1:
                return self._grouped(node, module, source)
        alive = self.alive.get(f"{name}.weight", torch.ones_like(module.weight, dtype=torch.bool)).transpose(0, 1)
        read = alive.flatten(1).any(dim=1).cpu()
        followed = source.dim == dim and len(source.atoms) == len(read)
        if not followed:
            self._block(source, f"'{name}' along another dimension")
            none = torch.zeros(len(read), dtype=torch.bool)
            source = Channels(dim, [], none, none)
        inner = alive.transpose(0, 1).flatten(2) if alive.dim() > 2 else alive.transpose(0, 1).unsqueeze(2)
        reads = inner.any(dim=2).cpu()
        fixed = ~(reads & ~source.fixed).any(dim=1)
        self.needed += [a for a, r, f in zip(source.atoms, read, source.fixed, strict=followed) if r and not f]
        sized = (reads & (self._sized_within(node, module, source) if followed else source.sized)).any(dim=1)
        outputs = self.atoms.new(len(fixed))
        self.uses.append(Use(name, source if followed else None, outputs, example))
        return Channels(dim, outputs, fixed, fixed & sized)

    def _grouped(self, node: fx.Node, module: nn.Module, source: Channels) -> Channels | None:
        """Depthwise: input and outputs of a group live together. Other groups keep all their channels."""
        assert isinstance(module, CONVOLUTIONS)
        if source.dim != 1:
            return None
        name, times = str(node.target), module.out_channels // module.in_channels
        if module.groups != module.in_channels:
            self.pinned += source.atoms
            outputs = self.atoms.new(module.out_channels)
            self.pinned += outputs
            return Channels.varying(1, outputs)
        dead = torch.zeros(module.out_channels, dtype=torch.bool)
        if f"{name}.weight" in self.alive:
            dead = ~self.alive[f"{name}.weight"].flatten(1).any(dim=1).cpu()
        outputs = [atom for atom in source.atoms for _ in range(times)]
        self.uses.append(Use(name, source, outputs))
        sized = self._sized_within(node, module, source).repeat_interleave(times)
        return Channels(1, outputs, dead | source.fixed.repeat_interleave(times), ~dead & sized)

    def _sized_within(self, node: fx.Node, module: nn.Module, source: Channels) -> Tensor:
        """Channels that a layer sees as an image of the input's size: those that were one, and those that it pads."""
        if not is_zero_padded(module):
            return source.sized
        return source.sized | nonzero(self._values[node.all_input_nodes[0]], source)

    def _concatenated(self, node: fx.Node, sources: list[Channels]) -> Channels | None:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        parts = node.args[0] if node.args else node.kwargs.get("tensors")
        if not isinstance(parts, (list, tuple)) or not isinstance(dim, int):
            return None
        found = [self._known[part] for part in parts if isinstance(part, fx.Node) and part in self._known]
        rank = self._values[node.all_input_nodes[0]].dim()
        if len(found) != len(parts) or any(source.dim != dim % rank for source in found):
            return None
        atoms = [atom for source in found for atom in source.atoms]
        fixed, sized = (torch.cat([getattr(source, which) for source in found]) for which in ("fixed", "sized"))
        return Channels(dim % rank, atoms, fixed, sized)

    def _joined(self, node: fx.Node, sources: list[Channels]) -> Channels | None:
        one, other = (self._values[source] for source in node.all_input_nodes if source in self._values)
        first, second = sources
        if one.dim() != other.dim() or first.dim != second.dim or len(first.atoms) != len(second.atoms):
            return None
        self.atoms.join(first.atoms, second.atoms)
        joined = Channels(first.dim, first.atoms, first.fixed & second.fixed, first.sized | second.sized)
        if name_of(node, self).endswith("_") and isinstance(node.args[0], fx.Node):
            self._known[node.args[0]] = joined  # the sum was written onto the first term
        return joined

    def _parameters(self, node: fx.Node) -> list[Tensor | None]:
        if node.op != "call_module":
            return []
        return list(self.fetch_attr(str(node.target)).parameters())

    def _unknown(self, node: fx.Node, result: Tensor) -> Channels:
        """Keeps all channels on both sides."""
        self._keep_sources(node)
        atoms = self.atoms.new(result.shape[1] if result.dim() > 1 else 0)
        self.pinned += atoms
        return Channels.varying(1, atoms)

    def _keep_sources(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            if source in self._known:
                self._block(
                    self._known[source], f"'{node.target}'" if node.op == "call_module" else name_of(node, self)
                )

    def _block(self, source: Channels, operation: str) -> None:
        for atom, fixed in zip(source.atoms, source.fixed.tolist(), strict=True):
            if fixed:
                self.blocked.append((atom, operation))
            else:
                self.needed.append(atom)
