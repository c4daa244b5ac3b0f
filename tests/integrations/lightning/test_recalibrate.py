"""Precise statistics in real fits of Lightning's Trainer."""

import warnings

import pytest
import torch
from torch import nn

from tests.support.fitting import data, loader_of, running, same_state

pytest.importorskip("lightning", reason="lightning is not installed")
import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    StochasticWeightAveraging,
    WeightAveraging,
)

from steadynorm.integrations.lightning import RecalibrateCallback
from tests.support.lightning_fits import FILTERS, Classifier, Loaded, close, fit, precise, two_processes

pytestmark = FILTERS


def test_the_estimates_are_the_training_datas_at_the_end_of_the_fit():
    model = Classifier()
    callback = RecalibrateCallback()
    fit(model, callback)
    found = running(model)
    close(found, precise(model))
    assert callback.change.measured["batches"] == 6


def test_each_validation_is_by_the_estimates_of_its_weights():
    class Check(Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                found = running(pl_module)
                close(found, precise(pl_module))
                seen.append(trainer.current_epoch)

    seen = []
    model = Classifier()
    fit(model, RecalibrateCallback(), Check(), val_check_interval=0.5)
    assert seen == [0, 0, 1, 1]


@pytest.mark.parametrize("own", [False, True], ids=["torch's generator", "a generator of its own"])
def test_the_weights_are_those_of_a_fit_without_it(own):
    plain, other = Classifier(), Classifier()
    for model, callbacks in ((plain, ()), (other, (RecalibrateCallback(),))):
        torch.manual_seed(5)
        train = loader_of(shuffle=True, generator=torch.Generator().manual_seed(6) if own else None)
        fit(model, *callbacks, train=train, val_check_interval=0.5)
    assert same_state(plain, other, but="running_")
    assert not same_state(plain, other)


def test_the_check_before_training_is_left_out_unless_asked_for():
    for asked in (False, True):
        model = Classifier()
        start = running(model)
        fit(model, RecalibrateCallback(sanity_check=asked), max_epochs=1)
        sanity, found = model.validated[0]
        assert sanity
        assert all(torch.equal(found[name], start[name]) for name in start) is not asked


def test_every_second_epoch():
    class Count(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(callback.state_dict()["epoch"])

    for has_validation in (True, False):
        seen = []
        callback = RecalibrateCallback(every_n_epochs=2)
        fit(Classifier(), callback, Count(), max_epochs=4, limit_val_batches=1.0 if has_validation else 0)
        assert seen == [-1, 1, 1, 3]


def test_an_epoch_that_was_measured_before_its_validation_is_not_measured_again():
    def forward(model, batch):
        runs.append(1)
        return model(batch[0])

    runs = []
    fit(Classifier(), RecalibrateCallback(every_n_epochs=1, forward=forward, passes=1))
    assert len(runs) == 3 * 6  # two epochs, and the end


def test_the_end_is_measured_where_nothing_was_validated():
    model = Classifier()
    fit(model, RecalibrateCallback(), limit_val_batches=0)
    close(running(model), precise(model))


def test_batches_come_to_the_device_as_those_of_a_training_step():
    class Transferring(Classifier):
        def on_after_batch_transfer(self, batch, index):
            if not self.training:
                seen.append(self.trainer.training)
            return [batch[0] * 2 if self.trainer.training else batch[0], batch[1]]

    seen = []
    model = Transferring()
    fit(model, RecalibrateCallback(), limit_val_batches=0)
    assert seen
    assert all(seen)
    found = running(model)
    close(found, precise(model, [(x * 2,) for x, _ in loader_of()]))


def test_other_batches_are_taken_where_they_are_given():
    others = [(each,) for each in (data()[0] * 2 - 1).split(8)]
    model = Classifier()
    fit(model, RecalibrateCallback(others, number=3))
    close(running(model), precise(model, others[:3]))


def test_options_reach_the_verb():
    model = Classifier()
    callback = RecalibrateCallback(where=lambda name, _: name == "net.1", passes=1)
    fit(model, callback)
    assert [each.name for each in callback.change.changed] == ["net.1"]
    assert callback.change.measured["passes"] == 1


@pytest.mark.parametrize("loaders", ["given", "the module's"])
def test_a_fit_that_resumes_after_an_epoch_ends_as_one_that_did_not_stop(tmp_path, loaders):
    build, own = (Loaded, {"train": None, "val": None}) if loaders != "given" else (Classifier, {})
    whole, model = build(), build()
    fit(whole, RecalibrateCallback(), **own)
    fit(build(), RecalibrateCallback(), path=tmp_path, max_epochs=1, **own)
    fit(model, RecalibrateCallback(), ckpt_path=next(tmp_path.glob("*.ckpt")), **own)
    assert same_state(whole, model)


def test_the_checkpoint_has_what_was_validated(tmp_path):
    model = Classifier()
    fit(model, RecalibrateCallback(), path=tmp_path, max_epochs=1)
    saved = torch.load(next(tmp_path.glob("*.ckpt")), weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], each) for name, each in model.validated[-1][1].items())


def test_a_fast_run_takes_as_many_batches_as_it_trains():
    callback = RecalibrateCallback()
    fit(Classifier(), callback, fast_dev_run=2)
    assert callback.change.measured["batches"] == 2


def test_gradient_accumulation_goes_on_as_it_would():
    plain, other = Classifier(), Classifier()
    for model, callbacks in ((plain, ()), (other, (RecalibrateCallback(),))):
        fit(model, *callbacks, accumulate_grad_batches=4, val_check_interval=1)
    assert same_state(plain, other, but="running_")


def test_a_model_without_batch_norms_is_said_to_have_none():
    with pytest.warns(UserWarning, match="RecalibrateCallback: no statistics were measured again: .* no batch norm"):
        fit(Classifier(nn.LayerNorm), RecalibrateCallback())


def test_a_norm_that_evaluates_in_training_stays():
    class Still(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, index):
            pl_module.net[1].eval()

    model = Classifier()
    callback = RecalibrateCallback()
    fit(model, Still(), callback)
    assert [each.name for each in callback.change.refused] == ["net.1"]
    assert torch.equal(model.net[1].running_mean, torch.zeros(6))


def test_after_an_exception_in_validation_all_is_as_lightning_leaves_it():
    plain, model, callback = Classifier(), Classifier(), RecalibrateCallback()
    for each, callbacks in ((plain, ()), (model, (callback,))):
        each.fails_in = 1
        with pytest.raises(ZeroDivisionError):
            fit(each, *callbacks)
        each.fails_in = None
    assert [each.training for each in model.modules()] == [each.training for each in plain.modules()]
    model.train()
    fit(model, callback)
    close(running(model), precise(model))


def test_a_batch_that_is_not_finite_is_said():
    x, labels = data()
    x[3, 0] = torch.nan
    with pytest.raises(ValueError, match=r"recalibrate_: .*finite"):
        fit(Classifier(), RecalibrateCallback([(x, labels)]))


def test_a_module_without_forward_is_refused_before_training():
    class Without(pl.LightningModule):
        def training_step(self, batch, index):
            raise AssertionError("trained")

        def configure_optimizers(self):
            return None

    with pytest.raises(TypeError, match=r"Without must have a forward, got none\. Define it, or say how"):
        fit(Without(), RecalibrateCallback())


def test_several_training_loaders_are_refused():
    class Two(Classifier):
        def training_step(self, batch, index):
            return super().training_step(batch["a"], index)

    with pytest.raises(ValueError, match=r"there must be one training loader, got 2\. Give batches="):
        fit(Two(), RecalibrateCallback(), train={"a": loader_of(), "b": loader_of()})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every_n_epochs": 0}, ValueError, "every_n_epochs must be at least 1, got 0"),
        ({"number": 0}, ValueError, "number must be at least 1"),
        ({"batches": iter([])}, TypeError, "several times"),
        ({"momentum": 1}, TypeError, "options must be among where, .*got momentum"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=f"^RecalibrateCallback: .*{message}"):
        RecalibrateCallback(**arguments)


@pytest.mark.parametrize("averaging", [WeightAveraging, lambda: EMAWeightAveraging(decay=0.5)])
def test_of_averaged_weights_the_averages_statistics_are_measured(averaging):
    class Check(Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, index):
            if not trainer.sanity_checking:
                found = running(pl_module)
                close(found, precise(pl_module))
                seen.append(index)

    seen = []
    model = Classifier()
    fit(model, averaging(), RecalibrateCallback(), Check())
    assert seen
    close(running(model), precise(model))


def test_after_stochastic_weight_averaging_the_averages_statistics_are_measured():
    model = Classifier()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(model, StochasticWeightAveraging(0.05, swa_epoch_start=1), RecalibrateCallback(), max_epochs=2)
    close(running(model), precise(model))
    assert model.net[1].momentum == 0.1


@pytest.mark.parametrize("averaging", [WeightAveraging, lambda: StochasticWeightAveraging(0.05)])
def test_averaging_after_it_is_refused(averaging):
    with pytest.raises(ValueError, match=r"must come after .*WeightAveraging.*, got it before"):
        fit(Classifier(), RecalibrateCallback(), averaging())


def test_over_ranks_all_batches_count_together():
    """With batch statistics of one rank, or its half of the data, the estimates would be others."""
    model = Classifier()
    fit(model, RecalibrateCallback(), **two_processes())
    found = running(model)
    close(found, precise(model))
    half = precise(model, [(data()[0][::2],)])
    assert not torch.allclose(found["net.1.running_mean"], half["net.1.running_mean"], rtol=1e-3)
