"""One target under the fuzzer: python -m fuzz.one NAME [libFuzzer's options]."""

import sys

import atheris


def main() -> None:
    """Fuzz until the time is up or something breaks."""
    with atheris.instrument_imports(include=["waitingroom"]):
        from fuzz.targets import TARGETS  # noqa: PLC0415 - so that it is instrumented
    check = TARGETS[sys.argv.pop(1)].check
    atheris.Setup(sys.argv, lambda data: check(data) if data else None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
