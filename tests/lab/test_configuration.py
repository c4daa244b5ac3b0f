from dataclasses import replace
from pathlib import Path

import pytest

from steadynorm.lab.configuration import (
    ExperimentConfig,
    OneRateConfig,
    check_experiment,
    check_lists,
    check_rates,
    prepared,
    quickened,
)
from steadynorm.lab.experiments.compare import CompareConfig
from steadynorm.lab.experiments.scale import ScaleConfig
from steadynorm.lab.experiments.sweep import SweepConfig
from steadynorm.reporting.failure import UserError


def test_a_value_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match=r"--tune-lr: every value may appear once, got 0\.1 0\.1"):
        check_lists(CompareConfig(tune_lr=(0.1, 0.1)), ("arms", "tune_lr"))


def test_an_empty_list_is_refused_unless_it_may_be_empty() -> None:
    check_lists(CompareConfig(), ("tune_lr",), may_be_empty=("tune_lr",))
    with pytest.raises(UserError, match="--tune-lr: at least one value is needed"):
        check_lists(CompareConfig(), ("tune_lr",))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_that_cannot_train_is_refused(rate: float) -> None:
    with pytest.raises(UserError, match="--lr: a learning rate must be a positive number"):
        check_rates("--lr", (0.1, rate))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (2**63,)}, "--seeds: must be in"),
        ({"data_dir": Path("x")}, "--data-dir: is read with --data cifar10 only"),
        ({"train_images": 0}, "--train-images: must be at least 1, got 0"),
    ],
)
def test_what_no_experiment_can_do_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_experiment(replace(ExperimentConfig(), **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "--batch-size: must be at least 1"),
        ({"momentum": 1.0}, "--momentum: must be below 1"),
        ({"label_smoothing": 1.0}, "--label-smoothing: must be at least 0 and below 1, got 1.0"),
        ({"label_smoothing": -0.1}, "--label-smoothing: must be at least 0"),
        ({"depth": 2, "widths": (1, 2, 3)}, "--depth: 3 stages need"),
    ],
)
def test_what_no_training_can_do_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_experiment(replace(OneRateConfig(), **changes))


def test_quick_replaces_what_was_not_set() -> None:
    config = OneRateConfig(quick=True, widths=(8, 8))
    assert quickened(config, {"epochs": 2, "widths": (4,)}) == replace(config, epochs=2)


def test_without_quick_nothing_is_replaced() -> None:
    assert quickened(OneRateConfig(), {"epochs": 2}).epochs == 20


def test_quick_beside_other_data_is_refused() -> None:
    with pytest.raises(UserError, match="--quick: runs on the embedded data, got --data cifar10"):
        quickened(OneRateConfig(quick=True, data="cifar10"), {})


def test_default_milestones_that_are_not_reached_are_left_out() -> None:
    assert prepared(OneRateConfig(epochs=12), {}).milestones == (10,)
    assert prepared(OneRateConfig(quick=True, epochs=3), {"milestones": (2, 3)}).milestones == (2,)
    assert prepared(OneRateConfig(epochs=12, milestones=(11, 15)), {}).milestones == (11, 15)  # to be refused
    assert prepared(OneRateConfig(epochs=12, given=("--milestones",)), {}).milestones == (10, 15)  # likewise


def test_what_only_the_cnn_has_is_left_alone_where_another_network_is_trained() -> None:
    quick = {"widths": (4,), "depth": 3, "epochs": 2}
    config = prepared(OneRateConfig(quick=True, network="resnet20"), quick)
    assert (config.widths, config.depth, config.epochs) == ((32, 64, 128), 6, 2)
    small = prepared(OneRateConfig(quick=True, widths=(8,)), {"network": "cnn"})
    assert small.widths == (8,)


@pytest.mark.parametrize(
    ("config", "flags"),
    [
        (OneRateConfig(network="resnet20", depth=8), "--depth"),
        (SweepConfig(network="resnet20", depth=(6, 12)), "--depth"),
        (ScaleConfig(widths=(8, 16)), "--widths"),
    ],
)
def test_what_only_the_cnn_has_is_refused_for_another_network(config: ExperimentConfig, flags: str) -> None:
    with pytest.raises(
        UserError, match=rf"^{flags}: --network resnet20 has its own\. Drop it, or give --network cnn\.$"
    ):
        prepared(config, {})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (CompareConfig(), (0.02, 32, (16, 32, 64))),
        (CompareConfig(data="cifar10"), (0.1, 128, (32, 64, 128))),
        (CompareConfig(lr=0.1, widths=(8,)), (0.1, 32, (8,))),
        (CompareConfig(network="resnet20"), (0.02, 32, (16, 32, 64))),
    ],
)
def test_what_a_comparison_is_not_told_depends_on_the_data(
    given: CompareConfig, expected: tuple[float, int, tuple[int, ...]]
) -> None:
    config = prepared(given, {})
    assert (config.lr, config.batch_size, config.widths) == expected
    assert prepared(config, {}) == config  # as the recorded command gives it


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        (CompareConfig(optimizer="adamw"), 0.001),
        (OneRateConfig(optimizer="adamw", quick=True), 0.001),
        (SweepConfig(optimizer="adamw", quick=True), (0.0003, 0.001, 0.003)),
        (OneRateConfig(optimizer="adamw", lr=0.01), 0.01),
        (OneRateConfig(optimizer="adamw", given=("--lr",)), 0.1),
    ],
)
def test_adamw_has_a_rate_of_its_own_where_the_user_gives_none(given: ExperimentConfig, rate: object) -> None:
    config = prepared(given, {"lr": 0.3})
    assert config.lr == rate
    assert config.weight_decay == 0.01
    assert prepared(config, {"lr": 0.3}).lr == rate  # as the recorded command gives it
    assert prepared(replace(given, weight_decay=0.1), {}).weight_decay == 0.1


def test_a_schedule_without_milestones_has_none_and_its_command_repeats_it() -> None:
    config = prepared(OneRateConfig(schedule="cosine", quick=True), {"milestones": (3,)})
    assert config.milestones == ()
    assert prepared(replace(config, given=("--milestones",)), {"milestones": (3,)}) == replace(
        config, given=("--milestones",)
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (OneRateConfig(optimizer="adamw", momentum=0.5), "--momentum: is for SGD, got --optimizer adamw."),
        (OneRateConfig(optimizer="adamw", given=("--momentum",)), "--momentum: is for SGD"),
        (OneRateConfig(schedule="cosine", milestones=(3,)), "--milestones: are for the step schedule, got"),
        (OneRateConfig(schedule="one-cycle", given=("--milestones",)), "--milestones: are for the step"),
    ],
)
def test_what_the_recipe_does_not_look_at_is_refused(given: OneRateConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepared(given, {})
