"""Norms of other packages go through every verb, and keep what they compute and what runs after them."""

import copy

import pytest
import torch
from torch import nn

import steadynorm
from steadynorm.surgery import (
    convert_,
    fold_,
    freeze_,
    from_sync_,
    load_statistics_,
    no_statistics_update,
    param_groups,
    recalibrate_,
    repair_statistics_,
    statistics_of,
    strip_bias_,
    to_torch_,
    unfreeze_,
)
from steadynorm.surgery.adapters.norm_then import NormThen
from tests.support.foreign import FOREIGN, FROZEN, BatchNormAct2d, InPlaceABN, SyncBatchNormAct, chain
from tests.support.layers import drawn
from tests.support.surgery import assert_state_equal, refusals, snapshot

X = drawn(5, 3, 6, 6)
TRAINING = [name for name in FOREIGN if name not in FROZEN and "frozen" not in name]
each_norm = pytest.mark.parametrize("build", FOREIGN.values(), ids=FOREIGN)
NOT_WRITTEN = [name for name in FOREIGN if name != "inplace abn"]  # its weight is written as |weight| + eps
each_that_trains = pytest.mark.parametrize("build", [FOREIGN[name] for name in TRAINING], ids=TRAINING)


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@each_norm
@pytest.mark.parametrize("to", ["batch_norm", "frozen_batch_norm", "sync_batch_norm", "torch_batch_norm"])
def test_a_conversion_keeps_outputs_and_state_keys_and_can_be_undone(build, to):
    model = chain(build)
    expected, keys, before = model(X), set(model.state_dict()), snapshot(model)
    change = convert_(model, to)
    assert [each.name for each in change.changed] == ["1", "3"]
    close(model(X), expected)
    assert set(model.state_dict()) - {f"{at}.num_batches_tracked" for at in (1, 3)} == keys - {
        f"{at}.num_batches_tracked" for at in (1, 3)
    }
    change.undo()
    assert_state_equal(model, before)
    assert torch.equal(model(X), expected)


@pytest.mark.parametrize("build", [FOREIGN[name] for name in NOT_WRITTEN], ids=NOT_WRITTEN)
def test_a_state_dict_from_before_loads_into_the_converted_model(build):
    model, saved = chain(build), chain(build).state_dict()
    convert_(model, "batch_norm")
    expected = model(X)
    for tensor in model.state_dict().values():
        tensor.zero_()
    model.load_state_dict(saved)
    close(model(X), expected)


@each_norm
def test_both_fold_and_what_runs_behind_stays(build):
    model = chain(build)
    expected = model(X)
    change = fold_(model, X)
    assert len(change.changed) == 2
    assert not [each for each in model.modules() if hasattr(each, "running_mean")]
    close(model(X), expected)


@each_that_trains
def test_training_goes_on_as_it_would_have(build):
    plain, converted = chain(build), chain(build)
    convert_(converted, "batch_norm" if build is not FOREIGN["timm, synchronised"] else "sync_batch_norm")
    for model in (plain, converted):
        model.train()
        torch.manual_seed(7)
        (model(X) * drawn(5, 6, 4, 4, seed=9)).sum().backward()
    close(converted[0].weight.grad, plain[0].weight.grad, 1e-9)
    outputs = []
    for model in (plain, converted):
        torch.manual_seed(8)  # of a dropout
        outputs.append(model(X))
    close(outputs[1], outputs[0], 1e-9)
    for key, value in statistics_of(plain).items():
        close(statistics_of(converted)[key], value, 1e-9)


@each_that_trains
def test_parameters_stay_the_same_objects(build):
    model = chain(build)
    before = [id(each) for each in model.parameters()]
    convert_(model, "batch_norm")
    assert [id(each) for each in model.parameters()] == before


@each_norm
def test_frozen_and_unfrozen_it_evaluates_as_before_and_learns_again(build):
    model = chain(build)
    expected = model(X)
    freeze_(model)
    if build is not FOREIGN["timm, silu and drop"]:  # which drops in training
        close(model.train()[:2](X), model.eval()[:2](X))
    close(model.eval()(X), expected)
    unfreeze_(model)
    close(model(X), expected)
    before = statistics_of(model)["1.running_mean"]
    model.train()(X)
    assert not torch.equal(statistics_of(model)["1.running_mean"], before)
    assert all(each.requires_grad for each in model.parameters())


@each_norm
def test_to_torch_leaves_only_torchs_batch_norms(build):
    model = chain(build)
    expected = model(X)
    to_torch_(model)
    norms = {type(each) for each in model.modules() if hasattr(each, "running_mean")}
    assert norms <= {nn.BatchNorm2d, nn.SyncBatchNorm}
    close(model(X), expected)


def test_a_synchronised_one_becomes_a_plain_one_with_its_activation():
    model = chain(FOREIGN["timm, synchronised"])
    expected = model(X)
    assert len(from_sync_(model, example=X).changed) == 2
    assert type(model[1].norm) is nn.BatchNorm2d
    assert type(model[1].act) is nn.GELU
    close(model(X), expected)


def test_an_activation_that_ours_fuse_is_fused_and_another_stays_behind():
    fused, other = chain(FOREIGN["timm, relu"]), chain(FOREIGN["timm, hard swish"])
    act = other[1].act
    for model in (fused, other):
        convert_(model, "batch_norm")
    assert type(fused[1]) is steadynorm.BatchNorm2d and fused[1].activation == "relu"
    assert type(other[1]) is NormThen and other[1].act is act
    convert_(fused, "torch_batch_norm")
    assert type(fused[1].activation) is nn.ReLU


def test_what_stands_behind_stays_through_further_conversions():
    model = chain(FOREIGN["timm, hard swish"])
    expected = model(X)
    for to in ("torch_batch_norm", "batch_renorm", "frozen_batch_norm", "batch_norm"):
        convert_(model, to)
        assert type(model[1]) is NormThen and type(model[1].act) is nn.Hardswish
    close(model(X), expected)
    relu = chain(FOREIGN["timm, relu"])
    convert_(relu, "torch_batch_norm")
    assert type(relu[1]) is NormThen
    convert_(relu, "batch_norm")
    assert type(relu[1]) is steadynorm.BatchNorm2d and relu[1].activation == "relu"


def test_group_norm_keeps_what_stands_behind():
    model = chain(FOREIGN["timm, hard swish"])
    change = convert_(model, "group_norm", batches=[X])
    assert type(model[1].norm) is nn.GroupNorm and type(model[1].act) is nn.Hardswish
    assert change.measured["output_error"] < change.measured["output_error_before_start"]


def test_forward_hooks_see_what_they_saw():
    model, seen = chain(FOREIGN["timm, hard swish"]), []
    model[1].register_forward_hook(lambda module, x, y: seen.append(y))
    model(X)
    convert_(model, "batch_norm")
    model(X)
    close(seen[1], seen[0])


@each_that_trains
def test_recalibration_gives_each_the_statistics_of_its_input(build):
    model = chain(build)
    assert len(recalibrate_(model, [X, X + 1]).changed) == 2
    seen = []
    model[3].register_forward_pre_hook(lambda module, x: seen.append(x[0].clone()))
    for batch in (X, X + 1):
        model(batch)
    values = torch.cat(seen).transpose(0, 1).flatten(1)
    found = statistics_of(model)
    close(found["3.running_mean"], values.mean(1), 1e-6)
    close(found["3.running_var"], values.var(1), 1e-6)


@each_norm
def test_statistics_are_taken_written_and_repaired(build):
    model, other = chain(build), chain(build)
    statistics = statistics_of(model)
    assert {"1.running_mean", "1.running_var", "3.running_mean", "3.running_var"} <= set(statistics)
    for each in other.modules():
        if hasattr(each, "running_mean"):
            each.running_mean.fill_(torch.nan)
    assert len(repair_statistics_(other).changed) == 2
    load_statistics_(other, statistics)
    assert torch.equal(other(X), model(X))


def test_a_frozen_one_is_not_recalibrated_but_named():
    assert "frozen" in refusals(recalibrate_, chain(FROZEN["torchvision"]), [X])[0].why


@each_that_trains
def test_a_context_moves_no_statistic(build):
    model = chain(build).train()
    before = copy.deepcopy(statistics_of(model))
    with no_statistics_update(model):
        model(X)
    assert all(torch.equal(value, before[key]) for key, value in statistics_of(model).items())


@each_that_trains
def test_the_bias_before_it_is_stripped(build):
    model = chain(build)
    expected = model(X)
    assert [each.name for each in strip_bias_(model, X).changed] == ["0"]
    close(model(X), expected)


@each_that_trains
def test_its_weight_is_spared_from_weight_decay(build):
    model = chain(build)
    decayed = {id(each) for each in param_groups(model, 0.1)[0]["params"]}
    norms = [each for each in model.modules() if hasattr(each, "running_mean")]
    assert norms and not [each for norm in norms for each in (norm.weight, norm.bias) if id(each) in decayed]


def test_an_absolute_weight_is_written_as_the_weight_and_said_so():
    model = chain(InPlaceABN)
    weight = model[1].weight.detach().clone()
    change = convert_(model, "torch_batch_norm")
    close(model[1].norm.weight, weight.abs() + 1e-4)
    assert "|weight| + eps" in change.changed[0].notes[0]


def test_a_class_of_the_users_gets_the_absolute_weight_too():
    model = chain(InPlaceABN)
    weight = model[1].weight.detach().clone()
    change = convert_(model, nn.InstanceNorm2d, affine=True)
    assert isinstance(model[1].norm, nn.InstanceNorm2d)
    close(model[1].norm.weight, weight.abs() + 1e-4)
    assert any("|weight| + eps" in note for note in change.changed[0].notes)


def test_a_norm_without_statistics_or_parameters_converts():
    for norm in (BatchNormAct2d(6, nn.ReLU()), SyncBatchNormAct(6)):
        norm.running_mean = norm.running_var = norm.num_batches_tracked = norm.weight = norm.bias = None
        norm.track_running_stats = norm.affine = False
        model = nn.Sequential(norm).double().eval()
        expected = model(drawn(4, 6, 5, 5))
        convert_(model, "torch_batch_norm", example=drawn(4, 6, 5, 5))
        close(model(drawn(4, 6, 5, 5)), expected)


def test_statistics_that_were_kept_from_moving_stay_where_they_are():
    model = chain(FOREIGN["timm, relu"])
    model[1].track_running_stats = False
    before = statistics_of(model)
    convert_(model, "batch_norm")
    model.train()(X)
    after = statistics_of(model)
    assert torch.equal(after["1.running_var"], before["1.running_var"])
    assert not torch.equal(after["3.running_var"], before["3.running_var"])


@pytest.mark.parametrize("to", ["batch_norm", "frozen_batch_norm", "torch_batch_norm"])
def test_what_was_a_buffer_is_not_learned_unless_it_is_unfrozen(to):
    model = chain(FROZEN["torchvision"])
    convert_(model, to)
    assert {each.requires_grad for at in (1, 3) for each in model[at].parameters()} == {False}


def test_to_another_dtype_and_back_by_undo():
    model = chain(FROZEN["torchvision"])
    change = convert_(model, "batch_norm")
    model.float()
    with torch.no_grad():
        model[1].weight.mul_(2)
    change.undo()
    assert {each.dtype for each in model[1].buffers()} == {torch.float32}
    close(model[1].weight.double(), chain(FROZEN["torchvision"])[1].weight * 2, 1e-6)


@pytest.mark.parametrize("name", ["detr", "rt_detr", "deformable_detr"])
def test_a_frozen_norm_of_transformers_folds(name):
    module = pytest.importorskip(f"transformers.models.{name}.modeling_{name}")
    (cls,) = (value for key, value in vars(module).items() if key.endswith("FrozenBatchNorm2d"))
    model = chain(cls)
    expected = model(X)
    assert len(fold_(model, X).changed) == 2
    close(model(X), expected)
