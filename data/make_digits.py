"""Make data/digits.zip from the handwritten digits that come with scikit-learn: CLASS/INDEX.png, 8 x 8, grey.

The bytes are always the same. Command: python data/make_digits.py
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

DIGITS = Path(__file__).parent / "digits.zip"


def make(file: Path) -> None:
    """Write the archive; ink of 0 to 16 becomes grey of 0 to 255."""
    partial = file.with_name(f".{file.stem}.partial{file.suffix}")
    digits = load_digits()
    greys = np.uint8(np.round(digits.images * (255 / 16)))
    # Stored, not deflated: a PNG is compressed already, and deflated bytes differ between versions of zlib.
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for index, (grey, label) in enumerate(zip(greys, digits.target, strict=True)):
            png = io.BytesIO()
            Image.fromarray(grey).save(png, "PNG")
            archive.writestr(zipfile.ZipInfo(f"{label}/{index:04}.png"), png.getvalue())
    os.replace(partial, file)


if __name__ == "__main__":
    make(DIGITS)
