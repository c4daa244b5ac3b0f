from steadynorm.lab.report.classic.summary import summarise
from steadynorm.lab.report.classic.tables import full_table, short_table
from tests.support.classic import cell, made_record

BATCH = [
    cell("batch_norm", seed, (0.1, 0.5, 0.9 + 0.01 * seed, 0.9, 0.9 + 0.01 * seed), drift=(0.1, 0.1, 0.1))
    for seed in (0, 1)
]
LOST = [cell("none", seed, (0.1, 0.1), diverged=True) for seed in (0, 1)]


def test_tables_say_how_each_arm_ended() -> None:
    record = made_record([*BATCH, LOST[1]], arms=("batch_norm", "none", "layer_norm"))
    arms = [summarise(record, arm) for arm in record.config["arms"]]
    status = [row[-1].text for row in full_table(record, arms).rows]
    assert status == ["finished", "diverged at step 10", "waiting"]
    assert [row[2].text for row in short_table(arms).rows] == [
        "90.5\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.7\N{NO-BREAK SPACE}%",
        "diverged at step 10",
        "—",
    ]


def test_an_arm_with_seeds_to_come_says_how_many_are_measured() -> None:
    record = made_record(BATCH[:1])
    arms = [summarise(record, arm) for arm in record.config["arms"]]
    assert [row[-1].text for row in full_table(record, arms).rows] == ["1 of 2 seeds", "waiting"]


def test_the_table_holds_mean_and_range_of_the_seeds() -> None:
    plain = [cell("none", seed, (0.1, 0.1, 0.1, 0.6, 0.8), drift=(0.25 + 0.5 * seed,) * 3) for seed in (0, 1)]
    record = made_record([*BATCH, *plain])
    row = full_table(record, [summarise(record, arm) for arm in ("batch_norm", "none")]).rows[1]
    found = [(entry.text.replace("\N{NO-BREAK SPACE}", " "), entry.note) for entry in row]
    assert found[0] == ("No normalization", "")
    assert found[1][0] == "80.0 ± 0.0 %"
    assert found[2] == ("30", "30 to 30")
    assert found[4] == ("0.500", "0.250 to 0.750")
    assert found[7] == ("12.0 s", "")


def test_an_arm_that_is_never_at_the_common_accuracy_says_so() -> None:
    arms = ("batch_norm", "none", "layer_norm")
    plain = cell("none", 0, (0.1, 0.1, 0.1, 0.6, 0.8))
    record = made_record([BATCH[0], plain, cell("layer_norm", 0, (0.1,) * 5)], arms=arms, seeds=(0,))
    row = full_table(record, [summarise(record, arm) for arm in arms]).rows[2]
    assert (row[2].text, row[2].note) == ("never", "never in 1 of 1 seeds")
