"""Convolution and linear layers whose weight is compact: the user's own modules, given another class in place."""

from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from regrow.compaction import torch_operators
from regrow.compaction.capture.forward_reads import aside
from regrow.compaction.capture.region import Region, activations
from regrow.compaction.capture.weight_readers import weights_read
from regrow.compaction.compact_weight import CompactWeight, dense_weight, gather, own_weight, resize
from regrow.compaction.dense_copies import copied_weight, deepcopy_of
from regrow.compaction.reference import convolution_gradients
from regrow.compaction.refused_tools import REMEDY, check_attribute, check_conversion, check_input
from regrow.engine.program import Convolution, Input, Program
from regrow.tied_weights import identity, overlapping

MOST_PLANS = 16
SHARED = "its weight is shared with another module"


class CompactLayer(nn.Module):
    """What the two layers share; ``weight`` is the (nnz,) parameter, ``state_dict`` shows it dense."""

    weight: Any
    bias: Any
    compact: CompactWeight
    regions: "dict[tuple[int, ...], Region]"
    number: int
    sample_dims: int

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "regions": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """A compact layer of its own; a dense one where a sparsifier is attached, whose pattern moves on."""
        keeper = self.compact.keeper
        if keeper is None or id(self.weight) in memo:  # its optimizer has been copied before
            return deepcopy_of(self, memo, set(), type(self))
        memo[id(self.weight)] = copied_weight(self.compact)
        memo.update((id(value), self.compact.dense(value, start)) for value, start in keeper.state())
        return deepcopy_of(self, memo, set(CompactLayer.__annotations__) - {"weight", "bias"}, _plain(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch has no types for it
        self.number = torch_operators.register(self)

    def __setattr__(self, name: str, value: Any) -> None:
        check_attribute(name)
        super().__setattr__(name, value)

    def __prepare_scriptable__(self) -> None:
        raise ValueError(f"torch.jit.script has no compact layers: {REMEDY}")

    def _apply(self, fn: Any, recurse: bool = True) -> "CompactLayer":
        if self.compact.keeper is not None:
            check_conversion(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch has no types for it
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        with aside():
            dense = dense_weight(self.weight, self.compact)
        destination[prefix + "weight"] = dense if keep_vars else dense.detach()

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "weight"
        found = state_dict.get(key)
        if isinstance(found, Tensor):
            state_dict = dict(state_dict)
            if tuple(found.shape) != self.compact.shape:
                error_msgs.append(
                    f"size mismatch for {key}: the checkpoint has {tuple(found.shape)}, the compact layer stands for "
                    f"{self.compact.shape}"
                )
                state_dict[key] = self.weight
            else:
                state_dict[key] = self.compact.load(found)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self.compact.values = self.weight  # load_state_dict(assign=True) makes another parameter

    def forward(self, input: Tensor) -> Tensor:
        check_input(input)
        if input.is_meta:
            return torch_operators.output_like(self, input)
        if torch.compiler.is_compiling():
            output: Tensor = torch_operators.layer(
                input, self.weight, self.bias, self.number, torch_operators.cast_to()
            )
            return output
        return self.run(input)

    def run(self, input: Tensor) -> Tensor:
        """The output, with autograd behind it: one sample or many; of a linear layer with any dimensions before."""
        if self.sample_dims == 3 and input.dim() not in (3, 4):
            raise RuntimeError(
                f"expected a 3-D (one image) or 4-D (a batch) input of a convolution, got shape {tuple(input.shape)}"
            )
        flat = input.reshape(-1, *input.shape[-self.sample_dims :])
        (output,) = self._region(flat).run([flat])
        batched = input.dim() == self.sample_dims + 1
        return output if batched else output.reshape(*input.shape[: -self.sample_dims], *output.shape[1:])

    def gradients(self, input: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients of input, values and bias, without autograd, given that of the output."""
        x, incoming = (tensor.reshape(-1, *tensor.shape[-self.sample_dims :]) for tensor in (input, gradient))
        execution = self._region(x).execution()
        if execution is not None:
            of_input, of_values, *of_bias = execution.differentiate([x], [incoming])
            return of_input.reshape(input.shape), of_values, of_bias[0] if of_bias else None
        dense = self.compact.dense(self.weight.detach())
        cast = [tensor.to(activations(dense)) for tensor in (x, dense, incoming)]
        of_input, of_weight, of_offset = convolution_gradients(self.operation(None), *cast)
        of_weight, of_offset = of_weight.to(dense.dtype), of_offset.to(dense.dtype)
        of_values = gather(of_weight, self.compact.indices)
        if self.compact.dense_gradient is not None:
            self.compact.dense_gradient.add(of_weight, of_values)
        return of_input.to(input.dtype).reshape(input.shape), of_values, None if self.bias is None else of_offset

    def _region(self, input: Tensor) -> Region:
        """The layer alone as a region, for samples of this size; made once."""
        channels, height, width = (*input.shape[1:], 1, 1)[:3]
        size = (channels, height, width)
        if size not in self.regions:
            while len(self.regions) >= MOST_PLANS:
                del self.regions[next(iter(self.regions))]
            bias = None if self.bias is None else 0
            program = Program((Input(0, *size), self.operation(bias)), (1,))
            self.regions[size] = Region(program, [self], [] if bias is None else [self])
        return self.regions[size]

    def operation(self, bias: int | None) -> Convolution:
        """What the layer computes from value 0 with weight 0."""
        raise NotImplementedError  # the two kinds below say it


class CompactConv2d(CompactLayer, nn.Conv2d):
    """A two-dimensional convolution without groups."""

    sample_dims = 3

    def operation(self, bias: int | None) -> Convolution:
        """With its stride, padding and dilation."""
        stride, padding, dilation = convolution_geometry(self)
        return Convolution(0, 0, bias, stride, padding, dilation)


class CompactLinear(CompactLayer, nn.Linear):
    """A linear layer."""

    sample_dims = 1

    def operation(self, bias: int | None) -> Convolution:
        """A convolution of one pixel."""
        return Convolution(0, 0, bias)


CLASSES: dict[type[nn.Module], type[CompactLayer]] = {nn.Conv2d: CompactConv2d, nn.Linear: CompactLinear}


def compact_layers(model: nn.Module) -> dict[str, CompactLayer]:
    """A model's compact layers by the name of their weight."""
    return {
        f"{path}.weight" if path else "weight": module
        for path, module in model.named_modules()
        if isinstance(module, CompactLayer)
    }


def convolution_geometry(module: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Stride, padding and dilation, as (height, width) each.

    Raises:
        ValueError: the padding is not the same on both sides.
    """
    stride, dilation, kernel = module.stride, module.dilation, module.kernel_size
    if isinstance(module.padding, str):
        same = module.padding == "same"
        total = [step * (size - 1) if same else 0 for step, size in zip(dilation, kernel, strict=True)]
        if any(amount % 2 for amount in total):
            raise ValueError(f"padding='same' of an even kernel {kernel} pads the two sides unequally")
        padding = [amount // 2 for amount in total]
    else:
        padding = list(module.padding)
    return (stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1])


def obstacle(module: nn.Module) -> str | None:
    """Why a module's weight cannot be compact; None where it can."""
    if type(module) not in CLASSES:
        return f"{type(module).__name__} has no compact form"
    weight = module.weight
    assert isinstance(weight, Tensor)
    if weight.device.type != "cpu":
        return f"on {weight.device.type}; compact layers run on the CPU"
    if weight.dtype not in (torch.float32, torch.float64):
        return f"{weight.dtype} values; compact layers keep float32"
    if isinstance(module, nn.Conv2d):
        if module.groups != 1:
            return "grouped convolution"
        if module.padding_mode != "zeros":
            return f"padding mode {module.padding_mode}"
        try:
            convolution_geometry(module)
        except ValueError as error:
            return str(error)
    return None


def obstacles(model: nn.Module) -> dict[nn.Module, str]:
    """Modules whose weight someone else uses as well, and who: such a weight must stay dense."""
    found = {module: f"{reader} reads its weight" for module, reader in weights_read(model).items()}
    tensors = {
        (module, name): tensor
        for module in model.modules()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }
    first: dict[Hashable, tuple[nn.Module, str]] = {}
    for place, tensor in tensors.items():
        before = first.setdefault(identity(tensor), place)
        if before != place:
            found |= dict.fromkeys((before[0], place[0]), SHARED)
    for pair in overlapping(tensors):
        found |= dict.fromkeys((module for module, _ in pair), SHARED)
    return found


def make_compact(module: nn.Module, mask: Tensor, state: Iterable[Tensor] = ()) -> CompactWeight:
    """Turns a layer into its compact class in place; the parameter stays the same object, of size nnz.

    Args:
        module: a layer without :func:`obstacle`.
        mask: bool, of the weight's shape.
        state: optimizer state with one number a weight; cut down in place.
    """
    assert type(module) in CLASSES, type(module)
    parameter = module.weight
    assert isinstance(parameter, nn.Parameter)
    weight = CompactWeight.from_dense(parameter, mask, state)
    module.__class__ = CLASSES[type(module)]
    assert isinstance(module, CompactLayer)
    module.compact, module.regions, module.number = weight, {}, torch_operators.register(module)
    return weight


def make_dense(module: CompactLayer, state: Iterable[tuple[Tensor, float]] = ()) -> None:
    """The inverse of :func:`make_compact`; dead weights are 0, dead state has its initial value.

    Raises:
        RuntimeError: the layer's weight is no parameter of its own any more.
    """
    weight = own_weight(module)
    if weight is not module.compact.values and weight.shape == module.compact.values.shape:
        resize(weight, module.compact.dense(weight.detach()))  # torch's remove_spectral_norm makes another parameter
    module.compact.to_dense(state)
    del module.compact, module.regions, module.number
    module.__class__ = _plain(module)  # type: ignore[assignment]  # one of the two that CLASSES names


def _plain(module: CompactLayer) -> type[nn.Module]:
    return next(plain for plain, compact in CLASSES.items() if isinstance(module, compact))
