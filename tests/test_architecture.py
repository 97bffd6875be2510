"""What holds for the tree as a whole: who imports whom, how long things are, and what is never written."""

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST_FUNCTION = 60
LONGEST_MODULE = 400


def tracked(*patterns: str) -> list[Path]:
    """Files of the tree that match, as git knows them; without git, those that are there."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns],
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
        ).stdout.split("\0")
        return sorted(path for name in listed if name and (path := ROOT / name).is_file())
    hidden = {".venv", ".git", "__pycache__"}
    found = {path for pattern in patterns or ("*",) for path in ROOT.rglob(pattern) if path.is_file()}
    return sorted(path for path in found if not hidden & set(path.parts))


def modules() -> list[Path]:
    return [path for path in tracked("*.py") if path.is_relative_to(ROOT / "waitingroom")]


def texts() -> Iterator[tuple[str, str]]:
    """Every text file of the tree but this one and the licence, which is not ours to word."""
    for path in tracked():
        if path not in (Path(__file__), ROOT / "LICENSE"):
            try:
                yield str(path.relative_to(ROOT)), path.read_text()
            except UnicodeDecodeError:
                continue


def found(pattern: str) -> list[str]:
    """Where a pattern occurs in the tree, as file:line: text."""
    return [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def loaded_by(statement: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after a statement."""
    script = f"{statement}\nimport sys, json\nprint(json.dumps([*sys.modules]))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    return {name.partition(".")[0] for name in json.loads(result.stdout.splitlines()[-1])}


def test_imports_only_go_down() -> None:
    """The layers of pyproject.toml hold, and every module has a place in them."""
    result = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
    )
    assert result.returncode == 0, result.stdout


def test_functions_fit_a_screen() -> None:
    """No function is over sixty lines."""
    assert [
        f"{path.name}:{function.name} has {length(function)} lines"
        for path in tracked("*.py")
        for function in functions(path)
        if length(function) > LONGEST_FUNCTION
    ] == []


def test_most_functions_are_small() -> None:
    """Nine in ten functions of the package have at most 35 lines."""
    lengths = sorted(length(function) for path in modules() for function in functions(path))
    assert lengths[len(lengths) * 9 // 10] <= 35


def test_modules_can_be_read_in_one_sitting() -> None:
    """No module of the package is over four hundred lines."""
    sizes = {path.name: len(path.read_text().splitlines()) for path in modules()}
    assert {name: lines for name, lines in sizes.items() if lines > LONGEST_MODULE} == {}


def test_every_module_says_what_it_is_for() -> None:
    """Each module of the package opens with a docstring."""
    assert [path.name for path in modules() if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_every_test_states_its_promise() -> None:
    """Each test has a docstring: the promise in a sentence."""
    assert [
        f"{path.name}:{function.name}"
        for path in tracked("*.py")
        for function in functions(path)
        if path.name.startswith("test_")
        and function.name.startswith("test_")
        and not ast.get_docstring(function)
    ] == []


@pytest.mark.parametrize("module", ["room", "tickets", "heads", "forwarded", "desk", "access", "challenge"])
def test_decisions_need_no_network(module: str) -> None:
    """The pure modules load neither an HTTP library, nor the store's client, nor an event loop."""
    assert loaded_by(f"import waitingroom.{module}") & {"aiohttp", "redis", "uvloop", "pydantic"} == set()


def test_help_does_not_wait_for_heavy_imports() -> None:
    """`waitingroom --help` loads nothing that only a running gateway needs."""
    statement = """
import sys
sys.argv = ['waitingroom', '--help']
from waitingroom.cli import main
try:
    main()
except SystemExit:
    pass
"""
    heavy = {"aiohttp", "redis", "uvloop", "pydantic", "jinja2", "babel", "prometheus_client", "structlog"}
    assert loaded_by(statement) & heavy == set()


def test_a_gateway_does_not_wait_for_what_it_does_not_use() -> None:
    """`waitingroom serve` loads neither the load kit nor any tool of ours."""
    unused = {"locust", "gevent", "jwt", "playwright", "hypothesis", "pytest", "mypy", "packaging"}
    assert loaded_by("import waitingroom.process, uvloop") & unused == set()


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_importing_does_nothing(path: Path) -> None:
    """Importing a module opens no socket or file for writing, and starts no process and no thread."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    script = f"""
import sys, threading
acts = []
def note(event, args):
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if writes and "__pycache__" not in str(args[0]):
        acts.append((event, str(args[0])))
    if event in ("socket.connect", "socket.bind", "subprocess.Popen", "os.fork"):
        acts.append((event, ""))
sys.addaudithook(note)
import {name}
acts += [("thread", thread.name) for thread in threading.enumerate()[1:]]
sys.exit(str(acts) if acts else 0)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_nothing_is_left_for_later() -> None:
    """No note to oneself stays in the tree."""
    assert found(r"\b(TODO|FIXME|XXX|HACK)\b") == []


def test_no_machine_shows() -> None:
    """No path of anybody's machine is written anywhere."""
    assert found(r"(?<![\w.])/(home|root|Users|work)/\w|\bC:\\") == []


def test_no_package_index_shows() -> None:
    """Where packages come from is the business of the machine that installs them."""
    assert (
        found(r"pypi\.org|pythonhosted|files\.python|--(extra-)?index-url|--find-links|registry\.npmjs") == []
    )


def test_every_exception_to_the_checks_has_a_reason() -> None:
    """Each `noqa` and `type: ignore` names its rule and says why; a run of the same needs it once."""
    bare = []
    for path in tracked("*.py"):
        previous = ""
        for number, line in enumerate(path.read_text().splitlines(), 1):
            mark = re.search(r"# (noqa|type: ignore)(: ?[A-Z0-9, ]+|\[[\w, -]+\])?(.*)", line)
            rule = f"{mark[1]}{mark[2]}".strip() if mark else ""
            if (
                mark
                and path != Path(__file__)
                and not (mark[2] and (len(mark[3].strip(" -#(")) > 2 or rule == previous))
            ):
                bare.append(f"{path.name}:{number}: {line.strip()}")
            previous = rule
    assert bare == []
