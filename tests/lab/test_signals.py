import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regrow_lab.commands.cli import main
from regrow_lab.commands.signals import TerminatedError, asking_to_stop, exit_code, terminating

RUN = ["train", "--method", "rigl", "--sparsity", "0.9", "--epochs", "2", "--out"]


def metrics(folder: Path) -> str:
    [path] = folder.glob("runs/*/metrics.jsonl")
    return path.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_leaves_a_checkpoint_and_goes_on_from_it(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, str(tmp_path / "whole")]) == 0
    original, calls = torch.nn.functional.cross_entropy, iter(range(1000))

    def cross_entropy(*arguments: object, **options: object) -> torch.Tensor:
        if next(calls) == 29:
            os.kill(os.getpid(), number)
        return original(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", cross_entropy)
    capsys.readouterr()
    assert main([*RUN, str(tmp_path / "stopped")]) == 128 + number
    assert "stopped at step 30, with its checkpoint in" in capsys.readouterr().err
    assert len(list((tmp_path / "stopped").glob("runs/*/checkpoint.pt"))) == 1
    assert main([*RUN, str(tmp_path / "stopped")]) == 0
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    assert not list((tmp_path / "stopped").glob("runs/*/checkpoint.pt"))


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def test_a_second_signal_interrupts_at_once_and_the_handlers_come_back() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with asking_to_stop() as signalled:
        send(signal.SIGINT)
        assert signalled() == signal.SIGINT
        with pytest.raises(TerminatedError):
            send(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), asking_to_stop():
        send(signal.SIGINT, signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_sigterm_closes_what_is_open(tmp_path: Path) -> None:
    with (
        pytest.raises(TerminatedError) as caught,
        terminating(),
        (tmp_path / "open").open("w") as file,
    ):
        send(signal.SIGTERM)
    assert file.closed
    assert (exit_code(caught.value), exit_code(KeyboardInterrupt())) == (143, 130)


def outcome_of(script: str) -> tuple[int, str]:
    """Exit code of a program, and what it says on stderr."""
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_one_that_comes_while_all_is_closed_ends_it_at_once_with_a_line(number: str, code: int) -> None:
    script = f"""
import signal
from regrow_lab.commands.signals import terminating
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
with terminating():
    try:
        signal.raise_signal(signal.{number})
    finally:
        signal.raise_signal(signal.{number})
"""
    line = "regrow: stopped at once; the same command goes on from what is written\n"
    assert outcome_of(script) == (code, line)


def test_ctrl_c_while_the_program_starts_has_no_traceback() -> None:
    script = """
import signal, sys

class CtrlC:
    def find_spec(self, name, *_):
        if name == "regrow_lab.commands.cli":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, CtrlC())
signal.signal(signal.SIGINT, signal.default_int_handler)
from regrow_lab.__main__ import main
main()
"""
    assert outcome_of(script) == (-signal.SIGINT, "")
