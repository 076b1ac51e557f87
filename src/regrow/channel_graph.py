"""Which channels of a traced net belong together, and which of them hold the same values whatever the input."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SUMS = {"add", "iadd", "add_", "mul", "imul", "mul_"}
SCALINGS = {*SUMS, "sub", "truediv", "div", "clamp"}
RESHAPES = {"flatten", "view", "reshape", "squeeze"}
CHANNELWISE = {
    *("relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh"),
    *("hardtanh", "hardswish", "hardsigmoid", "softplus", "softsign", "logsigmoid", "clamp", "identity"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alphadropout", "featurealphadropout"),
    *("contiguous", "clone", "to", "float"),
    *("neg", "sub", "truediv", "div"),  # of a tensor and a number
}
"""What maps each number by itself: names of functions and methods, and of modules in lower case."""
AVERAGES = {f"{kind}{n}d" for kind in ("avgpool", "avg_pool") for n in (1, 2, 3)}
POSITIONS = {
    f"{kind}{n}d": n
    for kind in (
        *("maxpool", "avgpool", "adaptiveavgpool", "adaptivemaxpool", "zeropad"),
        *("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool"),
    )
    for n in (1, 2, 3)
}
RESIZES = {"upsample", "interpolate", "pad"}
"""What maps each channel by itself along its positions: of these along how many dimensions, of those along any."""


@dataclass(frozen=True)
class Channels:
    """The channels of one tensor: their dimension, the atom of each, and which are the same whatever the input.

    Of these, ``sized`` are those that may be another image or constant for inputs of another size; the others hold one
    number at every position of inputs of every size.
    """

    dim: int
    atoms: list[int]
    fixed: Tensor
    sized: Tensor

    @classmethod
    def varying(cls, dim: int, atoms: list[int]) -> "Channels":
        """All of them depend on the input."""
        none = torch.zeros(len(atoms), dtype=torch.bool)
        return cls(dim, atoms, none, none)


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
        operation = _name(node, self)
        if operation in ("cat", "concat"):
            return self._concatenated(node, sources)
        if operation in SUMS and len(sources) == len(node.all_input_nodes) == 2:
            return self._joined(node, sources)
        if len(sources) != 1:
            return None
        (value,) = (self._values[source] for source in node.all_input_nodes if source in self._values)
        if operation in POSITIONS or operation in RESIZES:
            module = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
            return _along_positions(operation, node, module, value, sources[0], result)
        return _same_channels(operation, node, value, sources[0], result)

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
        return source.sized | _nonzero(self._values[node.all_input_nodes[0]], source)

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
        if _name(node, self).endswith("_") and isinstance(node.args[0], fx.Node):
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
                self._block(self._known[source], f"'{node.target}'" if node.op == "call_module" else _name(node, self))

    def _block(self, source: Channels, operation: str) -> None:
        for atom, fixed in zip(source.atoms, source.fixed.tolist(), strict=True):
            if fixed:
                self.blocked.append((atom, operation))
            else:
                self.needed.append(atom)


def _name(node: fx.Node, interpreter: fx.Interpreter) -> str:
    """The name by which an operation is known."""
    if node.op == "call_module":
        return type(interpreter.fetch_attr(str(node.target))).__name__.lower()
    target: str | Callable[..., Any] = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def is_zero_padded(module: nn.Module) -> bool:
    """Whether a convolution's outputs at the border see zeros that are none of the input's."""
    if not isinstance(module, CONVOLUTIONS) or module.padding_mode != "zeros":
        return False
    return any(module._reversed_padding_repeated_twice)  # also of padding="same"


def _nonzero(value: Tensor, source: Channels) -> Tensor:
    return value.movedim(source.dim, 0).flatten(1).any(dim=1).cpu()


def _along_positions(
    operation: str, node: fx.Node, module: nn.Module | None, value: Tensor, source: Channels, result: Tensor
) -> Channels | None:
    """Channels of what a pool, a padding or a resizing gives, where it does not run along them."""
    dimensions = POSITIONS.get(operation, max(1, value.dim() - 2))
    if source.dim != 1 or value.dim() != dimensions + 2 or result.shape[:2] != value.shape[:2]:
        return None

    def setting(name: str, position: int, default: Any) -> Any:
        if module is not None:
            return getattr(module, name, default)
        return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)

    bordered = torch.zeros_like(source.sized)
    if operation in AVERAGES:
        padding = setting("padding", 3, 0)
        padded = any(padding) if isinstance(padding, (tuple, list)) else bool(padding)
        # A divisor of one's own is wrong for a window that stands over the edge, as ceil_mode lets it.
        if (padded and setting("count_include_pad", 5, True)) or setting("divisor_override", 6, None) is not None:
            bordered = _nonzero(value, source)
    elif "pad" in operation and setting("mode", 2, "constant") == "constant":
        bordered = _nonzero(value, source) if not setting("value", 3, None) else ~bordered
    return Channels(1, source.atoms, source.fixed, source.sized | (source.fixed & bordered))


def _same_channels(operation: str, node: fx.Node, value: Tensor, source: Channels, result: Tensor) -> Channels | None:
    """Channels of what an operation on one tensor gives, where it keeps them apart."""
    if operation in SCALINGS and len(node.all_input_nodes) > 1:  # with a number that is taken from the input's shape
        return None
    if operation in CHANNELWISE | SUMS:
        kept = result.shape[:2] == value.shape[:2] if source.dim == 1 else result.shape == value.shape
        return source if kept else None
    if operation == "mean" and source.dim == 1:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        listed = [dims] if isinstance(dims, int) else dims
        if not isinstance(listed, (list, tuple)) or not listed or not all(isinstance(d, int) for d in listed):
            return None
        over = {int(d) % value.dim() for d in listed if isinstance(d, int)}
        return source if min(over) > 1 else None
    if operation in RESHAPES and source.dim == 1 and result.shape[0] == value.shape[0]:
        if result.shape == value.shape:
            return source
        if result.dim() == 2 and result.numel() == value.numel():
            times = math.prod(value.shape[2:])
            atoms = [atom for atom in source.atoms for _ in range(times)]
            return Channels(1, atoms, source.fixed.repeat_interleave(times), source.sized.repeat_interleave(times))
    return None
