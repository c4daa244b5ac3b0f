from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steadynorm.lab import experiment
from steadynorm.lab.configuration import prepared, quickened
from steadynorm.lab.data import Images, first
from steadynorm.lab.experiment import check_record, check_same, explain_stop, new_record, stored_config
from steadynorm.lab.experiments import EXPERIMENTS, compare
from steadynorm.lab.experiments.compare import CompareConfig
from steadynorm.lab.training import network
from steadynorm.reporting.failure import Interrupted, UserError
from steadynorm.reporting.records import Cell, read_record
from steadynorm.reporting.run_directory import RunDirectory
from tests.support.experiments import TINY, Recorder, on_tiny_data, tiny_dataset
from tests.support.first_format import write_first_format
from tests.support.given_networks import HERE

DATA = tiny_dataset()
CONFIG = CompareConfig(
    arms=("none",),
    seeds=(1, 2),
    data="cifar10",
    data_dir=Path("some where"),
    lr=0.03,
    tune_lr=(0.1, 0.3),
    out=Path("x"),
    json=True,
)


def test_the_command_repeats_the_experiment() -> None:
    assert new_record("compare", CONFIG, DATA).command == (
        "steadynorm compare --seeds 1 2 --data cifar10 --data-dir 'some where' --lr 0.03 --arms none --tune-lr 0.1 0.3"
    )


def test_a_flag_without_a_value_is_in_the_command() -> None:
    assert new_record("compare", CompareConfig(quick=True), DATA).command == "steadynorm compare --quick"


def test_the_stored_configuration_comes_back() -> None:
    record = new_record("compare", CONFIG, DATA)
    assert stored_config(CompareConfig(resume=Path("x")), record) == replace(CONFIG, out=None, json=False)


def test_flags_of_the_output_are_given_again_and_are_in_the_line_that_says_how_to_go_on() -> None:
    record = new_record("compare", replace(CONFIG, log=("wandb",), json=True), DATA)
    assert "log" not in record.config and "--log" not in record.command
    config = stored_config(CompareConfig(resume=Path("x"), log=("wandb",), json=True, given=("--log",)), record)
    assert (config.log, config.json) == (("wandb",), True)
    assert experiment._where(config) == ["--log", "wandb"] and experiment._where(CONFIG) == []


def test_the_data_may_have_moved_since() -> None:
    record = new_record("compare", CONFIG, DATA)
    moved = stored_config(CompareConfig(resume=Path("x"), data_dir=Path("new")), record)
    assert moved.data_dir == Path("new")
    assert stored_config(CompareConfig(resume=Path("x"), data="moved/folders"), record).data == "moved/folders"


def test_flags_beside_resume_are_refused_by_name() -> None:
    record = new_record("compare", CONFIG, DATA)
    with pytest.raises(
        UserError, match=r"--resume: continues with the stored configuration\. Drop --batch-size --lr\."
    ):
        stored_config(CompareConfig(resume=Path("x"), lr=0.5, batch_size=7), record)


def test_a_default_that_is_given_beside_resume_is_refused_too() -> None:
    record = new_record("compare", CONFIG, DATA)
    given = CompareConfig(resume=Path("x"), given=("--json", "--lr", "--resume"))
    with pytest.raises(UserError, match=r"--resume: continues with the stored configuration\. Drop --lr\."):
        stored_config(given, record)
    assert stored_config(replace(given, given=("--json", "--resume")), record).lr == CONFIG.lr


def test_a_default_that_is_given_beside_quick_counts_and_is_in_the_command() -> None:
    quick = {"epochs": 5, "depth": 2}
    config = quickened(CompareConfig(quick=True, given=("--epochs", "--quick")), quick)
    assert (config.epochs, config.depth) == (CompareConfig().epochs, 2)
    assert new_record("compare", config, DATA).command == "steadynorm compare --quick --epochs 20 --depth 2"


def test_code_that_a_stored_experiment_calls_must_be_named_again() -> None:
    arms = (f"half={HERE}:Scale,power=0.5", "none")
    config = CompareConfig(network=f"{HERE}:make", arms=arms, lr=0.03)
    record = new_record("compare", config, DATA)
    words = f"--network {HERE}:make --arms half={HERE}:Scale,power=0.5 none"
    with pytest.raises(UserError, match=f"^--resume: .* names code .* If you trust it, add {words}$"):
        stored_config(CompareConfig(resume=Path("x")), record)
    again = CompareConfig(
        resume=Path("x"), network=config.network, arms=arms, given=("--arms", "--network", "--resume")
    )
    assert stored_config(again, record) == config
    with pytest.raises(UserError, match=r"continues with the stored configuration\. Drop --network"):
        stored_config(replace(again, network=f"{HERE}:plain"), record)
    with pytest.raises(UserError, match=r"continues with the stored configuration. Drop --arms\."):
        stored_config(replace(again, network="cnn", given=()), new_record("compare", CompareConfig(lr=0.03), DATA))


def test_data_of_a_function_must_be_named_again() -> None:
    record = new_record("compare", CompareConfig(data="my.data:load"), DATA)
    with pytest.raises(UserError, match=r"If you trust it, add --data my\.data:load"):
        stored_config(CompareConfig(resume=Path("x")), record)
    assert stored_config(CompareConfig(resume=Path("x"), data="my.data:load"), record).data == "my.data:load"


def test_a_network_and_classes_of_the_users_are_trained_described_and_resumed(tmp_path: Path) -> None:
    arms = ("batch_norm", f"half={HERE}:Scale,power=0.5", f"{HERE}:Scale")
    sizes = {"depth": CompareConfig.depth, "widths": None, "epochs": 1, "milestones": ()}
    config = replace(TINY, network=f"{HERE}:make", arms=arms, out=tmp_path / "run", **sizes)
    display = Recorder()
    with on_tiny_data():
        compare.EXPERIMENT.run(config, display)
    record = read_record(tmp_path / "run")
    assert [cell.name for cell in record.cells] == [
        "batch_norm-lr0.05-seed0",
        "half-lr0.05-seed0",
        "tests.support.given_networks.Scale-lr0.05-seed0",
    ]
    assert all(cell.status == "finished" for cell in record.cells)
    assert record.resolved["arms_made"]["batch_norm"] == "2 batch norms became steadynorm.BatchNorm2d"
    assert f"{HERE}:make with half: 2 batch norms became Scale" in display.messages
    found = compare.EXPERIMENT.describe(record)
    assert [row[0].text for row in found.sections[0].blocks[1].rows] == ["Batch norm", "Half", "Scale"]
    assert "half: 2 batch norms became Scale; Scale: 2 " in " ".join(found.method)
    again = CompareConfig(resume=tmp_path / "run", network=config.network, arms=arms)
    with on_tiny_data():
        assert compare.EXPERIMENT.run(again, display) == tmp_path / "run"


def test_other_data_are_refused() -> None:
    record = new_record("compare", CONFIG, DATA)
    DATA.train.pixels[0, 0, 0, 0] ^= 1
    try:
        changed = new_record("compare", CONFIG, DATA)
    finally:
        DATA.train.pixels[0, 0, 0, 0] ^= 1
    with pytest.raises(UserError, match="the data differ from those"):
        check_same(record, changed, Recorder())


@pytest.mark.parametrize("split", ["train", "validation"])
def test_other_labels_are_other_data(split: str) -> None:
    images = getattr(DATA, split)
    swapped = replace(DATA, **{split: replace(images, labels=images.labels.flip(0))})
    first, second = (new_record("compare", CONFIG, data).resolved["data_sha256"] for data in (DATA, swapped))
    assert first != second


@pytest.mark.parametrize("name", ["precision", "device"])
def test_other_arithmetic_is_refused(name: str) -> None:
    record = new_record("compare", CONFIG, DATA)
    other = replace(record, resolved=record.resolved | {name: "other"})
    with pytest.raises(UserError, match=f"the experiment began with {name} other"):
        check_same(other, record, Recorder())


def test_other_versions_are_said_and_allowed() -> None:
    record, display = new_record("compare", CONFIG, DATA), Recorder()
    check_same(record, record, display)
    assert display.messages == []
    check_same(replace(record, versions={"torch": "1"}), record, display)
    assert display.messages == ["resumed with other versions or on another machine: the last digits may differ"]


def test_an_interrupt_says_how_to_resume() -> None:
    display = Recorder()
    with pytest.raises(Interrupted), explain_stop(["compare", "--resume", "a b"], Path("a b"), display):
        raise KeyboardInterrupt
    assert display.messages == ["interrupted; continue with: steadynorm compare --resume 'a b'"]


def test_a_full_disk_says_how_to_resume() -> None:
    match = r"^place: No space left on device\. Fix this and resume: steadynorm compare --resume place$"
    with (
        pytest.raises(UserError, match=match),
        explain_stop(["compare", "--resume", "place"], Path("place"), Recorder()),
    ):
        raise OSError(28, "No space left on device")


def test_the_record_says_what_auto_became(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "choose_precision", lambda wanted, device: f"{wanted} on {device}")
    resolved = new_record("compare", replace(CONFIG, device="cpu"), DATA).resolved
    assert resolved["precision"] == "auto on cpu"
    assert resolved["threads"] == torch.get_num_threads()
    assert (resolved["train_images"], resolved["validation_images"]) == (96, 30)
    assert resolved["chance"] == pytest.approx(0.1)


def test_the_record_says_how_accurate_guessing_is() -> None:
    labels = torch.tensor([0, 1, 2, 1, 1])
    validation = Images(pixels=torch.zeros(5, 3, 32, 32, dtype=torch.uint8), labels=labels)
    assert new_record("compare", CONFIG, replace(DATA, validation=validation)).resolved["chance"] == pytest.approx(0.6)


def test_more_training_images_than_there_are_are_said_to_be_all(tmp_path: Path) -> None:
    display = Recorder()
    config = replace(TINY, arms=("none",), epochs=1, milestones=(), train_images=200, out=tmp_path / "a")
    with on_tiny_data():
        EXPERIMENTS["compare"].run(config, display)
    assert "--train-images: all 96 training images are taken, no more are there" in display.messages


def test_a_directory_of_another_experiment_is_not_resumed(tmp_path: Path) -> None:
    record = replace(new_record("compare", CONFIG, DATA), experiment="bake")
    RunDirectory(tmp_path).begin(record)
    with pytest.raises(UserError, match=f"--resume: {tmp_path} holds bake"):
        compare.EXPERIMENT.run(CompareConfig(resume=tmp_path), Recorder())


def test_training_sees_the_first_images_only(tmp_path: Path) -> None:
    with on_tiny_data():
        compare.EXPERIMENT.run(
            replace(TINY, arms=("none",), epochs=1, milestones=(), train_images=40, out=tmp_path / "a"), Recorder()
        )
    record = read_record(tmp_path / "a")
    assert (record.resolved["train_images"], record.resolved["validation_images"]) == (40, 30)
    assert (
        record.resolved["data_sha256"]
        == new_record("compare", CONFIG, replace(DATA, train=first(DATA.train, 40))).resolved["data_sha256"]
    )


def test_what_torchrun_starts_again_goes_on_in_its_own_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(TINY, arms=("none",), out=tmp_path / "a")
    with on_tiny_data():
        with pytest.raises(KeyboardInterrupt):
            compare.EXPERIMENT.run(short, Recorder(fail_after_epoch=2, error=KeyboardInterrupt()))
        with pytest.raises(UserError, match="holds an experiment already"):
            compare.EXPERIMENT.run(short, Recorder())
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        with pytest.raises(UserError, match="holds an experiment already"):
            compare.EXPERIMENT.run(replace(short, lr=0.01), Recorder())
        display = Recorder()
        compare.EXPERIMENT.run(short, display)
    assert display.begun == [f"1/1 {read_record(tmp_path / 'a').cells[0].name}: 4 epochs, goes on after epoch 2"]


def test_workers_that_may_start_again_must_be_told_their_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with on_tiny_data():
        with pytest.raises(UserError, match="--out: must be given where torchrun may start the workers again"):
            compare.EXPERIMENT.run(replace(TINY, out=None), Recorder())
        compare.EXPERIMENT.run(replace(TINY, arms=("none",), epochs=1, milestones=(), out=tmp_path / "a"), Recorder())


def test_a_record_of_another_number_of_workers_is_refused() -> None:
    record = new_record("compare", CONFIG, DATA)
    assert record.resolved["workers"] == 1
    old = replace(record, resolved={name: value for name, value in record.resolved.items() if name != "workers"})
    check_same(old, record, Recorder())
    four = replace(record, resolved=record.resolved | {"workers": 4})
    with pytest.raises(UserError, match=r"began on 4 workers, now there is 1\. Run it under torchrun with 4 in all\."):
        check_same(four, record, Recorder())


def test_a_directory_of_the_first_format_is_not_resumed(tmp_path: Path) -> None:
    write_first_format(tmp_path, new_record("compare", CONFIG, DATA))
    with pytest.raises(UserError, match=rf"--resume: .* in an older format\. .* steadynorm report {tmp_path} shows"):
        compare.EXPERIMENT.run(CompareConfig(resume=tmp_path), Recorder())


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"batch_size": "many"}, {"lr": None}, {"arms": ["other"]}])
def test_a_directory_with_a_damaged_configuration_is_not_resumed(tmp_path: Path, change: dict[str, object]) -> None:
    record = new_record("compare", TINY, DATA)
    RunDirectory(tmp_path).begin(replace(record, config=record.config | change))
    with pytest.raises(UserError, match=f"{next(iter(change)).replace('_', '.')}"):
        compare.EXPERIMENT.run(CompareConfig(resume=tmp_path), Recorder())


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("compare", {"seed": "0"}),
        ("compare", {"epochs": 0}),
        ("compare", {"lr": "fast"}),
        ("compare", {"purpose": 1}),
        ("shift", {"part": "decays", "severity": "5"}),
        ("shift", {"part": 5}),
        ("recalibration", {"images": "many"}),
    ],
)
def test_a_factor_of_another_type_is_damage(name: str, factors: dict[str, object]) -> None:
    chosen = EXPERIMENTS[name]
    record = new_record(name, prepared(chosen.config(), {}), DATA)
    cell = Cell(factors=network(arm="none", seed=0, lr=1, epochs=2) | factors)
    check_record(chosen, replace(record, cells=(replace(cell, factors=network(arm="none", seed=0, lr=1, epochs=2)),)))
    with pytest.raises(UserError, match=f"a record is damaged .{[*factors][-1]} of "):
        check_record(chosen, replace(record, cells=(cell,)))
