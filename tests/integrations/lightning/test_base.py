"""Either of Lightning's packages takes the callbacks."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="lightning is not installed")
pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")

ROOT = Path(__file__).parents[3]


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
for name in [each for each in sys.modules if each.startswith("steadynorm.integrations.lightning")]:
    del sys.modules[name]
mixed = importlib.import_module("steadynorm.integrations.lightning")
assert issubclass(mixed.RecalibrateCallback, lightning.pytorch.Callback)
callback = mixed.RecalibrateCallback()
fit(other, [callback])
assert len(callback.change.changed) == 2
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
