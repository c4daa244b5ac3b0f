from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from steadynorm.lab import judging
from steadynorm.lab.data import Dataset, Images, evaluation_batches
from steadynorm.lab.judging import check_methods, judge_methods, stream_accuracy
from steadynorm.reporting.failure import UserError
from tests.support.experiments import TINY_SETTINGS, Recorder, tiny_dataset

DATA = tiny_dataset()
MODEL = nn.Flatten()


class Oracle:
    """Predicts the class that it is given for each batch, and remembers what it was shown."""

    name = "oracle"

    def __init__(self, answers: Sequence[int]) -> None:
        self.answers = list(answers)
        self.seen: list[Tensor] = []
        self.resets = 0

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        self.seen.append(x)
        answer = self.answers[len(self.seen) - 1]
        return nn.functional.one_hot(torch.full((len(x),), answer), 10).float()

    def reset(self) -> None:
        self.resets += 1


def accuracy(oracle: Oracle, images: Images, order: list[Tensor], dataset: Dataset = DATA) -> float:
    return stream_accuracy(oracle, MODEL, images, order, dataset=dataset, settings=TINY_SETTINGS)


def test_the_share_of_right_images_is_given() -> None:
    labels = DATA.validation.labels  # 0 1 2 ... 9 0 1 ...
    order = [torch.tensor([3, 13]), torch.tensor([5, 4, 15])]
    assert labels[order[0]].tolist() == [3, 3]
    assert accuracy(Oracle([3, 5]), DATA.validation, order) == 4 / 5


def test_batches_come_normalised_in_the_order_of_the_stream() -> None:
    oracle = Oracle([0, 0])
    accuracy(oracle, DATA.validation, [torch.tensor([7]), torch.tensor([2, 1])])
    ((pixels, _),) = evaluation_batches(
        DATA.validation, dataset=DATA, batch_size=len(DATA.validation), device=torch.device("cpu")
    )
    assert torch.equal(oracle.seen[0], pixels[7:8])
    assert torch.equal(oracle.seen[1], pixels[[2, 1]])


def test_a_stream_begins_without_memory_of_another() -> None:
    oracle = Oracle([0])
    accuracy(oracle, DATA.validation, [torch.tensor([0])])
    assert oracle.resets == 1


def test_a_stream_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="must have images, got none"):
        accuracy(Oracle([]), DATA.validation, [])


def test_every_way_sees_the_stream_and_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    oracles = {"right": Oracle([3]), "wrong": Oracle([4])}
    monkeypatch.setattr(judging, "ADAPTATIONS", {name: lambda _, name=name: oracles[name] for name in oracles})
    shares: list[float] = []
    rows = judge_methods(
        ("right", "wrong"),
        MODEL,
        None,
        DATA.validation,
        [torch.tensor([3, 13])],
        dataset=DATA,
        settings=TINY_SETTINGS,
        advance=lambda share, text: shares.append(share),
    )
    assert [(row.subject, row.quantity, row.value) for row in rows] == [
        ("right", "accuracy", 1.0),
        ("wrong", "accuracy", 0.0),
    ]
    assert shares == [0.5, 1.0]


def test_an_unknown_name_is_refused() -> None:
    check_methods(("stored", "batch"))
    with pytest.raises(UserError, match=r"--methods: no way to adapt is called 'magic'\. Choose from stored, batch"):
        check_methods(("stored", "magic"))


def of_classes(count: int) -> Dataset:
    return replace(DATA, classes=DATA.classes[:count])


def test_methods_that_cannot_be_calibrated_on_two_classes_are_left_out_and_named() -> None:
    display, names = Recorder(), ("stored", "gated", "batch", "gate")
    assert judging.without_uncalibrated(names, of_classes(2), display) == ("stored", "batch")
    assert display.messages == ["left out, since their calibration needs images of 3 classes: gated and gate"]
    assert judging.without_uncalibrated(names, of_classes(3), display) == names and len(display.messages) == 1


def test_methods_of_which_none_is_left_are_refused() -> None:
    with pytest.raises(UserError, match=r"^--methods: gate need images of 3 classes, got 2\. Add others\.$"):
        judging.check_possible(("gate",), of_classes(2))
    judging.check_possible(("gate", "stored"), of_classes(2))


def test_what_needs_no_calibration_has_none() -> None:
    assert judging.calibrated(("stored", "prior_16"), MODEL, iter([])) is None


def test_images_that_do_not_calibrate_are_named_in_one_line() -> None:
    one_class = [(DATA.train.pixels[:8].float(), torch.zeros(8, dtype=torch.int64))]
    with pytest.raises(UserError, match=r"^--methods: gate: calibrate: there must be .* classes, .* Or leave them out"):
        judging.calibrated(("stored", "gate"), MODEL, one_class)


def test_a_batch_of_one_image_is_not_calibrated_on() -> None:
    assert len(judging.calibration_images(DATA, 90, batch_size=19)) == 90
    assert len(judging.calibration_images(DATA, 2000, batch_size=19)) == 95  # of 96, which would leave 1
