"""Take the gallery's pictures again: ``python docs/_site/thumbnails.py [NAME ...]`` with Chromium on the path."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import gallery  # beside this file
from PIL import Image

SEEN = (1000, 750)
"""Size of the window, in CSS pixels."""
SIZE = (560, 420)
COLORS = 128


def main(names: list[str]) -> None:
    """Write ``docs/gallery/NAME.png`` of every page, or of those that are named."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, held in gallery.files(names):
            (place / name).write_text(held)
        for page in sorted(place.glob("*.html")):
            _photograph(page, gallery.RESULTS.parent / "gallery" / f"{page.stem}.png")


def _photograph(page: Path, picture: Path) -> None:
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000")
    size, profile = f"--window-size={SEEN[0]},{SEEN[1]}", f"--user-data-dir={page.parent / 'profile'}"
    light = "--blink-settings=preferredColorScheme=1"
    shot = f"--screenshot={page.with_suffix('.png')}"
    subprocess.run(["chromium", *flags, light, size, profile, shot, page.as_uri()], check=True, capture_output=True)
    with Image.open(page.with_suffix(".png")) as seen:
        small = seen.convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)
    picture.parent.mkdir(exist_ok=True)
    small.quantize(COLORS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(picture, optimize=True)
    print(f"{picture}: {picture.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
