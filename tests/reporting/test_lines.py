import json
import math
import os
import sys
from pathlib import Path

import pytest

from steadynorm.reporting.lines import send_line


def test_a_line_is_json_without_numbers_that_json_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    send_line("epoch", {"val_loss": math.nan, "readings": {"norm1/r": math.inf}, "epoch": 2, "text": "a\nb"})
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line, parse_constant=pytest.fail)
    assert found == {"kind": "epoch", "val_loss": None, "readings": {"norm1/r": None}, "epoch": 2, "text": "a\nb"}
    assert next(iter(found)) == "kind"


def test_a_line_is_out_before_the_next_thing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        send_line("epoch", {})
        assert (tmp_path / "out").read_text() == '{"kind": "epoch"}\n'


def test_where_nobody_reads_the_error_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        with pytest.raises(BrokenPipeError) as caught:
            send_line("epoch", {})
        assert (caught.value.filename, caught.value.strerror) == ("standard output", "its reader has closed it")
        print("into nowhere", flush=True)
