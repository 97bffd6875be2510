"""What is looked at before anybody comes: whether the scenario stands, and whether its target is there."""

from loadtest import journeys, scenario
from loadtest.browser import Site
from loadtest.scenario import Scenario

_PATIENCE = 5.0


def ready(name: str, scale: float | None = None, target: str | None = None) -> Scenario:
    """A scenario, its journey and all.

    Raises:
        ScenarioError: it cannot stand, or may not be run against its target.
    """
    made = scenario.load(name, scale=scale, target=target)
    journeys.find(made)
    return made


def reach(made: Scenario) -> str:
    """Why nobody accepts connections at the target; empty if somebody does."""
    try:
        Site.find(made.target).connect(_PATIENCE).close()
    except OSError as error:
        return f"Nobody answers at {made.target}: {error.strerror or error}."
    return ""
