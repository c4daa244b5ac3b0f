"""Verbs that are called within inference mode leave a model that trains afterwards."""

import copy

import pytest
import torch
from torch import nn

import steadynorm
from steadynorm.surgery import (
    convert_,
    copy_statistics_,
    fold_,
    freeze_,
    recalibrate_,
    repair_statistics_,
    strip_bias_,
    to_torch_,
)
from tests.support.layers import drawn

X = drawn(8, 3, 6, 6, dtype=torch.float32)
NORMS = {
    "torch": lambda: nn.BatchNorm2d(4),
    "without bias": lambda: steadynorm.BatchNorm2d(4, bias=False),
    "without weight": lambda: steadynorm.BatchNorm2d(4, affine=False),
    "self-tuned window": lambda: steadynorm.BatchNorm2d(4, running="self_tuned", update_every=2),
}


def network(norm):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, bias=False)
    model = nn.Sequential(conv, NORMS[norm](), nn.Conv2d(4, 4, 3), NORMS[norm](), nn.Flatten(), nn.Linear(16, 2))
    model(X)
    return model


def repaired(model):
    model[1].running_mean.fill_(torch.nan)
    return repair_statistics_(model)


VERBS = {
    **{
        f"to {kind}": lambda model, kind=kind: convert_(model, kind)
        for kind in ("batch_norm", "batch_renorm", "gated_batch_norm", "sync_batch_norm", "group_norm", "layer_norm")
    },
    "to self-tuned": lambda model: convert_(model, "batch_norm", running="self_tuned"),
    "to ghost": lambda model: convert_(model, "ghost_batch_norm", ghost_batch_size=4),
    "to torch": to_torch_,
    "to group norm by data": lambda model: convert_(model, "group_norm", batches=[X]),
    "freeze": freeze_,
    "fold": lambda model: fold_(model.eval(), X),
    "strip bias": lambda model: strip_bias_(model, X),
    "recalibrate": lambda model: recalibrate_(model, [X]),
    "repair": repaired,
    "copy": lambda model: copy_statistics_(copy.deepcopy(model), model),
    "undo": lambda model: convert_(model, "gated_batch_norm"),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("verb", VERBS)
def test_a_model_that_was_changed_in_inference_mode_trains(verb, norm):
    model = network(norm)
    with torch.inference_mode():
        change = VERBS[verb](model)
        model = change.undo() if verb == "undo" else change.model
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    assert [name for name, each in tensors.items() if each.is_inference()] == []
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    model.train()
    for _ in range(3):
        model(X).square().mean().backward()
        optimizer.step()
    assert model(X).isfinite().all()
