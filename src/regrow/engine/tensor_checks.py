"""The tensors that cross the border of a plan: what each must look like, checked before an address goes to C++."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from regrow.engine.fusion import Fused, Stored, UnsupportedProgramError
from regrow.engine.program import Add, AveragePool, Convolution, Flatten, Input, MaxPool, Norm, Program

NormTensors = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""Weight, bias, running mean and running variance of a batch normalisation."""


@dataclass(frozen=True)
class Borders:
    """The borders of a program.

    Attributes:
        scalar: dtype of all tensors inside: float32 or float64.
        inputs: in the order of their positions.
        outputs: the stored tensors that leave.
        flattened: for each output, whether it has two dimensions; an Input where it has as many as that input.
        bias_sizes: outputs of each layer that has a bias, in the order of the program's biases.
        norm_sizes: number of a norm → its channels, and pixels of an image in each.
    """

    scalar: torch.dtype
    inputs: tuple[Input, ...]
    outputs: tuple[Stored, ...]
    flattened: tuple[bool | Input, ...]
    bias_sizes: tuple[int, ...]
    norm_sizes: dict[int, tuple[int, int]]

    @classmethod
    def of(cls, program: Program, fused: Fused, shapes: Sequence[tuple[int, ...]], scalar: torch.dtype) -> "Borders":
        """The borders of a program and its fused form, for weights of these dense shapes.

        Raises:
            UnsupportedProgramError: inputs that are not numbered 0, 1, …
        """
        inputs = sorted((op for op in program.operations if isinstance(op, Input)), key=lambda op: op.position)
        if [op.position for op in inputs] != list(range(len(inputs))):
            raise UnsupportedProgramError("inputs must be numbered 0, 1, ... and appear once each")
        biases = {
            op.bias: shapes[op.weight][0]
            for op in program.operations
            if isinstance(op, Convolution) and op.bias is not None
        }
        views = [node.view for node in fused.nodes if node.view] + fused.outputs
        terms = [(term, fused.tensors[term.tensor]) for view in views for term in view.terms]
        return cls(
            scalar,
            tuple(inputs),
            tuple(fused.tensors[view.terms[0].tensor] for view in fused.outputs),
            tuple(_flattened(program, number) for number in program.outputs),
            tuple(biases.get(number, 0) for number in range(1 + max(biases, default=-1))),
            {term.norm: (at.channels, at.height * at.width) for term, at in terms if term.norm is not None},
        )

    @cached_property  # asked for at every backward
    def channels(self) -> list[int]:
        """Those of each norm."""
        return [self.norm_sizes[number][0] for number in range(len(self.norm_sizes))]

    @property
    def has_images(self) -> bool:
        """Whether an input has more than one pixel."""
        return any(op.height * op.width > 1 for op in self.inputs)

    def incoming(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The inputs as the engine reads them. Raises ValueError for a wrong number or shape."""
        if len(tensors) != len(self.inputs):
            raise ValueError(f"expected {len(self.inputs)} inputs and got {len(tensors)}")
        batch = tensors[0].shape[0]
        for number, (tensor, op) in enumerate(zip(tensors, self.inputs, strict=True)):
            shape = (batch, op.channels, op.height, op.width)
            if tuple(tensor.shape) != shape and not (op.height == op.width == 1 and tuple(tensor.shape) == shape[:2]):
                raise ValueError(f"input {number}: expected shape {shape}, got {tuple(tensor.shape)}")
        return [self._readable(tensor) for tensor in tensors]

    def _readable(self, tensor: Tensor) -> Tensor:
        if tensor.dtype == self.scalar and tensor.is_contiguous():
            return tensor  # C++ reads its memory; autograd's records are none of its business
        return tensor.detach().to(self.scalar).contiguous()

    def outgoing(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Empty outputs for these inputs."""
        batch, found = inputs[0].shape[0], []
        for at, flattened in zip(self.outputs, self.flattened, strict=True):
            two = inputs[flattened.position].dim() == 2 if isinstance(flattened, Input) else flattened
            shape = (batch, at.channels) if two else (batch, at.channels, at.height, at.width)
            found.append(torch.empty(shape, dtype=self.scalar))
        return found

    def returning(self, gradients: Sequence[Tensor | None], shapes: Sequence[torch.Size]) -> list[Tensor]:
        """Gradients of the outputs as the engine reads them; None counts as zeros. Raises ValueError for a shape."""
        found = []
        for gradient, shape in zip(gradients, shapes, strict=True):
            if gradient is None:
                gradient = torch.zeros(shape, dtype=self.scalar)
            if gradient.shape != shape:
                raise ValueError(f"gradient of an output of shape {tuple(shape)}: got shape {tuple(gradient.shape)}")
            found.append(self._readable(gradient))
        return found

    def vectors(self, tensors: Sequence[Tensor], sizes: Sequence[int], what: str) -> list[Tensor]:
        """Values or biases, each of one dimension and its size. Raises ValueError for any other."""
        if len(tensors) != len(sizes):
            raise ValueError(f"expected {len(sizes)} {what} and got {len(tensors)}")
        for number, (tensor, size) in enumerate(zip(tensors, sizes, strict=True)):
            if tensor.dim() != 1 or tensor.numel() != size:
                raise ValueError(
                    f"{what}[{number}]: expected shape ({size},), got {tuple(tensor.shape)} (compact layers hold alive "
                    "values alone: dense weights are loaded by load_state_dict, which knows their places)"
                )
            if tensor.dtype != self.scalar:
                raise ValueError(f"{what}[{number}]: expected {self.scalar}, got {tensor.dtype}")
        return [tensor if tensor.is_contiguous() else tensor.contiguous() for tensor in tensors]

    def norms(self, norms: Sequence[Norm], training: bool, batch: int) -> list[NormTensors]:
        """What the norms hold at the moment. Raises ValueError for shapes, and for one value a channel in training."""
        found = [_tensors_of(norm) for norm in norms]
        for number, (channels, pixels) in self.norm_sizes.items():
            tensors = found[number]
            for tensor in tensors:
                if tensor is not None and (
                    tensor.numel() != channels
                    or tensor.dim() != 1
                    or tensor.dtype != self.scalar
                    or not tensor.is_contiguous()
                ):
                    raise ValueError(
                        f"norm {number}: expected weight, bias, running_mean and running_var of shape ({channels},) "
                        f"and {self.scalar}, got shape {tuple(tensor.shape)} and {tensor.dtype}"
                    )
            if (training or tensors[2] is None) and batch * pixels == 1:
                raise ValueError(f"norm {number}: expected more than one value a channel in training, got one")
        return found


def _tensors_of(norm: Norm) -> NormTensors:
    own = norm.__dict__
    if "_parameters" in own:  # a module: each attribute by name costs most of a microsecond, at every call
        parameters, buffers = own["_parameters"], own["_buffers"]
        return parameters["weight"], parameters["bias"], buffers["running_mean"], buffers["running_var"]
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


def _flattened(program: Program, number: int) -> bool | Input:
    operation = program.operations[number]
    match operation:
        case Input():
            return operation
        case AveragePool() | MaxPool():
            return False
        case Flatten():
            return True
        case Add(left, _):
            return _flattened(program, left)
    return _flattened(program, operation.source)
