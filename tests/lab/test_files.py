from pathlib import Path

import pytest

from steadynorm.lab.files import atomic_path, write_text


def test_a_written_file_holds_the_text_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "ä\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "ä\n".encode()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_a_failure_while_writing_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(OSError, match="No space"), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_is_taken_only_when_the_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"


def test_a_written_file_has_the_permissions_of_an_ordinary_one(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    write_text(tmp_path / "a.txt", "")
    assert (tmp_path / "a.txt").stat().st_mode == ordinary.stat().st_mode


def test_who_reads_the_old_file_keeps_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with path.open() as reader:
        write_text(path, "newer")
        assert reader.read() == "old"
