import pytest
import torch

from steadynorm.lab import evaluation
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
