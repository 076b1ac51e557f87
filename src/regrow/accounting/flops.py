"""Floating-point operations of a forward pass, counted where operators are dispatched, and of a training step."""

import difflib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from regrow.algorithm import Algorithm
from regrow.compaction.convert import dense_copy
from regrow.layers import unwrap
from regrow.parts.scores import Need
from regrow.tied_weights import identity

aten = torch.ops.aten

_NamedWeight = tuple[str, Tensor, Tensor | None]  # name, parameter, mask


@dataclass(frozen=True)
class LayerFlops:
    """FLOPs of the operations that one weight takes part in: all of it, and its alive entries alone."""

    dense: int
    sparse: int


@dataclass(frozen=True)
class Flops:
    """FLOPs of one forward pass: their sum over the weights, and each weight's own by parameter name."""

    dense: int
    sparse: int
    layers: Mapping[str, LayerFlops]


def count_flops(model: nn.Module, example_input: Any, masks: Mapping[str, Tensor] | None = None) -> Flops:
    """FLOPs of the forward pass of ``example_input``: 2 · MACs · density, summed over the layers.

    Convolutions and matrix products with a weight count, whatever module they run in, those with a vector and bilinear
    ones too; products of two activations (attention scores), normalisation, pooling, sums and embeddings are free. A
    tied weight adds up under one name. A tensor computed elementwise from weights alone (a cast, weight normalisation)
    stands for the weight.
    The pass runs in eval mode without autograd, and leaves the model, the RNGs and the input as they were.

    Args:
        model: any module, dense or compact, on any device, ``meta`` too; a wrapper (``torch.compile``, DataParallel,
            DistributedDataParallel) is seen through.
        example_input: a tensor, a tuple of positional arguments or a mapping of keyword arguments. Counts are for
            this input as it is: a batch of one gives FLOPs per sample.
        masks: parameter name → bool tensor of the parameter's shape, True where alive; weights without one are
            dense. The masks are read, never the zeros of the weights.

    Raises:
        ValueError: a mask names no parameter, has another shape or is not bool, or the model has lazy parameters.

    Sundar & Dwaraknath 2021, supplementary, section 2, after Evci et al. 2020.

    >>> count_flops(nn.Linear(8, 4), torch.ones(1, 8)).dense
    64
    """
    model = dense_copy(unwrap(model))
    parameters = list(model.parameters())
    if any(is_lazy(parameter) for parameter in parameters):
        raise ValueError(f"{type(model).__name__} has lazy parameters, still without shape: run one forward pass first")
    on_meta = bool(parameters) and all(parameter.is_meta for parameter in parameters)
    weights = _named_weights(model, masks or {})
    with _undisturbed(model):
        args, kwargs = _arguments(example_input, on_meta=on_meta)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with _FlopCounter(weights, [*parameters, *buffers.values()]) as counter:
            torch.func.functional_call(model, buffers, args, kwargs)
    layers = counter.layers()
    return Flops(
        dense=sum(layer.dense for layer in layers.values()),
        sparse=sum(layer.sparse for layer in layers.values()),
        layers=layers,
    )


def train_flops(algorithm: Algorithm, sparse: float, dense: float) -> float:
    """FLOPs of training, per sample and step, derived from what the algorithm's scores need.

    A step on alive weights costs 3 f_s (forward, gradient of activations, gradient of weights); one that needs the
    dense gradient of the weights 2 f_s + f_d. With dT the interval of the updates:

    - dense gradient at every step: 2 f_s + f_d;
    - at each update, which takes the place of a weight step: (3 dT f_s + 2 f_s + f_d) / (dT + 1);
    - at each update, after a weight step on the same gradient: (3 (dT − 1) f_s + 2 f_s + f_d) / dT;
    - never, or once in the whole training: 3 f_s.

    Args:
        algorithm: the method.
        sparse: f_s, FLOPs of the sparse forward pass of one sample; its mean over training where it varies.
        dense: f_d, FLOPs of the dense one.

    Sundar & Dwaraknath 2021, supplementary, section 2.2, after Evci et al. 2020.
    """
    interval = algorithm.when.interval
    plain, with_dense_gradient = 3 * sparse, 2 * sparse + dense
    if interval is None:
        return plain
    if Need.DENSE_MOMENTUM in algorithm.needs:
        return with_dense_gradient
    if Need.GRADIENT not in algorithm.needs:
        return plain
    plain_steps = interval - 1 if algorithm.step_on_update else interval
    return (plain_steps * plain + with_dense_gradient) / (plain_steps + 1)


# Position of the first of an operation's two factors. With fused kernels off, every layer's work comes down to these.
_FACTORS = {aten.mm: 0, aten.bmm: 0, aten.convolution: 0, aten.addmm: 1, aten.baddbmm: 1}
_FACTORS |= {aten.mv: 0, aten.addmv: 1, aten._trilinear: 0}
_WITH_VECTORS = (aten.mv, aten.addmv)  # of weights and buffers alone they estimate a norm (spectral normalisation)
_COPIES = (aten._to_copy, aten._weight_norm_interface)


def _cost(operation: Any, args: tuple[Any, ...], output: Tensor) -> int:
    """2 · MACs of a convolution or a matrix product."""
    if operation is aten.convolution:
        images, kernels, transposed = args[0], args[1], args[6]
        positions = (images if transposed else output).shape[2:]
        return 2 * int(images.shape[0]) * prod(positions) * int(kernels.numel())
    if operation is aten._trilinear:  # of nn.Bilinear: each weight is multiplied once a sample
        return 2 * int(args[0].shape[0]) * int(args[1].numel())
    left = args[_FACTORS[operation]]
    return 2 * output.numel() * int(left.shape[-1])


@dataclass(frozen=True)
class _View:
    """Which entries of a storage a tensor sees, and in what shape."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> "_View":
        return cls(tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset()))

    @property
    def extent(self) -> int:
        """Entries from the first to the last that it sees, both included."""
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    def sees(self, entry: int) -> bool:
        """Whether it sees this entry of the storage, or only others before and after (columns of one matrix)."""
        rest = entry - self.offset
        for stride, size in sorted(zip(self.strides, self.shape, strict=True), reverse=True):
            rest -= min(rest // stride, size - 1) * stride if stride else 0
        return rest == 0


@dataclass(frozen=True, eq=False)
class _Weight:
    """A weight, or a tensor that stands for one: its place in a storage, and which of its entries are alive."""

    name: str
    place: _View
    alive: Tensor | None
    """1-D bool over the place's extent, laid out as the storage; None: all are alive."""

    @classmethod
    def of(cls, name: str, tensor: Tensor, mask: Tensor | None) -> "_Weight":
        place = _View.of(tensor)
        if mask is None:
            return cls(name, place, None)
        alive = mask.new_zeros(place.extent)
        alive.as_strided(place.shape, place.strides).copy_(mask)
        return cls(name, place, alive)

    def holds(self, view: _View) -> bool:
        return self.place.offset <= view.offset < self.place.offset + self.place.extent

    def mask_of(self, view: _View) -> Tensor | None:
        """The mask of the entries that a view of the weight sees."""
        if self.alive is None:
            return None
        return self.alive.as_strided(view.shape, view.strides, view.offset - self.place.offset)


class _FlopCounter(TorchDispatchMode):
    """Adds up the cost of each operation under the weight that is a factor of it.

    A weight is known by its storage, which views, transposes and chunks share.
    """

    def __init__(self, weights: Iterable[_NamedWeight], constants: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self._constants: dict[int, tuple[torch.UntypedStorage, list[_Weight]]] = {}
        self._costs: Counter[tuple[_Weight, _View]] = Counter()
        for constant in constants:
            self._remember(constant)
        for name, parameter, mask in weights:
            self._remember(parameter, _Weight.of(name, parameter, mask))

    def _remember(self, tensor: Tensor, weight: _Weight | None = None) -> None:
        """Know a tensor that does not depend on the input, and hold its storage so that the key stays its own."""
        if tensor.layout is not torch.strided:
            return
        storage = tensor.untyped_storage()
        _, weights = self._constants.setdefault(storage._cdata, (storage, []))
        if weight is not None:
            weights.append(weight)

    def _is_constant(self, tensor: Tensor) -> bool:
        return tensor.layout is torch.strided and tensor.untyped_storage()._cdata in self._constants

    def _find(self, tensor: Tensor) -> tuple[_Weight, _View] | None:
        if not self._is_constant(tensor) or tensor.numel() == 0:
            return None
        view = _View.of(tensor)
        _, weights = self._constants[tensor.untyped_storage()._cdata]
        holders = [weight for weight in weights if weight.holds(view)]
        found = next((weight for weight in holders if weight.place.sees(view.offset)), holders[0] if holders else None)
        return None if found is None else (found, view)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        operation = func.overloadpacket
        if operation not in _FACTORS and func.namespace != "prim":
            with self:  # composite operations arrive whole where autograd is out of the way, as in inference mode
                parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        output = func(*args, **(kwargs or {}))
        estimates_norm = operation in _WITH_VECTORS and all(map(self._is_constant, args[:3]))
        if operation in _FACTORS and not estimates_norm:
            first = _FACTORS[operation]
            # The weight is the second factor wherever both are parameters (learned queries through a linear layer).
            found = self._find(args[first + 1]) or self._find(args[first])
            if found is not None:
                self._costs[found] += _cost(operation, args, output)
        self._follow(func, [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)], output)
        return output

    def _follow(self, func: Any, inputs: list[Tensor], output: Any) -> None:
        """What is computed from constants is one, and stands for the weight that it is an elementwise function of."""
        result = output[0] if isinstance(output, (tuple, list)) and output else output
        if not isinstance(result, Tensor) or not all(map(self._is_constant, inputs)):
            return
        weight = None
        if torch.Tag.pointwise in func.tags or func.overloadpacket in _COPIES:
            same_shape = (self._find(tensor) for tensor in inputs if tensor.shape == result.shape)
            source, view = next(filter(None, same_shape), (None, None))
            if source is not None and view is not None:
                weight = _Weight.of(source.name, result, source.mask_of(view))
        self._remember(result, weight)

    def layers(self) -> dict[str, LayerFlops]:
        """The costs by weight, in the order of first use."""
        layers: dict[str, LayerFlops] = {}
        for (weight, view), cost in self._costs.items():
            mask = weight.mask_of(view)
            # Each entry of the operand is used equally often, so the quotient is exact.
            sparse = cost if mask is None else cost // prod(view.shape) * int(mask.sum())
            before = layers.get(weight.name, LayerFlops(0, 0))
            layers[weight.name] = LayerFlops(before.dense + cost, before.sparse + sparse)
        return layers


def _named_weights(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[_NamedWeight]:
    """Parameters with two or more dimensions and their masks, a tied one under the name of its mask, else the first."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    aliases: dict[Hashable, list[str]] = {}
    for name, parameter in parameters.items():
        aliases.setdefault(identity(parameter), []).append(name)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    for name, mask in masks.items():
        if name not in shapes:
            near = difflib.get_close_matches(name, shapes, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"masks['{name}']: {type(model).__name__} has no parameter of that name{hint}")
        if tuple(mask.shape) != shapes[name] or mask.dtype != torch.bool:
            raise ValueError(
                f"masks['{name}'] is {mask.dtype} of shape {tuple(mask.shape)}; expected torch.bool of the parameter's "
                f"shape {shapes[name]}"
            )
    for names in aliases.values():
        name = next((name for name in names if name in masks), names[0])
        if parameters[name].dim() >= 2:
            yield name, parameters[name], masks.get(name)


def _arguments(example_input: Any, *, on_meta: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: copies, so that a forward pass that writes on its input writes on those."""
    copied = tree_map_only(Tensor, lambda tensor: tensor.to("meta") if on_meta else tensor.clone(), example_input)
    if isinstance(copied, Mapping):
        return (), dict(copied)
    return (copied if type(copied) is tuple else (copied,)), {}


@contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _without_attention_kernels() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode, no autograd, no autocast, no fused kernels; all of that and the RNGs as before at the end."""
    with ExitStack() as stack:
        gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        stack.enter_context(torch.random.fork_rng(devices=gpus))
        stack.enter_context(torch.no_grad())
        for device_type in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(_without_attention_kernels())
        for backend in (torch.backends.mkldnn, torch.backends.cudnn):
            stack.enter_context(_replaced(backend, "enabled", False))
        # Not model.eval(): a module may do more than set the flag there (merge adapters, keep a norm frozen).
        for module in model.modules():
            stack.enter_context(_replaced(module, "training", False))
        yield
