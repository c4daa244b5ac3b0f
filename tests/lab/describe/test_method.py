"""How networks are trained, in sentences."""

from dataclasses import replace

import pytest

from steadynorm.lab.describe.method import data_sentence, data_words, method_of, paragraphs, sentences
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


def test_a_record_from_before_there_were_recipes_trained_by_sgd_in_steps() -> None:
    said = method_of(record([]), "")
    assert said[1].startswith(
        "Training: SGD with momentum 0.9 and weight decay 0.0005, batches of 128, learning rate 0.1"
    )
    assert "divided by ten after epoch 10 and 15. It ran" in said[1] and "smooth" not in " ".join(said)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"optimizer": "adamw", "weight_decay": 0.01}, "Training: AdamW (Loshchilov & Hutter 2019; "),
        ({"optimizer": "adamw", "weight_decay": 0.01}, "with decoupled weight decay 0.01, batches"),
        ({"schedule": "cosine", "milestones": []}, "learning rate 0.1, lowered at every step along a half cosine, to"),
        ({"schedule": "one-cycle", "milestones": []}, "learning rate 0.1, reached from its 25th part in three tenths"),
        ({"label_smoothing": 0.1}, ", label smoothing 0.1 (Szegedy et al. 2016). It ran"),
        ({"label_smoothing": 0.1}, "in evaluation mode and to labels that are not smoothed. That is why"),
        ({"compile": True}, "on cpu in bfloat16, compiled by torch.compile. "),
    ],
)
def test_the_recipe_is_said(config: dict[str, object], said: str) -> None:
    assert said in " ".join(method_of(record([], **config), "")[1:3])


@pytest.mark.parametrize(
    ("channels", "called"), [(1, "in one channel"), (3, "in color"), (4, "in 4 channels"), (None, "")]
)
def test_size_and_color_of_the_images_are_told_where_they_are_known(channels: int | None, called: str) -> None:
    made = record(())
    made.resolved.update(image_size=[12, 9], channels=channels)
    assert data_words(made)["images"] == (f" of 12 x 9 pixels {called}" if called else "")
    assert bool(data_sentence(made)) == bool(called)


@pytest.mark.parametrize(
    ("chance", "images", "said"),
    [
        (0.1, 10_000, ""),
        (0.4, 10_000, " Guessing is right on 40.0 %, the validation images of the most frequent class."),
        (0.1, 50, " One validation image is 2.0 points of accuracy."),
        (0.1, 1, " No accuracy on so few images of so unequal classes is surely above it. One validation image is 100"),
    ],
)
def test_what_guessing_and_one_image_are_worth_is_told_where_it_matters(chance: float, images: int, said: str) -> None:
    made = record(())
    made.resolved.update(chance=chance, validation_images=images)
    guessing = str(data_words(made)["guessing"]).replace("\xa0", " ")
    assert guessing.startswith(said) and bool(guessing) == bool(said)
