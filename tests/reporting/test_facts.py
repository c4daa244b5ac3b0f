from steadynorm.reporting.page import MANY, facts


def test_of_many_values_the_first_are_shown_and_the_rest_counted() -> None:
    ((name, text),) = facts({"classes": [f"c{number}" for number in range(1000)]})
    assert name == "classes" and text.endswith(f"c{MANY - 1} and 976 more") and text.startswith("c0, c1, ")


def test_few_values_are_all_shown() -> None:
    assert facts({"arms": list("ab")}) == [("arms", "a, b")]
