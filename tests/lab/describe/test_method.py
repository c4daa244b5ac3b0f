"""How networks are trained, in sentences."""

from dataclasses import replace

import pytest

from steadynorm.lab.describe.method import method_of, paragraphs, sentences
from steadynorm.reporting.failure import UserError
from tests.support.records import record


def test_how_many_workers_shared_the_batches_is_said_where_there_were_several():
    alone = record([])
    shared = replace(alone, resolved=alone.resolved | {"workers": 4})
    assert "worker" not in method_of(alone, "")[1]
    assert "on cpu in bfloat16, on 4 workers that share each batch evenly. " in method_of(shared, "")[1]


@pytest.mark.parametrize(
    ("lr", "said"),
    [(0.1, "learning rate 0.1, divided"), ([0.1], "learning rate 0.1, divided"), ([0.1, 1.0], "rates 0.1 and 1, ")],
)
def test_the_learning_rates_are_listed(lr: object, said: str) -> None:
    assert said in method_of(record([], lr=lr), "")[1]


def test_fields_are_written_as_in_a_sentence() -> None:
    made = record([], seeds=[0, 1], epochs=1, lr=[0.1, 1.0])
    text = "{epochs} of {data}\n  at {lr}, {train_images} images, {network}, {seeds}; {own} on {device}"
    assert sentences(made, text, own=1234) == (
        "1 epoch of CIFAR-10 at 0.1 and 1, 50,000 images, cnn, 2 seeds each; 1,234 on cpu"
    )


def test_values_of_a_field_are_counted_by_its_name() -> None:
    made = record([], seeds=[0, 1], arms=["none"], lr=[0.1, 1.0], batch_size=[64])
    text = "{arms_count}, {lr_count}, {batch_size_count}, {seeds_count}"
    assert sentences(made, text) == "1 normalization, 2 learning rates, 1 batch size, 2 seeds"


def test_paragraphs_are_parted_by_blank_lines_and_empty_ones_left_out() -> None:
    assert paragraphs(record([]), "\nA {a}\nb.\n\n{none}\n\nC.\n", a=1, none="") == ["A 1 b.", "C."]


def test_a_field_that_the_record_does_not_have_is_one_line_for_the_user() -> None:
    with pytest.raises(UserError, match="a record is damaged: it does not say 'wishes'"):
        sentences(record([]), "{wishes}")
