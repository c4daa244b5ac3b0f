import math
import re

import pytest
import torch
from torch import nn

from steadynorm.deploy import check_ready
from steadynorm.doctor import Severity, diagnose
from steadynorm.layers import BatchNorm2d, GatedBatchNorm2d
from steadynorm.reporting.failure import UserError
from tests.support.deploy import network
from tests.support.foreign import FOREIGN, chain


def changed(**values):
    """A model whose second batch norm has these values in its first channel."""
    model = network()
    norm = [module for module in model.modules() if isinstance(module, BatchNorm2d)][1]
    with torch.no_grad():
        for name, value in values.items():
            getattr(norm, name)[0] = value
    return model


def built(norm):
    return nn.Sequential(nn.Conv2d(3, 4, 1), norm).eval()


def test_a_sound_model_passes_as_it_is():
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert check_ready(model) == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_variance_of_zero_is_sound():
    assert check_ready(changed(running_var=0.0)) == 3


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (network().train(), "the model: is in training mode"),
        (changed(running_mean=math.nan), "running statistics of 1 of 4 channels are NaN or infinite"),
        (changed(running_var=math.inf), "running statistics of 1 of 4 channels are NaN or infinite"),
        (changed(running_var=-0.1), "running variance of 1 of 4 channels is negative"),
        (built(nn.BatchNorm2d(4)), "never updated"),
        (built(nn.BatchNorm2d(4, track_running_stats=False)), "no running statistics"),
        (built(GatedBatchNorm2d(4)), "evaluation depends on the batch"),
    ],
    ids=["training", "nan", "inf", "negative", "untouched", "untracked", "gated"],
)
def test_what_is_unsound_is_refused_with_the_reason(model, why):
    with pytest.raises(UserError, match=re.escape(why)):
        check_ready(model)


@pytest.mark.parametrize("build", FOREIGN.values(), ids=FOREIGN)
def test_another_packages_norm_is_looked_at(build):
    assert check_ready(chain(build)) == 2
    model = nn.Sequential(build(3)).eval()
    with pytest.raises(UserError, match=r"never updated"):
        check_ready(model)


def test_an_unknown_norm_is_named_and_its_statistics_looked_at():
    norm = nn.InstanceNorm2d(4, track_running_stats=True)
    norm.running_mean.fill_(0.5)
    with pytest.warns(UserWarning, match=r"check_ready: 1 \(torch.nn.InstanceNorm2d\(4\)\) is left as it is: it keeps"):
        assert check_ready(built(norm)) == 0
    norm.running_var[2] = -1
    with pytest.raises(UserError, match=r"1 \(torch.nn.InstanceNorm2d\(4\)\): The running variance of 1 of 4"):
        check_ready(built(norm))


def test_a_single_module_in_training_mode_is_named():
    model = network()
    model[1].train()
    with pytest.raises(UserError, match="1: is in training mode"):
        check_ready(model)


@pytest.mark.parametrize(("mean", "var"), [(0.5, 1.0), (0.0, 2.0)])
def test_statistics_that_were_loaded_without_a_count_are_sound(mean, var):
    norm = nn.BatchNorm2d(4)
    norm.running_mean.fill_(mean)
    norm.running_var.fill_(var)
    assert int(norm.num_batches_tracked) == 0
    assert check_ready(built(norm)) == 1


def test_statistics_that_stayed_at_0_and_1_in_training_are_lost():
    norm = nn.BatchNorm2d(4)
    norm.num_batches_tracked.fill_(1)
    with pytest.raises(UserError, match=r"^1 \(torch.nn.BatchNorm2d\(4\)\): .* though it has counted 1 batches\."):
        check_ready(built(norm))


def test_what_is_refused_is_what_the_doctor_finds():
    for model in (changed(running_mean=math.nan), changed(running_var=-0.1)):
        (finding,) = [each for each in diagnose(model) if each.severity == Severity.ERROR]
        with pytest.raises(UserError) as refused:
            check_ready(model)
        assert f"{finding.problem} {finding.remedy.advice}" in str(refused.value)


def test_what_the_doctor_only_notes_is_no_reason_to_refuse():
    model = network()
    norm = next(module for module in model.modules() if isinstance(module, BatchNorm2d))
    with torch.no_grad():
        norm.weight[0] = 0.0
    assert diagnose(model).of("dead-channel")
    assert check_ready(model) == 3
