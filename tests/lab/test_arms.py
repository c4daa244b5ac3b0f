import pytest

from steadynorm.lab.arms import arm_label, check_distinct, parse_arm
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import file_word


@pytest.mark.parametrize(
    ("text", "label", "target", "options"),
    [
        ("batch_norm", "", "batch_norm", {}),
        ("wide=batch_renorm,r_max=2", "wide", "batch_renorm", {"r_max": 2}),
        ("a.norms:Mine,eps=1e-3,on=True,size=(1, 2),how=fast", "", "a.norms:Mine", None),
        ("m-2=a:B.C,x=-1,y='a,b'", "m-2", "a:B.C", {"x": -1, "y": "a,b"}),
    ],
)
def test_an_arm_is_read(text, label, target, options):
    found = parse_arm(text)
    options = options if options is not None else {"eps": 1e-3, "on": True, "size": (1, 2), "how": "fast"}
    assert (found.label, found.target, found.options) == (label, target, options)
    assert found.calls_code == (":" in target)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must be \[LABEL=\]NAME"),
        ("batch norm", r"must be \[LABEL=\]NAME"),
        ("a b=none", "a label must be letters"),
        ("../x=none", "a label must be letters"),
        ("none,", "nothing after the comma"),
        ("none,3", "settings must be ,KEY=VALUE"),
        ("none,a=1,a=2", "settings must be ,KEY=VALUE"),
        ("none,a=1)+f(2", "settings must be ,KEY=VALUE"),
        ("none,a=__import__('os')", "settings must be ,KEY=VALUE"),
        ("none,**a", "settings must be ,KEY=VALUE"),
        ("none,a=[", "settings must be ,KEY=VALUE"),
    ],
)
def test_what_is_no_arm_is_one_line(text, message):
    with pytest.raises(UserError, match=message) as refused:
        parse_arm(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arm", "label", "word"),
    [
        ("torch_batch_norm", "torch's batch norm", "torch_batch_norm"),
        ("batch_renorm,r_max=2", "batch renorm, r_max=2", "batch_renorm,r_max=2"),
        ("my_own=a.norms:Mine,eps=1e-3", "my own", "my_own"),
        ("a.norms:Mine,eps=1e-3", "Mine, eps=1e-3", "a.norms.Mine,eps=1e-3"),
        ("none,a='/x'", "no normalization, a='/x'", "none,a=..x."),
    ],
)
def test_an_arm_has_a_name_for_readers_and_one_for_files(arm, label, word):
    assert (arm_label(arm), file_word(arm)) == (label, word)
    assert arm_label(label) == label  # rows of figures may be named already


@pytest.mark.parametrize("arms", [("a:Mine", "b:Mine"), ("x=none", "X=batch_norm"), ("x=none", "x=batch_norm")])
def test_arms_of_one_name_are_refused(arms):
    with pytest.raises(UserError, match="would have the same name"):
        check_distinct(arms)


def test_several_settings_of_one_arm_are_distinct():
    check_distinct(["batch_renorm", "batch_renorm,r_max=2", "batch_renorm,r_max=3", "a:B", "a:B,eps=1", "c=a:B"])


def test_an_arm_that_is_too_long_for_a_file_is_to_have_a_label():
    arm = f"{'a' * 90}:B"
    with pytest.raises(UserError, match="longer than 80 characters"):
        check_distinct([arm])
    check_distinct([f"b={arm}"])
