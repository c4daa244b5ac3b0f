import copy
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from steadynorm.deploy import FORMATS, export, read_outcome
from steadynorm.deploy.processes import Server
from steadynorm.reporting.failure import UserError
from tests.support.deploy import build_model, build_two_outputs, network

CNN_IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def mlp():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    for _ in range(3):
        model(torch.randn(16, 12))
    return model.eval()


def torch_norms():
    """Every kind of norm that torch has, the batch norm with statistics of its own."""
    torch.manual_seed(0)
    norms = (nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.LayerNorm((4, 8, 8)))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *norms, nn.Flatten(), nn.Linear(256, 5))
    model(torch.randn(16, 3, 8, 8))
    return model.eval()


class TwoInputs(nn.Module):
    def forward(self, x, mask, scale=1.0):
        return (x * mask * scale).flatten(1)


@pytest.mark.parametrize(
    ("build", "images", "norms"),
    [(mlp, torch.randn(5, 12), 1), (build_model, CNN_IMAGES, 3), (torch_norms, torch.randn(4, 3, 8, 8), 1)],
    ids=["MLP", "CNN", "torch's norms"],
)
def test_any_module_of_one_input_is_exported_and_answers_as_before(tmp_path, build, images, norms):
    model = build()
    made = export(model, images, out=tmp_path / "out", formats=("torchscript", "onnx"))
    assert (made.norms, made.directory) == (norms, tmp_path / "out")
    assert [(one.format, one.refused) for one in made.artifacts[-2:]] == [("torchscript", ""), ("onnx", "")]
    assert all(one.relative_error < 1e-5 and one.agreement == 1 and one.latency is None for one in made.artifacts)
    assert read_outcome(tmp_path / "out") == made
    path = made.path(made.of("onnx"))
    with Server(path, serving=FORMATS["onnx"].serving, threads=1) as server:
        inputs, outputs = tmp_path / "x.npy", tmp_path / "y.npy"
        np.save(inputs, images.numpy())
        server.ask("predict", images=str(inputs), outputs=str(outputs), batch=3)
    with torch.no_grad():
        assert np.allclose(np.load(outputs), model(images).numpy(), atol=1e-5)


def test_files_are_timed_beside_eager_torch_where_that_is_asked_for(tmp_path):
    made = export(build_model(), CNN_IMAGES, out=tmp_path / "out", formats="torchscript", requests=5, threads=1)
    assert [one.name for one in made.artifacts] == ["eager torch", "eager torch, folded", "TorchScript"]
    assert all(0 < one.latency.p50 <= one.latency.p95 <= one.latency.p99 for one in made.artifacts)


def test_what_no_file_can_hold_is_refused_in_the_result(tmp_path, served_here):
    made = export(mlp(), torch.randn(4, 12), out=tmp_path / "out", formats="torchscript", quantize=("none", "static"))
    refused = made.of("torchscript", "static")
    assert refused.refused == FORMATS["torchscript"].lacking["static"] and made.path(refused) is None
    with pytest.raises(KeyError):
        made.of("onnx")


def test_a_refused_file_is_removed_and_the_others_stay(tmp_path, monkeypatch, served_here):
    ask = served_here.ask

    def wrong_in_int8(self, do, **request):
        answer = ask(self, do, **request)
        if "dynamic" in self.path.name:
            np.save(request["outputs"], -np.load(request["outputs"]))
        return answer

    monkeypatch.setattr(served_here, "ask", wrong_in_int8)
    made = export(mlp(), torch.randn(4, 12), out=tmp_path / "out", formats="torchscript", quantize=("none", "dynamic"))
    assert made.of("torchscript", "dynamic").refused.endswith("more than the max drop of 1.")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["artifacts.json", "model-torchscript-none.pt"]


def test_quantising_sees_the_calibration_inputs_and_a_trace_two_of_the_others(tmp_path, monkeypatch, served_here):
    seen, right = [], FORMATS["torchscript"]

    def watched(request, quantize, path):
        seen.append(request)
        return right.writer(request, quantize, path)

    monkeypatch.setitem(FORMATS, "torchscript", replace(right, writer=watched))
    x, ranges = torch.randn(5, 12), torch.randn(20, 12)
    export(mlp(), x, out=tmp_path / "a", formats="torchscript", calibration=ranges)
    export(mlp(), x[:1], out=tmp_path / "b", formats="torchscript")
    assert torch.equal(torch.cat(list(seen[0].calibration)), ranges) and torch.equal(seen[0].example, x[:2])
    assert torch.equal(torch.cat(list(seen[1].calibration)), x[:1]) and torch.equal(seen[1].example, x[[0, 0]])


def state_of(model):
    """Everything that an export could have left its trace in."""
    hooks = [list(module._forward_hooks.values()) for module in model.modules()]
    modes = [module.training for module in model.modules()]
    versions = [tensor._version for tensor in model.state_dict().values()]
    return modes, hooks, versions, torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


@pytest.mark.parametrize("formats", ["torchscript", "nonsense"])
def test_the_model_and_all_random_numbers_are_left_as_they_were(tmp_path, formats):
    model = mlp()
    model[0].register_forward_hook(lambda module, inputs, output: output + 1 + 0 * torch.rand(()))  # one that draws
    before, tensors = state_of(model), copy.deepcopy(model.state_dict())
    objects = list(map(id, model.modules()))
    try:
        export(model, torch.ones(4, 12), out=tmp_path / "out", formats=formats)
    except UserError:
        assert formats == "nonsense"
    assert state_of(model) == before and list(map(id, model.modules())) == objects
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


def test_weights_are_loaded_into_the_file_and_not_into_the_model(tmp_path, served_here):
    model, other = mlp(), mlp()
    with torch.no_grad():
        other[3].bias += 1
    torch.save({"ema": other.state_dict()}, tmp_path / "a.pt")
    x = torch.randn(4, 12)
    given = {"formats": "torchscript", "weights": tmp_path / "a.pt", "weights_key": "ema"}
    made = export(model, x, out=tmp_path / "out", **given)
    served = torch.jit.load(made.path(made.of("torchscript")))
    with torch.no_grad():
        assert torch.allclose(served(x), other(x), atol=1e-6) and not torch.allclose(served(x), model(x), atol=0.5)
    assert made.steps[0].startswith(f"{tmp_path / 'a.pt'}: 9 of the model's 9 tensors read")


def test_several_batches_are_compared_and_one_image_is_enough(tmp_path, served_here):
    model = mlp()
    parts = [torch.randn(3, 12), torch.randn(2, 12)]
    made = export(model, parts, out=tmp_path / "a", formats="torchscript", labels=model(torch.cat(parts)).argmax(1))
    assert made.of("torchscript").accuracy == 1
    made = export(model, torch.ones(1, 12), out=tmp_path / "b", formats="torchscript")
    served = torch.jit.load(made.path(made.of("torchscript")))
    assert served(torch.ones(7, 12)).shape == (7, 3)


def test_the_first_of_several_outputs_is_served(tmp_path, served_here):
    made = export(build_two_outputs(), CNN_IMAGES, out=tmp_path / "out", formats="torchscript")
    with torch.no_grad():
        served = torch.jit.load(made.path(made.of("torchscript")))(CNN_IMAGES)
        assert torch.allclose(served, network()(CNN_IMAGES), atol=1e-5)


@pytest.mark.parametrize(
    ("model", "images", "changed", "why"),
    [
        (mlp().train(), torch.ones(4, 12), {}, r"^the model: is in training mode, .* Call model\.eval\(\) first\.$"),
        (
            TwoInputs().eval(),
            torch.ones(4, 12),
            {},
            r"^the model needs 2 inputs \(x, mask\), and a file takes one\. Wrap",
        ),
        (mlp(), torch.ones(4, 13), {}, r"^the model failed on images of 13 with RuntimeError: .*\.$"),
        (
            mlp(),
            torch.ones(4, 12).long(),
            {},
            r"^images: must be float32 tensors of shape \(N, \.\.\.\), got torch\.int64",
        ),
        (mlp(), [torch.ones(4, 12), None], {}, r"^images: must be float32 tensors .* got NoneType\.$"),
        (mlp(), [], {}, r"^images: must be float32 tensors .* got NoneType\.$"),
        (mlp(), torch.ones(0, 12), {}, r"^images: must hold at least one, got shape \(0, 12\)\.$"),
        (mlp(), [torch.ones(4, 12), torch.ones(4, 11)], {}, r"one shape after N, got \(12,\) and \(11,\)\.$"),
        (
            mlp(),
            torch.ones(4, 12),
            {"formats": "coreml"},
            r"^formats: no format is called 'coreml'\. Choose from torchs",
        ),
        (mlp(), torch.ones(4, 12), {"quantize": "int4"}, r"^quantize: no quantisation is called 'int4'\. Choose from"),
        (mlp(), torch.ones(4, 12), {"quantize": ()}, r"^quantize: must be at least one of none, dynamic, static"),
        (
            mlp(),
            torch.ones(4, 12),
            {"labels": torch.ones(3)},
            r"^labels: must be one for each of 4 images, got shape \(3,",
        ),
        (mlp(), torch.ones(4, 12), {"threads": 0}, r"^threads: must be 1 to \d+, the cores .* got 0\.$"),
        (mlp(), torch.ones(4, 12), {"weights": "absent.pt"}, r"^weights: absent\.pt: there is no such file\.$"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_what_cannot_be_exported_is_one_line_and_nothing_is_written(tmp_path, model, images, changed, why):
    with pytest.raises(UserError, match=why) as caught:
        export(model, images, out=tmp_path / "out", **{"formats": "torchscript"} | changed)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    def read_only(**where):
        raise OSError(30, "Read-only file system", str(where["dir"]))

    with monkeypatch.context() as patched, pytest.raises(UserError) as caught:
        patched.setattr("tempfile.mkdtemp", read_only)
        export(mlp(), torch.ones(4, 12), out=tmp_path / "out", formats="torchscript")
    assert str(caught.value) == f"out: {tmp_path / 'out'} cannot be written: Read-only file system."
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^out: .*out cannot be written: (Not a directory|File exists)\.$"):
        export(mlp(), torch.ones(4, 12), out=tmp_path / "file" / "out", formats="torchscript")


def test_an_empty_folder_is_filled_and_a_full_one_refused(tmp_path, served_here):
    (tmp_path / "out").mkdir()
    export(mlp(), torch.ones(4, 12), out=tmp_path / "out", formats="torchscript")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["artifacts.json", "model-torchscript-none.pt", "out"]
    with pytest.raises(UserError, match=r"^out: .*out exists already\. Give a new directory\.$"):
        export(mlp(), torch.ones(4, 12), out=tmp_path / "out", formats="torchscript")


def test_a_class_that_no_other_process_knows_is_exported_but_not_timed(tmp_path, served_here):
    class Local(nn.Sequential):
        pass

    model = Local(*mlp()).eval()
    assert export(model, torch.ones(4, 12), out=tmp_path / "a", formats="torchscript").of("torchscript").file
    with pytest.raises(UserError, match=r"cannot be pickled for a separate process: .*\. Define its class in a module"):
        export(model, torch.ones(4, 12), out=tmp_path / "b", formats="torchscript", requests=1)


def test_nothing_of_the_extra_lab_is_needed():
    names = ["tyro", "rich", "pandas", "altair", "jinja2", "pyarrow", "sklearn", "PIL", "huggingface_hub", "filelock"]
    code = f"import sys; sys.modules.update(dict.fromkeys({names!r})); import steadynorm.deploy"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
