"""A watch over real fits of Lightning's Trainer."""

import logging

import pytest
import torch
from torch import nn

from steadynorm.doctor.watch import Watch
from tests.support.fitting import loader_of, running, same_state

pytest.importorskip("lightning", reason="lightning is not installed")
from steadynorm.integrations.lightning import FreezeStatistics, RecalibrateCallback, WatchCallback
from tests.support.lightning_fits import FILTERS, Classifier, Kept, fit

pytestmark = FILTERS
EPOCH = 25


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("steadynorm.watch").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("steadynorm.watch").setLevel(logging.NOTSET)


class Poisoned(Classifier):
    """Meets a batch that is not finite in its second epoch, and leaves it out."""

    def training_step(self, batch, index):
        x, labels = batch
        if (self.trainer.current_epoch, index) == (1, 3):
            x = x.clone()
            x[2, 1] = torch.nan
        loss = super().training_step((x, labels), index)
        return loss if loss.isfinite() else None


def train(model, *callbacks, **options):
    return fit(model, *callbacks, train=loader_of(8 * EPOCH), **options)


def seen(callback):
    return [(each.step, each.check, each.action, each.over) for each in callback.events]


def test_what_harms_is_said_logged_and_put_back():
    told, logger = [], Kept()
    model, callback = Poisoned(), WatchCallback("revert", every=16, on_event=told.append)
    train(model, callback, logger=logger)
    assert (EPOCH + 3, "nonfinite-statistics", "put back", False) in seen(callback)
    assert told == callback.events
    logged = {name: value for row in logger.rows.values() for name, value in row.items() if "watch/" in name}
    assert logged == {"watch/nonfinite-statistics": 0.0}  # it is over
    assert 1.0 in [row.get("watch/nonfinite-statistics") for row in logger.rows.values()]
    assert all(each.isfinite().all() for each in running(model).values())
    assert callback.report.steps == 2 * EPOCH
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


def test_under_warn_nothing_is_done():
    plain, model, callback = Poisoned(), Poisoned(), WatchCallback(every=16)
    train(plain)
    train(model, callback)
    assert "nonfinite-statistics" in [each.check for each in callback.events]
    for name, each in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], each, rtol=0, atol=0, equal_nan=True)


def test_a_fit_that_resumes_in_the_middle_of_a_stretch_sees_and_does_the_same(tmp_path):
    whole, model = Poisoned(), Poisoned()
    one, first, second = (WatchCallback("revert", every=16) for _ in range(3))
    train(whole, one, max_epochs=3)
    train(Poisoned(), first, path=tmp_path, max_epochs=2)
    train(model, second, ckpt_path=next(tmp_path.glob("epoch=1*.ckpt")), max_epochs=3)
    assert same_state(whole, model)
    late = [each for each in seen(one) if each[0] >= 2 * EPOCH]
    assert [each for each in seen(second) if each[0] >= 2 * EPOCH] == late
    assert second.report.steps == one.report.steps == 3 * EPOCH


def test_precise_statistics_beside_it_are_no_event():
    model, callback = Classifier(), WatchCallback("revert", every=16)
    train(model, callback, RecalibrateCallback(), max_epochs=4, val_check_interval=0.5)
    assert callback.events == []


@pytest.mark.parametrize("first", [True, False])
def test_layers_that_freeze_are_watched_up_to_then(first):
    model, callback = Classifier(), WatchCallback("revert", every=16)
    callbacks = [callback, FreezeStatistics(1)]
    train(model, *(callbacks if first else callbacks[::-1]), max_epochs=2)
    assert callback.report.steps == EPOCH
    assert type(model.net[1]) is nn.BatchNorm1d
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


def test_an_exception_lets_the_model_go():
    model, callback = Classifier(), WatchCallback("revert", every=16)
    model.fails_in = 0
    with pytest.raises(ZeroDivisionError):
        train(model, callback)
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


def test_nothing_to_watch_is_said():
    with pytest.warns(UserWarning, match="WatchCallback: nothing is watched: Watch: the model must have batch norms"):
        train(Classifier(nn.LayerNorm), WatchCallback())


@pytest.mark.parametrize("arguments", [{"policy": "hope"}, {"every": 3}])
def test_wrong_arguments_are_refused_as_the_watch_does(arguments):
    with pytest.raises(ValueError, match="Watch: ") as own:
        Watch(nn.BatchNorm1d(2), **arguments)
    with pytest.raises(ValueError, match="Watch: ") as error:
        WatchCallback(**arguments)
    assert str(error.value) == str(own.value)
