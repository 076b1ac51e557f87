"""The hooks on model and optimizer, and the only state of the library."""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from regrow import optimizers, state
from regrow.algorithm import Algorithm, updated_masks
from regrow.flops import Flops, count_flops
from regrow.layers import Layer, unwrap
from regrow.scores import Evidence, Need
from regrow.table import layer_table

_attached: "weakref.WeakSet[Sparsifier]" = weakref.WeakSet()


def attached_sparsifiers() -> "list[Sparsifier]":
    """Those alive and not detached."""
    return list(_attached)


@dataclass(eq=False)
class SparseLayer:
    """What the sparsifier knows of one weight."""

    layer: Layer
    parameter: nn.Parameter
    mask: Tensor
    num_alive: int = 0
    momentum: Tensor | None = None
    alive_steps: int = 0
    counted_until: int = 0

    def __post_init__(self) -> None:
        self.set_mask(self.mask, step=0)

    def set_mask(self, mask: Tensor, step: int) -> None:
        self.count(step)
        self.mask = mask.contiguous()
        self.num_alive = int(mask.sum())
        # Multiplying by bytes is four times as fast as by bools on a CPU, which torch casts one by one.
        self.bits = self.mask.view(torch.uint8)

    def count(self, step: int) -> None:
        """Brings the sum over weight steps of alive weights up to ``step``."""
        self.alive_steps += self.num_alive * (step - self.counted_until)
        self.counted_until = step


@dataclass(eq=False)
class Group:
    """Layers that share one algorithm, and when their next update is due."""

    algorithm: Algorithm
    layers: dict[str, SparseLayer]
    next_update: int | None
    dense_gradients: dict[str, Tensor] = field(default_factory=dict)

    def is_due(self, weight_steps: int) -> bool:
        """Whether the coming call of ``optimizer.step()`` brings an update."""
        return self.next_update is not None and self.moment(weight_steps) >= self.next_update

    def moment(self, weight_steps: int) -> int:
        """The weight step an update at the coming call belongs to: it comes after the step, or in its place."""
        return weight_steps + 1 if self.algorithm.step_on_update else weight_steps

    def wants_dense_gradient(self, weight_steps: int) -> bool:
        needs = self.algorithm.needs
        return Need.DENSE_MOMENTUM in needs or (Need.GRADIENT in needs and self.is_due(weight_steps))


class Sparsifier:
    """Keeps an attached model sparse while it trains; made by :func:`regrow.attach`.

    Attributes:
        weight_steps: weight steps taken so far.
        num_updates: topology updates so far.
        strict: check every invariant after each step.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, groups: Sequence[Group], seed: int, strict: bool) -> None:
        self.model, self.optimizer, self.seed, self.strict = model, optimizer, seed, strict
        self.weight_steps = 0
        self.num_updates = 0
        self._groups = list(groups)
        self._layers = {name: layer for group in groups for name, layer in group.layers.items()}
        self._flops: Flops | None = None
        self._takes_step = False
        for layer in self._layers.values():
            layer.momentum = self._own_momentum(layer)
        self._wants_dense: dict[str, bool] = {}
        self._refresh()
        self._mask_weights()
        self._handles = list(self._register())
        _attached.add(self)

    # What a user reads

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name → bool tensor of the weight's shape, True where alive. Read only."""
        return {name: layer.mask for name, layer in self._layers.items()}

    @property
    def num_alive(self) -> dict[str, int]:
        """Alive weights of each layer."""
        return {name: layer.num_alive for name, layer in self._layers.items()}

    @property
    def densities(self) -> dict[str, float]:
        """Share of alive weights of each layer."""
        return {name: layer.num_alive / layer.layer.size for name, layer in self._layers.items()}

    @property
    def mean_densities(self) -> dict[str, float]:
        """Density of each layer averaged over the weight steps so far, for E[f_s]; the present one before the first."""
        for layer in self._layers.values():
            layer.count(self.weight_steps)
        steps = self.weight_steps
        return {
            name: layer.alive_steps / (steps * layer.layer.size) if steps else layer.num_alive / layer.layer.size
            for name, layer in self._layers.items()
        }

    @property
    def sparsity(self) -> float:
        """Share of zeros among all attached weights."""
        return 1 - sum(self.num_alive.values()) / sum(layer.layer.size for layer in self._layers.values())

    def flops(self, example_input: Any) -> Flops:
        """:func:`regrow.count_flops` with the present masks; from then on the printed table has a FLOP column."""
        self._flops = count_flops(self.model, example_input, self.masks)
        return self._flops

    def __str__(self) -> str:
        due = {name: group.next_update for group in self._groups for name in group.layers}
        names = {name: group.algorithm.name for group in self._groups for name in group.layers}
        layers = {name: layer.layer for name, layer in self._layers.items()}
        return layer_table(layers, self.num_alive, names, due, self._flops, self.weight_steps, self.num_updates)

    def parameter_ids(self) -> set[int]:
        """Identities of the weights it is attached to."""
        return {id(layer.parameter) for layer in self._layers.values()}

    # What a user calls

    def apply_masks(self, model: nn.Module) -> None:
        """Zeroes the dead weights of a copy (an EMA model, a deepcopy), found by parameter name.

        Raises:
            ValueError: the copy lacks a layer, or has it in another shape; nothing is written then.
        """
        parameters = dict(unwrap(model).named_parameters())
        if "n_averaged" in dict(model.named_buffers()):
            parameters = dict(unwrap(model.get_submodule("module")).named_parameters())
        for name, layer in self._layers.items():
            if name not in parameters or parameters[name].shape != layer.mask.shape:
                found = tuple(parameters[name].shape) if name in parameters else "no such parameter"
                raise ValueError(
                    f"the copy does not fit: '{name}' of shape {layer.layer.shape} was expected, found {found}; "
                    "pass a copy of the attached model"
                )
        with torch.no_grad():
            for name, layer in self._layers.items():
                parameters[name].mul_(layer.bits.to(parameters[name].device))

    def detach(self) -> None:
        """Removes every hook; what is left is the plain model, its dead weights at 0."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        _attached.discard(self)

    def state_dict(self) -> dict[str, Any]:
        """Masks (1 bit a weight), counters and own momentum: tensors and plain values, loadable with weights_only."""
        for layer in self._layers.values():
            layer.count(self.weight_steps)
        return {
            "version": state.VERSION,
            "seed": self.seed,
            "weight_steps": self.weight_steps,
            "num_updates": self.num_updates,
            "groups": [
                {"algorithm": group.algorithm.name, "next_update": group.next_update, "layers": list(group.layers)}
                for group in self._groups
            ],
            "layers": {
                name: {
                    "shape": list(layer.layer.shape),
                    "mask": state.pack(layer.mask),
                    "alive_steps": layer.alive_steps,
                    "momentum": None if layer.momentum is None else layer.momentum.clone(),
                }
                for name, layer in self._layers.items()
            },
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Goes on where :meth:`state_dict` was taken; weights and optimizer are loaded by their own methods.

        Raises:
            ValueError: the state is damaged, or of another model, algorithm or version; nothing is changed then.
        """
        groups = [(group.algorithm.name, list(group.layers)) for group in self._groups]
        momenta = {name: layer.momentum for name, layer in self._layers.items()}
        masks = state.check(saved, groups, {name: layer.layer for name, layer in self._layers.items()}, momenta)
        self.seed = saved["seed"]
        self.weight_steps = saved["weight_steps"]
        self.num_updates = saved["num_updates"]
        for group, entry in zip(self._groups, saved["groups"], strict=True):
            group.next_update = entry["next_update"]
        for name, layer in self._layers.items():
            entry = saved["layers"][name]
            layer.set_mask(masks[name].to(layer.parameter.device), self.weight_steps)
            layer.alive_steps = entry["alive_steps"]
            if layer.momentum is not None:
                layer.momentum.copy_(entry["momentum"])
        self._refresh()
        self._mask_weights()

    # Hooks

    def _register(self) -> Iterator[RemovableHandle]:
        yield self.optimizer.register_step_pre_hook(torch.compiler.disable(self._on_step))
        yield self.optimizer.register_step_post_hook(torch.compiler.disable(self._after_step))
        for layer in self._layers.values():
            if layer.parameter.is_leaf:
                yield layer.parameter.register_post_accumulate_grad_hook(self._gradient_masker(layer))

    def _gradient_masker(self, layer: SparseLayer) -> Callable[[Tensor], None]:
        """Masks a gradient as soon as it is there, so that clipping by norm does not see the dead part."""

        def mask_gradient(parameter: Tensor) -> None:
            if not self._wants_dense[layer.layer.name] and parameter.grad is not None:
                parameter.grad.mul_(layer.bits)

        return mask_gradient

    def _on_step(self, optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._before_step()
            return None

        def closure_then_hook() -> Any:
            # The gradient exists only once the closure has run, inside the optimizer's own step.
            loss = closure()
            self._before_step()
            return loss

        return args[:1], {**kwargs, "closure": closure_then_hook}

    @torch.no_grad()
    def _before_step(self) -> None:
        self._takes_step = not optimizers.skips_step(self.optimizer)
        if not self._takes_step:
            return
        for group in self._groups:
            group.dense_gradients = {}
            if group.is_due(self.weight_steps) and Need.GRADIENT in group.algorithm.needs:
                gradients = {name: layer.parameter.grad for name, layer in group.layers.items()}
                present = {name: gradient for name, gradient in gradients.items() if gradient is not None}
                if not all(bool(gradient.isfinite().all()) for gradient in present.values()):
                    continue
                keeps = group.algorithm.step_on_update
                group.dense_gradients = {n: g.clone() if keeps else g for n, g in present.items()}
        replacing = [group for group in self._groups if not group.algorithm.step_on_update]
        updates = [self._update(group) for group in replacing if group.is_due(self.weight_steps)]
        if any(updates):
            self._takes_step = False
            for parameter in optimizers.parameters(self.optimizer):
                parameter.grad = None
            return
        for layer in self._layers.values():
            if layer.parameter.grad is not None:
                self._accumulate_momentum(layer)
        self._multiply((layer.parameter.grad, layer) for layer in self._layers.values())

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        if self._takes_step:
            for group in self._groups:
                if group.algorithm.step_on_update and group.is_due(self.weight_steps):
                    self._update(group)
            self.weight_steps += 1
        if not optimizers.skips_step(self.optimizer):
            self._mask_weights()
        self._refresh()
        if self.strict:
            self._check()

    # The update

    def _update(self, group: Group) -> bool:
        """Gives a group its new masks; False where it must wait for a (finite) gradient."""
        moment, needs_gradient = group.moment(self.weight_steps), Need.GRADIENT in group.algorithm.needs
        frozen = {
            name
            for name, layer in group.layers.items()
            if not layer.parameter.requires_grad or (needs_gradient and name not in group.dense_gradients)
        }
        if len(frozen) == len(group.layers):
            return False
        evidence = {name: self._evidence(layer, group, moment) for name, layer in group.layers.items()}
        for name, mask in updated_masks(group.algorithm, moment, evidence, frozen).items():
            group.layers[name].set_mask(mask, moment)
        group.next_update = group.algorithm.when.following(moment + 1)
        group.dense_gradients = {}
        self.num_updates += 1
        return True

    def _evidence(self, layer: SparseLayer, group: Group, step: int) -> Evidence:
        needs = group.algorithm.needs
        momentum = layer.momentum
        if momentum is None and Need.MOMENTUM in needs:
            momentum = optimizers.momentum(self.optimizer, layer.parameter)
        return Evidence(
            layer=layer.layer,
            alive=layer.mask,
            weight=layer.parameter.detach(),
            gradient=group.dense_gradients.get(layer.layer.name),
            momentum=momentum,
            seed=self.seed,
            step=step,
        )

    def _own_momentum(self, layer: SparseLayer) -> Tensor | None:
        """A buffer for the momentum that a recipe needs and the optimizer does not keep (in that form)."""
        needs = next(group.algorithm.needs for group in self._groups if layer.layer.name in group.layers)
        dense = Need.DENSE_MOMENTUM in needs
        absent = Need.MOMENTUM in needs and optimizers.momentum_factor(self.optimizer, layer.parameter) is None
        return torch.zeros_like(layer.parameter, requires_grad=False) if dense or absent else None

    def _accumulate_momentum(self, layer: SparseLayer) -> None:
        gradient = layer.parameter.grad
        if layer.momentum is None or gradient is None:
            return
        if not self._wants_dense[layer.layer.name]:
            gradient = gradient * layer.bits
        factor = optimizers.momentum_factor(self.optimizer, layer.parameter)
        layer.momentum.mul_(0.9 if factor is None else factor).add_(gradient / optimizers.gradient_scale(self.optimizer))

    # Masking

    def _refresh(self) -> None:
        for group in self._groups:
            dense = group.wants_dense_gradient(self.weight_steps)
            self._wants_dense.update(dict.fromkeys(group.layers, dense))

    def _multiply(self, pairs: Any) -> None:
        """Multiplies tensors by the masks of their layers, in place."""
        pairs = [(tensor, layer.bits) for tensor, layer in pairs if tensor is not None]
        if pairs:
            tensors, bits = zip(*pairs, strict=True)
            torch._foreach_mul_(tensors, bits)

    @torch.no_grad()
    def _mask_weights(self) -> None:
        """Dead weights to 0, and their optimizer state to the value that the optimizer starts it with."""
        pairs: list[tuple[Tensor, SparseLayer]] = []
        for layer in self._layers.values():
            pairs.append((layer.parameter.detach(), layer))
            for value, initial in optimizers.elementwise_state(self.optimizer, layer.parameter):
                if initial == 0:
                    pairs.append((value, layer))
                else:
                    value.masked_fill_(~layer.mask, initial)
            if layer.momentum is not None and not self._wants_dense[layer.layer.name]:
                pairs.append((layer.momentum, layer))
        self._multiply(pairs)

    def _check(self) -> None:
        """The invariants of ``strict=True``."""
        for name, layer in self._layers.items():
            tensors = [(layer.parameter.detach(), 0.0, "weight")]
            tensors += [(value, zero, "state") for value, zero in optimizers.elementwise_state(self.optimizer, layer.parameter)]
            for tensor, expected, what in tensors:
                broken = ((tensor != expected) & ~layer.mask).nonzero()
                if len(broken):
                    where = tuple(broken[0].tolist())
                    raise RuntimeError(
                        f"dead {what} of '{name}' at {where} is {tensor[where].item()}, expected {expected}, after weight "
                        f"step {self.weight_steps}: something other than the optimizer writes to the weights"
                    )
