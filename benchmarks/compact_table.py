"""The table of docs/compact.md: every row is one call of benchmarks/compact.py, in a process of its own.

    python benchmarks/compact_table.py [--only dropout]

Prints Markdown as the rows finish (under a minute each, half an hour in all; nothing else should run beside it). The
ratio is that of the dense side with the least median time, at the same precision and, for bf16, over fp32 as well; bold
where its median reaches what we had set ourselves.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

QUICK = "--no-compile --seconds 15"
BF16 = "--dtype bfloat16 --over float32"
ROWS: tuple[tuple[str, float | None, float | None], ...] = (
    ("--sparsity 0.9 --seconds 25", 4.5, None),
    (f"--sparsity 0.95 {QUICK}", 6.2, None),
    (f"--sparsity 0.98 {QUICK}", 8, None),
    (f"--sparsity 0.9 {BF16} --seconds 30", 4.2, 8),
    (f"--sparsity 0.95 {BF16} {QUICK}", 5.8, 11),
    (f"--sparsity 0.98 {BF16} {QUICK}", 7.6, 14),
    (f"--sparsity 0.9 --distribution erk {QUICK}", 3.3, None),
    (f"--sparsity 0.95 --distribution erk {QUICK}", 5, None),
    (f"--sparsity 0.98 --distribution erk {QUICK}", 7.5, None),
    (f"--sparsity 0.9 --distribution erk {BF16} {QUICK}", None, 5.9),
    (f"--sparsity 0.95 --distribution erk {BF16} {QUICK}", None, 9),
    (f"--sparsity 0.98 --distribution erk {BF16} {QUICK}", None, 14),
    (f"--sparsity 0.9 --threads 2 {QUICK}", 4.5, None),
    (f"--sparsity 0.9 --threads 2 {BF16} {QUICK}", 4.2, 8),
    (f"--sparsity 0.9 --distribution erk --threads 2 {BF16} --no-compile --seconds 25", 4.2, 5.9),
    (f"--sparsity 0.5 {QUICK}", 1.4, None),
    (f"--sparsity 0.0 {QUICK}", 0.95, None),
    (f"--sparsity 0.0 {BF16} {QUICK}", 0.95, None),
    (f"--sparsity 0.5 {BF16} {QUICK}", 1.4, None),
    (f"--sparsity 0.9 --dropout 0 {QUICK}", None, None),
    (f"--sparsity 0.95 --dropout 0 {QUICK}", None, None),
    (f"--sparsity 0.98 --dropout 0 {QUICK}", None, None),
    (f"--sparsity 0.9 --dropout 0 {BF16} {QUICK}", None, None),
    (f"--sparsity 0.95 --dropout 0 {BF16} {QUICK}", None, None),
    (f"--sparsity 0.98 --dropout 0 {BF16} {QUICK}", None, None),
    ("--model resnet50-cifar --sparsity 0.9 --no-compile --seconds 40 --rounds 3", 3.5, None),
    ("--model resnet50-cifar --sparsity 0.95 --no-compile --seconds 40 --rounds 3", 5, None),
    ("--model resnet18 --sparsity 0.9 --no-compile --seconds 40 --rounds 4", 3, None),
    ("--model mlp-3072 --sparsity 0.9 --seconds 8", 8, None),
    ("--model mlp-3072 --sparsity 0.95 --no-compile --seconds 6", 13, None),
    ("--model mlp-3072 --sparsity 0.98 --no-compile --seconds 6", 22, None),
    ("--model lenet-300-100 --seconds 6", 4.5, None),
    ("--model lenet-digits --seconds 4", None, None),
    ("--model lenet-digits --sparsity 0.8 --seconds 8", None, None),
    ("--inference --sparsity 0.9 --seconds 6", 3.3, None),
    ("--inference --sparsity 0.95 --seconds 5", 5.3, None),
    ("--inference --sparsity 0.98 --seconds 5", 7, None),
    ("--inference --batch 1 --sparsity 0.9 --no-compile --seconds 5", 3.3, None),
    ("--inference --batch 1 --sparsity 0.95 --no-compile --seconds 4", 5.3, None),
    ("--inference --batch 1 --sparsity 0.98 --no-compile --seconds 4", 7, None),
)
"""Arguments, and the least ratio: at the same precision, and over dense fp32."""
HEAD = (
    "| row | compact, ms | dense, ms (GFLOP/s) | × dense, same precision | least | × dense fp32 | least |",
    "|---|--:|--:|--:|--:|--:|--:|",
)


def row(arguments: str, least: float | None, least_over_fp32: float | None) -> str:
    """One line of the table, measured now."""
    command = [sys.executable, str(Path(__file__).with_name("compact.py")), *arguments.split(), "--json"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    sides = json.loads(output.splitlines()[-1])
    compact = sides[-1]
    precision = compact["side"].split()[-1]
    dense_sides = sorted((side for side in sides if side["side"].startswith("dense")), key=lambda side: side["ms"])
    same, fp32 = (next(side for side in dense_sides if side["side"].endswith(kind)) for kind in (precision, "fp32"))
    dense = f"{number(same['ms'])} ({same['side'].split()[1]}, {same['rate']})"
    over = ("", "") if precision == "fp32" else (marked(fp32["ratio"], least_over_fp32), goal(least_over_fp32))
    cells = (f"`{arguments}`", number(compact["ms"]), dense, marked(same["ratio"], least), goal(least), *over)
    return f"| {' | '.join(cells)} |"


def number(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def goal(least: float | None) -> str:
    return "" if least is None else f"{least:g}"


def marked(ratio: str, least: float | None) -> str:
    return f"**{ratio}**" if least is not None and float(ratio.split(" – ")[1]) >= least else ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose arguments hold this text")
    options = parser.parse_args()
    print(*HEAD, sep="\n", flush=True)
    for arguments, *least in ROWS:
        if options.only in arguments:
            print(row(arguments, *least), flush=True)


if __name__ == "__main__":
    main()
