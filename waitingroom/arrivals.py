"""People who came while the store was away: counted by gateway and second, and numbered when it is back.

Each carries their arrival in a signed ticket, so that any gateway can vouch for it; the store numbers all of
them in the order of their seconds, in one block, and says which numbers those are.
"""

from collections.abc import Iterable

from waitingroom.room import Arrival, Block


class Arrivals:
    """Arrivals of one room, as one gateway knows of them.

    Attributes:
        open: how many came, by gateway and second, as far as they have no numbers yet.
        known: how many blocks of the store's list have been taken home.
    """

    def __init__(self) -> None:
        self.open: dict[tuple[str, int], int] = {}
        self.known = 0
        self._blocks: dict[tuple[str, int], list[Block]] = {}

    @property
    def waiting(self) -> int:
        """How many people have no number yet."""
        return sum(count - self._numbered(*key) for key, count in self.open.items())

    def arrive(self, gateway: str, second: int) -> Arrival:
        """Somebody has come."""
        place = self.open.get((gateway, second), self._numbered(gateway, second))
        self.open[gateway, second] = place + 1
        return Arrival(gateway, second, place)

    def number(self, arrival: Arrival) -> int | None:
        """The number of an arrival; one that has none yet is vouched for."""
        for block in self._blocks.get((arrival.gateway, arrival.second), ()):
            if block.first <= arrival.place < block.first + block.size:
                return block.number + arrival.place - block.first
        key = arrival.gateway, arrival.second
        self.open[key] = max(self.open.get(key, 0), arrival.place + 1)
        return None

    def absorb(self, blocks: Iterable[Iterable[Block]]) -> None:
        """Take home which numbers arrivals were given; saying it twice changes nothing."""
        for told in blocks:
            self.known += 1
            for block in told:
                key = block.gateway, block.second
                kept = self._blocks.setdefault(key, [])
                if block not in kept:
                    kept.append(block)
                if self.open.get(key, 0) <= self._numbered(*key):
                    self.open.pop(key, None)

    def blocks(self) -> list[Block]:
        """Every block, for a store that has lost them."""
        return [block for kept in self._blocks.values() for block in kept]

    def clear(self) -> None:
        """A new epoch voids them all."""
        self.open.clear()
        self._blocks.clear()
        self.known = 0

    def _numbered(self, gateway: str, second: int) -> int:
        return max((block.first + block.size for block in self._blocks.get((gateway, second), ())), default=0)
