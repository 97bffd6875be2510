"""What leaves the tree: the wheel, complete without the source, and the lock, complete without an address."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_architecture import ROOT, tracked
from waitingroom import __version__

LOCK = (ROOT / "requirements.lock").read_text()
FUZZ_LOCK = (ROOT / "fuzz" / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(*command: str | Path, **environment: str) -> str:
    result = subprocess.run(
        [str(word) for word in command],
        cwd=environment.pop("folder", ROOT),
        env=os.environ | environment,
        capture_output=True,
        check=False,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the tree as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel was installed, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    run(*pip, "--target", folder, wheel)
    return folder


def ask(installed: Path, statement: str, *arguments: str) -> str:
    """Run a statement on the installed wheel; `-S` leaves the source tree out of the path."""
    path = os.pathsep.join([str(installed), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    return run(
        sys.executable, "-S", "-c", statement, *arguments, PYTHONPATH=path, folder=str(installed.parent)
    )


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    """Scripts, templates and languages are in it as well as the modules, and nothing besides."""
    source = {str(path.relative_to(ROOT)) for path in tracked() if path.is_relative_to(ROOT / "waitingroom")}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == source


def test_the_wheel_says_what_it_needs(wheel: Path) -> None:
    """Its metadata carry version, licence and the run-time dependencies; tools for development stay out."""
    archive = zipfile.ZipFile(wheel)
    info = next(name for name in archive.namelist() if name.endswith("METADATA"))
    metadata = Parser().parsestr(archive.read(info).decode())
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    needed = {canonicalize_name(Requirement(line).name) for line in metadata.get_all("Requires-Dist", [])}
    assert needed == {
        canonicalize_name(Requirement(line).name) for line in PROJECT["project"]["dependencies"]
    }
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


def test_the_wheel_runs_without_the_source(installed: Path) -> None:
    """The installed command answers with its version."""
    said = ask(installed, "import sys; from waitingroom.cli import main; sys.exit(main())", "--version")
    assert __version__ in said


@pytest.mark.parametrize("module", ["server", "demo", "pages", "store"])
def test_every_part_loads_from_the_wheel(installed: Path, module: str) -> None:
    """What a gateway needs is imported from the wheel, wherever the source is."""
    where = ask(installed, f"import waitingroom.{module} as part; print(part.__file__)")
    assert Path(where.strip()).is_relative_to(installed)


def pinned(lock: str) -> dict[str, str]:
    """Package name to locked version, of what this Python is for."""
    entries = re.findall(r"^([\w.\-\[\]]+)==([\w.+!]+)(?: ; (.*?))? \\", lock, re.MULTILINE)
    return {
        canonicalize_name(name): version
        for name, version, marker in entries
        if not marker or Marker(marker).evaluate()
    }


def test_the_lock_pins_everything_by_hash() -> None:
    """Each entry is one exact version with at least one hash, and no other kind of line occurs."""
    for entry in re.sub(r"\\\n\s+", "", LOCK + FUZZ_LOCK).splitlines():
        if not entry.startswith("#"):
            assert re.fullmatch(r"[\w.\-\[\]]+==\S+ (; [^#]+? )?(--hash=sha256:[0-9a-f]{64} ?)+", entry), (
                entry
            )


def test_the_lock_names_no_address() -> None:
    """Where packages come from is for the machine that installs them to say."""
    assert not re.search(r"https?:|--\w|file:|/", (LOCK + FUZZ_LOCK).replace("--hash=sha256:", ""))


def test_the_lock_satisfies_the_project() -> None:
    """Everything that pyproject.toml asks for is locked, at a version that it allows."""
    groups = dict(PROJECT["dependency-groups"])
    fuzzing = groups.pop("fuzz")
    asked = [
        *PROJECT["build-system"]["requires"],
        *PROJECT["project"]["dependencies"],
        *(line for group in groups.values() for line in group if isinstance(line, str)),
    ]
    for lines, lock in ((asked, pinned(LOCK)), (fuzzing, pinned(FUZZ_LOCK))):
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate():
                version = lock[canonicalize_name(requirement.name)]
                assert requirement.specifier.contains(version), f"{requirement} is locked at {version}"


def test_the_lock_is_whole() -> None:
    """It names all that its packages ask for, because it is installed without resolving anything."""
    run(sys.executable, "-m", "pip", "check")


def test_every_dependency_has_a_lower_bound() -> None:
    """A version older than any that was tried is refused by the resolver, not by a shopper."""
    for requirement in map(Requirement, PROJECT["project"]["dependencies"]):
        assert [bound.operator for bound in requirement.specifier] == [">="], str(requirement)


def test_every_verb_explains_itself() -> None:
    """`make help` lists every verb of the Makefile, and it is what plain `make` says."""
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert phony
    said = run("make", "--no-print-directory", MAKEFLAGS="")
    assert {line.split()[0] for line in said.splitlines()} == set(phony[1].split())
    assert said == run("make", "--no-print-directory", "help", MAKEFLAGS="")
