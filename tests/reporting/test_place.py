import os
from pathlib import Path

import pytest

from steadynorm.reporting.failure import UserError
from steadynorm.reporting.place import check_inside, check_new, check_own_file, file_in, new_directory


def test_a_new_and_an_empty_directory_are_places(tmp_path: Path) -> None:
    check_new(tmp_path / "a" / "b")
    check_new(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "target").mkdir()
    check_new(tmp_path / "link")


def test_what_does_not_count_may_be_there(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    check_new(tmp_path, may_hold=[".lock"])
    with pytest.raises(UserError, match=r"must be new or empty, it holds '\.lock'"):
        check_new(tmp_path)


def test_what_a_killed_process_left_of_such_a_file_does_not_count(tmp_path: Path) -> None:
    (tmp_path / ".cells.json.k3_x9abc.part").touch()
    check_new(tmp_path, may_hold=["cells.json"])
    with pytest.raises(UserError, match=r"it holds '\.cells\.json\.k3_x9abc\.part'"):
        check_new(tmp_path, may_hold=["metrics.csv"])


@pytest.mark.parametrize("place", ["full", "full/inner/..", "full/link", "/"])
def test_a_directory_with_other_files_is_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full" / "inner").mkdir(parents=True)
    (tmp_path / "full" / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match=rf"^--out: {place} must be new or empty, it holds '.*'\. Give a new directory"):
        check_new(Path(place))


def test_a_file_and_a_link_to_nothing_are_no_places(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match="file is a file"):
        check_new(tmp_path / "file")
    with pytest.raises(UserError, match="link is a symbolic link to nothing"):
        check_new(tmp_path / "link")


@pytest.mark.parametrize("target", ["elsewhere", "nothing"])
def test_a_link_that_leads_out_is_refused_at_any_depth(tmp_path: Path, target: str) -> None:
    run = tmp_path / "run"
    (run / "tensorboard").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    check_inside(run)
    (run / "tensorboard" / "a").symlink_to(tmp_path / target)
    with pytest.raises(UserError, match=rf"^{run}/tensorboard/a: is a symbolic link.* outside {run}\. Remove it\.$"):
        check_inside(run)


def test_a_link_to_a_file_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "runs.json").symlink_to(tmp_path / "file")
    check_inside(tmp_path / "run")


def test_an_own_file_is_no_other_name_of_another(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_own_file(tmp_path / "file")
    check_own_file(tmp_path / "absent")
    (tmp_path / "hard").hardlink_to(tmp_path / "file")
    (tmp_path / "soft").symlink_to(tmp_path / "file")
    (tmp_path / "lost").symlink_to(tmp_path / "nothing")
    for name in ("hard", "soft", "lost"):
        with pytest.raises(UserError, match=f"{name}: must be an ordinary file, is a link to another file"):
            check_own_file(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_directory_and_a_pipe_are_no_own_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UserError, match="must be an ordinary file, is no file"):
            check_own_file(path)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/a", "a\\b", "a\0b"])
def test_a_name_that_leads_out_of_a_directory_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="is no name of a file"):
        file_in(Path("run"), name)


def test_a_name_in_a_directory_is_a_path() -> None:
    assert file_in(Path("run"), "..a-lr0.1.png") == Path("run") / "..a-lr0.1.png"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_directory_takes_its_name_when_all_is_in_it(tmp_path: Path, error: type[BaseException]) -> None:
    with new_directory(tmp_path / "a" / "b", name="out") as directory:
        (directory / "file").touch()
        assert not (tmp_path / "a" / "b").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert (tmp_path / "a" / "b" / "file").exists()
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o755
    with pytest.raises(error), new_directory(tmp_path / "a" / "c", name="out") as directory:
        (directory / "file").touch()
        raise error
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    exists = pytest.raises(UserError, match=r"^out: .*b exists already\. Give a new directory\.$")
    with exists, new_directory(tmp_path / "a" / "b", name="out"):
        pass
