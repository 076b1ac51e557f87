import os
import signal
from pathlib import Path

import pytest
import torch

from regrow_lab.cli import main
from regrow_lab.signals import TerminatedError, asking_to_stop, exit_code, terminating

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
