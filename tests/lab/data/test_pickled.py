import os
import pickle
import struct

import numpy as np
import pytest

from steadynorm.lab.data.pickled import read_pickled

ARRAY = np.arange(12, dtype=np.uint8).reshape(3, 4)


class Runs:
    """Makes a directory when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def _text(value: bytes) -> bytes:
    """A Python 2 string in a pickle."""
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value


def _python2(data: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 pickles it: all strings are byte strings, and arrays keep their bytes in one."""
    rows, columns = data.shape
    minus_one = b"J\xff\xff\xff\xff"
    state = b"(K\x03U\x01|NNN" + minus_one + minus_one + b"K\x00t"
    dtype = b"cnumpy\ndtype\nq\x07U\x02u1K\x00K\x01\x87Rq\x08" + state + b"b"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x04cnumpy\nndarray\nq\x05K\x00\x85U\x01b\x87Rq\x06(K\x01"
        + (b"M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", columns) + b"\x86")
        + (dtype + b"\x89" + _text(data.tobytes()) + b"tb")
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}q\x01(" + _text(b"data") + array + _text(b"labels") + numbers + b"u."


def test_a_python_2_pickle_is_what_pickle_reads():
    content = _python2(ARRAY, [3, 1, 2])
    expected = pickle.loads(content, encoding="latin-1")
    found = read_pickled(content)
    assert found.keys() == expected.keys() == {"data", "labels"}
    assert np.array_equal(found["data"], expected["data"])
    assert found["labels"] == expected["labels"] == [3, 1, 2]


def test_a_python_2_array_of_more_than_255_bytes_is_read():
    data = np.arange(600, dtype=np.uint16).astype(np.uint8).reshape(2, 300)
    assert np.array_equal(read_pickled(_python2(data, [1, 2]))["data"], data)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_containers_of_plain_values_are_what_pickle_reads(protocol):
    value = {
        "a": [1, 256, 65536, -1, 2**40],
        b"b": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "c": [None, True, False],
    }
    value["again"] = value["a"]
    assert read_pickled(pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("array", [ARRAY, ARRAY.T, np.asfortranarray(ARRAY)], ids=["rows", "transposed", "columns"])
def test_arrays_of_bytes_are_what_pickle_reads(protocol, array):
    assert np.array_equal(read_pickled(pickle.dumps([array], protocol=protocol))[0], array)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_code_in_a_pickle_is_refused_by_name_and_not_run(tmp_path, protocol):
    content = pickle.dumps({"data": ARRAY, "labels": Runs(tmp_path / "made")}, protocol=protocol)
    with pytest.raises(ValueError, match=rf"asks for {os.mkdir.__module__}\.mkdir"):
        read_pickled(content)
    assert not (tmp_path / "made").exists()


def test_the_code_of_these_tests_would_run_in_pickle(tmp_path):
    pickle.loads(pickle.dumps(Runs(tmp_path / "made"), protocol=2))
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("protocol", [0, 1])
def test_instructions_of_other_protocols_are_refused_by_name(tmp_path, protocol):
    with pytest.raises(ValueError, match=r"the pickle (holds the instruction|asks for)"):
        read_pickled(pickle.dumps([Runs(tmp_path / "made"), 1.5], protocol=protocol))
    assert not (tmp_path / "made").exists()


def test_an_old_call_instruction_is_refused_by_name():
    with pytest.raises(ValueError, match="the pickle holds the instruction INST"):
        read_pickled(b"(S'true'\nios\nsystem\n.".replace(b"S'true'\n", b"U\x04true"))


def test_an_array_of_other_numbers_is_refused():
    with pytest.raises(ValueError, match="an array of something other than bytes"):
        read_pickled(pickle.dumps(ARRAY.astype(np.int32), protocol=2))


def test_state_cannot_be_given_to_a_plain_value():
    with pytest.raises(ValueError, match="the pickle is damaged"):
        read_pickled(b"\x80\x02}}b.")


@pytest.mark.parametrize("kept", range(0, 40, 3))
def test_a_truncated_pickle_is_refused(kept):
    with pytest.raises(ValueError):
        read_pickled(_python2(ARRAY, [1, 2, 3])[:kept])


@pytest.mark.parametrize(
    "content",
    [b".", b"\x80\x02h\x05.", b"\x80\x02e.", b"\x80\x02K\x01R.", b"\x80\x02}]K\x01s.", b"\x80\x02]K\x01K\x02s."],
)
def test_instructions_that_do_not_fit_together_are_refused(content):
    with pytest.raises(ValueError, match="the pickle is damaged"):
        read_pickled(content)
