from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from steadynorm.lab import evaluation
from steadynorm.lab.data import Images
from steadynorm.lab.evaluation import evaluate
from steadynorm.lab.networks import build_network
from tests.support.experiments import TINY_SETTINGS, tiny_dataset

DATA = tiny_dataset()


def test_evaluation_counts_a_small_last_batch_by_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_network("cnn", arm="none", depth=2, widths=(4, 8), classes=10, seed=0)
    whole = evaluate(model, DATA.validation, DATA, TINY_SETTINGS)
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", 13)
    assert evaluate(model, DATA.validation, DATA, TINY_SETTINGS) == pytest.approx(whole)


@pytest.mark.parametrize("mode", [True, False])
def test_evaluation_moves_no_statistics_and_gives_the_mode_back(mode: bool) -> None:
    model = build_network("cnn", arm="batch_norm", depth=2, widths=(4, 8), classes=10, seed=0).train(mode)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, DATA.validation, DATA, TINY_SETTINGS)
    assert model.training is mode
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Counting(nn.Module):
    """Predicts the first class, and remembers how many images it saw together."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return torch.eye(10)[torch.zeros(len(x), dtype=torch.int64)]


@pytest.mark.parametrize(("size", "seen"), [((8, 8), [500, 100]), ((32, 32), [500, 100]), ((64, 128), [62] * 9 + [42])])
def test_fewer_of_larger_images_are_predicted_together(size: tuple[int, int], seen: list[int]) -> None:
    pixels = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(600, 3, *size)
    images, model = Images(pixels=pixels, labels=torch.arange(600) % 10), Counting()
    _, accuracy = evaluate(model, images, replace(tiny_dataset(), train=images), TINY_SETTINGS)
    assert (model.seen, accuracy) == (seen, 0.1)
