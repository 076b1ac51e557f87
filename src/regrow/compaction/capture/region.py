"""A program bound to the modules that own its weights, run by the engine or, without one, by torch."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regrow.compaction.capture.forward_reads import aside, watching
from regrow.compaction.compact_weight import dense_weight, own_weight
from regrow.compaction.execution import Execution, compact_weight
from regrow.compaction.reference import interpret
from regrow.compaction.refused_tools import check_runs_for_itself
from regrow.engine import native
from regrow.engine.program import Program

SWITCH = "REGROW_COMPACT"
"""Environment variable: "engine" runs every layer that can be compact on the engine, "torch" none; by default ("auto")
the layers for which the engine is measured to be faster on this machine."""


def wanted() -> str:
    """What the environment variable says.

    Raises:
        ValueError: neither of the three words.
    """
    found = os.environ.get(SWITCH, "auto")
    if found not in ("auto", "engine", "torch"):
        raise ValueError(f"the environment variable {SWITCH} is {found!r}; expected 'auto', 'engine' or 'torch'")
    return found


class Region(nn.Module):
    """Runs a program. The modules are not registered as children: they belong to the model.

    Args:
        program: what to compute.
        layers: convolutions and linear layers, compact or dense, in the order of the program's weights.
        offsets: those of them whose biases the program adds, in the order of its biases.
        norms: batch normalisations in the order of the program's.
        mode: whether normalisations use batch statistics and dropout drops.

    Attributes:
        refusal: why torch runs the region and not the engine, after the first call; None where the engine does.
    """

    def __init__(
        self,
        program: Program,
        layers: Sequence[nn.Module],
        offsets: Sequence[nn.Module] = (),
        norms: Sequence[nn.Module] = (),
        mode: bool = False,
    ) -> None:
        super().__init__()
        self.program = program
        self.mode = mode
        self.members: tuple[Sequence[Any], Sequence[Any], Sequence[Any]] = (layers, offsets, norms)
        self.refusal: str | None = None
        self._executions: dict[tuple[torch.dtype, torch.dtype], Execution | None] = {}

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        outputs = self.run(inputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs, as a tuple."""
        if not watching():
            return self._run(inputs)
        with aside():
            return self._run(inputs)

    def _run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        check_runs_for_itself()
        layers, offsets, norms = self.members
        if self.mode and norms:
            torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
        execution = self.execution()
        if execution is not None and all(x.is_cpu and len(x) and _taken(x, layers[0].weight) for x in inputs):
            return execution(inputs)
        weights = [
            dense_weight(layer.weight, layer.compact) if compact_weight(layer) else layer.weight for layer in layers
        ]
        return interpret(self.program, inputs, weights, [layer.bias for layer in offsets], norms, self.mode)

    @property
    def runner(self) -> str:
        """What runs the region, as far as a call has shown."""
        types = [str(dtype).removeprefix("torch.") for (_, dtype), made in self._executions.items() if made]
        if types:
            return f"engine ({native.instruction_set()}, {', '.join(types)})"
        return "not run yet" if self.refusal is None else f"torch, weights scattered: {self.refusal}"

    def execution(self) -> Execution | None:
        """What runs the region on the engine; None where torch runs it."""
        weight, *_ = map(own_weight, self.members[0])
        if not weight.is_cpu:
            return None
        dtypes = weight.dtype, activations(weight)
        if dtypes not in self._executions:
            self._executions[dtypes] = self._plan(*dtypes)
        return self._executions[dtypes]

    def _plan(self, weights: torch.dtype, activations: torch.dtype) -> Execution | None:
        self.refusal = native.unavailable_reason()
        if wanted() == "torch":
            self.refusal = f"{SWITCH}=torch"
        elif weights not in (torch.float32, torch.float64):
            self.refusal = f"weights are {weights}, the engine takes torch.float32 and torch.float64"
        if self.refusal is None:
            try:
                return Execution(self.program, *self.members, self.mode, activations)
            except ValueError as error:
                self.refusal = str(error)
        return None


def _taken(x: Tensor, weight: Tensor) -> bool:
    """Whether torch's own layers would take an input of this type; where not, it is they who say so."""
    return x.dtype == weight.dtype or (torch.is_autocast_enabled("cpu") and x.dtype in _CAST)


_CAST = (torch.float32, torch.bfloat16, torch.float16)
"""What autocast converts."""


def activations(weight: Tensor) -> torch.dtype:
    """What the engine stores activations as: bfloat16 under autocast, else what the weights are."""
    if torch.is_autocast_enabled("cpu") and weight.dtype == torch.float32:
        return torch.get_autocast_dtype("cpu")
    return weight.dtype
