"""Fits of Lightning's Trainer on a small network; imported where Lightning is installed."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.functional import cross_entropy

from steadynorm.surgery import recalibrate_
from tests.support.fitting import loader_of, network, running

__all__ = ["FILTERS", "Classifier", "Kept", "Loaded", "close", "fit", "precise", "two_processes"]

FILTERS = [
    pytest.mark.filterwarnings(f"ignore:{each}")
    for each in (
        ".*does not have many workers",
        ".*tensorboard",
        ".*module.s. in eval mode",
        ".*LeafSpec.*:FutureWarning",
        "Be aware that when using .ckpt_path.",
        "You passed in a .val_dataloader.",
        ".*this fit will run with no optimizer",
        ".*smaller than the logging interval",
        ".training_step. returned .None.",
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


class Kept(Logger):
    """Keeps what is logged."""

    name = version = "kept"

    def __init__(self):
        super().__init__()
        self.rows = {}

    def log_hyperparams(self, params):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows.setdefault(step, {}).update(metrics)


def close(actual, expected):
    assert expected
    for name, each in expected.items():
        torch.testing.assert_close(actual[name], each, rtol=1e-5, atol=1e-6)


def precise(model, batches=None):
    """The running statistics that the batches have, by the verb itself."""
    recalibrate_(model, loader_of() if batches is None else batches)
    return running(model)


def two_processes():
    """Arguments of a Trainer that fits on two ranks of gloo."""
    return {"strategy": DDPStrategy(start_method="fork", process_group_backend="gloo"), "devices": 2}
