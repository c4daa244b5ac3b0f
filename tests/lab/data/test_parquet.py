import io
import struct
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from steadynorm.lab.data import parquet
from steadynorm.lab.data.parquet import read_parquet
from steadynorm.reporting.failure import UserError


def _read(*paths, progress=lambda line: None):
    return read_parquet(paths, what="test", progress=progress)


def _encoded(kind: str, *, mode: str = "RGB", size: tuple[int, int] = (32, 32)) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 7).save(out, kind)
    return out.getvalue()


def _huge_png() -> bytes:
    """The beginning of a file that claims 2**32 pixels."""
    parts = (b"IHDR", struct.pack(">IIBBBBB", 2**16, 2**16, 8, 2, 0, 0, 0)), (b"IDAT", b"")
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_png_images_come_back_byte_for_byte(tmp_path, random_images, write_parquet):
    images = random_images(20)
    found = _read(write_parquet(tmp_path / "a.parquet", images))
    assert torch.equal(found.pixels, images.pixels)
    assert torch.equal(found.labels, images.labels)


def test_jpeg_images_are_decoded(tmp_path, random_images, write_parquet):
    path = write_parquet(tmp_path / "a.parquet", random_images(2), encoded={1: _encoded("JPEG")})
    assert _read(path).pixels[1].unique().numel() <= 2


def test_the_column_may_be_called_image(tmp_path, random_images, write_parquet):
    images = random_images(4)
    assert torch.equal(_read(write_parquet(tmp_path / "a.parquet", images, column="image")).pixels, images.pixels)


def test_files_are_joined_in_the_order_given(tmp_path, random_images, write_parquet):
    first, second = random_images(4, seed=1), random_images(6, seed=2)
    paths = [write_parquet(tmp_path / "b.parquet", first), write_parquet(tmp_path / "a.parquet", second)]
    assert torch.equal(_read(*paths).pixels, torch.cat([first.pixels, second.pixels]))


def test_more_rows_than_one_chunk_keep_their_order(tmp_path, random_images, write_parquet, monkeypatch):
    monkeypatch.setattr(parquet, "_CHUNK", 7)
    images = random_images(30)
    assert torch.equal(_read(write_parquet(tmp_path / "a.parquet", images)).pixels, images.pixels)


def test_pixels_are_stored_channels_last(tmp_path, random_images, write_parquet):
    pixels = _read(write_parquet(tmp_path / "a.parquet", random_images(4))).pixels
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_progress_is_told_at_even_steps(tmp_path, random_images, write_parquet, monkeypatch):
    monkeypatch.setattr(parquet, "_CHUNK", 5)
    monkeypatch.setattr(parquet, "_PROGRESS_EVERY", 10)
    lines = []
    _read(write_parquet(tmp_path / "a.parquet", random_images(25)), progress=lines.append)
    assert lines == ["test: 10 images decoded", "test: 20 images decoded"]


def test_a_truncated_file_is_refused(tmp_path, random_images, write_parquet):
    path = write_parquet(tmp_path / "a.parquet", random_images(4))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"a\.parquet: must be a whole Parquet file, got .*Download it again\.$"):
        _read(path)


def test_a_file_damaged_in_the_middle_is_refused(tmp_path, random_images, write_parquet):
    path = write_parquet(tmp_path / "a.parquet", random_images(4))
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet: must be a whole Parquet file"):
        _read(path)


def test_a_file_whose_names_are_no_text_is_refused(tmp_path, random_images, write_parquet):
    path = write_parquet(tmp_path / "a.parquet", random_images(20))
    path.write_bytes(path.read_bytes().replace(b"bytes", b"\x89ytes"))
    with pytest.raises(UserError, match=r"a\.parquet: must be a whole Parquet file, got .*codec.*Download it again"):
        _read(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.parquet: must be a whole Parquet file"):
        _read(tmp_path / "none.parquet")


@pytest.mark.parametrize(
    "table",
    [
        {"picture": [{"bytes": b""}], "label": [1]},
        {"img": [{"bytes": b""}]},
        {"img": [b""], "label": [1]},
        {"img": [{"path": "a.png"}], "label": [1]},
        {"img": [{"bytes": b""}], "label": ["cat"]},
    ],
    ids=["no image", "no label", "no struct", "no bytes", "labels as text"],
)
def test_wrong_columns_are_refused_and_listed(tmp_path, table):
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    column = next(iter(table))
    with pytest.raises(UserError, match=rf"a\.parquet: must have a column img .*, got {column} \("):
        _read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"no image", "bytes of neither a PNG nor a JPEG file"),
        (_encoded("PNG")[:60], "image file is truncated|broken PNG"),
        (_encoded("PNG", size=(33, 32)), "33 x 32 pixels of kind RGB"),
        (_encoded("PNG", mode="L"), "32 x 32 pixels of kind L"),
        (_encoded("BMP"), "bytes of neither a PNG nor a JPEG file"),
        (_huge_png(), "exceeds limit"),
        (None, "no bytes"),
    ],
    ids=["nonsense", "truncated", "wrong size", "grey", "other format", "huge", "null"],
)
def test_a_row_without_a_proper_image_is_named(tmp_path, random_images, write_parquet, monkeypatch, content, found):
    monkeypatch.setattr(parquet, "_CHUNK", 4)
    path = write_parquet(tmp_path / "a.parquet", random_images(12), encoded={9: content})
    with pytest.raises(UserError, match=rf"a\.parquet: row 9: must be an image .*, got .*({found})"):
        _read(path)


@pytest.mark.parametrize("label", [-1, 10, None])
def test_a_row_with_a_wrong_label_is_named(tmp_path, random_images, write_parquet, monkeypatch, label):
    monkeypatch.setattr(parquet, "_CHUNK", 2)
    path = write_parquet(tmp_path / "a.parquet", random_images(4))
    labels = pa.array([0, 1, 2, label], pa.int64())
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "label", labels), path)
    with pytest.raises(UserError, match=rf"a\.parquet: row 3: label must be 0 to 9, got {label}"):
        _read(path)


def test_a_file_without_rows_is_refused(tmp_path, random_images, write_parquet):
    path = write_parquet(tmp_path / "a.parquet", random_images(4))
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(UserError, match=r"a\.parquet: must hold images, got no rows"):
        _read(path)
