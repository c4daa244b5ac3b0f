"""What other packages notice in the same networks, if they are installed.

Each is counted generously: a fault counts as noticed if the package says anything that it does not say of the
same network in the same mode without the fault.

- **torch-audit** (0.3.0), the nearest rival on PyPI, audits a training loop: the network as a module, and two steps of
  training on the case's batches. What it says with a severity of WARN or above counts.
- **Lightning** (2.6.6) trains for two steps a network in training mode, with ``detect_anomaly``, and validates one in
  evaluation. Its warnings and errors count, and that its model summary shows modules in both modes. No file of it asks
  for a bias before a norm. That check is AllenNLP's (2.10.1), which needs a torch below 1.13; the check of Lightning
  Bolts (0.7.0) for gradients that mix samples needs a Lightning below 2, and looks at norms in evaluation only.
- **fvcore** (0.1.5.post20221221) counts operations. That it warns of a module that is never called counts; its other
  warnings are of operators that it cannot count. ``update_bn_stats`` measures statistics again and warns of nothing.
- **timm** (1.0.31) has nothing to run: in ``timm.utils`` and ``timm.layers`` norms are made, frozen, converted and, by
  ``ActivationStatsHook``, averaged for a plot; the only warnings are of files and devices.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.doctor.subject import Case

__all__ = ["RIVALS", "installed", "noticed", "said"]


def _audited(case: Case) -> frozenset[str]:
    """Return rules and the modules they name; ``raises`` where it or the training raises."""
    from torch_audit import audit, audit_dynamic

    model = copy.deepcopy(case.model)
    found: list[Any] = list(audit(model).findings)
    if case.batches is None:
        return _named(found)
    batches = [batch for batch, _ in zip(case.batches, range(2), strict=False)]
    if not case.model.training:
        model.train()
    try:
        optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], 1e-4)
        with audit_dynamic(model, optimizer=optimizer, every_n_steps=1, fail_level="FATAL") as auditor:
            for x, labels in batches:
                optimizer.zero_grad(set_to_none=True)
                auditor.backward(functional.cross_entropy(auditor.forward(x).float(), labels))
                auditor.optimizer_step()
        found += auditor.finish(report=False).findings
    except (RuntimeError, ValueError):
        return _named(found) | {"raises"}
    return _named(found)


def _named(findings: list[Any]) -> frozenset[str]:
    worse = [each for each in findings if each.severity.value != "INFO"]
    return frozenset(f"{each.rule_id} {each.module_path or ''}" for each in worse)


def _run_by_lightning(case: Case) -> frozenset[str]:
    """Return its warnings and errors, and ``both modes`` if its summary shows them."""
    import lightning
    from lightning.pytorch.utilities.model_summary import ModelSummary

    class Task(lightning.LightningModule):  # type: ignore[misc,unused-ignore]
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return functional.cross_entropy(self.network(batch[0]).float(), batch[1])

        def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
            self.training_step(batch, index)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([each for each in self.parameters() if each.requires_grad], 1e-4)

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # it tells of devices and of how it trained
    task = Task(copy.deepcopy(case.model))
    task.training = case.model.training
    modes = ModelSummary(task, max_depth=-1).total_training_modes
    found = {"both modes"} if modes["train"] and modes["eval"] else set()
    if case.batches is None:
        return frozenset(found)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(accelerator="cpu", max_steps=2, limit_val_batches=2, detect_anomaly=True, **quiet)
    loader: Any = torch.utils.data.DataLoader(case.batches, batch_size=None)  # type: ignore[arg-type]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if case.model.training:
                trainer.fit(task, train_dataloaders=loader)
            else:
                trainer.validate(task, dataloaders=loader, verbose=False)
        except (RuntimeError, ValueError) as error:
            found.add(f"raises {type(error).__name__}")
    return frozenset(found | {str(each.message) for each in caught})


def _counted_by_fvcore(case: Case) -> frozenset[str]:
    """Return its warnings of modules that are never called."""
    from fvcore.nn import FlopCountAnalysis

    if case.batches is None:
        return frozenset()
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("fvcore.nn.jit_analysis")
    log.addHandler(handler)
    try:
        x, _ = next(iter(case.batches))
        FlopCountAnalysis(copy.deepcopy(case.model), x[:2]).unsupported_ops_warnings(False).total()
    except (RuntimeError, ValueError) as error:
        return frozenset({f"raises {type(error).__name__}"})
    finally:
        log.removeHandler(handler)
    return frozenset(each for each in messages if "never called" in each)


RIVALS: dict[str, tuple[str, Callable[[Case], frozenset[str]]]] = {
    "torch-audit": ("torch_audit", _audited),
    "Lightning": ("lightning", _run_by_lightning),
    "fvcore": ("fvcore", _counted_by_fvcore),
}
"""Package and what to run, by name."""


def installed() -> tuple[str, ...]:
    """List the rivals that are installed."""
    return tuple(name for name, (package, _) in RIVALS.items() if importlib.util.find_spec(package))


def said(case: Case) -> dict[tuple[str, bool], frozenset[str]]:
    """Return each rival's messages on a network without a fault, in training and in evaluation."""
    found = {}
    for training in (True, False):
        model = copy.deepcopy(case.model).train(training)
        for name in installed():
            found[name, training] = RIVALS[name][1](replace(case, model=model))
    return found


def noticed(case: Case, before: dict[tuple[str, bool], frozenset[str]]) -> dict[str, bool]:
    """Say for each rival whether it says more of a case than ``before``."""
    training = case.model.training
    return {name: bool(RIVALS[name][1](case) - before[name, training]) for name in installed()}
