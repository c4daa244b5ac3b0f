"""The finding in one sentence."""

from steadynorm.lab.analysis import pictures
from steadynorm.lab.report.compare.headline import headline, setting
from steadynorm.lab.report.compare.summary import summarise
from tests.support.records import record, run


def words(write, *runs, **changes):
    made = record(runs, arms=list(dict.fromkeys(one.spec.arm for one in runs)), **changes)
    text = write(made, [summarise(made, arm) for arm in pictures(made)[0].arms])
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_it_names_the_better_arm_and_the_gap():
    text = words(headline, run("batch_norm", val_accuracy=[0.829]), run("none", val_accuracy=[0.806]))
    assert text == "At rate 0.1 batch norm reaches 82.9 % on CIFAR-10, no normalization 80.6 %: 2.3 points apart"


def test_it_says_so_when_no_normalization_is_better():
    text = words(headline, run("batch_norm", val_accuracy=[0.7]), run("none", val_accuracy=[0.8]))
    assert text == "At rate 0.1 no normalization reaches 80.0 % on CIFAR-10, batch norm 70.0 %: 10.0 points apart"


def test_seeds_that_overlap_are_not_called_a_difference():
    text = words(
        headline,
        *(run("batch_norm", val_accuracy=[value], seed=seed) for seed, value in enumerate((0.80, 0.84))),
        *(run("none", val_accuracy=[value], seed=seed) for seed, value in enumerate((0.79, 0.83))),
    )
    assert text.startswith("Batch norm and no normalization end within their seeds' range")


def test_an_arm_that_diverges_is_named():
    text = words(
        headline,
        run("batch_norm", val_accuracy=[0.8]),
        run("none", status="diverged", diverged_at_step=5),
    )
    assert text == "At rate 0.1 batch norm reaches 80.0 % on CIFAR-10; no normalization diverges"


def test_it_says_so_when_everything_diverged():
    text = words(headline, run("none", status="diverged", diverged_at_step=5))
    assert text == "Every network diverged at learning rate 0.1"


def test_it_says_so_when_nothing_has_finished():
    text = words(headline, run("batch_norm", val_accuracy=[0.4, 0.5], status="running", planned=20))
    assert text == "No network has finished yet: epoch 2 of 20"


def test_the_setting_admits_a_single_seed():
    assert "one seed, so no spread is known" in words(setting, run("batch_norm", val_accuracy=[0.8]))


def test_the_setting_names_seeds_that_diverged():
    text = words(
        setting,
        run("batch_norm", val_accuracy=[0.8]),
        run("batch_norm", seed=1, status="diverged", diverged_at_step=9),
    )
    assert "1 of 2 runs with batch norm" in text


def test_a_single_epoch_is_one():
    runs = (run("batch_norm", val_accuracy=[0.7]), run("none", val_accuracy=[0.8]))
    assert "trained for 1 epoch on" in words(setting, *runs, epochs=1)
    assert "trained for 20 epochs on" in words(setting, *runs, epochs=20)


def test_an_arm_at_chance_is_not_held_against_one_that_has_learned() -> None:
    text = words(headline, run("batch_norm", val_accuracy=[0.7]), run("none", val_accuracy=[0.1]))
    assert text == "At rate 0.1 batch norm reaches 70.0 % on CIFAR-10; no normalization is at chance: 10.0 %"


def test_networks_that_are_all_at_chance_are_not_compared() -> None:
    text = words(headline, run("batch_norm", val_accuracy=[0.105]), run("none", val_accuracy=[0.1]))
    assert text == "At rate 0.1 no network is surely better than guessing; the best, batch norm, reaches 10.5 %"
