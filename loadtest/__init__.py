"""Rehearsals of a sale: crowds that arrive as crowds do, people who queue as people do, and what came of it.

An outside observer: nothing here imports `waitingroom`, and only `executor` and `locustfile` import Locust.
"""

from pathlib import Path

LOCUSTFILE = Path(__file__).parent / "locustfile.py"
