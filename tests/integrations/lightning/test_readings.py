"""Readings in real fits of Lightning's Trainer."""

import pytest
from torch import nn

import steadynorm
from steadynorm.surgery import readings_of, statistics_of
from tests.support.fitting import same_state

pytest.importorskip("lightning", reason="lightning is not installed")
from lightning.pytorch.callbacks import (
    Callback,
)

from steadynorm.integrations.lightning import ReadingsCallback
from tests.support.lightning_fits import FILTERS, Classifier, Kept, fit

pytestmark = FILTERS


def gated(channels):
    return steadynorm.GatedBatchNorm1d(channels, running="self_tuned")


def test_readings_reach_the_trainers_logger():
    model, logger = Classifier(gated), Kept()
    start = statistics_of(model)
    trainer = fit(model, ReadingsCallback(5), logger=logger, log_every_n_steps=1)
    rows = {step: row for step, row in logger.rows.items() if "norm/net.1/gate" in row}
    assert list(rows) == [4, 9]  # of 12
    expected = {"gate", "noise", "momentum_mean", "momentum_var", "distance"}
    assert {name.removeprefix("norm/net.1/") for name in rows[4] if "net.1" in name} == expected
    assert 0 < rows[4]["norm/net.1/gate"] < 1
    assert trainer.callback_metrics["norm/net.1/gate"] == pytest.approx(rows[9]["norm/net.1/gate"])
    assert not model.net[1]._forward_pre_hooks
    kept = []
    fit(Classifier(gated), ReadingsCallback(1), Last(kept, start), logger=logger, max_epochs=1, log_every_n_steps=1)
    assert logger.rows[5]["norm/net.1/distance"] == kept[-1]


class Last(Callback):
    """Reads the distance itself after each batch."""

    def __init__(self, kept, start):
        self.kept, self.start = kept, start

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.kept.append(readings_of(pl_module, self.start)["net.1/distance"])


def test_reading_leaves_the_training_as_it_is():
    plain, read = Classifier(gated), Classifier(gated)
    fit(plain)
    fit(read, ReadingsCallback(1), logger=Kept())
    assert same_state(plain, read)


def test_a_resumed_fit_measures_distances_from_the_same_start(tmp_path):
    loggers = Kept(), Kept(), Kept()
    fit(Classifier(), ReadingsCallback(4), logger=loggers[0])
    fit(Classifier(), ReadingsCallback(4), logger=loggers[1], path=tmp_path, max_epochs=1)
    fit(Classifier(), ReadingsCallback(4), logger=loggers[2], ckpt_path=next(tmp_path.glob("*.ckpt")))
    rows = [
        {(step, name): value for step, row in logger.rows.items() for name, value in row.items() if "norm/" in name}
        for logger in loggers
    ]
    assert len(rows[0]) == 6
    assert rows[0] == rows[1] | rows[2]


def test_an_exception_in_a_step_leaves_no_hook():
    class Failing(Classifier):
        def training_step(self, batch, index):
            raise ZeroDivisionError

    model = Failing(gated)
    with pytest.raises(ZeroDivisionError):
        fit(model, ReadingsCallback(1))
    assert not model.net[1]._forward_pre_hooks


def test_a_model_without_norms_is_read_as_nothing():
    logger = Kept()
    fit(Classifier(nn.LayerNorm), ReadingsCallback(1), logger=logger)
    assert not [name for row in logger.rows.values() for name in row if "norm/" in name]


def test_a_wrong_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="ReadingsCallback: every_n_steps must be at least 1, got 0"):
        ReadingsCallback(0)
