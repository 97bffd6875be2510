"""What `make fuzz` would try runs, with or without the fuzzer."""

import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.targets import TARGETS
from tests.test_architecture import ROOT


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_holds_for_what_it_begins_with(name: str) -> None:
    """Each target takes its own seeds, and no bytes are too few for it."""
    target = TARGETS[name]
    assert target.words
    for seed in [b"x", *target.seeds]:
        target.check(seed)


def test_what_was_found_can_be_tried_again(tmp_path: Path) -> None:
    """Bytes in a file are given to one target; an error of the target is an error of the command."""
    (tmp_path / "found").write_bytes(b"\0GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    command = [sys.executable, "-m", "fuzz", "--only", "requests", "--again", str(tmp_path / "found")]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
