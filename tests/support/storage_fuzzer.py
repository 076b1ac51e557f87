"""Random nets, each trained in dense and in compact storage: the two must agree, up to what rounding does to the net.

    REGROW_COMPACT=engine python tests/support/storage_fuzzer.py [--first 0] [--number 2000] [SEED ...]

A net, its loop and its recipe are functions of the seed. Beside the two storages trains the yardstick: the dense net
with weights changed by a relative 3e-16 in float64, and five more (50 more before a difference is reported), in which
the inputs of every layer are changed as well. What the storages differ by counts where it is far
beyond what that changes. At an update masks may part where the scores are as good as equal, or where those of a
yardstick part too; nothing after it is comparable then. Prints a line for each seed that is not simply the same, and
the counts of all outcomes; exits 1 if one differs.
"""

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regrow

UPDATES = 3
YARDSTICKS = (6, 50)
"""So many at first, and so many more before a difference is reported: what is 0 but for rounding shows itself as such
only where a sign happens to change."""
ROUNDED = 1.35
"""So many eps the weights of a yardstick are changed by, in float64 a relative 3e-16."""
SUMMED = 16.0
"""So many eps the inputs of its layers are changed by: what the order of some hundred terms does to their sum."""
FACTOR = 100.0
"""So many times what the yardsticks show is still rounding."""
LOST = 0.01
"""A number that a yardstick changes by so much of it says nothing."""
FLOOR = {torch.float64: 1e-10, torch.float32: 1e-4}
"""A relative difference below it is rounding in any case."""
CANCELLED = 0.1
"""A gradient that is so much smaller than the largest may be 0 but for rounding (a bias before a norm, a norm of what
is the same for the whole batch): its differences are held to this share of the largest."""
AFTER = ("state ", "evaluated")
"""What is seen after an update, and says nothing where its masks part."""


# The net


class Function(nn.Module):
    """A function in a forward."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Residual(nn.Module):
    """x + inner(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Concatenated(nn.Module):
    """x beside inner(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.inner(x)], 1)


class Twice(nn.Module):
    """inner(inner(x))."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.relu(self.inner(x)))


ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    lambda: Function(F.relu),
    nn.Tanh,
    lambda: Function(F.gelu),
    nn.SiLU,
    lambda: Function(lambda x: F.leaky_relu(x, 0.1)),
    lambda: Function(lambda x: 0.5 * x),
    lambda: Function(lambda x: x.clamp(-2, 2)),
    lambda: Function(lambda x: x - x.mean(1, keepdim=True)),
]


def images(draw: random.Random, channels: int, size: int) -> tuple[list[nn.Module], int, int]:
    """Layers on images; channels and size of what they give."""
    layers: list[nn.Module] = []
    for _ in range(draw.randint(1, 4)):
        kind = draw.choice(["plain", "plain", "plain", "residual", "concatenated", "twice", "pool"])
        if kind == "plain":
            kernel, stride, dilation = draw.choice([1, 2, 3, 3, 5]), draw.choice([1, 1, 2]), draw.choice([1, 1, 2])
            padding, out = draw.randint(0, 2), draw.randint(2, 12)
            after = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            groups = draw.choice([g for g in (1, 1, 1, 2, 3) if channels % g == 0 and out % g == 0])
            if after < 1:
                continue
            bias = draw.random() < 0.5
            layers.append(nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias))
            channels, size = out, after
        elif kind == "pool" and size >= 2:
            layers.append(draw.choice([nn.MaxPool2d(2), nn.AvgPool2d(2), Function(lambda x: F.max_pool2d(x, 2))]))
            size //= 2
        elif kind != "pool":
            inner: nn.Module = nn.Conv2d(channels, channels, 3, padding=1, bias=draw.random() < 0.5)
            if draw.random() < 0.5:
                inner = nn.Sequential(inner, *norm(draw, channels, size), draw.choice(ACTIVATIONS)())
            layers.append({"residual": Residual, "concatenated": Concatenated, "twice": Twice}[kind](inner))
            channels *= 2 if kind == "concatenated" else 1
        layers += [*norm(draw, channels, size), draw.choice(ACTIVATIONS)()]
    head = draw.choice([[nn.AdaptiveAvgPool2d(1), nn.Flatten()], [nn.Flatten()], [Function(lambda x: x.mean((2, 3)))]])
    features = channels * size * size if len(head) == 1 and isinstance(head[0], nn.Flatten) else channels
    return [*layers, *head], features, 1


def vectors(draw: random.Random, features: int, depth: int) -> tuple[list[nn.Module], int]:
    """Linear layers; how many features they give."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        kind = draw.choice(["plain", "plain", "residual", "concatenated", "twice"])
        if kind == "plain":
            out = draw.randint(3, 40)
            layers.append(nn.Linear(features, out, bias=draw.random() < 0.7))
            features = out
        else:
            inner = nn.Linear(features, features, bias=draw.random() < 0.7)
            layers.append({"residual": Residual, "concatenated": Concatenated, "twice": Twice}[kind](inner))
            features *= 2 if kind == "concatenated" else 1
        layers += [*norm(draw, features, None), draw.choice(ACTIVATIONS)()]
    return layers, features


def norm(draw: random.Random, channels: int, size: int | None) -> list[nn.Module]:
    """A norm or none."""
    kind, affine = draw.choice(["none", "none", "batch", "batch", "other"]), draw.random() < 0.8
    if kind == "none":
        return []
    if kind == "batch":
        made = nn.BatchNorm1d if size is None else nn.BatchNorm2d
        return [made(channels, affine=affine, track_running_stats=draw.random() < 0.9)]
    return [nn.LayerNorm(channels)] if size is None else [nn.GroupNorm(1, channels)]


# The loop


@dataclass(frozen=True)
class Case:
    """What a seed stands for."""

    seed: int
    shape: tuple[int, ...]
    classes: int
    dtype: torch.dtype
    recipe: regrow.Algorithm
    optimizer: str
    micro_batches: int
    batches: tuple[int, ...]
    """Sizes of the micro-batches, one for each pass; at least 2 where batch norm needs more than one value."""
    to_none: tuple[bool, ...]
    """How gradients are zeroed, one for each step; so the next two."""
    trains: tuple[bool, ...]
    """Whether the step is taken in training mode."""
    looks: tuple[bool, ...]
    """Whether the net is evaluated after the step."""
    empty: float
    """Share of the inputs that is 0."""

    @property
    def steps(self) -> int:
        """Calls of ``step()``."""
        return len(self.to_none)


def case(seed: int) -> Case:
    """The case of a seed."""
    draw = random.Random(seed)
    is_image = draw.random() < 0.6
    shape = (draw.randint(1, 4), *[draw.randint(4, 10)] * 2) if is_image else (draw.randint(4, 30),)
    arguments: Any = {
        "sparsity": draw.choice([0.5, 0.7, 0.8, 0.9, 0.95, 0.98]),
        "total_steps": 60,
        "every": 2,
        "distribution": draw.choice([regrow.uniform, regrow.er, regrow.erk]),
    }
    rigl = regrow.rigl(**arguments)
    others = [replace(rigl, step_on_update=True), regrow.set_(**arguments), regrow.rigl_sg(**arguments)]
    start_dense = regrow.gradual_pruning(start=2, stop=6, **arguments)
    unmoved = regrow.static(sparsity=arguments["sparsity"], distribution=arguments["distribution"])
    recipe = draw.choice([rigl, rigl, rigl, *others, start_dense, unmoved])
    steps, micro_batches = 3 * UPDATES + 1, draw.choice([1, 1, 2, 3])
    small = draw.random() < 0.5
    return Case(
        seed,
        shape,
        draw.randint(2, 6),
        draw.choice([torch.float64, torch.float64, torch.float64, torch.float32]),
        recipe,
        draw.choice(["sgd", "sgd", "adamw"]),
        micro_batches,
        tuple(draw.randint(1, 4 if small else 17) for _ in range(steps * micro_batches)),
        *(tuple(draw.random() < share for _ in range(steps)) for share in (0.5, 0.9, 0.3)),
        empty=draw.choice([0.0, 0.0, 0.8]),
    )


def net(known: Case) -> nn.Module:
    """The net of a case, of its own random weights."""
    draw = random.Random(-known.seed - 1)
    torch.manual_seed(known.seed)
    front: list[nn.Module] = []
    features = known.shape[0]
    if len(known.shape) == 3:
        front, features, _ = images(draw, *known.shape[:2])
    middle, features = vectors(draw, features, draw.randint(0 if front else 1, 3))
    return nn.Sequential(*front, *middle, nn.Linear(features, known.classes)).to(known.dtype)


def data(known: Case, number: int) -> tuple[Tensor, Tensor]:
    """A micro-batch."""
    generator = torch.Generator().manual_seed(1000 * known.seed + number)
    size = known.batches[number]
    inputs = torch.randn((size, *known.shape), generator=generator, dtype=known.dtype)
    inputs *= torch.rand(inputs.shape, generator=generator) >= known.empty
    return inputs, torch.randint(known.classes, (size,), generator=generator)


@dataclass
class Moment:
    """What is to be seen of a training at one step: numbers, masks before and after it, and the scores of growth."""

    numbers: dict[str, Tensor] = field(default_factory=dict)
    before: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    growth: dict[str, Tensor] = field(default_factory=dict)
    """Layer → |dense gradient|, where an update asked for it."""

    def gradients(self) -> dict[str, Tensor]:
        """All gradients that are to be seen."""
        seen = {name: value for name, value in self.numbers.items() if name.startswith("gradient")}
        return seen | {f"dense gradient {name}": value for name, value in self.growth.items()}

    def everything(self) -> dict[str, Tensor]:
        """The numbers with the dense gradients."""
        return self.numbers | self.gradients()


def train(known: Case, storage: Any, perturbed: int = 0) -> list[Moment]:
    """The training of a case.

    Args:
        known: the case.
        storage: dense or compact.
        perturbed: 0 is the net itself, others are the nets beside it: of 1 the weights are changed at the start, of
            others the inputs of every layer too, as sums of another order change them; what is the same for a whole
            batch, and 0 after a norm, is so up to rounding then.
    """
    model, generator = net(known), torch.Generator().manual_seed(perturbed)

    def rounded(values: Tensor, by: float = SUMMED) -> Tensor:
        signs = torch.randint(2, values.shape, generator=generator) * 2 - 1
        return values * (1 + by * torch.finfo(known.dtype).eps * signs.to(known.dtype))

    if perturbed:
        for parameter in model.parameters():
            parameter.data = rounded(parameter.data, ROUNDED)
    for module in model.modules() if perturbed > 1 else ():
        if module._parameters:
            module.register_forward_pre_hook(lambda _, inputs: tuple(map(rounded, inputs)))
    if known.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sparsifier = regrow.attach(model, optimizer, known.recipe, storage=storage, seed=known.seed)
    moments = []
    for step in range(known.steps):
        moment = Moment(before={name: mask.clone() for name, mask in sparsifier.masks.items()})
        model.train(known.trains[step])
        for part in range(known.micro_batches):
            inputs, targets = data(known, step * known.micro_batches + part)
            loss = F.cross_entropy(model(inputs), targets) / known.micro_batches
            loss.backward()
            moment.numbers[f"loss {part}"] = loss.detach().clone()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and name not in moment.before:
                moment.numbers[f"gradient {name}"] = parameter.grad.clone()
        for name, layer in sparsifier._layers.items():
            layer.dense_gradient = partial(_recorded, layer.dense_gradient, moment.growth, name)  # type: ignore[method-assign]
        optimizer.step()
        for layer in sparsifier._layers.values():
            layer.__dict__.pop("dense_gradient", None)
        optimizer.zero_grad(set_to_none=known.to_none[step])
        if known.looks[step]:
            model.eval()
            with torch.no_grad():
                moment.numbers["evaluated"] = model(data(known, step)[0]).clone()
        moment.numbers |= {f"state {name}": value.clone() for name, value in model.state_dict().items()}
        moment.masks = {name: mask.clone() for name, mask in sparsifier.masks.items()}
        moments.append(moment)
    sparsifier.detach()
    return moments


def _recorded(ask: Callable[[], Tensor | None], growth: dict[str, Tensor], name: str) -> Tensor | None:
    found = ask()
    if found is not None:
        growth[name] = found.abs()
    return found


# The comparison


def compare(seed: int) -> dict[str, Any]:
    """The outcome of a seed: "same", "tie", "ill-conditioned", "too sparse", "no gradient" or "differs", and where."""
    known = case(seed)
    try:
        dense = train(known, "dense")
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return {"seed": seed, "outcome": "no gradient"}  # torch refuses the dense net too
    except ValueError as error:
        if "each needs one" in str(error):  # weight
            return {"seed": seed, "outcome": "too sparse"}
        if "more than 1 value per channel" not in str(error):
            raise
        known = replace(known, batches=tuple(max(2, size) for size in known.batches))
        dense = train(known, "dense")
    compact = train(known, "compact")
    yardsticks: list[list[Moment]] = []
    found = _outcome(known, dense, compact, yardsticks)
    for more in YARDSTICKS:
        if found["outcome"] == "differs":
            yardsticks += [train(known, "dense", 1 + len(yardsticks) + number) for number in range(more)]
            found = _outcome(known, dense, compact, yardsticks)
    return {"seed": seed, "recipe": known.recipe.name, "dtype": str(known.dtype), **found}


def _outcome(
    known: Case, dense: list[Moment], compact: list[Moment], yardsticks: Sequence[list[Moment]]
) -> dict[str, Any]:
    """What the first difference is that counts."""
    for step, (one, other) in enumerate(zip(dense, compact, strict=True)):
        beside, partings = [each[step] for each in yardsticks], []
        before = [name for name in one.everything() if not name.startswith(AFTER)]
        after = [name for name in one.everything() if name.startswith(AFTER)]
        found = _difference_that_counts(known, one, other, beside, before)
        if found is not None:
            return {"step": step, **found}
        unsure = [n for n, mask in one.masks.items() if not all(torch.equal(each.masks[n], mask) for each in beside)]
        for name, mask in one.masks.items():
            if not torch.equal(mask, other.masks[name]):
                judged = _parting(one, other, name, FLOOR[known.dtype])
                if judged["outcome"] == "differs" and name in unsure:
                    judged["outcome"] = "ill-conditioned"
                partings.append(judged)
        if partings:
            order = ("differs", "ill-conditioned", "tie")
            return {"step": step, **min(partings, key=lambda each: order.index(each["outcome"]))}
        if unsure:
            return {"step": step, "outcome": "ill-conditioned", "what": f"mask {unsure[0]} of a yardstick"}
        found = _difference_that_counts(known, one, other, beside, after)
        if found is not None:
            return {"step": step, **found}
    return {"outcome": "same"}


def _difference_that_counts(
    known: Case, one: Moment, other: Moment, beside: Sequence[Moment], names: Iterable[str]
) -> dict[str, Any] | None:
    largest = max(float(value.abs().amax()) for value in one.gradients().values())
    for name in names:
        values = one.everything()[name]
        size = max(float(values.abs().amax()), CANCELLED * largest if name in one.gradients() else 0.0)
        difference = _difference(values, other.everything()[name], size)
        seen = [_difference(values, each.everything()[name], size) for each in beside]
        if not difference <= FACTOR * max(seen, default=0.0) + FLOOR[known.dtype]:
            outcome = "ill-conditioned" if max(seen, default=0.0) > LOST else "differs"
            return {"outcome": outcome, "what": name, "difference": difference, "yardsticks": seen[: YARDSTICKS[0]]}
    return None


def _parting(dense: Moment, compact: Moment, name: str, floor: float) -> dict[str, Any]:
    """Whether the scores of what the storages chose differently are nearer to each other than the storages' scores are.

    They are those of growth, or where all was alive before, |weight|.
    """
    chosen = dense.masks[name] ^ compact.masks[name]
    scores = []
    if name in dense.growth:
        scores.append((dense.growth[name], compact.growth[name]))
    if bool(dense.before[name][chosen].all()) or not scores:
        weights = [moment.numbers[f"state {name}"].abs() for moment in (dense, compact)]
        # What one of them dropped is 0 there.
        both = torch.where(chosen, torch.maximum(*weights), weights[0])
        scores.append((both, torch.where(chosen, both, weights[1])))
    found = []
    for one, other in scores:
        size = max(float(one.amax()), 1e-300)
        gap = float(one[chosen].amax() - one[chosen].amin()) / size
        found.append((gap, _difference(one, other, size)))
    gap, difference = min(found, key=lambda each: each[0] - 2 * each[1])
    outcome = "tie" if gap <= floor else "ill-conditioned" if gap <= 2.1 * difference else "differs"
    return {"outcome": outcome, "what": f"mask {name}", "gap": gap, "difference": difference}


def _difference(one: Tensor, other: Tensor, size: float) -> float:
    """The largest difference, as a share of a size."""
    same = torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    return 0.0 if same else float((one - other).abs().amax()) / max(size, 1e-300)


def main() -> int:
    """Compares many seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--number", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = Counter[str]()
    for seed in options.seeds or range(options.first, options.first + options.number):
        try:
            found = compare(seed)
        except Exception as error:
            found = {"seed": seed, "outcome": "raised", "error": f"{type(error).__name__}: {error}"}
        outcomes[found["outcome"]] += 1
        if found["outcome"] not in ("same", "too sparse", "no gradient"):
            print(json.dumps(found), flush=True)
    print(json.dumps(dict(outcomes)))
    return int(outcomes["differs"] + outcomes["raised"] > 0)


if __name__ == "__main__":
    sys.exit(main())
