"""A region on the engine: one node of autograd, whose plan follows the patterns of its layers."""

from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from regrow.compaction.compact_weight import CompactWeight
from regrow.compaction.reference import output_dtypes
from regrow.engine import compiled_program
from regrow.engine.program import Dropout, Program


class Execution:
    """Runs a program on the engine, with the tensors that its modules hold at the moment of the call.

    Args:
        program: what to compute.
        layers: convolutions and linear layers in the order of the program's weights.
        offsets: those whose biases the program adds.
        norms: batch normalisations in the order of the program's.
        mode: whether normalisations use batch statistics and dropout drops.
        dtype: of activations: float32, bfloat16 (autocast: weights are float32) or float64.

    Raises:
        ValueError: the engine cannot run the program.
    """

    def __init__(
        self,
        program: Program,
        layers: Sequence[Any],
        offsets: Sequence[Any],
        norms: Sequence[Any],
        mode: bool,
        dtype: torch.dtype,
    ) -> None:
        self.layers, self.offsets, self.norms, self.mode = layers, offsets, norms, mode
        self.drops = mode and any(isinstance(operation, Dropout) for operation in program.operations)
        self.versions = [_version(layer) for layer in layers]
        weights = [compiled_program.SparseWeight(shape_of(layer), _indices(layer)) for layer in layers]
        self.plan = compiled_program.Plan(program, weights, norms, dtype=dtype)
        self.cast = dtype if dtype == torch.bfloat16 else None
        self._dtypes: dict[tuple[torch.dtype, ...], tuple[torch.dtype, ...]] = {}

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if not torch.is_grad_enabled():
            return tuple(self.forward(inputs, self._parameters(), save=False)[0])
        node: Any = _Node.apply
        outputs: tuple[Tensor, ...] = node(self, len(inputs), *inputs, *self._parameters())
        return outputs

    def differentiate(self, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Any]:
        """Gradients of inputs and parameters in one go, without autograd."""
        _, saved = self.forward(inputs, self._parameters(), save=True)
        return self.backward(saved, gradients, range(len(inputs)))

    def _parameters(self) -> list[Tensor]:
        """Values, biases, weights and biases of norms, as they are at the moment."""
        return [
            *map(_values, self.layers),
            *(layer._parameters["bias"] for layer in self.offsets),
            *(norm._parameters["weight"] for norm in self.norms),
            *(norm._parameters["bias"] for norm in self.norms),
        ]

    def forward(self, inputs: Sequence[Tensor], parameters: Sequence[Tensor], save: bool) -> Any:
        """The engine's outputs, and what its backward needs."""
        self._follow_patterns()
        count = len(self.layers)
        values, biases = parameters[:count], parameters[count : count + len(self.offsets)]
        seed = int(torch.empty((), dtype=torch.int64).random_()) if self.drops else 0
        given = tuple(x.dtype for x in inputs)
        if given not in self._dtypes:
            self._dtypes[given] = output_dtypes(self.plan.program, given, self.cast)
        dtypes = self._dtypes[given]
        return self.plan.forward(
            inputs, values, biases, self.norms, training=self.mode, seed=seed, save=save, dtypes=dtypes
        )

    def backward(
        self, saved: compiled_program.Saved, gradients: Sequence[Tensor | None], wanted: Sequence[int]
    ) -> list[Any]:
        """Gradients of inputs and parameters; dense ones go to the weights that collect them."""
        receivers = {
            number: partial(weight.dense_gradient.add, ours=True)
            for number, layer in enumerate(self.layers)
            if (weight := compact_weight(layer)) is not None and weight.dense_gradient is not None
        }
        found = self.plan.backward(saved, gradients, wanted_inputs=wanted, dense_gradient=receivers)
        return [*found.inputs, *found.values, *found.biases, *found.norm_weights, *found.norm_biases]

    def _follow_patterns(self) -> None:
        for number, layer in enumerate(self.layers):
            version = _version(layer)
            if version != self.versions[number]:
                self.plan.set_pattern(number, _indices(layer))
                self.versions[number] = version


class _Pass(bytearray):
    """A forward pass that lives as long as a tensor: autograd frees what a graph saved once backward has used it."""

    saved: compiled_program.Saved | None

    @classmethod
    def of(cls, saved: compiled_program.Saved | None) -> Tensor:
        """A tensor that keeps the pass alive."""
        number = next(_numbers)
        self = cls(number.to_bytes(8, "little"))
        self.saved = saved
        _passes[number] = self
        return torch.frombuffer(self, dtype=torch.uint8)

    @staticmethod
    def behind(token: Tensor) -> compiled_program.Saved:
        """The pass of a tensor."""
        found = _passes.get(int(token.view(torch.int64)))
        if found is None or found.saved is None:
            raise RuntimeError(
                "torch.autograd.graph.saved_tensors_hooks gave the compact engine another tensor than it had saved: "
                "hooks that hand back the same one will do (save_on_cpu), else set REGROW_COMPACT=torch"
            )
        return found.saved


_numbers = count()
_passes: "WeakValueDictionary[int, _Pass]" = WeakValueDictionary()


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, execution: Execution, num_inputs: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        save = any(ctx.needs_input_grad)
        outputs, saved = execution.forward(tensors[:num_inputs], tensors[num_inputs:], save)
        # The parameters too, so that autograd notices one that changes before its backward.
        ctx.save_for_backward(_Pass.of(saved), *tensors[num_inputs:])
        ctx.execution, ctx.num_inputs = execution, num_inputs
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the compact engine has first derivatives alone: for create_graph=True (gradient penalties, products "
                "with the Hessian) attach with storage='dense', or set the environment variable REGROW_COMPACT=torch"
            )
        wanted = [number for number in range(ctx.num_inputs) if ctx.needs_input_grad[2 + number]]
        saved = _Pass.behind(ctx.saved_tensors[0])
        return None, None, *ctx.execution.backward(saved, gradients, wanted)


def compact_weight(layer: nn.Module) -> CompactWeight | None:
    """A layer's compact weight; None where it is dense."""
    return layer.__dict__.get("compact")


def _values(layer: Any) -> Tensor:
    weight: Tensor = layer._parameters["weight"]
    # Not a view: the weights of a channels_last model lie in another order.
    return weight if "compact" in layer.__dict__ else weight.reshape(-1)


def shape_of(layer: Any) -> tuple[int, ...]:
    """Shape of a layer's dense weight."""
    weight = compact_weight(layer)
    return tuple(layer.weight.shape) if weight is None else weight.shape


def _indices(layer: Any) -> Tensor:
    weight = compact_weight(layer)
    return torch.arange(layer.weight.numel()) if weight is None else weight.indices


def _version(layer: Any) -> tuple[int, int]:
    weight = compact_weight(layer)
    return (0, 0) if weight is None else (id(weight), weight.version)
