"""What attaching costs: step time, update time and memory of each recipe, side by side with dense training in one run.

    python benchmarks/overhead.py [--model wrn-22-2|lenet-300-100] [--rounds 9] [--threads 2]

Every round takes one ordinary step of the dense net and of each attached twin, in an order that rotates, and divides
each by the dense step of the same round; then one call of ``optimizer.step()`` that brings an update. Ratios are
printed as min – median – max over the rounds: a step of 1.000 costs nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import regrow
from regrow_lab.models import INPUT_SHAPES, find_model

BATCH = {"wrn-22-2": 128, "lenet-300-100": 64}
NEVER = 10**9


def recipes(every: int, sparsity: float = 0.9) -> dict[str, regrow.Algorithm]:
    dynamic = {"sparsity": sparsity, "total_steps": NEVER, "every": every}
    return {
        "static": regrow.static(sparsity=sparsity),
        "set": regrow.set_(**dynamic),
        "rigl": regrow.rigl(**dynamic),
        "snfs": regrow.snfs(**dynamic),
        "rigl-sg": regrow.rigl_sg(**dynamic),
        "rigl-sm": regrow.rigl_sm(**dynamic),
        "pruning": regrow.gradual_pruning(**dynamic, start=0, stop=0 if every == NEVER else 20),
        "snip": regrow.snip(sparsity=sparsity),
    }


@dataclass
class Twin:
    """A net with its optimizer, and the ratios measured with it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    sparsifier: regrow.Sparsifier | None
    ratios: list[float] = field(default_factory=list)

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
        """Seconds of a whole step, and of ``optimizer.step()`` alone."""
        begin = time.perf_counter()
        nn.functional.cross_entropy(self.model(inputs), targets).backward()
        middle = time.perf_counter()
        self.optimizer.step()
        end = time.perf_counter()
        self.optimizer.zero_grad()
        return end - begin, end - middle


def twin(model: str, algorithm: regrow.Algorithm | None) -> Twin:
    torch.manual_seed(0)
    net = find_model(model)()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    return Twin(net, optimizer, regrow.attach(net, optimizer, algorithm) if algorithm else None)


def ordinary_steps(model: str, rounds: int, inner: int, batch: tuple[Tensor, Tensor]) -> tuple[dict[str, Twin], float]:
    """Fills each twin's ratios of an ordinary step to the dense one; the median seconds of a dense step."""
    twins = {"dense": twin(model, None)} | {n: twin(model, record) for n, record in recipes(NEVER).items()}
    for each in twins.values():
        each.step(*batch)
        each.step(*batch)
    names, dense_seconds = list(twins), []
    for round_ in range(rounds):
        order = names[round_ % len(names) :] + names[: round_ % len(names)]
        seconds = {name: min(twins[name].step(*batch)[0] for _ in range(inner)) for name in order}
        dense_seconds.append(seconds["dense"])
        for name in names:
            twins[name].ratios.append(seconds[name] / seconds["dense"])
    return twins, statistics.median(dense_seconds)


def updates(model: str, rounds: int, batch: tuple[Tensor, Tensor], dense: Twin) -> dict[str, list[float]]:
    """Time of a call of ``optimizer.step()`` with an update ÷ a whole dense step beside it."""
    found: dict[str, list[float]] = {}
    for name, record in recipes(every=2).items():
        each, ratios = twin(model, record), []
        assert each.sparsifier is not None
        while name != "static" and len(ratios) < min(rounds, 1 if name == "snip" else rounds):
            before = each.sparsifier.num_updates
            _, seconds = each.step(*batch)
            if each.sparsifier.num_updates > before:
                ratios.append(seconds / dense.step(*batch)[0])
        found[name] = ratios
    return found


def memory(sparsifier: regrow.Sparsifier) -> tuple[float, float, float]:
    """Bytes a weight of masks and of own momentum in memory, and bits a weight of masks on disk."""
    weights = sum(mask.numel() for mask in sparsifier.masks.values())
    masks = sum(mask.untyped_storage().nbytes() for mask in sparsifier.masks.values())
    layers = sparsifier.state_dict()["layers"].values()
    momenta = [entry["momentum"] for entry in layers if entry["momentum"] is not None]
    on_disk = sum(entry["mask"].untyped_storage().nbytes() for entry in layers)
    return masks / weights, sum(m.untyped_storage().nbytes() for m in momenta) / weights, 8 * on_disk / weights


def spread(values: list[float], form: Callable[[float], str]) -> str:
    if not values:
        return "-"
    return " – ".join(form(value) for value in (min(values), statistics.median(values), max(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(BATCH), action="append", help="default: both")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for model in options.model or list(BATCH):
        size = BATCH[model]
        batch = (torch.randn(size, *INPUT_SHAPES[model]), torch.randint(10, (size,)))
        inner = 1 if model == "wrn-22-2" else 30
        twins, seconds = ordinary_steps(model, options.rounds, inner, batch)
        updating = updates(model, options.rounds, batch, twins["dense"])
        print(f"\n{model}, batch {size}, S = .9, {options.threads} thread(s), torch {torch.__version__}")
        print(f"dense step {seconds * 1e3:.2f} ms (median of {options.rounds})")
        head = f"{'recipe':<9} {'step ÷ dense step':<25} {'update ÷ dense step':<25}"
        print(f"{head} {'mask':>9} {'momentum':>10} {'disk':>11}")
        for name, each in twins.items():
            if each.sparsifier is None:
                continue
            masks, momenta, bits = memory(each.sparsifier)
            ratios = spread(each.ratios, lambda value: f"{value:.3f}")
            print(
                f"{name:<9} {ratios:<25} {spread(updating[name], lambda value: f'{value:.3f}'):<25} "
                f"{masks:>5.2f} B/w {momenta:>6.2f} B/w {bits:>5.2f} bit/w"
            )


if __name__ == "__main__":
    main()
