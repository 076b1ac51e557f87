"""A sparsifier as a table of plain text."""

from collections.abc import Iterator, Mapping, Sequence

from regrow.accounting.flops import Flops
from regrow.layers import Layer
from regrow.training.coverage import DenseWeight


def layer_table(
    layers: Mapping[str, Layer],
    num_alive: Mapping[str, int],
    algorithms: Mapping[str, str],
    next_updates: Mapping[str, int | None],
    flops: Flops | None,
    notes: Mapping[str, str],
    dense: Mapping[str, DenseWeight],
    moment: str,
) -> str:
    """One line a layer (shape, density, alive weights, algorithm, next update; FLOPs, storage if known) and the sum.

    What is left dense has a table of its own under it, and the last lines say how sparse all of it is.
    """
    header = ["layer", "shape", "density", "alive", "weights", "FLOPs", "algorithm", "next update", "storage"]
    rows = []
    for name, layer in layers.items():
        due = next_updates[name]
        counted = flops.layers.get(name) if flops is not None else None
        rows.append(
            [
                name,
                _shape(layer),
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
    lines = _aligned(table)
    above = [*lines[:-1], lines[1], lines[-1]]
    if not dense:
        return "\n".join([*above, f"sparsity {1 - alive / size:.4f} {moment}"])
    everything = size + sum(weight.layer.size for weight in dense.values())
    return "\n".join(
        [
            *above,
            "",
            *_aligned([*_dense_rows(dense, flops)]),
            f"sparsity {1 - alive / size:.4f} of the {size:,} attached weights, "
            f"{(size - alive) / everything:.4f} of all {everything:,} with two or more dimensions,",
            moment,
        ]
    )


def _shape(layer: Layer) -> str:
    return "x".join(str(size) for size in layer.shape)


def _dense_rows(dense: Mapping[str, DenseWeight], flops: Flops | None) -> Iterator[list[str]]:
    yield ["left dense", "shape", "weights", *(["FLOPs"] if flops is not None else []), "why"]
    for name, weight in dense.items():
        counted = None if flops is None else flops.layers.get(name)
        cost = [] if flops is None else ["-" if counted is None else f"{counted.dense:,}"]
        yield [name, _shape(weight.layer), f"{weight.layer.size:,}", *cost, weight.reason]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, numbers to the right, with a rule under the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    to_left = {"layer", "left dense", "shape", "algorithm", "next update", "storage", "why"}
    lines = [
        "  ".join(
            cell.ljust(width) if rows[0][column] in to_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return [lines[0], rule, *lines[1:]]
