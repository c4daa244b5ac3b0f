"""Every verb on whole models: what must stay stays, and undo brings every bit back."""

import pytest
import torch

import steadynorm
from steadynorm.surgery import (
    convert_,
    copy_statistics_,
    fold_,
    freeze_,
    from_sync_,
    load_statistics_,
    merge_statistics,
    no_statistics_update,
    param_groups,
    recalibrate_,
    reconcile_statistics_,
    repair_statistics_,
    statistics_of,
    strip_bias_,
    to_torch_,
    unfreeze_,
    use_batch_statistics,
    use_running_statistics,
)
from steadynorm.surgery.named_modules import batch_norms_of
from tests.support.architectures import ARCHITECTURES, build_architecture, outputs
from tests.support.oracle import assert_as_accurate_as, to_numpy
from tests.support.surgery import assert_state_equal, snapshot

each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
SAME = {
    "to batch norm": lambda model, example: convert_(model, "batch_norm", update_every=2),
    "to renorm": lambda model, example: convert_(model, "batch_renorm"),
    "to ghost": lambda model, example: convert_(model, "ghost_batch_norm", ghost_batch_size=2),
    "to torch's": lambda model, example: convert_(model, "torch_batch_norm", example=example),
    "to sync": lambda model, example: convert_(model, "sync_batch_norm"),
    "to_torch_": lambda model, example: to_torch_(model, example=example),
    "freeze_": lambda model, example: freeze_(model),
    "fold_": lambda model, example: fold_(model, example),
    "strip_bias_": lambda model, example: strip_bias_(model, example),
}
"""Verbs after which evaluation is what it was."""
OTHER = {
    "to gated": lambda model, example: convert_(model, "gated_batch_norm"),
    "to group norm": lambda model, example: convert_(model, "group_norm", example=example),
    "to layer norm": lambda model, example: convert_(model, "layer_norm", example=example),
    "recalibrate_": lambda model, example: recalibrate_(model, [example]),
}
"""Verbs after which it is another."""
KEEPS_NO_KEYS = ("fold_", "strip_bias_", "to group norm", "to layer norm")


def assert_outputs_equal(model, example, wanted):
    for found, y in zip(outputs(model, example), wanted, strict=True):
        torch.testing.assert_close(found, y, rtol=1e-9, atol=1e-9 * float(y.abs().max()))


@each_architecture
@pytest.mark.parametrize("verb", SAME)
def test_evaluation_stays_what_it_was_and_undo_brings_every_bit_back(name, verb):
    model, example = build_architecture(name)
    before, wanted, keys = snapshot(model), outputs(model, example), list(model.state_dict())
    change = SAME[verb](model, example)
    assert_outputs_equal(model, example, wanted)
    if verb not in KEEPS_NO_KEYS:
        assert list(model.state_dict()) == keys
        assert not change.refused
    assert_undone(change, model, example, before, wanted)


@each_architecture
@pytest.mark.parametrize("verb", SAME)
def test_in_float32_it_errs_no_more_than_twice_the_model_as_it_was(name, verb):
    reference = outputs(*build_architecture(name))
    model, example = build_architecture(name)
    model.float()
    example = {key: each.float() for key, each in example.items()} if isinstance(example, dict) else example.float()
    natives = outputs(model, example)
    SAME[verb](model, example)
    for oracle, native, found in zip(reference, natives, outputs(model, example), strict=True):
        assert_as_accurate_as(
            native=native,
            ours=found,
            oracle=to_numpy(oracle),
            what=f"{name}, {verb}",
            floor_ulps=16,  # of some outputs after dozens of layers, all of which may happen to be right
        )


@each_architecture
@pytest.mark.parametrize("verb", OTHER)
def test_evaluation_changes_where_it_is_meant_to_and_undo_brings_every_bit_back(name, verb):
    model, example = build_architecture(name)
    before, wanted = snapshot(model), outputs(model, example)
    change = OTHER[verb](model, example)
    assert change.changed
    found = outputs(model, example)
    assert not all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert all(each.isfinite().all() for each in found)
    assert_undone(change, model, example, before, wanted)


def assert_undone(change, model, example, before, wanted):
    assert change.undo() is model
    assert_state_equal(model, before)
    for found, y in zip(outputs(model, example), wanted, strict=True):
        assert torch.equal(found, y)


def loss_of(model, example):
    result = model(**example) if isinstance(example, dict) else model(example)
    y = result if isinstance(result, torch.Tensor) else next(iter(result.values()))
    torch.manual_seed(1)
    return (y * torch.randn_like(y)).sum()


@each_architecture
@pytest.mark.parametrize("verb", ["to batch norm of ours and back", "freeze_ and unfreeze_", "undo"])
def test_an_optimizer_goes_on_behind_it(name, verb):
    """Three steps with momentum, surgery between the first and the second, against three without surgery."""
    models = []
    for operated in (False, True):
        model, example = build_architecture(name)
        _without_randomness(model)
        optimizer = torch.optim.SGD(param_groups(model, 1e-2), lr=1e-3, momentum=0.9)
        for step in range(3):
            if operated and step == 1:
                _there_and_back(model, verb)
            optimizer.zero_grad()
            loss_of(model.train(), example).backward()
            optimizer.step()
        models.append(model)
    for (key, a), b in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-8, msg=key)


def _there_and_back(model, verb):
    if verb == "undo":
        convert_(model, "batch_renorm").undo()
    elif verb.startswith("freeze"):
        freeze_(model)
        unfreeze_(model)
    else:
        ours = isinstance(batch_norms_of(model)[0].module, steadynorm.layers.base.BatchNormBase)
        for to in ("torch_batch_norm", "batch_norm") if ours else ("batch_norm", "torch_batch_norm"):
            convert_(model, to, example=None if not ours else torch.zeros(1, 3, 32, 32).double())


def _without_randomness(model):
    for module in model.modules():
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


@each_architecture
def test_synchronised_layers_find_their_way_back(name):
    model, example = build_architecture(name)
    convert_(model, "torch_batch_norm", example=example)
    classes = [type(module) for module in model.modules()]
    wanted = outputs(model, example)
    torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    before = snapshot(model)
    from_sync_(model, example=example).undo()
    assert_state_equal(model, before)
    change = from_sync_(model, example=example)
    assert not change.refused
    assert [type(module) for module in model.modules()] == classes
    assert_outputs_equal(model, example, wanted)


@each_architecture
def test_recalibrated_statistics_are_those_of_the_inputs(name):
    model, example = build_architecture(name)
    change = recalibrate_(model, [example])
    assert not change.refused
    inputs = {}
    sites = batch_norms_of(model)
    for site in sites:
        site.module.register_forward_pre_hook(
            lambda module, arguments, key=site.name: inputs.setdefault(key, []).append(arguments[0].detach())
        )
    outputs(model, example)
    for site in sites:
        x = torch.cat([each.transpose(0, 1).flatten(1) for each in inputs[site.name]], 1)
        scale = (x.var(1) + site.module.eps).sqrt()  # in which a movement counts as one
        assert ((site.module.running_mean - x.mean(1)).abs() <= 1e-3 * scale).all(), site.name
        assert ((site.module.running_var - x.var(1)).abs() <= 1e-3 * scale.square()).all(), site.name


@each_architecture
def test_statistics_go_out_and_come_in(name):
    model, example = build_architecture(name)
    wanted, kept = outputs(model, example), statistics_of(model)
    assert set(kept) <= set(model.state_dict())
    other, _ = build_architecture(name)
    other.load_state_dict(model.state_dict())
    for site in batch_norms_of(model):
        site.module.reset_running_stats()
    load_statistics_(model, kept)
    assert_outputs_equal(model, example, wanted)
    for site in batch_norms_of(other):
        site.module.running_var.fill_(float("nan"))
    broken = snapshot(other)
    change = repair_statistics_(other)
    assert len(change.changed) == len(batch_norms_of(other))
    change.undo()
    assert_state_equal(other, broken)
    copied = copy_statistics_(model, other)
    assert_outputs_equal(other, example, wanted)
    copied.undo()
    assert_state_equal(other, broken)


@each_architecture
def test_statistics_of_two_models_are_merged(name):
    """Of one with mean m and one with m + 2 the mean is m + 1, and the variance greater by 1."""
    model, _ = build_architecture(name)
    one = statistics_of(model)
    other = {key: value + 2 if key.endswith("running_mean") else value for key, value in one.items()}
    merged = merge_statistics([one, other])
    assert list(merged) == list(one)
    for key, value in one.items():
        torch.testing.assert_close(merged[key], value if key.endswith("tracked") else value + 1)
    before = snapshot(model)
    assert not reconcile_statistics_(model).changed  # there is but one rank
    assert_state_equal(model, before)


@each_architecture
@pytest.mark.parametrize("context", [no_statistics_update, use_batch_statistics, use_running_statistics])
@pytest.mark.parametrize("training", [False, True])
def test_contexts_move_nothing_and_decide_what_normalizes(name, context, training):
    model, example = build_architecture(name)
    _without_randomness(model)
    before = snapshot(model.train(training))
    by_running, by_batch = (_run(model, example, mode) for mode in (False, True))
    _restore(model, before)
    with context(model):
        found = loss_of(model, example)
    assert_state_equal(model, before)
    batch = training if context is no_statistics_update else context is use_batch_statistics
    torch.testing.assert_close(found, by_batch if batch else by_running)


def _run(model, example, training):
    """The loss with all norms in a mode."""
    modes = {site.module: site.module.training for site in batch_norms_of(model)}
    for module in modes:
        module.training = training
    try:
        return loss_of(model, example)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _restore(model, before):
    with torch.no_grad():
        for value, bits, *_ in before.values():
            if isinstance(value, torch.Tensor):
                value.copy_(bits)
