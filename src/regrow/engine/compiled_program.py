"""The compiled engine: runs a program forward and backward with work in proportion to its alive weights.

::

    plan = Plan(program, [SparseWeight((64, 32, 3, 3), indices), ...], norms, dtype=torch.float32)
    outputs, saved = plan.forward(inputs, values, biases, norms, training=True, seed=7)
    gradients = plan.backward(saved, grad_outputs, wanted_inputs=(0,), dense_gradient={2: receive})
    plan.set_pattern(2, new_indices)          # after a topology update

``values[k]`` are the alive weights of layer k in ascending order of their flat row-major positions; gradients come in
the same order. A plan takes any batch size and any number of threads; forward passes may overlap (each ``Saved`` is a
pass of its own) as long as the patterns stay the same between a pass and its backward.

What the engine refuses, it refuses when the plan is made, with ``UnsupportedProgramError`` (a ValueError): run such a
region with ``reference.interpret``. Tensors are float32 (plans of float32 and bfloat16: inputs of another type are
converted) or float64. A plan of bfloat16 stores activations and their gradients in bfloat16, multiplies in bfloat16
where the CPU has the instruction, and sums in float32; values, gradients of values and norms are float32.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from regrow.engine import native
from regrow.engine.fusion import UnsupportedProgramError, fuse
from regrow.engine.lowering import Buffer, Writer, assign_slots, backward_steps, forward_steps, saved_tensors
from regrow.engine.pass_records import Gradients, Saved, SparseWeight
from regrow.engine.program import Convolution, Norm, Program
from regrow.engine.tensor_checks import Borders, NormTensors

__all__ = [
    "Gradients",
    "Norm",
    "Plan",
    "Saved",
    "SparseWeight",
    "UnsupportedProgramError",
]

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float64: "float64"}


LANES = {torch.float32: 16, torch.bfloat16: 32, torch.float64: 8}
"""Images in a line of 64 bytes."""


class Plan:
    """A program, lowered and ready to run.

    Args:
        program: what to compute; each weight, bias and norm is used by one operation.
        weights: shapes and alive positions, in the order of the program's weight numbers.
        norms: batch normalisations in the order of the program's; only ``eps`` and ``momentum`` are read here.
        dtype: of stored activations: float32, bfloat16 or float64.

    Raises:
        UnsupportedProgramError: when the engine cannot run the program.
        RuntimeError: when the engine was not built.
    """

    def __init__(
        self,
        program: Program,
        weights: Sequence[SparseWeight],
        norms: Sequence[Norm] = (),
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        extension = native.extension()
        if dtype not in _DTYPES:
            raise ValueError(f"dtype {dtype}: expected one of {', '.join(map(str, _DTYPES))}")
        self.program, self.dtype = program, dtype
        self.scalar = torch.float64 if dtype == torch.float64 else torch.float32
        self.shapes = [tuple(weight.shape) for weight in weights]
        for number, norm in enumerate(norms):
            if norm.momentum is None:
                raise UnsupportedProgramError(f"batch norm {number} keeps a cumulative average (momentum=None)")
        self._fused = fuse(program, self.shapes)
        read = {node.operation.weight for node in self._fused.nodes if isinstance(node.operation, Convolution)}
        for number in range(len(weights)):
            if number not in read:
                raise UnsupportedProgramError(f"weight {number} is not read by any output")
        self._borders = Borders.of(program, self._fused, self.shapes, self.scalar)
        self._counts = [0] * len(weights)
        self._native = extension.Plan(_DTYPES[dtype])
        self._generation = 0
        self._native.add_program()
        self._add_layers()
        for entry in self._borders.inputs:
            self._native.add_border(entry.channels, entry.height, entry.width)
        for leaving in self._borders.outputs:
            self._native.add_border(leaving.channels, leaving.height, leaving.width)
        steps = forward_steps(self._fused, len(self._borders.inputs))
        saved = saved_tensors(self._fused)
        slots = assign_slots(steps, self._fused.tensors, lambda place: place not in saved)
        try:
            light = assign_slots(steps, self._fused.tensors, lambda place: True)
            self._writer = Writer(self._native, self._fused, norms, slots, light)
            self._writer.write(0, steps, slots)
            for number, weight in enumerate(weights):
                self.set_pattern(number, weight.indices)
        except ValueError as error:
            if isinstance(error, UnsupportedProgramError) or "indices" in str(error):
                raise
            raise UnsupportedProgramError(str(error)) from error
        self._backwards: dict[frozenset[int], tuple[int, dict[int, int]]] = {}

    def _add_layers(self) -> None:
        geometry = {op.weight: op for op in self.program.operations if isinstance(op, Convolution)}
        for number, shape in enumerate(self.shapes):
            if number not in geometry:
                raise UnsupportedProgramError(f"weight {number} is not used by the program")
            op = geometry[number]
            kernel = (shape[2], shape[3]) if len(shape) == 4 else (1, 1)
            self._native.add_layer(shape[0], shape[1], kernel, op.stride, op.padding, op.dilation)

    def set_pattern(self, layer: int, indices: Tensor) -> None:
        """Make ``indices`` the alive positions of the layer's weight.

        Raises:
            ValueError: unless they ascend and lie inside the weight.
        """
        if indices.dim() != 1 or indices.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"indices of layer {layer}: expected one dimension of int32 or int64, "
                f"got {tuple(indices.shape)} of {indices.dtype}"
            )
        indices = indices.detach().to("cpu", torch.int64).contiguous()
        self._native.set_pattern(layer, indices.data_ptr(), indices.numel())
        self._counts[layer] = indices.numel()
        self._generation += 1

    def indices(self, layer: int) -> Tensor:
        """The alive positions of a layer: int64, ascending (rebuilt from the engine's own compressed form)."""
        indices = torch.empty(self._counts[layer], dtype=torch.int64)
        self._native.indices(layer, indices.data_ptr())
        return indices

    def index_bytes(self) -> int:
        """Memory of the index structures of all layers."""
        return sum(self._native.pattern_memory(layer) for layer in range(len(self.shapes)))

    def activation_bytes(self, batch: int, save: bool = True) -> int:
        """Memory of a forward pass's activations, with or without those that backward needs."""
        return int(self._native.arena_bytes(0, batch, save))

    def forward(
        self,
        inputs: Sequence[Tensor],
        values: Sequence[Tensor],
        biases: Sequence[Tensor] = (),
        norms: Sequence[Norm] = (),
        *,
        training: bool = True,
        seed: int = 0,
        save: bool = True,
        dtypes: Sequence[torch.dtype] | None = None,
    ) -> tuple[list[Tensor], Saved | None]:
        """Run the program on a batch.

        Args:
            inputs: (batch, channels, height, width), or (batch, channels) where height = width = 1.
            values: (nnz,) each, the alive weights of each layer.
            biases: (out,) each.
            norms: batch normalisations; in training their running statistics are updated in place.
            training: batch statistics and dropout, or running statistics and none.
            seed: of dropout; the same seed drops the same elements.
            save: keep what backward needs.
            dtypes: of the outputs; by default all have the first input's.

        Returns:
            The outputs (two dimensions after a linear layer or a flattening), and the pass.

        Raises:
            ValueError: when a tensor has not the shape the program expects.
        """
        held, batch = self._borders.incoming(inputs), inputs[0].shape[0]
        values = self._borders.vectors(values, self._counts, "values")
        biases = self._borders.vectors(biases, self._borders.bias_sizes, "biases")
        norm_tensors = self._borders.norms(norms, training, batch)
        outputs = self._borders.outgoing(inputs)
        threads, share = torch.get_num_threads(), batch
        if not save and not training and all(mean is not None for _, _, mean, _ in norm_tensors):
            # Images apart: a line of them through all layers at a time, so that the next layer finds its input in L2.
            share = min(batch, LANES[self.dtype] * threads) if self._borders.has_images else batch
        call = self._call(held + outputs, values, biases, norm_tensors)
        run = self._native.forward(0, batch, share, threads, training, save, seed & (2**63 - 1), call)
        dtypes = [inputs[0].dtype] * len(outputs) if dtypes is None else dtypes
        converted = [output.to(dtype) for output, dtype in zip(outputs, dtypes, strict=True)]
        if not save:
            return converted, None
        return converted, Saved(
            run,
            self._generation,
            values,
            biases,
            norm_tensors,
            tuple(t.shape for t in inputs),
            tuple(t.dtype for t in inputs),
            tuple(t.shape for t in outputs),
        )

    def backward(
        self,
        saved: Saved,
        grad_outputs: Sequence[Tensor | None],
        *,
        wanted_inputs: Sequence[int] | None = None,
        dense_gradient: Mapping[int, Callable[[Tensor, Tensor], None]] | None = None,
    ) -> Gradients:
        """The gradients of a pass.

        Args:
            saved: from ``forward``; it may be used once or more while its patterns and values stay as they were.
            grad_outputs: shaped as the outputs; None counts as zeros.
            wanted_inputs: positions of the inputs whose gradient is wanted; None: all.
            dense_gradient: layer → function that receives that layer's dense weight gradient (its shape, float32) and
                that of its values, in the order of backward, one at a time, so that only one dense one need exist.

        Raises:
            ValueError: when a gradient has not its output's shape, or a pattern was set since the pass.
        """
        sizes = self._counts, self._borders.bias_sizes, self._borders.channels
        if saved.generation != self._generation or saved.resized(*sizes):
            raise ValueError("a pattern was set between the forward pass and its backward: run the forward pass again")
        wanted = frozenset(range(len(self._borders.inputs)) if wanted_inputs is None else wanted_inputs)
        dense_gradient = dense_gradient or {}
        program, layer_steps = self._backward_program(wanted)
        incoming = self._borders.returning(grad_outputs, saved.output_shapes)
        grad_inputs = [
            torch.empty(shape, dtype=self.scalar) if k in wanted else None for k, shape in enumerate(saved.input_shapes)
        ]
        of_norms = [tensor for tensors in saved.norm_tensors for tensor in tensors[:2]]
        found = [None if t is None else torch.empty_like(t) for t in (*saved.values, *saved.biases, *of_norms)]
        first_bias, first_norm = len(saved.values), len(saved.values) + len(saved.biases)
        gradients = Gradients(
            grad_inputs,
            cast(list[Tensor], found[:first_bias]),
            cast(list[Tensor], found[first_bias:first_norm]),
            found[first_norm::2],
            found[first_norm + 1 :: 2],
        )
        call = self._call([*grad_inputs, *incoming], saved.values, saved.biases, saved.norm_tensors)
        call.value_gradients = [v.data_ptr() for v in gradients.values]
        call.bias_gradients = [b.data_ptr() for b in gradients.biases]
        call.norm_gradients = [0 if t is None else t.data_ptr() for t in found[first_norm:]]
        first = 0
        for layer, step in layer_steps.items() if dense_gradient else ():
            if layer not in dense_gradient:
                continue
            self._native.backward(saved.run, program, first, step, call)
            dense = torch.empty(self.shapes[layer], dtype=self.scalar)
            call.dense_gradients = [dense.data_ptr() if k == layer else 0 for k in range(len(self.shapes))]
            self._native.backward(saved.run, program, step, step + 1, call)
            call.dense_gradients = [0] * len(self.shapes)
            dense_gradient[layer](dense, gradients.values[layer])
            first = step + 1
            del dense
        self._native.backward(saved.run, program, first, self._native.steps(program), call)
        gradients.inputs = [
            g if g is None else g.to(dtype) for g, dtype in zip(grad_inputs, saved.input_dtypes, strict=True)
        ]
        return gradients

    def _backward_program(self, wanted: frozenset[int]) -> tuple[int, dict[int, int]]:
        """The native program for these inputs, and the step of each layer in it, in order."""
        if wanted not in self._backwards:
            steps = backward_steps(self._fused, len(self._borders.inputs), wanted)
            slots = assign_slots(steps, self._fused.tensors, lambda place: True if isinstance(place, Buffer) else None)
            program = self._native.add_program()
            self._writer.write(program, steps, slots)
            layers = {
                step.node.operation.weight: number
                for number, step in enumerate(steps)
                if step.node and isinstance(step.node.operation, Convolution)
            }
            self._backwards[wanted] = program, layers
        return self._backwards[wanted]

    def _call(
        self,
        borders: Sequence[Tensor | None],
        values: Sequence[Tensor],
        biases: Sequence[Tensor],
        norms: Sequence[NormTensors],
    ) -> Any:
        call = native.extension().Call()
        call.borders = [0 if t is None else t.data_ptr() for t in borders]
        call.values = [v.data_ptr() for v in values]
        call.biases = [b.data_ptr() for b in biases]
        call.norms = [0 if t is None else t.data_ptr() for tensors in norms for t in tensors]
        call.dense_gradients = [0] * len(self.shapes)
        return call
