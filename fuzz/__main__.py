"""Try every target for a while, each in a process of its own; `make fuzz`.

    python -m fuzz [--seconds 60] [--only NAME] [--again FILE]

Bytes that break a promise are written to fuzz/crashes/, and `--only NAME --again FILE` tries them once more.
Exit codes: 0 nothing found; 1 something was; 2 the fuzzer is not installed.
"""

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CRASHES = Path(__file__).parent / "crashes"
LONGEST = 4096


def _fuzz(name: str, seconds: int, folder: Path) -> bool:
    """Try one target; False if it broke."""
    options = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=20", "-print_final_stats=1"]
    options += [f"-artifact_prefix={CRASHES}/{name}-", f"-dict={folder / 'words'}", str(folder / "seeds")]
    command = [sys.executable, "-m", "fuzz.one", name, *options]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said = done.stdout + done.stderr
    tried = re.search(r"number_of_executed_units: +(\d+)", said)
    covered = re.findall(r"cov: (\d+)", said)
    print(
        f"{name}: {int(tried[1]) if tried else 0:,} tried, {covered[-1] if covered else 0} edges", flush=True
    )
    if done.returncode != 0:
        print(done.stdout[-3000:], done.stderr[-1500:])
    return done.returncode == 0


def _prepared(name: str, folder: Path) -> Path:
    """Seeds and words of a target, as files."""
    from fuzz.targets import TARGETS  # noqa: PLC0415 - loads what is tested

    target = TARGETS[name]
    (folder / "seeds").mkdir(parents=True)
    for number, seed in enumerate(target.seeds):
        (folder / "seeds" / str(number)).write_bytes(seed)
    words = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.words)
    (folder / "words").write_text("".join(f'"{word}"\n' for word in words))
    return folder


def main() -> int:
    """Fuzz, and say what was found."""
    from fuzz.targets import TARGETS  # noqa: PLC0415 - loads what is tested

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--only", choices=TARGETS, help="one target")
    parser.add_argument("--again", type=Path, metavar="FILE", help="try these bytes once, without fuzzing")
    options = parser.parse_args()
    if options.again:
        TARGETS[options.only or "requests"].check(options.again.read_bytes())
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed; `make fuzz` does that.", file=sys.stderr)
        return 2
    CRASHES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        broken = [
            name
            for name in ([options.only] if options.only else TARGETS)
            if not _fuzz(name, options.seconds, _prepared(name, Path(folder) / name))
        ]
    if broken:
        print(f"broken: {', '.join(broken)}; the bytes are in {CRASHES}")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
