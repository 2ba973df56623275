"""Fonts that come inside declared wheels: matplotlib's and the `font-*` packages. Some are kept for the shift split."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from PIL import ImageFont

from pixelis_jax.data.scenes.scene import Split

_MATPLOTLIB = "matplotlib/mpl-data/fonts/ttf"
COMMON = (
    f"{_MATPLOTLIB}/DejaVuSans.ttf",
    f"{_MATPLOTLIB}/DejaVuSans-Bold.ttf",
    f"{_MATPLOTLIB}/DejaVuSerif.ttf",
    f"{_MATPLOTLIB}/DejaVuSerif-Bold.ttf",
    f"{_MATPLOTLIB}/DejaVuSansMono-Bold.ttf",
    f"{_MATPLOTLIB}/STIXGeneralBol.ttf",
    "font_lato/files/Lato-Regular.ttf",
    "font_lato/files/Lato-Bold.ttf",
    "font_lato/files/Lato-Black.ttf",
    "font_hanken_grotesk/files/HankenGrotesk-Medium.otf",
    "font_hanken_grotesk/files/HankenGrotesk-Bold.otf",
    "font_manrope/files/Manrope-SemiBold.ttf",
)
SHIFTED = (
    f"{_MATPLOTLIB}/DejaVuSans-Oblique.ttf",
    f"{_MATPLOTLIB}/cmb10.ttf",
    f"{_MATPLOTLIB}/cmss10.ttf",
    "font_caladea/files/Caladea-Bold.ttf",
    "font_fjallaone/files/FjallaOne-Regular.ttf",
    "font_fredoka_one/files/FredokaOne-Regular.ttf",
)


def names(split: Split) -> tuple[str, ...]:
    """Fonts of a split, as paths below the folder that packages are installed in."""
    return SHIFTED if split == "shift" else COMMON


@functools.lru_cache(maxsize=512)
def load(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font at a size in pixels.

    Raises:
      FileNotFoundError: If the package that holds it is not installed.
    """
    package, _, rest = name.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"font {name}: install the package {package.replace('_', '-')}")
    return ImageFont.truetype(Path(spec.submodule_search_locations[0]) / rest, size)


@functools.lru_cache(maxsize=512)
def size_for_capitals(name: str, height: int) -> int:
    """The font size at which a capital H is `height` pixels high: fonts of one size differ by a third."""
    left, top, right, bottom = load(name, 100).getbbox("H")
    return max(8, round(100 * height / (bottom - top)))
