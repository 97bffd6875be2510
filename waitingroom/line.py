"""Who waits, by number: the waiting bits of a room as a gateway keeps them."""

from collections.abc import Iterator, Sequence
from itertools import accumulate

SEGMENT = 1 << 20
"""Ticket numbers in one bitmap segment."""

BLOCK = 4096
"""Numbers in a block of a line, whose people are counted once a snapshot."""


class Line:
    """The waiting bits of a room: who waits, by number, and how many people are in front of whom."""

    __slots__ = ("_first", "_prefix", "_segments", "waiting")

    def __init__(self, first: int = 0, segments: Sequence[bytes] = ()) -> None:
        """Take over bitmaps of consecutive segments, `first` being the number of the lowest."""
        self._first = first
        self._segments = tuple(segments)
        self._prefix: list[list[int]] = []
        before = 0
        for bits in self._segments:
            blocks = (bits[at : at + BLOCK // 8] for at in range(0, len(bits), BLOCK // 8))
            counts = (int.from_bytes(block).bit_count() for block in blocks)
            self._prefix.append(list(accumulate(counts, initial=before)))
            before = self._prefix[-1][-1]
        self.waiting = before

    def segments(self) -> dict[int, bytes]:
        """The bits of each segment in which anybody waits."""
        return {self._first + index: bits for index, bits in enumerate(self._segments) if bits}

    def ahead(self, number: int) -> int:
        """How many people wait with a number lower than `number`: exact, in constant time."""
        segment, offset = divmod(number, SEGMENT)
        index = segment - self._first
        if index < 0:
            return 0
        if index >= len(self._segments):
            return self.waiting
        bits, prefix = self._segments[index], self._prefix[index]
        block = offset // BLOCK
        if block >= len(prefix) - 1:
            return prefix[-1]
        part = bits[block * BLOCK // 8 : offset // 8 + 1]
        spare = 8 * len(part) - offset % BLOCK
        return prefix[block] + (int.from_bytes(part) >> max(0, spare)).bit_count()

    def __contains__(self, number: int) -> bool:
        segment, offset = divmod(number, SEGMENT)
        index = segment - self._first
        if not 0 <= index < len(self._segments):
            return False
        bits = self._segments[index]
        return offset // 8 < len(bits) and bool(bits[offset // 8] & 128 >> offset % 8)

    @property
    def front(self) -> int | None:
        """The lowest waiting number, None if nobody waits."""
        return next(iter(self.numbers()), None)

    def numbers(self) -> Iterator[int]:
        """Every waiting number, lowest first."""
        for index, bits in enumerate(self._segments):
            base = (self._first + index) * SEGMENT
            prefix = self._prefix[index]
            for block in (at for at in range(len(prefix) - 1) if prefix[at] < prefix[at + 1]):
                for at in range(block * BLOCK // 8, min(len(bits), (block + 1) * BLOCK // 8)):
                    byte = bits[at]
                    yield from (base + at * 8 + bit for bit in range(8) if byte and byte & 128 >> bit)
