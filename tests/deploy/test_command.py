import json
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from steadynorm import cli
from steadynorm.deploy import FORMATS, pipeline
from steadynorm.deploy.command import ExportConfig, _reading, check_config, run_export, with_data
from steadynorm.deploy.formats import QUANTIZATIONS
from steadynorm.deploy.processes import SERVING, Server
from steadynorm.deploy.report import best_of, build_export_report, describe, missed_target
from steadynorm.deploy.results import read_outcome
from steadynorm.lab.data import first, load_dataset
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.progress import silent_display
from steadynorm.reporting.records import Record, read_config, write_config
from tests.support.deploy import save_checkpoint
from tests.support.experiments import Recorder

SMALL = {"images": 40, "calibration_images": 32, "requests": 20, "batch_size": (1, 3), "threads": 1, "max_drop": 100.0}
SMALL["data"] = "shapes"  # of which the networks here are taken to be
WAYS = [(name, way) for name, form in FORMATS.items() for way in QUANTIZATIONS if way not in form.lacking]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Everything that a small network can be exported to: its directory and the network."""
    place = tmp_path_factory.mktemp("export")
    model = save_checkpoint(place / "a.safetensors")
    directory = run_export(
        ExportConfig(source=str(place / "a.safetensors"), out=place / "out", **SMALL), silent_display()
    )
    return directory, model


def export(tmp_path, **changed):
    save_checkpoint(tmp_path / "a.safetensors")
    config = {"source": str(tmp_path / "a.safetensors"), "out": tmp_path / "out", **SMALL, **changed}
    return run_export(ExportConfig(**config), silent_display())


def artifact(directory, name, way):
    return read_outcome(directory).of(name, way)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "way"), WAYS)
def test_every_file_answers_as_the_model_does(exported, name, way):
    directory, model = exported
    one = artifact(directory, name, way)
    images = np.random.default_rng(0).normal(size=(5, 3, 32, 32)).astype(np.float32)
    with Server(directory / one.file, serving=FORMATS[name].serving, threads=1) as server:
        inputs, outputs = (directory.parent / name for name in ("x.npy", "y.npy"))
        np.save(inputs, images)
        for batch in (1, 2, 5):
            server.ask(
                "predict", images=str(directory.parent / "x.npy"), outputs=str(directory.parent / "y.npy"), batch=batch
            )
            with torch.no_grad():
                expected = model(torch.from_numpy(images)).numpy()
            tolerance = 1e-5 if way == "none" else 0.1
            error = np.abs(np.load(outputs) - expected).max()
            assert error <= tolerance * np.abs(expected).max()
            assert (error > 0) or way == "none"


@pytest.mark.slow
def test_what_a_format_has_not_is_told_and_not_skipped(exported):
    told = {(one.format, one.quantize): one.refused for one in read_outcome(exported[0]).artifacts if one.refused}
    assert told == {(name, way): why for name, form in FORMATS.items() for way, why in form.lacking.items()}


@pytest.mark.slow
def test_the_record_says_of_every_file_what_was_measured(exported):
    outcome = read_outcome(exported[0])
    assert (outcome.norms, outcome.steps) == (3, ("3 batch norms folded into the weights beside them.",))
    for one in outcome.artifacts:
        if one.refused:
            continue
        assert one.latency is not None and one.latency.requests == 20
        assert 0 < one.latency.p50 <= one.latency.p90 <= one.latency.p99
        assert set(one.images_per_second) == {"1", "3"} and one.peak_mib > 50
        assert one.file == "" or one.mib * 2**20 == (exported[0] / one.file).stat().st_size
    float_files = [one for one in outcome.artifacts if one.quantize == "none"]
    assert len(float_files) == 6 and all(one.relative_error < 1e-5 and one.agreement == 1 for one in float_files)
    assert float_files[0].largest_error == 0


@pytest.mark.slow
def test_an_int8_file_is_further_off_than_its_float_file(exported):
    directory, _ = exported
    for name in ("onnx", "aotinductor", "torch-export"):
        assert artifact(directory, name, "none").largest_error < artifact(directory, name, "static").largest_error


@pytest.mark.slow
def test_the_report_is_made_from_the_record_alone(exported):
    directory, _ = exported
    page = build_export_report(directory).read_text()
    assert "Traceback" not in page and "onnxruntime.InferenceSession" in page
    summary = json.loads((directory / "summary.json").read_text())
    best = best_of(read_outcome(directory))
    assert summary["headline"].startswith(best.name)
    assert summary["command"].startswith("steadynorm export ") and " --images 40 " in summary["command"]
    before = page
    assert build_export_report(directory).read_text() == before


@pytest.mark.slow
def test_a_target_decides_the_exit_status(exported):
    directory, _ = exported
    config = json.loads((directory / "config.json").read_text())
    p50 = best_of(read_outcome(directory)).latency.p50
    for target, missed in ((None, False), (p50 * 1.01, False), (p50 * 0.99, True)):
        config["config"]["target_p50_ms"] = target
        (directory / "config.json").write_text(json.dumps(config))
        assert missed_target(directory) is missed


@pytest.mark.slow
def test_a_file_runs_where_this_package_is_not_installed(exported, tmp_path):
    directory, model = exported
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "steadynorm" not in path.name:
            (packages / path.name).symlink_to(path)
    np.save(tmp_path / "x.npy", np.ones((2, 3, 32, 32), dtype=np.float32))
    program = f"""
import sys, runpy
sys.path.append({str(packages)!r})
import numpy as np
try:
    import steadynorm
except ImportError:
    for file in sys.argv[2:]:
        serve = runpy.run_path(sys.argv[1])["load"](file, 1)
        print(serve(np.load({str(tmp_path / "x.npy")!r})).tolist())
"""
    with torch.no_grad():
        expected = model(torch.ones(2, 3, 32, 32)).numpy()
    for name, form in FORMATS.items():
        files = [directory / artifact(directory, name, way).file for way in QUANTIZATIONS if (name, way) in WAYS]
        command = [sys.executable, "-I", "-S", "-c", program, str(SERVING / form.serving), *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        answers = list(map(json.loads, done.stdout.splitlines()))
        assert len(answers) == len(files) >= 2
        assert all(np.allclose(one, expected, atol=0.1 * np.abs(expected).max()) for one in answers)


def answering(server, change):
    """How servers ask whose answers are changed, by the name of their file."""
    ask = server.ask

    def changed(self, do, **request):
        answer = ask(self, do, **request)
        if do == "predict":
            np.save(request["outputs"], change(self.path.name, np.load(request["outputs"])))
        return answer

    return changed


@pytest.mark.slow
def test_too_great_a_loss_of_accuracy_is_refused_and_the_file_removed(tmp_path, monkeypatch, served_here):
    labels = first(load_dataset("shapes").validation, 40).labels.numpy()
    truth = np.eye(10, dtype=np.float32)[labels]
    monkeypatch.setattr(pipeline, "eager_outputs", lambda model, images: truth)
    with pytest.raises(UserError, match=r"int8: [6-9]\d\.\d points of accuracy lost, more than the max drop of 50\."):
        export(tmp_path, format=("onnx",), quantize=("dynamic",), max_drop=50.0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.slow
def test_without_labels_another_class_than_the_models_is_what_is_lost(tmp_path, monkeypatch, served_here):
    source = "tests.support.deploy:build_seven_classes"
    wrong = answering(served_here, lambda name, outputs: np.roll(outputs, 1, axis=1) if "dynamic" in name else outputs)
    monkeypatch.setattr(served_here, "ask", wrong)
    directory = export(tmp_path, source=source, format=("onnx",), quantize=("none", "dynamic"), max_drop=1.0)
    refused, kept = artifact(directory, "onnx", "dynamic"), artifact(directory, "onnx", "none")
    assert (
        refused.refused == "100.0 % of the images get another class than from the model, more than the max drop of 1."
    )
    assert refused.file == "" and not list(directory.glob("*dynamic*"))
    assert kept.file and kept.accuracy is None and kept.agreement == 1
    told = read_outcome(directory).steps[-1]
    assert told.startswith(
        "Accuracy is not measured: the model has 7 outputs, shapes 10 classes. Files are compared by "
    )
    page = build_export_report(directory).read_text()
    assert "100.0 % of the images" in page and "Same class as the model over the latency" in page


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norms"), [("resnet", 11), ("mobilenet", 52)])
def test_models_of_transformers_are_exported_alike(tmp_path, name, norms, served_here):
    source, formats = f"tests.support.deploy:build_{name}", ("torchscript", "torch-export", "onnx")
    directory = export(tmp_path, source=source, format=formats, quantize=("none", "static"))
    outcome = read_outcome(directory)
    assert outcome.norms == norms
    assert outcome.steps == (f"{norms} batch norms folded into the weights beside them.",)
    kept = {(one.format, one.quantize) for one in outcome.artifacts if one.file}
    assert kept == {(name, way) for name in formats for way in ("none", "static")} - {("torchscript", "static")}


@pytest.mark.slow
def test_a_model_that_no_graph_can_hold_is_told_of(tmp_path, served_here):
    source = "tests.support.deploy:build_branching"
    directory = export(tmp_path, source=source, format=("torchscript", "torch-export"), quantize=("none",))
    assert "decides by its data in one place;" in artifact(directory, "torchscript", "none").note
    refused = artifact(directory, "torch-export", "none").refused
    assert refused.startswith("torch.export cannot hold this model: ") and "\n" not in refused
    assert [path.suffix for path in directory.glob("model-*")] == [".pt"]


def test_a_full_disk_is_not_the_formats_fault(tmp_path, monkeypatch, served_here):
    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.export.save", full)
    with pytest.raises(OSError, match="No space left"):
        export(tmp_path, format=("torch-export",), quantize=("none",))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def _trained_on_cifar10(place, *, data="cifar10", resolved=None):
    (place / "run" / "checkpoints").mkdir(parents=True)
    config = {"data": data, "data_dir": "somewhere" if data == "cifar10" else None}
    resolved = resolved or {}
    record = Record(experiment="a", command="a", created="", config=config, resolved=resolved, versions={}, machine={})
    write_config(place / "run", record)
    return str(place / "run" / "checkpoints" / "a.safetensors")


def test_a_checkpoint_is_compared_on_what_it_was_trained_on(tmp_path):
    source = _trained_on_cifar10(tmp_path)
    found, _ = with_data(ExportConfig(source=source))
    assert (found.data, found.data_dir) == ("cifar10", Path("somewhere"))
    assert with_data(ExportConfig(source=source, data_dir=Path("here")))[0].data_dir == Path("here")
    assert with_data(ExportConfig(source=source, data="shapes"))[0].data_dir is None
    assert with_data(ExportConfig(source="package:function"))[0].data == "shapes"


def test_images_have_the_size_that_a_checkpoint_was_trained_on(tmp_path):
    source = _trained_on_cifar10(tmp_path, resolved={"image_size": [28, 20]})
    assert with_data(ExportConfig(source=source))[0].input_size == (28, 20)
    assert with_data(ExportConfig(source=source, input_size=(8, 8)))[0].input_size == (8, 8)
    assert with_data(ExportConfig(source="package:function"))[0].input_size == (32, 32)


def test_code_that_a_record_names_is_not_called_for_data(tmp_path):
    source = _trained_on_cifar10(tmp_path, data="my.data:load")
    with pytest.raises(UserError, match=r"given by code, my\.data:load\. If you trust it, add --data my\.data:load\.$"):
        with_data(ExportConfig(source=source))
    assert with_data(ExportConfig(source=source, data="my.data:load"))[1]


def test_data_of_ones_own_are_read_as_in_training(tmp_path, monkeypatch):
    source = _trained_on_cifar10(tmp_path, data="folders")
    config, _ = with_data(ExportConfig(source=source))
    assert _reading(config)["validation_share"] is None
    path = tmp_path / "run" / "config.json"
    stored = json.loads(path.read_text())
    stored["config"] |= {"image_size": [16], "validation_share": 0.25, "columns": ["a", "b"]}
    path.write_text(json.dumps(stored))
    found = {"data_dir": None, "columns": ["a", "b"], "image_size": [16], "validation_share": 0.25}
    assert {"data_dir": None, **_reading(config)} == found
    assert _reading(replace(config, columns=("c", "d")))["columns"] == ("c", "d")
    assert _reading(replace(config, data="other")) == {"data_dir": None, "columns": None}


def test_a_built_model_is_not_scored_on_classes_that_may_not_be_its_own(tmp_path, served_here):
    said = Recorder()
    config = {**SMALL, "data": None, "format": ("torchscript",), "quantize": ("none",)}
    source = "tests.support.deploy:build_model"
    directory = run_export(ExportConfig(source=source, out=tmp_path / "out", **config), said)
    report = describe(read_config(directory), read_outcome(directory))
    one = artifact(directory, "torchscript", "none")
    assert one.accuracy is None and one.agreement == 1 and one.largest_error < 1e-4
    why = "Accuracy is not measured: shapes is not known to hold the model's classes; if another --data does, give it."
    told = [message for message in said.messages if message.startswith(why)]
    assert len(told) == 1 and told[0] in read_outcome(directory).steps
    assert report.table.columns == ("Served by", "p50", "Speed", "Largest error", "Same class", "Size")
    assert report.headline.endswith("times as fast, same class on 100.0\N{NO-BREAK SPACE}%")


def test_a_checkpoint_is_scored_on_the_data_that_it_was_trained_on_alone(tmp_path, monkeypatch):
    source = _trained_on_cifar10(tmp_path)
    assert with_data(ExportConfig(source=source))[1]
    assert with_data(ExportConfig(source=source, data="cifar10"))[1]
    assert not with_data(ExportConfig(source=source, data="shapes"))[1]
    copied = str(tmp_path / "a.safetensors")
    assert not with_data(ExportConfig(source=copied))[1]
    assert with_data(ExportConfig(source=copied, data="shapes"))[1]
    assert with_data(ExportConfig(source="package:function", data="shapes"))[1]
    monkeypatch.chdir(tmp_path / "run")  # whose config.json says nothing of a model from elsewhere
    assert not with_data(ExportConfig(source="package:function"))[1]


@pytest.mark.parametrize("source", ["package:function", "a.safetensors"])
def test_a_directory_of_data_that_would_not_be_read_is_refused(source):
    with pytest.raises(UserError, match=r"--data-dir: is read with --data cifar10 only\. Add --data cifar10\."):
        with_data(ExportConfig(source=source, data_dir=Path("here")))
    assert with_data(ExportConfig(source=source, data="cifar10", data_dir=Path("here")))[0].data_dir == Path("here")


@pytest.mark.slow
def test_a_refused_int8_file_is_an_expectation_that_is_not_met(exported, tmp_path):
    directory, _ = exported
    outcome, record = read_outcome(directory), read_config(directory)
    names = [one.name for one in outcome.artifacts if one.quantize == "static" and one.file]
    better_than_guessing = tuple(replace(one, accuracy=one.accuracy and 0.9) for one in outcome.artifacts)
    outcome = replace(outcome, artifacts=better_than_guessing)

    def verdicts(made):
        claims = {item.claim: item for item in describe(record, made).claims}
        return [next(item for claim, item in claims.items() if claim.startswith(name)).verdict for name in names]

    assert len(names) == 3 and verdicts(outcome) == ["met"] * 3
    refused = [
        replace(one, refused="9.0 points of accuracy lost.", file="", latency=None, accuracy=None)
        if one.name == names[1]
        else one
        for one in outcome.artifacts
    ]
    assert verdicts(replace(outcome, artifacts=tuple(refused))) == ["met", "not met", "met"]


def test_a_float_file_that_answers_otherwise_leaves_nothing_behind(tmp_path, monkeypatch, served_here):
    monkeypatch.setattr("steadynorm.deploy.comparison.TOLERANCE", 0.0)
    with pytest.raises(UserError, match=r"nothing could be exported: TorchScript: its outputs are off by"):
        export(tmp_path, format=("torchscript",), quantize=("none",))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.slow
def test_outputs_that_are_not_finite_are_refused(tmp_path, monkeypatch, served_here):
    wrong = answering(served_here, lambda name, outputs: outputs * np.nan if name.startswith("model-") else outputs)
    monkeypatch.setattr(served_here, "ask", wrong)
    with pytest.raises(UserError, match=r"TorchScript: its outputs are not finite\."):
        export(tmp_path, format=("torchscript",), quantize=("none", "dynamic"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_what_is_there_is_not_written_over(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"--out: .*out exists already\. Give a new directory\."):
        export(tmp_path)
    assert not list((tmp_path / "out").iterdir())


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"--out: .*out exists already\. Give a new directory\."):
        export(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "out"]


def test_a_model_without_batch_norms_is_left_as_it_is():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    folded, number, steps = pipeline._folded(model, torch.ones(2, 3, 2, 2))
    assert (number, steps) == (0, ["No batch norms folded into the weights beside them."])
    assert torch.equal(folded(torch.ones(2, 3, 2, 2)), model(torch.ones(2, 3, 2, 2)))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True)])
def test_a_model_of_which_nothing_folds_is_left_as_it_is_with_the_reason(norm):
    model = nn.Sequential(norm, nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).eval()
    folded, number, steps = pipeline._folded(model, torch.ones(2, 3, 2, 2))
    assert number == 0
    assert [step.split(":")[:2] for step in steps[1:]] == [["Not folded", " 0"]]
    assert torch.equal(folded(torch.ones(2, 3, 2, 2)), model(torch.ones(2, 3, 2, 2)))


def test_no_row_says_folded_where_nothing_folded(tmp_path, served_here):
    source = "tests.support.deploy:build_unfoldable"
    outcome = read_outcome(export(tmp_path, source=source, format=("torchscript",), quantize=("none",)))
    assert outcome.steps[0] == "No batch norms folded into the weights beside them."
    assert pipeline.FOLDED.name not in [one.name for one in outcome.artifacts]


WRONG_TYPE = '{"model": "a", "parameters": "many", "norms": 0, "steps": [], "artifacts": []}'


@pytest.mark.parametrize("text", ["", "{", "[]", '{"artifacts": [{}]}', '{"artifacts": [], "steps": []}', WRONG_TYPE])
def test_a_damaged_record_is_one_line(tmp_path, text):
    (tmp_path / "artifacts.json").write_text(text)
    with pytest.raises(UserError, match=r"artifacts\.json: is not the record of an export \("):
        read_outcome(tmp_path)


def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch, served_here):
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("steadynorm.deploy.pipeline.measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path, format=("torchscript",), quantize=("none",))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.slow
def test_peak_memory_is_the_servers_own(exported):
    """This process, which starts it, has far more."""
    ballast = np.ones(150_000_000)
    directory, _ = exported
    with Server(directory / artifact(directory, "onnx", "none").file, serving="onnx.py", threads=1) as server:
        np.save(directory.parent / "x.npy", np.ones((4, 3, 32, 32), dtype=np.float32))
        asked = {"images": str(directory.parent / "x.npy"), "batch": 1, "requests": 1, "warm_up": 0}
        assert 20 < server.ask("time", **asked)["peak_mib"] < ballast.nbytes / 2**20


@pytest.mark.slow
def test_a_server_that_ends_is_one_line(exported):
    directory, _ = exported
    with Server(directory / artifact(directory, "onnx", "none").file, serving="onnx.py", threads=1) as server:
        server.process.kill()
        with pytest.raises(UserError, match="ended with status -9"):
            server.ask("predict", images="x", outputs="y", batch=1)


def test_a_damaged_file_does_not_load(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"model\.onnx: fails in a separate process: ") as caught:
        Server(tmp_path / "model.onnx", serving="onnx.py", threads=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"format": ("torchscript",), "quantize": ("static",)}, "--quantize static: TorchScript has none: "),
        ({"images": 1}, "--images: must be at least 2, got 1"),
        ({"input_size": (0, 32)}, "--input-size: must be at least 1, got 0 32"),
        ({"target_p50_ms": -1.0}, "--target-p50-ms: must be at least 0"),
        ({"threads": 0}, "--threads"),
        ({"weights_key": "ema"}, r"--weights-key: .*\. Give the file by --weights\."),
    ],
)
def test_flags_that_cannot_be_are_refused(changed, why):
    with pytest.raises(UserError, match=why):
        check_config(ExportConfig(source="a", **changed))


def test_a_format_whose_packages_are_missing_says_what_to_install(monkeypatch):
    monkeypatch.setattr("steadynorm.deploy.formats.find_spec", lambda name: None if name == "onnxruntime" else 1)
    with pytest.raises(UserError, match=r"--format onnx: not installed: onnxruntime\. Run: pip install"):
        check_config(ExportConfig(source="a", format=("onnx",)))
    check_config(ExportConfig(source="a"))  # by default it is what can be written


@pytest.mark.slow
def test_a_float_program_does_not_need_what_quantises(tmp_path, monkeypatch, served_here):
    monkeypatch.setattr("steadynorm.deploy.formats.find_spec", lambda name: None if name == "torchao" else 1)
    directory = export(tmp_path, format=("torch-export",), quantize=("none", "static"))
    assert artifact(directory, "torch-export", "none").file
    assert (
        "needs torchao, which is not installed. Run: pip install"
        in artifact(directory, "torch-export", "static").refused
    )


def test_no_compiler_is_said(monkeypatch):
    monkeypatch.setattr("steadynorm.deploy.formats.which", lambda name: None)
    with pytest.raises(UserError, match=r"--format aotinductor: AOTInductor needs a C\+\+ compiler"):
        check_config(ExportConfig(source="a", format=("aotinductor",)))


def test_the_command_exits_with_1_where_the_target_is_missed(tmp_path, capsys, served_here):
    save_checkpoint(tmp_path / "a.safetensors")
    flags = ["--images", "20", "--requests", "5", "--format", "torchscript", "--quantize", "none", "--threads", "1"]
    command = ["export", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "out"), *flags]
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--target-p50-ms", "0.000001"])
    assert ended.value.code == 1
    assert "not met: Half of the requests" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main(command)
    assert ended.value.code == 2 and "exists already" in capsys.readouterr().err


def test_a_model_in_training_mode_is_one_line_and_nothing_is_written(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "tests.support.deploy:build_training", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_size_that_the_model_was_not_made_for_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"failed on images of 3x32x32 with .*\. Give the size .* by --input-size\.$"):
        export(tmp_path, source="tests.support.deploy:build_fixed_size")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
