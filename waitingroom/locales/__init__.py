"""The languages of the waiting page: one TOML file each, read once, and the choice among them."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from importlib import resources
from math import ceil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from babel import Locale

DEFAULT = "en"
"""The language of a visitor whose own is not among ours, and the one that says which texts there are."""

_RANGE = re.compile(
    r"^\s*([A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*|\*)\s*(?:;\s*q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*)?$"
)
_MOST_RANGES = 32

Text = str | Mapping[str, str]
"""A sentence, or one for each plural category of the language."""


@dataclass(frozen=True)
class Language:
    """One language: its texts, and how it counts.

    Attributes:
        tag: BCP 47 tag, as sent in `Content-Language`.
        direction: `ltr` or `rtl`.
        texts: sentences by key; those that count are a table of plural categories with `{n}` inside.
        group: what stands between the thousands of a number.
    """

    tag: str
    direction: str
    texts: Mapping[str, Text]
    group: str
    _locale: "Locale" = field(repr=False)

    def say(self, key: str) -> str:
        """Return the sentence `key`."""
        text = self.texts[key]
        assert isinstance(text, str)
        return text

    def number(self, value: int) -> str:
        """Write a whole number with the language's own grouping, in Western digits."""
        return f"{value:,}".replace(",", self.group)

    def count(self, key: str, value: int, **others: int) -> str:
        """Write the sentence `key` in the plural form for `value`, which stands for `{n}` in it."""
        forms = self.texts[key]
        assert not isinstance(forms, str)
        text = forms[self._locale.plural_form(value)]
        for name, number in {"n": value, **others}.items():
            text = text.replace(f"{{{name}}}", self.number(number))
        return text

    def duration(self, seconds: float) -> str:
        """Write a length of time of at least two minutes, rounded down, such as "24 hours"."""
        from babel.dates import format_timedelta  # noqa: PLC0415 - only a gateway that serves pages pays for Babel

        unit = next(unit for unit in (86400, 3600, 60) if seconds >= 2 * unit)
        return format_timedelta(timedelta(seconds=seconds // unit * unit), threshold=2, locale=self._locale)

    def wait(self, low: float | None, high: float | None) -> str:
        """Write an honest range of seconds: never shorter than it is, in whole minutes or hours.

        Above twenty minutes the ends are rounded to five. `page.js` has the same rules for its polls.
        """
        if low is None or high is None:
            return self.say("wait_unknown")
        if high <= 60:  # noqa: PLR2004 - a minute
            return self.say("wait_soon")
        unit, size, step = ("minutes", 60, 5 if high > 1200 else 1)  # noqa: PLR2004 - twenty minutes
        if high > 10800:  # noqa: PLR2004 - three hours
            unit, size, step = ("hours", 3600, 1)
        most = ceil(high / size / step) * step
        least = min(int(low / size / step) * step, most - step)
        return self.count(f"wait_{unit}", most, low=least) if least else self.count(f"wait_upto_{unit}", most)


def load() -> dict[str, Language]:
    """Read every language there is.

    Returns:
        Languages by lower-case tag.
    """
    from babel import Locale  # noqa: PLC0415 - only a gateway that serves pages pays for Babel
    from babel.numbers import get_group_symbol  # noqa: PLC0415 - the same

    languages: dict[str, Language] = {}
    for file in resources.files(__name__).iterdir():
        if file.name.endswith(".toml"):
            tag = file.name.removesuffix(".toml")
            texts: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
            locale = Locale.parse(tag, sep="-")
            group = get_group_symbol(locale, numbering_system="latn")
            languages[tag.lower()] = Language(tag, locale.text_direction, texts, group, locale)
    return languages


def choose(accept: bytes | str, available: Mapping[str, Language]) -> Language:
    """Pick a language for an `Accept-Language` header by the lookup of RFC 4647, section 3.4.

    Ranges are tried in order of their quality, each shortened from the end until a language is found. What
    in the header cannot be read is passed over; the language of last resort is English.
    """
    text = accept.decode("latin-1") if isinstance(accept, bytes) else accept
    return available[_lookup(text[:1000], tuple(available))]


@lru_cache(maxsize=1024)
def _lookup(header: str, tags: tuple[str, ...]) -> str:
    ranges = [found for part in header.split(",")[:_MOST_RANGES] if (found := _RANGE.match(part))]
    wanted = [(-float(found[2] or 1), found[1].lower()) for found in ranges]
    for quality, tag in sorted(wanted, key=lambda want: want[0]):
        parts = tag.split("-") if quality else []
        while parts:
            if (candidate := "-".join(parts)) in tags:
                return candidate
            parts.pop()
            if parts and len(parts[-1]) == 1:
                parts.pop()
    return DEFAULT
