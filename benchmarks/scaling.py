"""Samples a second of one run on one process and on several (torchrun, gloo), one thread each.

python benchmarks/scaling.py [--model wrn-16-2] [--batch-size 128] [--processes 1 2] [--rounds 3]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile


def speed(options: argparse.Namespace, processes: int) -> float:
    """Of the last of four epochs; the first ones hold the start."""
    with tempfile.TemporaryDirectory() as folder:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        run = ["-m", "regrow_lab", "train", "--model", options.model, "--data", options.data, "--method", "rigl"]
        run += ["--sparsity", "0.9", "--epochs", "4", "--batch-size", str(options.batch_size), "--dropout", "0"]
        done = subprocess.run([*start, *run, "--out", folder], capture_output=True, text=True, check=True)
        last = [line for line in done.stdout.splitlines() if line.startswith("epoch")][-1]
        return float(last.split()[-2].replace(",", ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="wrn-16-2")
    parser.add_argument("--data", default="digits-images")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    speeds: dict[int, list[float]] = {processes: [] for processes in options.processes}
    for _ in range(options.rounds):
        for processes in options.processes:
            speeds[processes].append(speed(options, processes))
    base = speeds[options.processes[0]]
    print(f"{options.model} on {options.data}, batch {options.batch_size}, RigL S = .9, {options.rounds} rounds")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    for processes, measured in speeds.items():
        ratios = sorted(ours / theirs for ours, theirs in zip(measured, base, strict=True))
        spread = " – ".join(f"{value:.2f}" for value in (ratios[0], statistics.median(ratios), ratios[-1]))
        print(f"{processes} processes  {statistics.median(measured):>9,.0f} samples/s   × {spread}")
    print(json.dumps({str(processes): measured for processes, measured in speeds.items()}))


if __name__ == "__main__":
    main()
