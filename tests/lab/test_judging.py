import importlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from steadynorm import adaptation
from steadynorm.lab import judging
from steadynorm.lab.data import Dataset, Images, evaluation_batches
from steadynorm.lab.judging import check_methods, judge_methods, stream_accuracy
from steadynorm.reporting.failure import UserError
from tests.support.experiments import TINY_SETTINGS, tiny_dataset

DATA = tiny_dataset()
MODEL = nn.Flatten()


class Oracle:
    """Predicts the class that it is told for each batch, and remembers what it was shown."""

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


def test_the_former_place_of_the_methods_still_serves_and_says_the_new_one() -> None:
    former = importlib.import_module("steadynorm.lab.adaptation")
    with pytest.warns(DeprecationWarning, match=r"is steadynorm\.adaptation now"):
        assert former.calibrate is adaptation.calibrate and former.judge_methods is judge_methods
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        former.no_such_name  # noqa: B018
