from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from steadynorm.adaptation import Adapted, BatchStatistics, Gate
from steadynorm.adaptation.saved import fingerprint
from tests.support.adaptation import CLASSES, blob_network, blobs, calibration_batches, deep_blob_network, in_runs
from tests.support.surgery import assert_state_equal, snapshot

IMAGES = 60


def gate_of(model: nn.Module) -> Gate:
    return Gate.calibrate(model, calibration_batches(), images=IMAGES)


def test_it_predicts_and_remembers_and_forgets() -> None:
    model, (x, _) = blob_network(), blobs(IMAGES, shifted=True)
    adapted = Adapted(model, gate_of(model))
    assert torch.equal(adapted(x[:10]), model(x[:10]))  # too few to judge
    assert not torch.equal(adapted(x), model(x))
    adapted.reset()
    assert torch.equal(adapted(x[:10]), model(x[:10]))


def test_the_model_keeps_modes_hooks_and_bits() -> None:
    model = blob_network().train()
    before = snapshot(model)
    adapted = Adapted(model, gate_of(model)).eval()
    adapted(blobs(IMAGES, shifted=True)[0])
    assert_state_equal(model, before)
    assert not model._forward_hooks


def test_the_model_is_untouched_after_an_exception() -> None:
    model = blob_network().train()
    adapted, before = Adapted(model, gate_of(model)), snapshot(model)
    with pytest.raises(RuntimeError):
        adapted(torch.ones(4, CLASSES + 1, 6, 6))
    assert_state_equal(model, before)
    assert not model._forward_hooks


def test_training_is_refused() -> None:
    model = blob_network()
    adapted = Adapted(model, BatchStatistics())
    with pytest.raises(RuntimeError, match=r"Adapted: predicts, and cannot be trained, got train\(\)"):
        adapted.train()
    assert adapted.eval() is adapted
    assert not adapted.training


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (lambda x: {"logits": x}, "dict"),
        (lambda x: (x, x), "tuple"),
        (lambda x: x[:, 0], r"a tensor of shape \(4,\)"),
        (lambda x: x.long(), r"a tensor of shape \(4, 6\)"),
    ],
)
def test_outputs_without_logits_are_refused_by_name(output: Callable[[Tensor], object], got: str) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = blob_network()

        def forward(self, x: Tensor) -> object:
            return output(self.inner(x))

    model = Other()
    with pytest.raises(TypeError, match=rf"Adapted: the model must give logits .*, got {got}\. Wrap it"):
        Adapted(model, BatchStatistics())(blobs(4)[0])
    with pytest.raises(TypeError, match="calibrate: the model must give logits"):
        gate_of(model)


def test_a_model_without_batch_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="Adapted: the model must have a batch norm, got none"):
        Adapted(nn.Linear(2, 2), BatchStatistics())


@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize("batch", [7, IMAGES])
def test_a_file_goes_on_where_it_was_written(tmp_path: Path, runs: bool, batch: int) -> None:
    pytest.importorskip("safetensors")
    x, labels = in_runs(600, seed=2)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    model = deep_blob_network()
    clean = list(zip(x[order].split(60), labels[order].split(60), strict=True))
    adapted = Adapted(model, Gate.calibrate(model, clean, images=IMAGES))
    stream = (in_runs(480, seed=7, shifted=True)[0] if runs else blobs(480, seed=7, shifted=True)[0]).split(batch)
    for each in stream[: len(stream) // 2]:
        adapted(each)
    adapted.save(tmp_path / "gate.safetensors")
    loaded = Adapted.load(deep_blob_network(), tmp_path / "gate.safetensors")
    copied = Adapted(model, Gate(adapted.method.calibration))
    copied.load_state_dict(adapted.state_dict())
    for each in stream[len(stream) // 2 :]:
        output = adapted(each)
        assert torch.equal(output, loaded(each))
        assert torch.equal(output, copied(each))


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    model = blob_network()
    Adapted(model, gate_of(model)).save(tmp_path / "gate.safetensors")
    with torch.no_grad():
        model[-1].bias[0] += 1
    with pytest.raises(ValueError, match="must be of this model, got one of another or of other weights"):
        Adapted.load(model, tmp_path / "gate.safetensors")


def test_a_file_that_holds_no_gate_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("safetensors.torch").save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    for name in "ab":
        with pytest.raises(ValueError, match=r"must be a file that Adapted\.save wrote"):
            Adapted.load(blob_network(), tmp_path / f"{name}.safetensors")


def test_a_file_of_a_former_rule_is_refused_as_such(tmp_path: Path) -> None:
    place = tmp_path / "gate.safetensors"
    pytest.importorskip("safetensors.torch").save_file({"a": torch.ones(1)}, place, {"format": "steadynorm gate 2"})
    with pytest.raises(ValueError, match=r"in format 'steadynorm gate 3', got 'steadynorm gate 2'\. Calibrate again\."):
        Adapted.load(blob_network(), place)


def test_a_method_without_a_calibration_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"Adapted\.save: the method must be a Gate, got batch"):
        Adapted(blob_network(), BatchStatistics()).save(tmp_path / "gate.safetensors")


def test_a_fingerprint_is_of_names_types_and_bits() -> None:
    def of(**tensors: Tensor) -> str:
        model = nn.Module()
        for name, each in tensors.items():
            model.register_buffer(name, each)
        return fingerprint(model)

    models = [of(a=torch.zeros(2)), of(b=torch.zeros(2)), of(a=torch.zeros(2).half()), of(a=torch.zeros(1, 2))]
    models += [of(a=-torch.zeros(2)), of(a=torch.ones(2, dtype=torch.bfloat16))]
    assert len(set(models)) == len(models)
    assert of(a=torch.zeros(2)) == models[0]


class Dense(nn.Module):
    """Tells the class of each place: that of the highest channel, by the statistics of the blobs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = blob_network()[0]

    def forward(self, x: Tensor) -> Tensor:
        return 4 * self.norm(x)


def test_dense_predictions_are_judged_place_by_place() -> None:
    model = Dense().eval()
    dense = [(x, y[:, None, None].expand(-1, 6, 6).clone()) for x, y in calibration_batches()]
    for _, y in dense:
        y[:, 0] = 255  # places to be ignored
    adapted = Adapted(model, Gate.calibrate(model, dense, images=IMAGES))
    clean, shifted = blobs(IMAGES, seed=5)[0], blobs(IMAGES, seed=5, shifted=True)[0]
    assert torch.equal(adapted(clean), model(clean))
    adapted.reset()
    assert torch.equal(adapted(shifted), BatchStatistics().predict(model, shifted))


def test_the_names_of_layers_may_hold_anything(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    model = nn.Sequential(OrderedDict([("rows", blob_network()[0]), ("votes", blob_network()[1:])])).eval()
    adapted = Adapted(model, gate_of(model))
    adapted(blobs(IMAGES, shifted=True)[0])
    adapted.save(tmp_path / "gate.safetensors")
    x = blobs(IMAGES, seed=3, shifted=True)[0]
    assert torch.equal(Adapted.load(model, tmp_path / "gate.safetensors")(x), adapted(x))
