from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from steadynorm.lab.data import storage
from steadynorm.lab.data.cache import cached_rows
from steadynorm.reporting.failure import UserError


class Decoder:
    """Gives the same pixels each time, and counts."""

    def __init__(self, rows):
        self.rows = rows
        self.calls = 0

    def __call__(self, folder):
        self.calls += 1
        return self.rows


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"the source")
    return path


@pytest.fixture
def decoder(random_images) -> Decoder:
    return Decoder(random_images(12).rows)


def _load(decoder, *sources, progress=lambda line: None, detail=b""):
    return cached_rows("test", decoder, sources=sources, detail=detail, progress=progress)


def _cache_file(home: Path) -> Path:
    (path,) = home.rglob("*.safetensors")
    return path


def test_images_are_decoded_once(source, decoder):
    _load(decoder, source)
    _load(decoder, source)
    assert decoder.calls == 1


def test_cached_images_are_the_decoded_ones(source, decoder):
    _load(decoder, source)
    found = _load(decoder, source)
    assert torch.equal(found, decoder.rows)


def test_the_cache_is_a_safetensors_file(source, decoder, cache_home):
    _load(decoder, source)
    assert torch.equal(load_file(_cache_file(cache_home))["pixels"], decoder.rows)


def test_what_does_not_fit_into_memory_is_mapped(source, decoder, monkeypatch):
    monkeypatch.setattr(storage, "memory_limit", lambda: 0)
    for _ in range(2):
        found = _load(decoder, source)
        assert torch.equal(found, decoder.rows)
        assert found.data_ptr() != decoder.rows.data_ptr()
    assert decoder.calls == 1
    monkeypatch.setattr(torch.Tensor, "clone", None)  # nor is it copied
    _load(decoder, source)


def test_a_mapped_cache_is_not_changed_by_whom_it_is_given_to(source, decoder, monkeypatch):
    monkeypatch.setattr(storage, "memory_limit", lambda: 0)
    _load(decoder, source)[:] = 0
    assert torch.equal(_load(decoder, source), decoder.rows)
    assert decoder.calls == 1


def test_what_is_decoded_otherwise_is_decoded_again(source, decoder):
    _load(decoder, source, detail=b"32 x 32")
    _load(decoder, source, detail=b"16 x 16")
    assert decoder.calls == 2


def test_the_cache_lies_in_the_users_cache_directory(source, decoder, cache_home):
    _load(decoder, source)
    assert _cache_file(cache_home).parent == cache_home / "steadynorm"


@pytest.mark.parametrize("value", ["", "relative/place"])
def test_without_a_usable_variable_the_cache_lies_in_the_home_directory(source, decoder, tmp_path, monkeypatch, value):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    _load(decoder, source)
    assert _cache_file(tmp_path / "home").parent == tmp_path / "home" / ".cache" / "steadynorm"


def test_changed_sources_are_decoded_again(source, decoder):
    _load(decoder, source)
    source.write_bytes(b"the source, changed")
    _load(decoder, source)
    assert decoder.calls == 2


def test_moved_sources_are_not_decoded_again(source, decoder, tmp_path):
    _load(decoder, source)
    _load(decoder, source.rename(tmp_path / "elsewhere"))
    assert decoder.calls == 1


def test_sources_in_another_order_are_decoded_again(source, decoder, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"another source")
    _load(decoder, source, other)
    _load(decoder, other, source)
    assert decoder.calls == 2


def _flip_a_pixel(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "damage",
    [_flip_a_pixel, lambda content: content[:-7], lambda content: b"", lambda content: b"\xff" * 50],
    ids=["one bit", "truncated", "empty", "nonsense"],
)
def test_a_damaged_cache_is_rebuilt_and_reported(source, decoder, cache_home, damage):
    _load(decoder, source)
    path = _cache_file(cache_home)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    lines = []
    found = _load(decoder, source, progress=lines.append)
    assert torch.equal(found, decoder.rows)
    assert decoder.calls == 2
    assert len(lines) == 1
    assert lines[0].startswith(f"cache: {path}")
    assert "Decoding the images again" in lines[0]
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [
        {"weights": torch.zeros(3)},
        {"pixels": torch.zeros(2, 32, 32, 3, dtype=torch.bfloat16)},
    ],
    ids=["other names", "other pixels"],
)
def test_a_cache_of_something_else_is_rebuilt(source, decoder, cache_home, content):
    _load(decoder, source)
    save_file(content, _cache_file(cache_home))
    lines = []
    _load(decoder, source, progress=lines.append)
    assert decoder.calls == 2
    assert "Decoding the images again" in lines[0]


def test_a_sound_cache_is_not_mentioned(source, decoder):
    lines = []
    _load(decoder, source, progress=lines.append)
    _load(decoder, source, progress=lines.append)
    assert lines == []


def test_an_unwritable_cache_is_reported_and_does_no_harm(source, decoder, cache_home):
    cache_home.write_text("a file where the directory should be")
    lines = []
    found = _load(decoder, source, progress=lines.append)
    assert torch.equal(found, decoder.rows)
    assert any("cannot be written" in line for line in lines)


def test_a_full_disk_is_reported_and_leaves_nothing_behind(source, decoder, cache_home, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    lines = []
    assert _load(decoder, source, progress=lines.append) is decoder.rows
    assert "No space left on device" in lines[0]
    assert list((cache_home / "steadynorm").iterdir()) == []


def test_without_a_home_directory_images_are_decoded(source, decoder, monkeypatch):
    def fail():
        raise RuntimeError("no home")

    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", fail)
    lines = []
    assert _load(decoder, source, progress=lines.append) is decoder.rows
    assert "no home directory" in lines[0]


def test_a_missing_source_is_named(decoder, tmp_path):
    with pytest.raises(UserError, match=r"none: must be readable, got No such file"):
        _load(decoder, tmp_path / "none")
