"""A watch over small trainings: what it sees, what it does, what it leaves as it was."""

import copy
import gc
import json
import logging
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from steadynorm import BatchNorm1d, FrozenBatchNorm1d, MaskedBatchNorm1d, functional
from steadynorm.doctor.watch import Watch
from steadynorm.surgery import no_statistics_update, recalibrate_, use_running_statistics
from tests.support.ranks import on_ranks

WHY = "train-eval-gap"
CENTRES = 3 * torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("steadynorm.watch").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("steadynorm.watch").setLevel(logging.NOTSET)


def network(norm=nn.BatchNorm1d, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 16), norm(16), nn.ReLU(), nn.Linear(16, 16), norm(16), nn.ReLU(), nn.Linear(16, 4)
    )


def batch(step, classes=None, size=32):
    """Give samples of four classes, or of one."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(4, (size,), generator=generator)
    if classes is not None:
        labels.fill_(classes)
    return CENTRES[labels] + torch.randn(size, 6, generator=generator), labels


def trained(model, steps, watch=None, change=lambda step, x, labels: (x, labels), begin=0, rate=0.05, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    if watch is not None:
        watch.start()
    for step in range(begin, steps):
        loss = cross_entropy(*_logits(model, change(step, *batch(step))))
        optimizer.zero_grad()
        if loss.isfinite():
            loss.backward()
            optimizer.step()
    if watch is not None:
        watch.stop()
    return model


def _logits(model, drawn):
    return model(drawn[0]), drawn[1]


def checks(watch):
    return [each.check for each in watch.events]


@pytest.mark.parametrize("policy", ["warn", "revert"])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, BatchNorm1d])
def test_a_training_that_is_well_is_left_as_it_is(policy, norm):
    model = network(norm)
    watch = Watch(model, policy)
    before = {name for module in model.modules() for name in vars(module)}
    watched, alone = trained(model, 700, watch), trained(network(norm), 700)
    assert watch.events == []
    for name, tensor in watched.state_dict().items():
        assert torch.equal(tensor, alone.state_dict()[name]), name
    assert {name for module in model.modules() for name in vars(module)} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert watch.report().steps == 700
    assert "nothing found" in str(watch.report())


def poison(at):
    def change(step, x, labels):
        if step == at:
            x = x.clone()
            x[3, 2] = torch.nan
        return x, labels

    return change


def test_estimates_that_a_batch_poisons_go_back():
    watch = Watch(network(), "revert")
    model = trained(watch._model, 150, watch, poison(120))
    spared = network()
    optimizer = torch.optim.SGD(spared.parameters(), 0.05, momentum=0.9)
    trained(spared, 120, optimizer=optimizer)
    trained(spared, 150, begin=121, optimizer=optimizer)
    for name, tensor in model.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(tensor, spared.state_dict()[name]), name
    event, over = watch.events
    assert over.over
    assert (event.step, event.check, event.action) == (120, "nonfinite-statistics", "put back")
    assert event.layers == ("1", "4")


def test_estimates_are_good_at_once_so_that_an_evaluation_may_follow():
    model = network()
    with Watch(model, "revert") as watch:
        trained(model, 50)
        model(poison(0)(0, *batch(0))[0])
        assert model[1].running_mean.isfinite().all()
    assert checks(watch) == ["nonfinite-statistics"]


def test_a_warning_changes_nothing_of_a_training_that_is_poisoned():
    watch = Watch(network())
    model = trained(watch._model, 250, watch, poison(120))
    assert model[1].running_mean.isnan().any()
    assert checks(watch) == ["nonfinite-statistics"]  # once, however long it lasts
    assert watch.events[0].action == ""


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, BatchNorm1d])
@pytest.mark.parametrize("at", [160, 195])
def test_a_batch_far_from_the_others_is_taken_out(norm, at):
    def change(step, x, labels):
        return (30 * x + 100, labels) if step == at else (x, labels)

    model = network(norm)
    frozen = torch.optim.SGD(model.parameters(), 0.0)  # so that nothing else than the estimates can differ
    trained(model, 150)
    twin = copy.deepcopy(model)
    watch = Watch(model, "revert")
    trained(model, at + 40, watch, change, optimizer=frozen)
    (event,) = watch.events
    assert (event.check, event.step, event.action) == ("outlier-statistics", at, "taken out")
    trained(twin, at, optimizer=torch.optim.SGD(twin.parameters(), 0.0))
    trained(twin, at + 40, begin=at + 1, optimizer=torch.optim.SGD(twin.parameters(), 0.0))
    for one, other in ((model[1], twin[1]), (model[4], twin[4])):
        torch.testing.assert_close(one.running_mean, other.running_mean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(one.running_var, other.running_var, rtol=1e-3, atol=1e-3)


def ordered(step, x, labels, begins=200, ends=328):
    return batch(step, (step // 8) % 4) if begins <= step < ends else (x, labels)


def test_batches_of_one_class_are_kept_from_the_estimates():
    model, frozen = network(), {}
    trained(model, 200)
    watch = Watch(model, "revert", on_event=lambda event: frozen.setdefault(event.check, model[1].running_mean.clone()))
    watch.start()
    trained(model, 360, change=lambda *drawn: ordered(*drawn, begins=224, ends=336), rate=0.01)
    held = [name for name, module in model.named_modules() if "forward" in vars(module)]
    trained(model, 460, begin=360, rate=0.01)
    watch.stop()
    begun, over = watch.events
    assert (begun.check, begun.step, begun.over, begun.action) == (
        "single-class-batch",
        224,
        False,
        "taken out and held",
    )
    assert begun.evidence["classes in a batch"] < 1.01
    assert 3.5 < begun.evidence["usual"] < 4.1
    assert over.over
    assert over.action == "let go"
    assert over.step <= 416
    assert held == ["1", "4"]
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_layer_that_is_bound_trains_by_its_running_estimates():
    model = network()
    trained(model, 200)
    with Watch(model, "revert") as watch:
        watch._acts.hold(0, WHY)
        stored = model[1].running_mean.clone()
        x = model[0](batch(500)[0]).detach().requires_grad_()
        in_training, in_evaluation = model[1](x), copy.deepcopy(model[1]).eval()(x)
        torch.testing.assert_close(in_training, in_evaluation, rtol=1e-4, atol=1e-4)
        weights = torch.randn(32, 16)
        (gradient,) = torch.autograd.grad((in_training * weights).sum(), x)
        stored_var, bounds = model[1].running_var, {"r_max": torch.tensor(3.0), "d_max": torch.tensor(5.0)}
        renormalised, _ = functional.batch_renorm(x, stored, stored_var, model[1].weight, model[1].bias, **bounds)
        (wanted,) = torch.autograd.grad((renormalised * weights).sum(), x)
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(model[1].running_mean, stored)
        assert model[1].training
        assert not torch.equal(watch._acts._held[0][0].beside[0], stored)
    assert "forward" not in vars(model[1])


@pytest.mark.parametrize("why", ["single-class-batch", WHY])
def test_contexts_of_surgery_work_on_layers_that_are_held(why):
    model = network()
    trained(model, 100)
    x = batch(0)[0]
    with no_statistics_update(model):
        wanted = model(x)
    with Watch(model, "revert") as watch:
        assert watch._acts.hold(0, why)
        before = {name: each.clone() for name, each in model.state_dict().items()}
        with no_statistics_update(model):
            assert torch.equal(model(x), wanted)
        with use_running_statistics(model):
            assert torch.equal(model(x), copy.deepcopy(model).eval()(x))
        assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
        assert watch.report().steps == 0
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("why", ["single-class-batch", WHY])
def test_layers_that_are_held_can_be_measured_again(why):
    model = network()
    trained(model, 100)
    with Watch(model, "revert") as watch:
        assert watch._acts.hold(0, why)
        loader = [batch(step)[0] for step in range(5)]
        torch.optim.swa_utils.update_bn(loader, model)
    inputs = torch.stack([model[0](x).mean(0) for x in loader])
    torch.testing.assert_close(model[1].running_mean, inputs.mean(0))


@pytest.mark.parametrize("why", ["single-class-batch", WHY])
def test_a_layer_that_is_held_may_lose_its_momentum(why):
    model = network()
    with Watch(model, "revert") as watch:
        trained(model, 150)
        assert watch._acts.hold(1, why)
        model[4].momentum = None
        trained(model, 220, begin=150)
        assert watch._acts._catch_up([0, 1], watch._ranks) != ""
        model[1].momentum = None
        assert watch._acts._catch_up([0, 1], watch._ranks) == ""


def test_a_watch_that_ends_within_a_context_lets_layers_go_all_the_same():
    model = network()
    watch = Watch(model, "revert")
    watch.start()
    trained(model, 20)
    assert watch._acts.hold(0, WHY)
    with no_statistics_update(model):
        watch.stop()
    before = model[1].running_mean.clone()
    trained(model, 21, begin=20)
    assert not torch.equal(before, model[1].running_mean)


def test_a_watch_that_nobody_stops_goes_with_its_model():
    model = network()
    watch = Watch(model, "revert")
    watch.start()
    trained(model, 20)
    gone = weakref.ref(watch), weakref.ref(model)
    del watch
    assert gone[0]() is not None
    trained(model, 40, begin=20)
    del model
    gc.collect()
    assert [each() for each in gone] == [None, None]


def test_the_newest_of_several_watches_acts_alone(caplog):
    logging.getLogger("steadynorm.watch").setLevel(logging.WARNING)
    model = network()
    first, second = Watch(model, "revert"), Watch(model, "revert")
    first.start()
    trained(model, 20)
    assert first._acts.hold(0, WHY)
    second.start()
    assert not first._listener.is_on
    assert "another watch over the same layers has been stopped" in caplog.messages[0]
    assert second._acts.hold(0, WHY)
    trained(model, 40, begin=20)
    second.stop()
    assert (first.report().steps, second.report().steps) == (20, 20)
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_estimates_that_lag_follow_by_another_momentum_and_slow_down_again():
    def change(step, x, labels):
        return (x + 0.1 * max(0, min(step, 500) - 300), labels)

    model = network()
    for index in (1, 4):
        model[index].momentum = 0.03
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    momenta = []
    watch = Watch(model, "revert", on_event=lambda event: momenta.append(model[1].momentum))
    trained(model, 800, watch, change, optimizer=optimizer)
    begun, over = [each for each in watch.events if each.check == "statistics-lag" and "1" in each.layers][:2]
    assert 300 < begun.step < 420
    assert begun.action.startswith("set to the average of the newest batches, momentum 0.")
    assert over.over
    assert max(momenta) > 0.1
    assert (model[1].momentum, model[4].momentum) == (0.03, 0.03)


def test_layers_that_lose_their_variance_are_bound_and_let_go():
    def change(step, x, labels):
        return (x[:1].expand_as(x) if 224 <= step < 320 else x), labels

    model = network()
    watch = Watch(model, "revert")
    trained(model, 500, watch, change, rate=1e-4)
    begun = [each for each in watch.events if each.check == "collapsed-variance" and not each.over]
    assert begun
    assert begun[0].step <= 288
    assert "bound" in begun[0].action
    assert any(each.over for each in watch.events if each.check == "collapsed-variance")
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("gradient", [True, False])
def test_estimates_that_move_where_they_should_not_are_told_once(gradient):
    model = network()
    with Watch(model) as watch:
        for step in range(100):
            _step(model, step)
            with torch.set_grad_enabled(gradient):
                model.eval()
                if gradient:
                    model[1].running_mean.add_(0) if step < 10 else model[1].train()
                model.train(not gradient) if not gradient else None
                model(batch(step)[0])
                model.train()
    if not gradient:
        (event,) = watch.events
        assert event.check == "statistics-moved-in-eval"
        assert "without gradient" in event.problem


def test_statistics_that_are_measured_again_are_no_update_in_evaluation():
    model = network()
    with Watch(model) as watch:
        trained(model, 70)
        recalibrate_(model, [batch(step)[0] for step in range(5)])
        loader = [batch(step)[0] for step in range(5)]
        torch.optim.swa_utils.update_bn(loader, model)
        trained(model, 140)
    assert watch.events == []


def _step(model, step):
    cross_entropy(*_logits(model, batch(step))).backward()


def test_a_second_forward_for_each_batch_is_told():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with Watch(model) as watch:
        for step in range(300):
            for _ in range(2):
                optimizer.zero_grad()
                _step(model, step)
            optimizer.step()
    assert checks(watch) == ["double-update"]


def test_two_losses_sent_back_one_by_one_are_no_batches_of_one_class():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with Watch(model) as watch:
        for step in range(300):
            x, labels = batch(step, size=2)
            logits = model(x)
            optimizer.zero_grad()
            cross_entropy(logits, labels).backward(retain_graph=True)
            cross_entropy(logits, labels).backward()
            optimizer.step()
    assert "single-class-batch" not in checks(watch)


def test_mixed_labels_are_no_batches_of_one_class():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    with Watch(model) as watch:
        for step in range(600):
            x, labels = batch(step, size=16)
            generator = torch.Generator().manual_seed(step)
            share, other = torch.rand((), generator=generator), torch.randperm(16, generator=generator)
            soft = torch.nn.functional.one_hot(labels, 4)
            optimizer.zero_grad()
            mixed = (share * each + (1 - share) * each[other] for each in (x, soft))
            cross_entropy(model(next(mixed)), next(mixed)).backward()
            optimizer.step()
    assert checks(watch) == []


def test_classes_that_alone_are_hard_are_not_taken_for_all_there_are():
    """Samples that are sure send no gradient; those of the noisy class do."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    with Watch(model) as watch:
        for step in range(400):
            generator = torch.Generator().manual_seed(step)
            drawn = torch.randint(5, (32,), generator=generator)
            x = 30 * CENTRES[drawn % 4] + torch.randn(32, 6, generator=generator)
            noisy = torch.rand(32, generator=generator) < 0.2
            labels = torch.where(drawn == 4, 0, drawn)
            loss = cross_entropy(3 * model(x), torch.where(noisy & (labels == 0), 1, labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert "single-class-batch" not in checks(watch)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = network()[:5], nn.Linear(16, 4)

    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=False))


@pytest.mark.parametrize("policy", ["warn", "revert"])
def test_recomputation_counts_a_batch_once_under_revert(policy):
    torch.manual_seed(0)
    model = Checkpointed()
    with Watch(model, policy) as watch:
        mean = model.body[1].running_mean.clone()
        x, labels = batch(0)
        inputs = model.body[0](x).detach()
        cross_entropy(model(x.requires_grad_()), labels).backward()
    once = 0.9 * mean + 0.1 * inputs.mean(0)
    twice = 0.9 * once + 0.1 * inputs.mean(0)
    torch.testing.assert_close(model.body[1].running_mean, once if policy == "revert" else twice)
    assert checks(watch) == ["double-update"]


@pytest.mark.parametrize("policy", ["warn", "revert"])
def test_the_first_pass_of_reentrant_checkpointing_is_the_training(policy):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with Watch(model, policy) as watch:
        for step in range(100):
            x, labels = batch(step)
            loss = cross_entropy(checkpoint(model, x.requires_grad_(), use_reentrant=True), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert watch.report().steps == 100
    (event,) = watch.events
    assert "activation checkpointing" in event.problem


def test_a_momentum_of_numpy_goes_into_a_checkpoint(tmp_path):
    model = network()
    model[1].momentum = np.float64(0.1)
    with Watch(model) as watch:
        trained(model, 10)
        torch.save(watch.state_dict(), tmp_path / "a.pt")
    assert torch.load(tmp_path / "a.pt", weights_only=True)["listener"]["momenta"][0] == [0.1, 0.1]


def test_it_goes_on_after_a_checkpoint_with_the_same_decisions(tmp_path):
    def change(step, x, labels):
        x, labels = ordered(step, x, labels, begins=224, ends=400)
        return (30 * x, labels) if step in (170, 440) else (x, labels)

    def started():
        model = network()
        return model, Watch(model, "revert"), torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    model, watch, optimizer = started()
    trained(model, 600, watch, change, optimizer=optimizer)
    assert {"outlier-statistics", "single-class-batch"} == set(checks(watch))
    first, watch_first, optimizer_first = started()
    watch_first.start()
    trained(first, 305, None, change, optimizer=optimizer_first)
    saved = {"model": first, "watch": watch_first, "optimizer": optimizer_first}
    torch.save({name: each.state_dict() for name, each in saved.items()}, tmp_path / "a.pt")
    second, watch_second, optimizer_second = started()
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    second.load_state_dict(state["model"])
    optimizer_second.load_state_dict(state["optimizer"])
    watch_second.load_state_dict(state["watch"])
    assert "forward" in vars(second[1])
    trained(second, 600, watch_second, change, begin=305, optimizer=optimizer_second)
    assert watch_first.events + watch_second.events == watch.events
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_a_state_of_another_watch_is_refused():
    state = Watch(network(), every=64).state_dict()
    with pytest.raises(ValueError, match="stretches of 32, got one over 2 by stretches of 64"):
        Watch(network()).load_state_dict(state)


def test_an_exception_in_a_forward_leaves_the_watch_able_to_go_on():
    model = network()
    with Watch(model, "revert") as watch:
        trained(model, 40)
        with pytest.raises(RuntimeError):
            model(torch.randn(3, 7))
        trained(model, 700)
    assert watch.events == []
    assert watch.report().steps >= 740
    with pytest.raises(KeyError), Watch(model, "revert"):
        model(batch(0)[0])
        raise KeyError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_training_that_was_interrupted_in_a_forward_is_heard_again():
    model = network()

    def interrupt(*arguments):
        raise KeyboardInterrupt

    with Watch(model) as watch:
        handle = model[2].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(batch(0)[0])
        handle.remove()
        trained(model, 40)
    assert watch.report().steps == 40


def test_an_event_at_which_the_user_raises_is_told_once():
    model, told = network(), []

    def stop(event):
        told.append(event.step)
        raise StopIteration

    with Watch(model, "revert", on_event=stop) as watch:
        for step in range(200):
            try:
                trained(model, step + 1, change=poison(120), begin=step)
            except StopIteration:
                assert step in (128, 160, 161)
    assert told == [120, 128]
    assert [each.step for each in watch.events] == told
    assert watch.report().steps == 198  # all but those in which it was raised


def test_hooks_go_though_the_user_raises_at_the_last_events():
    model = network()
    with pytest.raises(ZeroDivisionError), Watch(model, on_event=lambda event: 1 / 0):
        model(poison(0)(0, *batch(0))[0])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def transforms(model, x):
    parameters = dict(model.named_parameters())

    def loss(parameters):
        buffers = {name: each.clone() for name, each in model.named_buffers()}
        return torch.func.functional_call(model, (parameters, buffers), (x,)).square().mean()

    torch.func.grad(loss)(parameters)
    torch.func.jvp(model.eval(), (x,), (x,))
    stacked = torch.func.stack_module_state([model, copy.deepcopy(model)])
    torch.func.vmap(lambda *state: torch.func.functional_call(model, state, (x,)))(*stacked)


def trace(model, x):
    assert "aten::cat" not in str(torch.jit.trace(model.eval(), x).inlined_graph)


def export(model, x):
    graph = torch.export.export(model.eval(), (x,), strict=False).graph
    assert not any("cat" in each.name for each in graph.nodes)


def fake(model, x):
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        model.eval()(torch.empty(4, 6))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("use", [transforms, trace, export, fake])
@pytest.mark.parametrize("policy", ["warn", "revert"])
def test_who_transforms_or_records_a_model_is_not_disturbed(use, policy):
    model = network()
    with Watch(model, policy) as watch:
        trained(model, 40)
        use(model, batch(0)[0])
        model.train()
        trained(model, 80, begin=40)
    assert watch.report().steps == 80
    assert watch.events == []


def test_branches_of_which_the_model_takes_one_at_random_are_well():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norms, self.last = nn.Linear(6, 16), nn.ModuleList(), nn.Linear(16, 4)
            self.norms += [nn.BatchNorm1d(16), nn.BatchNorm1d(16)]

        def forward(self, x, branch):
            return self.last(self.norms[branch](self.first(x)).relu())

    torch.manual_seed(5)
    model = Branches()
    with Watch(model, "revert") as watch:
        for step in range(500):
            x, labels = batch(step)
            branch = int(torch.randint(2, ()))
            cross_entropy(model(x + 2 * branch, branch), labels).backward()
    assert watch.events == []


def test_a_network_that_looks_at_two_inputs_is_well():
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()

        def forward(self, x):
            return self.body(x) + self.body(x.flip(0) + 1).flip(0)

    model = Twins()
    watch = Watch(model, "revert")
    trained(model, 600, watch)
    assert watch.events == []


@pytest.mark.parametrize("held", [False, True])
def test_a_model_may_become_float64(held):
    model = network()
    with Watch(model, "revert") as watch:
        trained(model, 150)
        if held:
            assert watch._acts.hold(0, "single-class-batch")
            assert watch._acts.hold(1, WHY)
        model.double()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for step in range(150, 300):
            x, labels = poison(200)(step, *batch(step))
            loss = cross_entropy(model(x.double()), labels)
            optimizer.zero_grad()
            if loss.isfinite():
                loss.backward()
                optimizer.step()
        assert watch._listener.rows[0].values.dtype == torch.float64
    assert watch.report().steps == 300
    assert [each.check for each in watch.events if not each.over] == ["nonfinite-statistics"]
    assert watch.events[0].step == 200
    assert all(each.isfinite().all() for each in model.state_dict().values())


def test_layers_that_lose_their_estimates_end_the_watch(caplog):
    logging.getLogger("steadynorm.watch").setLevel(logging.WARNING)
    model = network()
    with Watch(model, "revert") as watch:
        trained(model, 50)
        model[1].running_mean = model[1].running_var = None
        trained(model, 60, begin=50)
        assert not watch._listener.is_on
    assert watch.report().steps == 50
    assert caplog.messages == ["Watch: 1 no longer has running statistics; the watch has stopped. Start another one."]


def test_layers_that_are_replaced_are_named(caplog):
    logging.getLogger("steadynorm.watch").setLevel(logging.WARNING)
    model = network()
    with Watch(model) as watch:
        trained(model, 50)
        model[4] = nn.BatchNorm1d(16)
        trained(model, 150, begin=50)
    assert caplog.messages == ["Watch: layers have been replaced (4); start another watch."]
    assert watch.report().unwatched == {"4": "another module has replaced it"}


def test_children_that_a_training_calls_by_themselves_are_heard():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = network()[:6], nn.Linear(16, 4)

    model = Pair()
    with Watch(model) as watch:
        for step in range(40):
            x, labels = batch(step)
            cross_entropy(model.head(model.encoder(x)), labels).backward()
    assert watch.report().steps >= 40


def test_copies_of_a_watched_model_are_not_heard(tmp_path):
    model = network()
    with Watch(model, "revert") as watch:
        trained(model, 40)
        watch._acts.hold(0, WHY)
        average = torch.optim.swa_utils.AveragedModel(model)
        torch.save(model, tmp_path / "model.pt")
        for copied in (average.module, copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
            before = copied[1].running_mean.clone()
            copied.train()(batch(0)[0])
            assert not torch.equal(copied[1].running_mean, before)
            assert "forward" not in vars(copied[1])
    assert watch.report().steps == 40


def test_what_is_not_watched_is_named():
    model = nn.Sequential(
        nn.BatchNorm1d(6),
        nn.BatchNorm1d(6, momentum=None),
        BatchNorm1d(6, update_every=4),
        nn.LayerNorm(6),
        FrozenBatchNorm1d(6),
    )
    report = Watch(model).report()
    assert report.layers == ("0",)
    assert set(report.unwatched) == {"1", "2", "4"}
    assert "frozen" in report.unwatched["4"]
    assert str(report).startswith("0 steps, 1 layer watched: nothing found")
    assert "no momentum" in report.unwatched["1"]
    assert "not watched: 2" in str(report)


def test_arguments_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="policy must be one of"):
        Watch(network(), "undo")
    with pytest.raises(ValueError, match="at least 16 training forwards, got 3"):
        Watch(network(), every=3)
    with pytest.raises(ValueError, match="but it has none"):
        Watch(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="none of them can be watched"):
        Watch(nn.BatchNorm1d(2, momentum=None))


def test_a_model_that_is_not_called_is_said(caplog):
    logging.getLogger("steadynorm.watch").setLevel(logging.WARNING)
    with Watch(network()):
        pass
    assert "ran no training forward" in caplog.text


def test_events_are_logged_reported_and_written_as_json(caplog):
    logging.getLogger("steadynorm.watch").setLevel(logging.INFO)
    watch = Watch(network(), "revert")
    trained(watch._model, 150, watch, poison(120))
    assert "step 120: nonfinite-statistics [1, 4]" in caplog.text
    report = watch.report()
    assert report.counts() == {"nonfinite-statistics": 1}
    assert caplog.messages[0] in str(report)
    content = json.loads(report.to_json())
    assert content["events"][0]["step"] == 120
    assert content["layers"] == ["1", "4"]


def test_a_masked_layer_can_stand_still_and_not_be_bound():
    model = nn.Sequential(MaskedBatchNorm1d(3))
    watch = Watch(model, "revert")
    assert not watch._acts.hold(0, WHY)
    assert watch._acts.hold(0, "single-class-batch")
    watch.stop()


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_model_is_heard(in_place):
    model = network()
    compiled = model
    if in_place:
        model.compile(backend="eager")
    else:
        compiled = torch.compile(model, backend="eager")
    watch = Watch(compiled, "revert")
    trained(compiled, 150, watch, poison(120))
    assert watch.report().steps == 150
    assert [each.step for each in watch.events if not each.over] == [120]


def one_rank_is_poisoned():
    rank = torch.distributed.get_rank()
    model = network()
    watch = Watch(model, "revert")
    logging.getLogger("steadynorm.watch").setLevel(logging.CRITICAL)
    parallel = nn.parallel.DistributedDataParallel(model)

    def change(step, x, labels):
        x, labels = batch(1000 * rank + step)
        if rank == 1 and step == 170:
            return 40 * x, labels
        return batch(1000 * rank + step, (step // 8) % 4) if 224 <= step < 320 else (x, labels)

    trained(parallel, 480, watch, change, rate=0.01)
    return [each.text for each in watch.events], model.state_dict()


@pytest.mark.slow
def test_ranks_decide_together(tmp_path):
    (events, state), (others, other) = on_ranks(one_rank_is_poisoned, 2, tmp_path)
    assert events == others
    assert {line.split(": ")[1].split(" [")[0] for line in events} == {"outlier-statistics", "single-class-batch"}
    for name in ("0.weight", "6.bias"):
        assert torch.equal(state[name], other[name])
