"""A sparsifier as a table of plain text."""

from collections.abc import Mapping, Sequence

from regrow.flops import Flops
from regrow.layers import Layer


def layer_table(
    layers: Mapping[str, Layer],
    num_alive: Mapping[str, int],
    algorithms: Mapping[str, str],
    next_updates: Mapping[str, int | None],
    flops: Flops | None,
    notes: Mapping[str, str],
    moment: str,
) -> str:
    """One line a layer (shape, density, alive weights, algorithm, next update; FLOPs, storage if known) and the sum."""
    header = ["layer", "shape", "density", "alive", "weights", "FLOPs", "algorithm", "next update", "storage"]
    rows = []
    for name, layer in layers.items():
        due = next_updates[name]
        counted = flops.layers.get(name) if flops is not None else None
        rows.append(
            [
                name,
                "x".join(str(size) for size in layer.shape),
                f"{num_alive[name] / layer.size:.4f}",
                f"{num_alive[name]:,}",
                f"{layer.size:,}",
                "-" if counted is None else f"{counted.dense * num_alive[name] // layer.size:,}",
                algorithms[name],
                "-" if due is None else f"step {due:,}",
                notes.get(name, ""),
            ]
        )
    alive, size = sum(num_alive.values()), sum(layer.size for layer in layers.values())
    total = "-"
    if flops is not None:
        attached = sum(flops.layers[n].dense * num_alive[n] // layers[n].size for n in layers if n in flops.layers)
        total = f"{attached + sum(entry.dense for n, entry in flops.layers.items() if n not in layers):,}"
    rows.append(["total", "", f"{alive / size:.4f}", f"{alive:,}", f"{size:,}", total, "", "", ""])
    absent = {"FLOPs": flops is None, "storage": not notes}
    shown = [not absent.get(title, False) for title in header]
    table = [[cell for cell, kept in zip(row, shown, strict=True) if kept] for row in [header, *rows]]
    return "\n".join([*_aligned(table), f"sparsity {1 - alive / size:.4f} {moment}"])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, numbers to the right, with a rule under the header and over the last row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    to_left = {"layer", "shape", "algorithm", "next update", "storage"}
    lines = [
        "  ".join(
            cell.ljust(width) if rows[0][column] in to_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]]
