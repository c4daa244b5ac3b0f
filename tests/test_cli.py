import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from steadynorm import __version__, cli
from steadynorm.commands import CANNOT, CLOSED, INTERRUPTED, SHELLS
from steadynorm.lab.experiments import EXPERIMENTS
from steadynorm.lab.normalizations import NORMALIZATIONS
from steadynorm.reporting.failure import Interrupted, UserError
from steadynorm.reporting.records import read_record
from tests.support.experiments import on_tiny_data
from tests.support.records import without_notebook

TINY = ("compare", "--batch-size", "16", "--depth", "2", "--widths", "4", "8")
TINY += ("--precision", "fp32", "--lr", "0.05")
EXPERIMENT_FLAGS = "--seeds --data --data-dir --columns --image-size --validation-share --train-images"
EXPERIMENT_FLAGS += " --precision --device"
EXPERIMENT_FLAGS += " --threads --on --address --out --resume --quick --json"
TRAINING_FLAGS = f"""{EXPERIMENT_FLAGS}
    --network --depth --widths --epochs --batch-size --lr --optimizer --momentum --weight-decay --schedule
    --milestones --label-smoothing --compile --log --augment
"""


BENCH_KERNELS_FLAGS = """
    --op --shapes --batches --dtypes --layouts --max-mb --compile --seconds --threads --device --out --json
"""
BENCH_LAYERS_FLAGS = """
    --layers --shapes --batches --dtypes --layouts --min-mb --max-mb --seconds --threads --device --out --json
"""
BENCH_STEP_FLAGS = (
    "--networks --norms --batch --precision --seconds --threads --device --out --json --inference --watch"
)
STATISTICS_FLAGS = f"{EXPERIMENT_FLAGS} --network --steps --batch-size --lr"
RECALIBRATION_FLAGS = f"{TRAINING_FLAGS} --draws --images"
FLAGS = {
    "compare": f"{TRAINING_FLAGS} --arms --accumulate --tune-lr",
    "sweep": f"{TRAINING_FLAGS} --arms --largest-rate",
    "shift": f"{TRAINING_FLAGS} --methods --corruptions --severities --stream-images --stream-batch --single-images",
    "stream": f"{TRAINING_FLAGS} --arms --methods --stream-images",
    "scale": f"{TRAINING_FLAGS} --variants --reference-batch --warm-up --freeze-last --at-once",
    "landscape": f"{TRAINING_FLAGS} --arms --probe-every --rate-steps --weight-steps",
    "classic": f"{EXPERIMENT_FLAGS} --arms --widths --steps --batch-size --lr --init-std",
    "statistics": STATISTICS_FLAGS,
    "recalibration": RECALIBRATION_FLAGS,
    "adapt": """
        --weights --weights-key --code --data --clean --gate --save --data-dir --columns --mean --std --input-size
        --order --batch-size --batches --seed --device --json
    """,
    "doctor": """
        --weights --weights-key --code --data --data-dir --columns --mean --std --input-size --batch-size --batches
        --seed
        --device --skip --treat --json --sarif --html --explain --list
        --checkpoint --checkpoint-key --reference --accumulation --world-size --optimizer
    """,
    "export": """
        --weights --weights-key --code --format --quantize --input-size --target-p50-ms --max-drop --data
        --data-dir --columns
        --images --calibration-images --requests --batch-size --threads --out --json
    """,
    "recalibrate": """
        --weights --weights-key --code --save --data --data-dir --columns --mean --std --input-size --images
        --batch-size --seed --device --json
    """,
    "report": "--json",
    "warmup": "--shapes --layers --activations --dtypes --layouts --residual --json",
    "bench kernels": BENCH_KERNELS_FLAGS,
    "bench layers": BENCH_LAYERS_FLAGS,
    "bench step": BENCH_STEP_FLAGS,
    "bench workers": "--network --workers --batch --threads --precision --seconds --device --out --json",
    "bench table": "",
    "bench statistics": STATISTICS_FLAGS,
    "bench recalibration": RECALIBRATION_FLAGS,
}


def exit_status(*arguments: str) -> int:
    with on_tiny_data():
        try:
            cli.main(arguments)
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "a"
    assert exit_status(*TINY, "--epochs", "2", "--out", str(place)) == 0
    return place


def test_compare_leaves_everything_in_its_directory(compared: Path) -> None:
    runs = ("batch_norm-lr0.05-seed0", "none-lr0.05-seed0")
    assert {path.name for path in compared.iterdir()} == {
        ".lock",
        "cells.json",
        "checkpoints",
        "config.json",
        "figures",
        "measurements.csv",
        "report.html",
        "report.ipynb",
        "state",
        "summary.json",
        "tensorboard",
    }
    assert {path.stem for path in (compared / "checkpoints").iterdir()} == set(runs)
    assert {path.suffix for path in (compared / "figures").iterdir()} == {".png", ".svg"}


def test_the_recorded_command_repeats_the_run(compared: Path, tmp_path: Path) -> None:
    _, *arguments = read_record(compared).command.split()
    with without_notebook():
        assert exit_status(*arguments, "--out", str(tmp_path / "b")) == 0
    first, second = (read_record(place).cells for place in (compared, tmp_path / "b"))
    assert [run.last("train_loss") for run in first] == [run.last("train_loss") for run in second]


def test_report_rebuilds_from_the_records_alone_and_json_is_the_summary_alone(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "cells.json", "measurements.csv"):
        (tmp_path / name).write_bytes((compared / name).read_bytes())
    with without_notebook():
        assert exit_status("report", str(tmp_path), "--json") == 0
    assert capsys.readouterr().out == (compared / "summary.json").read_text()
    for name in ("report.html", "summary.json", "figures/val_accuracy.svg"):
        assert (tmp_path / name).read_bytes() == (compared / name).read_bytes()


def test_json_lines_of_an_experiment_are_all_that_is_on_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "a"
    with without_notebook():
        assert exit_status(*TINY, "--epochs", "1", "--arms", "batch_norm", "--log", "--json", "--out", str(place)) == 0
        first = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert exit_status("compare", "--resume", str(place), "--json") == 0
    assert [line["kind"] for line in first] == ["epoch", "cell", "summary"]
    assert first[-1] == {"kind": "summary", **json.loads((place / "summary.json").read_text())}
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == first[-1:]
    assert not (place / "tensorboard").exists()


@pytest.mark.slow  # it starts the command
def test_a_reader_that_goes_away_ends_an_experiment_in_one_line(tmp_path: Path) -> None:
    place = tmp_path / "a"
    small = ("--arms", "none", "--train-images", "32", "--widths", "2", "--depth", "1", "--epochs", "5")
    command = [sys.executable, "-m", "steadynorm", "compare", *small, "--json", "--out", str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline())["epoch"] == 1
        process.stdout.close()
        *_, last = process.stderr.read().splitlines()
    assert process.returncode == CANNOT
    assert last == (
        "steadynorm: standard output: its reader has closed it. Fix this and resume: steadynorm compare --resume "
        f"{place}"
    )


def test_a_reader_that_goes_away_ends_a_command_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "report", (cli.ReportConfig, lambda config: print("a word")))
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert exit_status("report", str(tmp_path)) == 141
    assert capsys.readouterr().err == ""


def test_the_terminal_shows_the_table_and_the_place(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with without_notebook():
        assert exit_status("report", str(compared)) == 0
    out = capsys.readouterr().out
    assert "validation accuracy" in out
    assert "batch_norm" in out
    assert f"report: {compared / 'report.html'}" in out


def test_the_commands_are_these_and_further_experiments() -> None:
    assert [name for name in cli.COMMANDS if name in FLAGS] == list(FLAGS)
    assert cli.COMMANDS.keys() - FLAGS.keys() == EXPERIMENTS.keys() - FLAGS.keys()


@pytest.mark.parametrize("command", FLAGS)
def test_the_flags_of_a_command_are_these(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(*command.split(), "--help") == 0
    flags = re.findall(r"^\W (?:-h, )?(--[a-z][a-z0-9-]*)", capsys.readouterr().out, flags=re.MULTILINE)
    assert sorted(flags) == sorted([*FLAGS[command].split(), "--help"])


@pytest.mark.parametrize("shell", SHELLS)
def test_the_completion_of_a_shell_knows_commands_and_flags(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("--tyro-print-completion", shell) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("recalibrate", "kernels", "--batch-size", "--weights-key"))


def test_bash_completes_a_command_and_a_flag(tmp_path: Path) -> None:
    bash = shutil.which("bash") or pytest.skip("bash is not installed")
    assert exit_status("--tyro-write-completion", "bash", str(tmp_path / "a.bash")) == 0
    for words, expected in (("recali", "recalibrate recalibration"), ("doctor --weights-", "--weights-key")):
        line = ["steadynorm", *words.split()]
        code = f"""
source {tmp_path / "a.bash"}
COMP_WORDS=({" ".join(line)}); COMP_CWORD={len(line) - 1}; COMP_LINE="{" ".join(line)}"; COMP_POINT=${{#COMP_LINE}}
$(complete -p steadynorm | sed -E 's/.*-F ([^ ]+).*/\\1/') steadynorm "{line[-1]}" "{line[-2]}"
echo ${{COMPREPLY[@]}}
"""
        done = subprocess.run([bash, "--norc", "-c", code], capture_output=True, text=True, check=True)
        assert sorted(done.stdout.split()) == expected.split()


def test_a_completion_that_there_is_not_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("--tyro-print-completion", "tcsh") == 2
    assert capsys.readouterr().err == "steadynorm: --tyro-print-completion: must be bash or zsh, got tcsh.\n"


@pytest.mark.parametrize("arguments", [("--version",), ("compare", "--version"), ("bench", "kernels", "--version")])
def test_the_version_is_printed_with_and_without_a_command(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(*arguments) == 0
    assert capsys.readouterr().out == f"steadynorm {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [(("compare", "--epoch", "3"), "--epochs"), (("doctor", "m:f", "--weigths", "a"), "--weights")],
)
def test_a_flag_that_is_not_known_is_refused_with_the_nearest(
    arguments: tuple[str, ...], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and re.search(rf"Perhaps you meant:.*{meant} ", printed.err, flags=re.DOTALL)


def test_the_documentation_states_every_exit_status() -> None:
    page = (Path(__file__).parents[1] / "docs" / "commands.md").read_text()
    table = page.partition("## Exit statuses")[2].partition("\n##")[0]
    assert [int(each) for each in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)] == [
        *(0, 1, CANNOT, INTERRUPTED, CLOSED)
    ]


def test_help_lists_every_arm(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("compare", "--help") == 0
    listed = set(re.findall(r"\w+", capsys.readouterr().out))
    assert NORMALIZATIONS.keys() - listed == {"several_decays"}  # whose four evaluations only `statistics` compares


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("compair",),
        ("compare", "--epochs", "x"),
        ("compare", "--data"),
        ("bench",),
        ("bench", "kernel"),
        ("bench kernels",),
        ("bench", "kernels", "--op", "normalize"),
    ],
)
def test_a_usage_error_is_exit_status_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(*arguments) == 2
    assert capsys.readouterr().err != ""


def test_what_cannot_be_done_is_one_line_and_exit_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("compare", "--arms", "bn") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("steadynorm: --arms: no normalization is called 'bn'")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("x: no"), 2, "steadynorm: x: no\n"),
        (OSError(13, "Permission denied", "/x"), 2, "steadynorm: /x: Permission denied.\n"),
        (OSError(28, "No space left on device"), 2, "steadynorm: No space left on device.\n"),
        (KeyboardInterrupt(), 130, "steadynorm: interrupted\n"),
        (Interrupted(), 130, ""),
    ],
)
def test_how_a_command_ends_decides_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, status: int, message: str
) -> None:
    def fail(config: object) -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "report", (cli.ReportConfig, fail))
    assert exit_status("report", "x") == status
    assert capsys.readouterr().err == message


def test_a_command_may_give_an_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "report", (cli.ReportConfig, lambda config: 1))
    assert exit_status("report", "x") == 1


def test_a_disk_that_is_full_at_the_report_says_how_to_go_on(
    compared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(directory: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli, "build_report", fail)
    assert exit_status("compare", "--resume", str(compared)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"steadynorm: {compared}: No space left on device.")
    assert last.endswith(f"Fix this and resume: steadynorm report {compared}")


def _with_links(run: Path, place: Path) -> tuple[Path, dict[Path, bytes]]:
    """A copy of a run directory in which every file but the lock is a link to a file elsewhere; and those files."""
    copy, elsewhere = place / "copy", place / "elsewhere"
    shutil.copytree(run, elsewhere)
    for path in sorted(elsewhere.rglob("*")):
        mine = copy / path.relative_to(elsewhere)
        mine.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.name != ".lock":
            mine.symlink_to(path)
    return copy, {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}


def test_no_file_that_a_run_directory_links_to_is_written(compared: Path, tmp_path: Path) -> None:
    copy, kept = _with_links(compared, tmp_path)
    for name in ("state", "checkpoints"):  # so that all of it is written again
        (copy / name / "none-lr0.05-seed0.safetensors").unlink()
    with without_notebook():
        assert exit_status("compare", "--resume", str(copy)) == 0
    assert {path: path.read_bytes() for path in kept} == kept
    assert {path for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()} == set(kept)


FOLDERS = ["state", "checkpoints", "figures", "tensorboard/none-lr0.05-seed0"]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("compare --resume", ".lock"),
        *((command, name) for command in ("report", "compare --resume") for name in FOLDERS),
    ],
)
def test_a_link_through_which_files_would_be_written_is_one_line(
    compared: Path, tmp_path: Path, command: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(compared, tmp_path / "copy")
    (tmp_path / "copy" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "copy" / name).symlink_to(tmp_path / "elsewhere")
    if name == ".lock":
        (tmp_path / "elsewhere").write_text("precious")
    before = _listing(tmp_path)
    assert exit_status(*command.split(), str(tmp_path / "copy")) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"steadynorm: {tmp_path / 'copy' / name}: ")
    assert _listing(tmp_path) == before


def _listing(place: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in place.rglob("*")}


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (("compare", "--out", ""), "--out"),
        (("compare", "--out="), "--out"),
        (("compare", "--quick", "--resume", " "), "--resume"),
        (("export", "a.safetensors", "--out", ""), "--out"),
        (("export", ""), "what follows export"),
        (("bench", "kernels", "--out", ""), "--out"),
        (("report", ""), "what follows report"),
    ],
)
def test_an_empty_value_is_one_line(
    arguments: tuple[str, ...],
    flag: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_status(*arguments) == 2
    assert capsys.readouterr().err == f"steadynorm: {flag}: must not be empty. Give a value, or drop it.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", [".", "..", "inner/..", "link"])
def test_an_experiment_begins_in_no_directory_that_holds_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here" / "inner").mkdir(parents=True)
    (tmp_path / "here" / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    before = _listing(tmp_path)
    assert exit_status(*TINY, "--out", out) == 2
    assert capsys.readouterr().err.startswith(f"steadynorm: --out: {out} must be new or empty, it holds ")
    assert _listing(tmp_path) == before


def test_a_disk_that_is_full_when_an_experiment_begins_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        assert exit_status(*TINY, "--out", str(tmp_path / "a")) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capsys.readouterr().err == f"steadynorm: {tmp_path / 'a' / 'config.json'}: File too large.\n"


def test_an_unwritable_place_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert exit_status(*TINY, "--out", str(tmp_path / "file" / "a")) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"steadynorm: {tmp_path / 'file'}")


@pytest.mark.parametrize("flags", [("--lr", "0.1"), ("--batch_size=128",), ("--widths", "32", "64", "128")])
def test_a_default_beside_resume_is_refused_and_not_ignored(
    compared: Path, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status("compare", "--resume", str(compared), *flags) == 2
    name = flags[0].partition("=")[0].replace("_", "-")
    assert capsys.readouterr().err == (f"steadynorm: --resume: continues with the stored configuration. Drop {name}.\n")


def test_python_m_steadynorm_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "steadynorm", "--help"], capture_output=True, text=True, check=True)
    assert "compare" in done.stdout


def test_the_command_starts_where_the_modules_of_posix_are_missing() -> None:
    missing = "fcntl", "resource", "termios"
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing})); from steadynorm.cli import main; main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert "compare" in done.stdout


def test_without_the_lab_extra_the_command_says_what_to_install() -> None:
    """One process for all, each missing in turn: torch is imported once."""
    missing = ["tyro", "rich", "filelock", "safetensors", "altair"]
    code = f"""
import sys
for name in {missing}:
    sys.modules[name] = None
    try:
        import steadynorm.cli
    except SystemExit as ended:
        assert ended.code == 2
    del sys.modules[name]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [
        f"steadynorm: not installed: {name}. Run: pip install 'steadynorm[lab]'" for name in missing
    ]


def test_the_process_of_a_command_reuses_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[Callable[[], bool]] = []
    monkeypatch.setattr(cli, "reuse_memory", lambda: called.append(cli.reuse_memory))
    exit_status("compare", "--resume", str(tmp_path))
    assert len(called) == 1
