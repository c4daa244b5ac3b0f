"""The callbacks in real fits of Lightning's Trainer."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from steadynorm import BatchNorm1d, FrozenBatchNorm1d
from steadynorm.surgery import NothingDoneError, recalibrate_
from tests.support.fitting import data, loader_of, network, running, same_state
from tests.support.foreign import InPlaceABN

pytest.importorskip("lightning", reason="lightning is not installed")
import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import DDPStrategy

from steadynorm.integrations.lightning import FreezeStatistics, RecalibrateCallback

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{each}")
    for each in (
        ".*does not have many workers",
        ".*tensorboard",
        ".*module.s. in eval mode",
        ".*LeafSpec.*:FutureWarning",
        "Be aware that when using .ckpt_path.",
        "You passed in a .val_dataloader.",
        ".*this fit will run with no optimizer",
    )
]


class Classifier(pl.LightningModule):
    """Sees what its norms hold when they are validated."""

    def __init__(self, norm=nn.BatchNorm1d):
        super().__init__()
        self.net = network(norm)
        self.validated = []
        self.fails_in = None

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, index):
        if index == 0:
            self.validated.append((self.trainer.sanity_checking, running(self)))
        if self.fails_in == self.trainer.current_epoch and not self.trainer.sanity_checking:
            raise ZeroDivisionError("in validation")
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Loaded(Classifier):
    """Has its loaders itself."""

    def train_dataloader(self):
        return loader_of()

    def val_dataloader(self):
        return loader_of(16)


def fit(model, *callbacks, path=None, ckpt_path=None, train=None, val=None, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    options = {"max_epochs": 2, "enable_checkpointing": path is not None, "default_root_dir": path} | quiet | options
    if path is not None:
        callbacks = (*callbacks, ModelCheckpoint(dirpath=path, save_top_k=-1, filename="{epoch}-{step}"))
    trainer = pl.Trainer(callbacks=list(callbacks), **options)
    trainer.fit(model, train or loader_of(), val or loader_of(16), ckpt_path=ckpt_path)
    return trainer


def close(actual, expected):
    for name, each in expected.items():
        torch.testing.assert_close(actual[name], each, rtol=1e-5, atol=1e-6)


def precise(model, batches=None):
    """The running estimates that the batches have, by the verb itself."""
    recalibrate_(model, loader_of() if batches is None else batches)
    return running(model)


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
    Classifier().load_state_dict(saved)


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


def test_over_ranks_all_batches_count_together():
    """With batch statistics of one rank, or its half of the data, the estimates would be others."""
    model = Classifier()
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
    fit(model, RecalibrateCallback(), strategy=strategy, devices=2)
    found = running(model)
    close(found, precise(model))
    half = precise(model, [(data()[0][::2],)])
    assert not torch.allclose(found["net.1.running_mean"], half["net.1.running_mean"], rtol=1e-3)


def test_over_ranks_statistics_freeze():
    model = Classifier()
    before = running(model)
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
    fit(model, FreezeStatistics(0), strategy=strategy, devices=2)
    assert all(torch.equal(each, before[name]) for name, each in running(model).items())


@pytest.mark.slow  # it imports the other package
def test_the_other_package_takes_the_callbacks_too():
    code = """
import warnings
from pathlib import Path
warnings.simplefilter("ignore")
import pytorch_lightning as other
from steadynorm.integrations.lightning import FreezeStatistics, RecalibrateCallback
assert issubclass(RecalibrateCallback, other.Callback)
import torch
from torch import nn
from tests.support.fitting import loader_of, network

class Classifier(other.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = network()
    def forward(self, x):
        return self.net(x)
    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

def fit(module, callbacks):
    model = Classifier()
    trainer = other.Trainer(callbacks=callbacks, max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, accelerator="cpu")
    trainer.fit(model, loader_of())
    return model

callback = RecalibrateCallback()
fit(other, [callback])
assert len(callback.change.changed) == 2
model = fit(other, [FreezeStatistics(0)])
assert not model.net[1].running_mean.any()

import importlib, sys, lightning.pytorch
del sys.modules["pytorch_lightning"]
mixed = importlib.reload(sys.modules["steadynorm.integrations.lightning"])
assert mixed.Callback is lightning.pytorch.Callback
callback = mixed.RecalibrateCallback()
fit(other, [callback])
assert len(callback.change.changed) == 2
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
