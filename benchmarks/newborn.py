"""How far an optimizer's first step carries a weight that an update has just grown: |step| / learning rate.

Its state starts at 0, as the optimizer starts it, but the number of steps by which Adam and its kin correct for that is
one of the whole tensor and goes on. RigL trains a small net on random data; every newborn weight of the first update
after each of the ages counts once.

    python benchmarks/newborn.py
"""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import regrow

AGES = (100, 1000, 5000)
RATE = 1e-4
EVERY = 100
OPTIMIZERS: dict[str, tuple[type[Optimizer], dict[str, float]]] = {
    "SGD": (torch.optim.SGD, {}),
    "SGD, momentum 0.9": (torch.optim.SGD, {"momentum": 0.9}),
    "Adam": (torch.optim.Adam, {}),
    "AdamW": (torch.optim.AdamW, {}),
    "NAdam": (torch.optim.NAdam, {}),
    "RAdam": (torch.optim.RAdam, {}),
    "Adamax": (torch.optim.Adamax, {}),
    "RMSprop": (torch.optim.RMSprop, {}),
}


def first_steps(kind: type[Optimizer], options: dict[str, float]) -> dict[int, Tensor]:
    """Age → (newborn, 2): |first step| / learning rate, and the same of each weight's |gradient|."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
    optimizer = kind(model.parameters(), lr=RATE, **options)  # type: ignore[call-arg]
    record = regrow.rigl(sparsity=0.8, total_steps=10**6, every=EVERY)
    sparsifier = regrow.attach(model, optimizer, record)
    weight, name, found = model[0].weight, "0.weight", dict[int, Tensor]()
    newborn, data = torch.zeros_like(weight, dtype=torch.bool), torch.Generator().manual_seed(1)
    while sparsifier.weight_steps <= max(AGES):
        before, updates = sparsifier.masks[name].clone(), sparsifier.num_updates
        inputs, targets = torch.randn(64, 32, generator=data), torch.randn(64, 8, generator=data)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        gradient = weight.grad.clone()
        optimizer.step()
        if sparsifier.num_updates > updates:
            newborn = sparsifier.masks[name] & ~before
        elif newborn.any():
            if sparsifier.weight_steps - 1 in AGES:
                step = weight.detach()[newborn].abs() / RATE
                found[sparsifier.weight_steps - 1] = torch.stack([step, gradient[newborn].abs()], dim=1)
            newborn = torch.zeros_like(newborn)
    return found


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}: the median |first step| of a newborn weight / learning rate")
    print(f"{'optimizer':<20}" + "".join(f"{f'after {age:,} steps':>20}" for age in AGES))
    for name, (kind, options) in OPTIMIZERS.items():
        found = first_steps(kind, options)
        cells = []
        for age in AGES:
            steps, gradients = found[age].unbind(1)
            is_linear = torch.allclose(steps, gradients, rtol=1e-3)
            cells.append(f"{'|gradient|' if is_linear else f'{float(steps.median()):.2f}':>20}")
        print(f"{name:<20}" + "".join(cells))


if __name__ == "__main__":
    main()
