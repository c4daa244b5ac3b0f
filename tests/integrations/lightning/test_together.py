"""All callbacks side by side in fits that are cut short, resumed or run differently."""

import copy
import logging

import pytest
import torch

from tests.support.fitting import loader_of, running

pytest.importorskip("lightning", reason="lightning is not installed")
from lightning.pytorch.callbacks import ModelCheckpoint

from steadynorm.integrations.lightning import FreezeStatistics, ReadingsCallback, RecalibrateCallback, WatchCallback
from tests.support.lightning_fits import FILTERS, Classifier, Kept, close, fit, precise

pytestmark = [
    *FILTERS,
    *(pytest.mark.filterwarnings(f"ignore:{each}") for each in (".*resume.*mid-epoch", "You're resuming from")),
]


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("steadynorm.watch").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("steadynorm.watch").setLevel(logging.NOTSET)


def all_of_them():
    freeze = FreezeStatistics(1, where=lambda name, _: name == "net.1")
    return [RecalibrateCallback(), freeze, ReadingsCallback(2), WatchCallback("revert", every=16)]


@pytest.mark.parametrize(
    "options",
    [
        {"fast_dev_run": True},
        {"limit_train_batches": 0},
        {"max_epochs": 0},
        {"max_epochs": -1, "max_steps": 8},
        {"overfit_batches": 2},
        {"precision": "bf16-mixed"},
        {"val_check_interval": 0.5, "accumulate_grad_batches": 4},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*overfit", "ignore:.*limit_train_batches", "ignore:.*max_epochs")
def test_a_fit_ends_and_the_model_is_as_it_was_built(options):
    model = Classifier()
    classes = [type(each) for each in model.modules()]
    fit(model, *all_of_them(), logger=Kept(), **options)
    assert [type(each) for each in model.modules()] == classes
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())
    assert all(each.isfinite().all() for each in running(model).values())
    assert copy.deepcopy(model.net)(torch.ones(2, 4)).shape == (2, 3)


def test_resumed_in_the_middle_of_an_epoch_the_end_is_measured(tmp_path):
    saved = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=9, save_top_k=-1)
    fit(Classifier(), *all_of_them(), saved, logger=Kept(), enable_checkpointing=True)
    model, callbacks = Classifier(), all_of_them()
    fit(model, *callbacks, logger=Kept(), ckpt_path=saved.best_model_path)
    assert [each.name for each in callbacks[0].change.changed] == ["net.4"]
    assert [each.name for each in callbacks[0].change.refused] == ["net.1"]
    frozen, found = model.net[1].running_mean.clone(), running(model)
    recalibrated = precise(model)
    assert not torch.allclose(frozen, recalibrated["net.1.running_mean"])
    assert found.keys() == recalibrated.keys()


def test_a_validation_outside_of_a_fit_measures_nothing():
    model, callback = Classifier(), RecalibrateCallback()
    trainer = fit(model, callback)
    other = Classifier()
    before = running(other)
    trainer.validate(other, loader_of(16), verbose=False)
    close(running(other), before)


@pytest.mark.slow  # it compiles
@pytest.mark.filterwarnings("ignore:.*grad attribute of a Tensor that is not a leaf")
def test_a_compiled_module_is_measured_and_frozen():
    model = Classifier()
    norm = model.net[1]
    fit(torch.compile(model, backend="eager"), RecalibrateCallback(), WatchCallback(every=16))
    close(running(model), precise(model))
    fit(torch.compile(model, backend="eager"), FreezeStatistics(1))
    assert model.net[1] is norm
