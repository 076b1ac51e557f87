import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
from stored import made_study, store_run

from regrow_lab.__main__ import LAB
from regrow_lab.__main__ import main as main_of_the_command
from regrow_lab.commands.cli import Flops, _without_box, main
from regrow_lab.commands.dry_run import WITHOUT_FILES
from regrow_lab.config import RunConfig
from regrow_lab.data import DATASETS
from regrow_lab.store import folders, whole_files
from regrow_lab.studies import STUDIES

TINY = [RunConfig(epochs=1), RunConfig(method="rigl", sparsity=0.5, epochs=1)]


@pytest.fixture
def tiny_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDIES, "digits", made_study("digits", TINY))


@pytest.mark.parametrize("arguments", [["--help"], ["study", "--help"], ["train", "--help"], ["study", "bogus"]])
def test_help_and_slips_do_without_torch(arguments: list[str]) -> None:
    program = "import sys, regrow_lab.commands.cli as cli\ntry: cli.main()\nfinally: print('modules:', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    said, _, modules = done.stdout.rpartition("modules:")
    assert "usage: regrow" in said or "unknown study" in done.stderr
    assert "tyro" in modules.split()
    assert not {"torch", "numpy", "matplotlib", "sklearn"} & set(modules.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Expected one of {train, study, tune, flops, report"),
        ("bogus", "bogus"),
        ("study", "Missing from regrow study"),
        ("study digit", "unknown study 'digit': choose one of digits"),
        ("study digits --seeds 0", "1 seed or more, given 0"),
        ("study digits --workers 0", "workers must be 1 or more, given 0"),
        ("study digits --workers two", "two"),
        ("study digits --wrokers 2", "--wrokers"),
        ("study digits --device toaster", "no device 'toaster' on this machine"),
        ("study digits --out FILE", "is a file: give a new or empty folder with --out"),
        ("study digits --out OTHER", "is not a study folder, and not empty"),
        ("train --method rigI --sparsity .9", "unknown method 'rigI': choose one of dense, "),
        ("train --method rigl --sparsity 1", "sparsity 1 is outside [0, 1)"),
        ("train --method rigl", "needs a sparsity: add --sparsity 0.9"),
        ("train --method rigl --sparsity .9 --distribution erc", "unknown distribution 'erc'"),
        ("train --model lenet --out new", "unknown model 'lenet'"),
        ("train --data numbers --out new", "unknown data 'numbers'"),
        ("train --device toaster --out new", "no device 'toaster'"),
        ("train --device mps --out new", "no device 'mps' on this machine (this torch was built without it): give cpu"),
        ("train --device hpu --out new", "no device 'hpu' on this machine (this torch was built without it): give cpu"),
        ("train --device opengl --out new", "no device 'opengl' on this machine (this torch was built without it)"),
        ("train --device mkldnn --out new", "no device 'mkldnn' on this machine (this torch was built without it)"),
        (
            "train --device mtia:1 --out new",
            "no device 'mtia:1' on this machine (Torch not compiled with MTIA enabled)",
        ),
        ("study digits --device xla", "no device 'xla' on this machine (this torch was built without it): give cpu"),
        ("tune digits --device vulkan", "no device 'vulkan' on this machine (this torch was built without it)"),
        ("data fetch mnist --to FILE/x", "FILE/x/mnist cannot be used (Not a directory): give another file or folder"),
        ("train --model wrn-22-x --out new", "unknown model 'wrn-22-x'; expected one of"),
        ("train --device meta --out new", "the device 'meta' holds shapes and no values"),
        ("study digits --device meta:0", "the device 'meta:0' holds shapes and no values"),
        ("train --multiplier 1e308 --out new", "multiplier must be 1 or more, and less than 2^31"),
        ("train --threads 0", "threads must lie in 1 to 1024, given 0"),
        ("train --threads 99999999999", "threads must lie in 1 to 1024, given 99999999999"),
        ("flops lenet-300-100 --sparsity 0.99999 --method snip", "weights for 3 layers, and each needs one"),
        ("train --method pruning --sparsity 0.99999", "weights for 3 layers, and each needs one"),
        ("train --checkpoint-seconds nan", "checkpoint_seconds must be a number of seconds, 0 or more, given nan"),
        ("study digits --checkpoint-seconds nan", "0 or more, given nan"),
        ("tune digits --checkpoint-seconds -1", "0 or more, given -1"),
        ("flops lenet", "unknown model 'lenet'"),
        ("flops wrn-22-2 --sparsity 1.5", "sparsity 1.5 is outside [0, 1)"),
        ("flops wrn-22-2 --sparsity abc", "could not convert string to float: 'abc'"),
        ("flops wrn-22-2 --sparsity 0.999999", "each needs one"),
        ("flops wrn-22-2 --method pruning --total-steps 0", "total_steps must be 1 or more"),
        ("train --data cifar100 --out new", "CIFAR-100 is not in "),
        ("train --augmentation crop-flip --out new", "augmentation crop-flip is for images"),
        ("data", "Expected one of {fetch, list}"),
        ("data fetch imagenet", "there is no download of 'imagenet'"),
        ("report OTHER", "holds no runs"),
        ("report nowhere", "nowhere holds no runs"),
        ("study digits --out FILE/x", "FILE/x cannot be used (Not a directory): give another file or folder"),
        ("train --out FILE/y", "cannot be used (Not a directory)"),
        ("train --out FILE", "cannot be used (Not a directory)"),
        ("train --seed 99999999999999999999999", "seed must be 0 or more, and less than 2^63"),
        ("flops vit-0-0-0", "model 'vit-0-0-0' has a size of 0"),
    ],
)
def test_a_slip_is_one_line_and_exit_2(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("")
    Path("OTHER").mkdir()
    Path("OTHER/thing").write_text("")
    assert main(arguments.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("regrow: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FILE", "OTHER"]
    assert sorted(path.name for path in (tmp_path / "OTHER").iterdir()) == ["thing"]


@pytest.mark.parametrize("study", ['"seeds": "x"', '"seeds": 1, "scale": 3', '"study": []'])
@pytest.mark.parametrize("command", ["report OUT", "study digits --out OUT"])
def test_a_damaged_study_is_one_line(
    command: str, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("OUT/runs").mkdir(parents=True)
    Path("OUT/study.json").write_text(f'{{"schema": 1, {study}}}')
    assert main(command.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("regrow: OUT/study.json is damaged: ")
    assert said.endswith("delete it, and the study's command makes it anew\n")
    assert said.count("\n") == 1


def test_a_study_that_lost_its_seeds_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("OUT/runs").mkdir(parents=True)
    Path("OUT/study.json").write_text('{"schema": 1, "study": "digits"}')
    assert main(["report", "OUT"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("regrow: OUT/study.json is damaged: it does not say how many seeds; delete it, and")
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["config.json", "result.json", "metrics.jsonl", "study.json", "runs.jsonl"])
def test_brackets_in_brackets_are_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("OUT/runs/dense")
    folder.mkdir(parents=True)
    Path("OUT/study.json").write_text('{"schema": 1, "study": "digits", "seeds": 1}')
    (folder / "config.json").write_text('{"schema": 1}')
    path = Path("OUT") / name if name in ("study.json", "runs.jsonl") else folder / name
    path.write_text("[" * 300_000 + "\n")
    assert main(["report", "OUT"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"regrow: {path}, line 1 " if name.endswith(".jsonl") else f"regrow: {path} ")
    assert said.count("\n") == 1


CIFAR = RunConfig(model="wrn-10-1", data="cifar10", epochs=1)
JPEG = RunConfig(model="wrn-10-1", data="cifar10-jpeg", epochs=1)
TEXT = RunConfig(model="char-gru", data="tinyshakespeare", epochs=1)
FOLDER = RunConfig(model="wrn-10-1", data="my/pictures", epochs=1, image_size=32)
NO_CIFAR = (
    "CIFAR-10 is not in DATA (looked in cifar10, cifar-10, CIFAR10 for cifar-10-binary.tar.gz or "
    "cifar-10-python.tar.gz, unpacked or not, train/CLASS/*.png and test/CLASS/*.png, or parquet files): run `regrow "
    "data fetch cifar10`, or set REGROW_DATA to the folder that holds it"
)


@pytest.fixture
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("DATA").mkdir()
    monkeypatch.setenv("REGROW_DATA", "DATA")


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([CIFAR] * 184, [NO_CIFAR]),
        (
            [JPEG],
            ["CIFAR-10 (JPEG) is not in DATA (looked in ", " for train/CLASS/*.jpg and test/CLASS/*.jpg): unpack"],
        ),
        ([RunConfig(data="mnist")], ["MNIST is not in DATA (looked in mnist, MNIST for train-images-idx3-ubyte and"]),
        ([TEXT], ["tinyshakespeare is not in DATA (looked for tinyshakespeare.txt, "]),
        ([FOLDER], ["unknown data 'my/pictures': choose one of ", "(DATA/my/pictures does not exist)"]),
        ([TINY[0], CIFAR, TEXT, CIFAR], [f"{NO_CIFAR}; tinyshakespeare is not in DATA"]),
    ],
)
@pytest.mark.parametrize("launcher", ["local", "torchrun"])
def test_missing_data_are_one_line_before_anything_starts(
    launcher: str,
    runs: list[RunConfig],
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(STUDIES, "digits", made_study("digits", runs))
    assert main(["study", "digits", "--workers", "1", "--launcher", launcher]) == 2
    out, error = capfd.readouterr()
    assert out == ""
    assert error.startswith(f"regrow: {said[0]}")
    assert all(part in error for part in said)
    assert error.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["DATA"]


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (["train/cat", "test/cat"], "my/pictures holds no images in its classes' folders"),
        (["train/cat"], "my/pictures has train/ but no test/ or val/: expected both"),
        (["train/cat", "val/dog"], "my/pictures: class 'cat' is in only one of train/ and val/"),
        (["train"], "(DATA/my/pictures has no train/CLASS/ with images)"),
        ([""], "(DATA/my/pictures has no train/CLASS/ with images)"),
    ],
)
@pytest.mark.parametrize("command", ["train --model wrn-10-1 --data my/pictures --image-size 32", "study digits"])
def test_a_data_folder_without_images_is_one_line(
    command: str, make: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for each in make:
        (Path("DATA/my/pictures") / each).mkdir(parents=True, exist_ok=True)
    monkeypatch.setitem(STUDIES, "digits", made_study("digits", [FOLDER]))
    assert main(command.split()) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert said in error
    assert error.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["DATA"]


@pytest.mark.usefixtures("no_data")
def test_all_studies_say_at_first_what_is_missing_and_do_the_others(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    studies = {
        "digits": [TINY[0]],
        "table1": [CIFAR, TINY[0]],
        "table2": [CIFAR] * 3,
        "charlm": [TEXT],
        "struct": [CIFAR],
    }
    monkeypatch.setattr("regrow_lab.commands.study.studies_of", lambda name, scale: list(studies))
    for name, runs in studies.items():
        monkeypatch.setitem(STUDIES, name, made_study(name, runs))
    assert main(["study", "all", "--workers", "1", "--out", "OUT"]) == 1
    out, error = capfd.readouterr()
    first, second = error.splitlines()
    assert first == f"regrow: table1, table2 and struct are left out: {NO_CIFAR}"
    assert second.startswith("regrow: charlm is left out: tinyshakespeare is not in DATA (")
    assert "1 runs: 0 finished before, 1 now in " in out
    assert sorted(path.name for path in Path("OUT").iterdir()) == ["claims.md", "digits"]


@pytest.mark.usefixtures("no_data")
def test_a_finished_study_is_reported_without_its_data(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store_run(Path("OUT"), "dense", 0.0, model=CIFAR.model, data=CIFAR.data, epochs=CIFAR.epochs)
    whole_files.write_json(Path("OUT/study.json"), {"study": "digits", "seeds": 3})
    monkeypatch.setitem(STUDIES, "digits", made_study("digits", [CIFAR]))
    assert main(["study", "digits", "--storage", "dense", "--workers", "1", "--out", "OUT"]) == 0
    out, error = capfd.readouterr()
    assert "1 runs: 1 finished before, 0 now in " in out
    assert error == ""


def test_only_data_that_come_with_scikit_learn_are_not_asked_for() -> None:
    assert set(WITHOUT_FILES) == set(DATASETS)


@pytest.mark.usefixtures("no_data")
def test_what_many_runs_fail_of_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As where an archive turns out to be damaged once it is read."""
    Path("DATA/cifar10").mkdir()
    Path("DATA/cifar10/cifar-10-binary.tar.gz").write_bytes(b"cut")
    runs = [RunConfig(model="wrn-10-1", data="cifar10", epochs=epochs) for epochs in range(1, 5)]
    monkeypatch.setitem(STUDIES, "digits", made_study("digits", [*runs, TINY[0]]))
    assert main(["study", "digits", "--workers", "1", "--storage", "dense"]) == 1
    out, error = capfd.readouterr()
    assert out.count("truncated") == 1
    assert error == (
        f"regrow: {runs[0].run_id} and 3 more failed: DATA/cifar10/cifar-10-binary.tar.gz is truncated: 3 of "
        "170,052,171 bytes; fetch it again\n"
    )


def a_run_whose_result_is_damaged(out: Path) -> Path:
    folder = folders.run_folder(out, TINY[1])
    folder.mkdir(parents=True)
    folders.write_config(folder, TINY[1])
    (folder / "result.json").write_text('{"schema": 1, "test')
    return folder


@pytest.mark.parametrize(
    ("study", "command"),
    [
        (None, "regrow train --method rigl --sparsity 0.5 --distribution erk --epochs 1 --out OUT"),
        ({"study": "digits", "seeds": 2, "scale": "small"}, "regrow study digits --seeds 2 --out OUT"),
        ({"study": "table1", "seeds": 1, "scale": "paper"}, "regrow study table1 --seeds 1 --scale paper --out OUT"),
        ({"study": "tune-digits", "seeds": 1, "storage": "dense"}, "regrow tune digits --seeds 1 --out OUT"),
    ],
)
def test_a_result_that_cannot_be_read_names_the_command_that_makes_it_anew(
    study: dict[str, object] | None,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = a_run_whose_result_is_damaged(Path("OUT"))
    if study is not None:
        whole_files.write_json(Path("OUT/study.json"), study)
    assert main(["report", "OUT"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"regrow: {folder / 'result.json'} is not readable JSON (")
    assert said.endswith(f": delete it, and `{command}` trains the run anew\n")
    assert said.count("\n") == 1


def test_that_command_does_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = a_run_whose_result_is_damaged(Path("OUT"))
    main(["report", "OUT"])
    command = capsys.readouterr().err.split("`")[1]
    assert main(command.split()[1:]) == 2
    assert capsys.readouterr().err.endswith(": delete it, and the same command makes it anew\n")
    (folder / "result.json").unlink()
    assert main(command.split()[1:]) == 0
    assert whole_files.read_json(folder / "result.json")["status"] == "finished"
    assert main(["report", "OUT"]) == 0


def test_a_configuration_that_cannot_be_read_names_a_remedy_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = a_run_whose_result_is_damaged(Path("OUT"))
    (folder / "config.json").write_text("")
    assert main(["report", "OUT"]) == 2
    said = capsys.readouterr().err
    assert said.endswith(": delete the run's folder, and the command that trained it does it anew\n")


def test_a_reader_that_has_ended_is_no_error() -> None:
    listing = subprocess.Popen(
        [sys.executable, "-m", "regrow_lab", "data", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert listing.stdout
    assert listing.stderr
    listing.stdout.close()
    assert listing.stderr.read() == b""
    listing.stderr.close()
    assert listing.wait() == 128 + signal.SIGPIPE


def in_a_process_without(modules: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({modules}))\n"
        "from regrow_lab.__main__ import main\nsys.exit(main())"
    )
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["train"], ["flops", "wrn-22-2"]])
@pytest.mark.parametrize(
    ("modules", "named"),
    [
        (["matplotlib", "numpy", "optuna", "PIL", "rich", "scipy", "sklearn", "tyro"],) * 2,
        (["rich"],) * 2,
        (["matplotlib", "tyro"],) * 2,
    ],
)
def test_without_the_lab_it_says_what_to_install(modules: list[str], named: list[str], arguments: list[str]) -> None:
    done = in_a_process_without(modules, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"regrow: the command needs {', '.join(named)}, not installed here: pip install 'regrow[lab]'\n"
    )


def test_the_library_needs_nothing_of_the_lab() -> None:
    program = f"import sys; sys.modules.update(dict.fromkeys({[*LAB, 'regrow_lab']})); import regrow; regrow.rigl"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def test_the_lab_s_extra_is_what_the_command_asks_for() -> None:
    renamed = {"pillow": "PIL", "scikit-learn": "sklearn"}
    extra = [line for line in metadata.requires("regrow") or [] if re.search("extra == .lab.", line)]
    assert sorted(LAB) == sorted(renamed.get(name, name) for name in (re.split(r"[^\w-]", line)[0] for line in extra))


def test_an_old_python_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    assert main_of_the_command() == 2
    said = capsys.readouterr()
    assert said.err == "regrow: this is Python 3.9, and regrow needs 3.11 or newer: make an environment with one\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_slip_reads_the_same_whatever_the_terminal(encoding: str) -> None:
    command = [sys.executable, "-m", "regrow_lab", "study", "x", "--frobnicate", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": encoding})
    assert done.returncode == 2
    assert done.stderr == "regrow: Unrecognized options: --frobnicate, 2; For full helptext, run regrow --help\n"


def test_colours_are_left_out_of_a_slip() -> None:
    top = "\x1b[31m╭─\x1b[0m \x1b[1mTitle\x1b[0m ─╮\n\x1b[31m│\x1b[0m some --words │\n"
    box = top + "│ in two lines. │\n│ ───── │\n│ help │\n╰──╯\n"
    assert _without_box(box) == "some --words in two lines; help"


def test_train_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "lab")
    command = ["train", "--method", "rigl", "--sparsity", "0.5", "--epochs", "2", "--out", out]
    assert main(command) == 0
    config = RunConfig(method="rigl", sparsity=0.5, epochs=2)
    folder = folders.run_folder(Path(out), config)
    result = whole_files.read_json(folder / "result.json")
    first, second, last, where = capsys.readouterr().out.splitlines()
    assert first.startswith("epoch   1/2  step 21  loss 2.")
    assert second.startswith("epoch   2/2  step 42  loss ")
    assert last.startswith(f"{config.run_id}  test accuracy {result['test_accuracy']:.1f} %")
    assert where == str(folder)
    assert (folder / "weights.pt").exists()

    assert main(command) == 0
    assert capsys.readouterr().out.startswith(f"{config.run_id}  test accuracy")
    assert whole_files.read_json(folder / "result.json") == result

    assert main(["report", out]) == 0
    assert "RigL" in capsys.readouterr().out
    assert any((Path(out) / "report").iterdir())

    with folders.claim(folder):
        (folder / "result.json").unlink()
        assert main(command) == 1
    assert capsys.readouterr().err.startswith(f"regrow: {config.run_id} is under way in process {os.getpid()}")


@pytest.mark.usefixtures("tiny_study")
def test_study(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "digits"
    command = ["study", "digits", "--workers", "1", "--seeds", "1", "--out", str(out)]
    assert main(command) == 0
    said = capfd.readouterr()
    assert f"[1/2] {TINY[0].run_id}" in said.out
    assert "2 runs: 0 finished before, 2 now in " in said.out
    assert said.err == ""
    assert whole_files.read_json(out / "study.json")["study"] == "digits"
    assert any((out / "report").iterdir())
    assert main(command) == 0
    assert "2 runs: 2 finished before, 0 now in " in capfd.readouterr().out


@pytest.mark.usefixtures("tiny_study")
@pytest.mark.parametrize(("gains", "precision"), [(True, "bf16"), (False, "float32")])
def test_auto_is_bf16_where_the_device_gains_from_it(
    gains: bool, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regrow_lab.run.machine.gains_from_bf16", lambda device: gains)
    out = tmp_path / "digits"
    command = ["study", "digits", "--workers", "1", "--seeds", "1", "--precision", "auto", "--out", str(out)]
    assert main(command) == 0
    assert whole_files.read_json(out / "study.json")["precision"] == precision
    assert {run.config["precision"] for run in folders.read_runs(out)} == {precision}


def test_a_study_with_a_run_that_fails_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = RunConfig(model="lenet")
    monkeypatch.setitem(STUDIES, "digits", made_study("digits", [wrong, TINY[0]]))
    assert main(["study", "digits", "--workers", "1", "--out", str(tmp_path / "digits")]) == 1
    said = capfd.readouterr()
    assert "2 runs: 0 finished before, 1 now in " in said.out
    assert said.err.startswith(f"regrow: {wrong.run_id} failed: unknown model 'lenet'")


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_study_that_is_stopped_leaves_no_process_and_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    out = tmp_path / "digits"
    command = [
        sys.executable,
        "-m",
        "regrow_lab",
        "study",
        "digits",
        "--workers",
        "1",
        "--seeds",
        "1",
        "--out",
        str(out),
    ]
    study = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
    )  # fmt: skip
    assert study.stdout is not None
    assert study.stdout.readline().startswith("[ 1/69] dense-seed0-")
    workers = children(study.pid)
    assert workers
    if how == signal.SIGINT:
        os.killpg(study.pid, how)  # as a terminal does
    else:
        study.send_signal(how)
    said = study.communicate(timeout=300)[1]  # a loaded machine is slow; a study that hangs is found all the same
    if how == signal.SIGINT:
        assert study.returncode == 130
        assert said.startswith("regrow: stopped with ")
        assert said.endswith("of 69 runs finished; the same command goes on from there\n")
        assert said.count("\n") == 1
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    for run in folders.read_runs(out):
        with folders.claim(run.folder):
            pass  # no lock is left


FLOPS = ["flops", "wrn-22-2", "--json"]


@pytest.mark.parametrize(
    ("arguments", "ratio", "train_ratio"),
    [
        (["--sparsity", "0.9", "--distribution", "uniform", "--method", "rigl"], 0.1025, 0.1055),
        (["--sparsity", "0.9", "--distribution", "erk", "--method", "rigl"], 0.1736, 0.1763),
        (["--sparsity", "0.95", "--distribution", "erk"], 0.0881, 0.0911),
        (["--sparsity", "0.5", "--distribution", "er", "--method", "static"], 0.7270, 0.7270),
        (["--sparsity", "0.9", "--distribution", "uniform", "--method", "snfs"], 0.1025, (2 * 0.1025 + 1) / 3),
        (["--sparsity", "0", "--method", "static"], 1.0, 1.0),
        (["--method", "dense"], 1.0, 1.0),
    ],
)
def test_flops_as_json(
    arguments: list[str], ratio: float, train_ratio: float, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*FLOPS, *arguments]) == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted["dense_flops"] == 315_460_096
    assert counted["sparse_flops"] == pytest.approx(ratio * 315_460_096, rel=1e-3)
    assert counted["test_ratio"] == pytest.approx(ratio, abs=1e-4)
    assert counted["train_ratio"] == pytest.approx(train_ratio, abs=1e-4)
    assert counted["estimated"] == ("snfs" in arguments)


def test_flops_that_training_decides_are_called_estimated(capsys: pytest.CaptureFixture[str]) -> None:
    counted = {}
    for method in ("pruning", "snip", "rigl-sg", "rigl-sm", "small-dense"):
        assert main([*FLOPS, "--sparsity", "0.9", "--method", method]) == 0
        counted[method] = json.loads(capsys.readouterr().out)
    assert {method for method in counted if counted[method]["estimated"]} == {"pruning", "snip", "rigl-sg", "rigl-sm"}
    for method in ("pruning", "snip"):
        assert counted[method]["test_ratio"] == pytest.approx(0.1, abs=1e-4)
    # The cubic ramp takes a quarter of its span at full sparsity's worth: E[d] = 1 - S (t1 - (t1 - t0) / 4 ...) / T.
    start, stop, total = 700, 66_000, 88_000
    mean = 1 - 0.9 * ((stop - start) * 3 / 4 + (total - stop)) / total
    assert counted["pruning"]["train_ratio"] == pytest.approx(mean, abs=2e-3)
    assert counted["snip"]["train_ratio"] == pytest.approx(0.1, abs=1e-4)
    # The stem keeps its 16 channels, so a small net of a tenth of the weights has a little more of the FLOPs.
    assert counted["small-dense"]["test_ratio"] == pytest.approx(0.107, abs=0.01)


def test_pruning_begins_at_the_steps_of_the_paper_where_nothing_else_is_said() -> None:
    assert int(Flops("wrn-22-2").pruning_start * 88_000) == 700


def test_a_ticket_costs_the_runs_that_it_comes_from_too(capsys: pytest.CaptureFixture[str]) -> None:
    def ratio(method: str, sparsity: float) -> float:
        assert main([*FLOPS, "--method", method, "--sparsity", str(sparsity)]) == 0
        return float(json.loads(capsys.readouterr().out)["train_ratio"])

    uniform = 0.1025340  # the first convolution stays dense
    assert ratio("lottery", 0.9) == pytest.approx(ratio("pruning", 0.9) + uniform, abs=1e-4)
    assert ratio("imp", 0.36) == pytest.approx(1 + 0.8 + 0.64, abs=0.01)


def test_flops_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["flops", "resnet50-cifar", "--sparsity", "0.8", "--distribution", "uniform", "--method", "rigl-sg"]) == 0
    )
    title, dense, sparse, training, note = capsys.readouterr().out.splitlines()
    assert title == "resnet50-cifar, rigl-sg, uniform, sparsity 0.8"
    assert "2,596,028,416 FLOPs a sample" in dense
    assert sparse.endswith("0.2011 of dense")
    assert training.endswith("0.2037 of dense")
    assert "estimated" in note
