"""The documentation is held to what is there."""

import re
from dataclasses import fields
from pathlib import Path
from typing import cast

import pytest

from waitingroom.config import INTERNAL, SECTIONS, Settings, load_text
from waitingroom.durations import format_duration
from waitingroom.room import Room

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "runbooks").glob("*.md"))]


def reference() -> str:
    """Every setting, as `docs/configuration.md` has to list it."""
    tables = [f"[{name}]" for name in SECTIONS] + ["[[rooms]]"]
    text = []
    for title, kind in zip(tables, [*SECTIONS.values(), Room], strict=True):
        text += [f"## {title}", "", "| setting | default | meaning |", "|---|---|---|"]
        for item in fields(kind):
            if item.name in INTERNAL:
                continue
            default = (
                format_duration(cast("float", item.default))
                if item.metadata.get("duration")
                else shown(item.default)
            )
            choices = item.metadata.get("choices")
            one_of = f" One of {', '.join(str(choice) for choice in choices)}." if choices else ""
            text.append(f"| `{item.name}` | {default} | {item.metadata['doc']}{one_of} |")
        text.append("")
    return "\n".join(text)


def shown(default: object) -> str:
    """A default as a reader of TOML expects it."""
    if default in ("", ()):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of one language in a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def test_every_setting_is_documented() -> None:
    """The reference in docs/configuration.md is what the tables of settings say."""
    assert reference().strip() in (ROOT / "docs" / "configuration.md").read_text(), reference()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of_configuration_load(page: Path) -> None:
    """Every TOML block in the documentation is a configuration that the gateway takes."""
    for block in blocks(page, "toml"):
        assert isinstance(load_text(block, {}), Settings)


def test_every_threat_is_held_by_a_test() -> None:
    """Each row of the threat model names at least one test, and each of these exists."""
    text = (ROOT / "docs" / "security.md").read_text()
    rows = re.findall(r"^\|(.*)\|$", text[text.index("## Threats") : text.index("## Who may")], re.MULTILINE)[
        2:
    ]
    named = [set(re.findall(r"`(test_\w+)`", row)) for row in rows]
    there = {
        name
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 30
    assert all(named)
    assert set().union(*named) <= there


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """A relative link or picture names a file that exists."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
