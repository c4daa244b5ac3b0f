"""Statistics that freeze in real fits of Lightning's Trainer."""

import warnings

import pytest
import torch
from torch import nn

from steadynorm import BatchNorm1d, FrozenBatchNorm1d
from steadynorm.surgery import NothingDoneError
from tests.support.fitting import data, running, same_state
from tests.support.foreign import InPlaceABN

pytest.importorskip("lightning", reason="lightning is not installed")
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)

from steadynorm.integrations.lightning import FreezeStatistics, RecalibrateCallback
from tests.support.lightning_fits import FILTERS, Classifier, fit, two_processes

pytestmark = FILTERS


class Trace(Callback):
    """Whether the norms were frozen in each step, and their estimates."""

    def __init__(self):
        self.frozen, self.estimates = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.frozen.append(isinstance(pl_module.net[1], FrozenBatchNorm1d))
        self.estimates.append(pl_module.net[1].running_mean.clone())


def test_statistics_freeze_after_an_epoch_and_the_layers_come_back():
    model, trace = Classifier(), Trace()
    classes = [type(each) for each in model.modules()]
    norm = model.net[1]
    fit(model, FreezeStatistics(1), trace)
    assert trace.frozen == [False] * 6 + [True] * 6
    assert not torch.equal(trace.estimates[4], trace.estimates[5])
    assert all(torch.equal(each, trace.estimates[5]) for each in trace.estimates[5:])
    assert [type(each) for each in model.modules()] == classes
    assert model.net[1] is norm
    assert torch.equal(norm.running_mean, trace.estimates[5])


def test_weight_and_bias_go_on_learning():
    model = Classifier()
    before = model.net[1].weight.detach().clone()
    fit(model, FreezeStatistics(0))
    assert not torch.equal(before, model.net[1].weight)
    assert model.net[1].weight.requires_grad


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, lambda c: BatchNorm1d(c, running="self_tuned")])
def test_a_resumed_fit_freezes_where_the_other_had(tmp_path, norm):
    whole, model, trace = Classifier(norm), Classifier(norm), Trace()
    fit(whole, FreezeStatistics(1), max_epochs=3)
    fit(Classifier(norm), FreezeStatistics(1), path=tmp_path, max_epochs=2)
    last = max(tmp_path.glob("*.ckpt"), key=lambda each: int(each.stem.split("step=")[1]))
    fit(model, FreezeStatistics(1), trace, ckpt_path=last, max_epochs=3)
    assert trace.frozen == [True] * 6
    assert same_state(whole, model)


def test_resumed_in_the_middle_of_an_epoch_it_is_frozen_at_once(tmp_path):
    saved = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=9, save_top_k=-1)
    fit(Classifier(), FreezeStatistics(1), saved, enable_checkpointing=True)
    trace = Trace()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(Classifier(), FreezeStatistics(1), trace, ckpt_path=saved.best_model_path, max_epochs=2)
    assert trace.frozen == [True] * 3


def test_the_checkpoint_says_that_they_were_frozen_whatever_the_new_epochs(tmp_path):
    fit(Classifier(), FreezeStatistics(1), path=tmp_path)
    last = next(tmp_path.glob("epoch=1*.ckpt"))
    trace = Trace()
    fit(Classifier(), FreezeStatistics(100), trace, ckpt_path=last, max_epochs=3)
    assert trace.frozen == [True] * 6
    callback, trace = FreezeStatistics(100), Trace()
    fit(Classifier(), callback, ckpt_path=last, max_epochs=3)
    fit(Classifier(), callback, trace, max_epochs=1)
    assert trace.frozen == [False] * 6


def test_a_checkpoint_of_frozen_layers_loads_into_plain_ones(tmp_path):
    fit(Classifier(), FreezeStatistics(1), path=tmp_path)
    saved = torch.load(next(tmp_path.glob("epoch=1*.ckpt")), weights_only=True)["state_dict"]
    plain = Classifier()
    plain.load_state_dict(saved)
    assert type(plain.net[1]) is nn.BatchNorm1d and plain.net[1].running_mean.any()
    assert all(torch.equal(value, saved[name]) for name, value in plain.state_dict().items())


def test_an_exception_lets_the_layers_go():
    model, callback = Classifier(), FreezeStatistics(0)
    model.fails_in = 1
    with pytest.raises(ZeroDivisionError):
        fit(model, callback)
    assert type(model.net[1]) is nn.BatchNorm1d
    assert not callback.is_frozen


def test_a_second_fit_begins_unfrozen():
    model, callback = Classifier(), FreezeStatistics(1)
    fit(model, callback)
    trace = Trace()
    fit(model, callback, trace, max_epochs=1)
    assert trace.frozen == [False] * 6


def test_frozen_statistics_are_not_measured_again():
    model = Classifier()
    with pytest.warns(UserWarning, match=r"RecalibrateCallback: no statistics were measured again: net\.1: .* frozen"):
        fit(model, FreezeStatistics(1), RecalibrateCallback())


def test_nothing_to_freeze_is_said():
    with pytest.warns(UserWarning, match="FreezeStatistics: no statistics to freeze"):
        fit(Classifier(nn.LayerNorm), FreezeStatistics(1))
    with pytest.raises(NothingDoneError, match="left as it was"):
        fit(Classifier(lambda c: nn.BatchNorm1d(c, track_running_stats=False)), FreezeStatistics(1))


def test_averaging_beside_frozen_statistics():
    model, trace = Classifier(), Trace()
    fit(model, FreezeStatistics(1), EMAWeightAveraging(decay=0.5), trace)
    assert trace.frozen == [False] * 6 + [True] * 6
    with pytest.raises(ValueError, match="nothing else may reset the statistics, got StochasticWeightAveraging"):
        fit(Classifier(), FreezeStatistics(1), StochasticWeightAveraging(0.05))
    with pytest.raises(ValueError, match="matches buffers by their position"):
        fit(Classifier(InPlaceABN), FreezeStatistics(1, example=data()[0]), WeightAveraging())


def test_a_wrong_epoch_is_refused():
    with pytest.raises(ValueError, match="FreezeStatistics: after_epoch must be at least 0, got -1"):
        FreezeStatistics(-1)


def test_over_ranks_statistics_freeze():
    model = Classifier()
    before = running(model)
    fit(model, FreezeStatistics(0), **two_processes())
    assert all(torch.equal(each, before[name]) for name, each in running(model).items())
