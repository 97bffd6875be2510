"""A new run against the committed figures; `make bench-check`, before a release.

    python -m benchmarks.check [--compiled FOLDER] [--json FILE] [--figures FILE]

Compared are ratios of CPU time to nginx and to the plain aiohttp proxy, each taken within its own run, so
that another machine does not matter much. Exit codes: 0 nothing is slower; 1 something is, beyond the noise;
2 a program is missing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report

FIGURES = Path(__file__).with_name("figures.json")

NOISE = 0.15
"""By how much a ratio may grow at least; more where the committed runs differed by more themselves."""

OURS = ("gateway", "gateway, interpreted", "nginx asking gateway")
CONTROLS = ("nginx", "nginx, file", "aiohttp proxy", "aiohttp handler")


def ratios(path: report.Measured, stand: str, control: str) -> list[float]:
    """What a stand takes for what the control takes, run by run."""
    ours, theirs = report.values(path, stand, "cpu", control), report.values(path, control, "cpu", stand)
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def regressions(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What has become slower by more than runs differ, in words."""
    old = {path["path"]: path for path in before["paths"]}
    found = []
    for path in after["paths"]:
        known = old.get(path["path"], {"runs": {}})
        both = path["runs"].keys() & known["runs"].keys()
        for stand in (name for name in OURS if name in both):
            for control in (name for name in CONTROLS if name in both):
                spread, again = ratios(known, stand, control), ratios(path, stand, control)
                if not spread or not again:
                    continue
                was, now = median(spread), median(again)
                allowed = max(NOISE, max(spread) / min(spread) - 1)
                if now > was * (1 + allowed):
                    most = was * (1 + allowed)
                    times = f"{now:.2f} times what {control} does, after {was:.2f}; {most:.2f} would be noise"
                    found.append(f"{path['path']}: {stand} takes {times}")
    return found


def main() -> int:
    """Measure anew, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compiled", metavar="FOLDER", help="an installed wheel, data path compiled")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="compare with this file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the new run to FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        written = options.json or Path(folder) / "figures.json"
        command = [sys.executable, "-m", "benchmarks.paths", "--json", str(written)]
        command += ["--compiled", options.compiled] if options.compiled else []
        code = subprocess.run(command, check=False).returncode
        if not written.exists():
            return code
        found = regressions(json.loads(options.figures.read_text()), json.loads(written.read_text()))
    print("\n".join(found) or "Nothing is slower than it was.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
