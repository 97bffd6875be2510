"""What a shop brings to the waiting page: its colour and its logo, checked before anybody sees them."""

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

LIGHT = "#f4f5f7"
"""The darkest surface of the light theme that the accent colour stands on."""

DARK = "#1a2027"
"""The lightest surface of the dark theme that the accent colour stands on."""

TEXT_CONTRAST = 4.5
"""WCAG 2.2, success criterion 1.4.3; includes the 3:1 that 1.4.11 asks of the progress bar."""

LOGO_LIMIT = 6144
"""Bytes of a logo file; more would not leave the page its 14 kB."""

_ACTIVE_SVG = re.compile(
    rb"<script|<foreignobject|\son\w+\s*=|javascript:|<!entity|href\s*=\s*[\"'](?!#|data:image/)",
    re.IGNORECASE,
)


class RGB(NamedTuple):
    """A colour as three values of 0…255."""

    red: float
    green: float
    blue: float

    @classmethod
    def parse(cls, text: str) -> "RGB":
        """Read `#rrggbb`."""
        return cls(*(int(text[at : at + 2], 16) for at in (1, 3, 5)))

    def mixed(self, other: "RGB", share: float) -> "RGB":
        """Return the colour that has `share` (0…1) of `other` in it."""
        return RGB(*(round(a + (b - a) * share) for a, b in zip(self, other, strict=True)))

    def __str__(self) -> str:
        return "#" + "".join(f"{int(value):02x}" for value in self)


BLACK, WHITE = RGB(0, 0, 0), RGB(255, 255, 255)


@dataclass(frozen=True, slots=True)
class Palette:
    """The accent colour of each theme and the text colour that stands on it, as `#rrggbb`."""

    light: str
    on_light: str
    dark: str
    on_dark: str


def _luminance(colour: RGB) -> float:
    """Relative luminance as WCAG 2.2 defines it, 0…1."""
    knee = 0.04045
    linear = [v / 12.92 if v <= knee else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two `#rrggbb` colours by WCAG 2.2, 1…21."""
    darker, lighter = sorted((_luminance(RGB.parse(one)), _luminance(RGB.parse(other))))
    return (lighter + 0.05) / (darker + 0.05)


def nearest(accent: str, surface: str, towards: RGB) -> str:
    """Return `accent`, moved as little as need be towards black or white, so that it reads on `surface`."""
    start = RGB.parse(accent)
    steps = (str(start.mixed(towards, step / 100)) for step in range(101))
    return next(colour for colour in steps if contrast(colour, surface) >= TEXT_CONTRAST)


def palette(accent: str) -> Palette:
    """Derive both themes from a shop's colour.

    The light theme takes the colour as it is, the dark one a lighter shade of it. The text on a button is
    black or white, whichever reads better: one of them always reaches 4.58:1.

    Raises:
        ValueError: the colour cannot be read on the light theme; the message names one that can.
    """
    ratio = contrast(accent, LIGHT)
    if ratio < TEXT_CONTRAST:
        raise ValueError(
            f"accent_color {accent} has a contrast of {ratio:.2f}:1 with the page, which needs "
            f"{TEXT_CONTRAST}:1; the nearest colour that has it is {nearest(accent, LIGHT, BLACK)}"
        )
    dark = nearest(accent, DARK, WHITE)
    return Palette(accent, _text_on(accent), dark, _text_on(dark))


def _text_on(accent: str) -> str:
    return max((str(BLACK), str(WHITE)), key=lambda text: contrast(text, accent))


def logo_url(path: str) -> str:
    """Read a logo file into a `data:` URL.

    Raises:
        ValueError: the file cannot be read, is too large, is no SVG, PNG or WebP, or is an SVG that does more
            than draw.
    """
    try:
        data = _read(Path(path))
    except OSError as error:
        raise ValueError(f"shop_logo {path} cannot be read: {error.strerror}") from error
    if len(data) > LOGO_LIMIT:
        raise ValueError(f"shop_logo {path} has more than the {LOGO_LIMIT} bytes that fit into the page")
    kind = _image_type(data)
    if kind is None:
        raise ValueError(f"shop_logo {path} is neither SVG, PNG nor WebP")
    if kind == "svg+xml" and (found := _ACTIVE_SVG.search(data)):
        raise ValueError(
            f"shop_logo {path} contains {found[0].decode(errors='replace').strip()!r}: a logo may draw, "
            "but run no script and load nothing"
        )
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _read(path: Path) -> bytes:
    """The beginning of a file, enough to tell that it is too long; a pipe or device is never waited for."""
    if path.exists() and not path.is_file():
        raise ValueError(f"shop_logo {path} is not a file")
    with path.open("rb") as file:
        return file.read(LOGO_LIMIT + 1)


def _image_type(data: bytes) -> str | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    head = data.lstrip(b"\xef\xbb\xbf \t\r\n")
    return "svg+xml" if head.startswith((b"<svg", b"<?xml", b"<!--")) and b"<svg" in data else None
