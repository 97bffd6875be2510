"""What can go wrong with a connection, by the names, units and meanings of Toxiproxy's toxics.

Each is a plain function of a piece of data, of what passed before it and of a source of chance; `faults` has
the sockets and the clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from random import Random


class Stream(StrEnum):
    """Which way data goes: upstream is from the client to the server."""

    UPSTREAM = "upstream"
    DOWNSTREAM = "downstream"
    BOTH = "both"


class End(Enum):
    """How something ends: one direction of a connection, all of it, or all of it with a reset."""

    FINISH = "finish"
    CLOSE = "close"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of what passes in one direction.

    Attributes:
        at: leaves no earlier than this, in seconds on the event loop's clock.
        end: what ends once the data has left.
    """

    data: bytes
    at: float
    end: End | None = None


@dataclass(slots=True)
class Passed:
    """What one toxic remembers of one direction of a connection.

    Attributes:
        count: bytes that it let pass.
        until: the moment until which it is busy with what came before.
    """

    count: int = 0
    until: float = 0.0


@dataclass(frozen=True)
class Toxic:
    """A fault. `stream` is the direction that it befalls.

    Attributes:
        cuts: seconds after which it ends the connection, and how; None if it does not.
        swallows: whether data is lost in it, so that whoever outlives it must begin anew.
    """

    stream: Stream = field(default=Stream.DOWNSTREAM, kw_only=True)

    def shape(self, piece: Piece, passed: Passed, chance: Random) -> Sequence[Piece]:
        """What becomes of a piece; as it is, unless a toxic says otherwise."""
        del passed, chance
        return (piece,)

    @property
    def cuts(self) -> tuple[float, End] | None:
        """Nothing, unless a toxic says otherwise."""
        return None

    @property
    def swallows(self) -> bool:
        """Nothing, unless a toxic says otherwise."""
        return False


@dataclass(frozen=True)
class Latency(Toxic):
    """Everything comes `latency` milliseconds late, give or take `jitter`; nothing is overtaken."""

    latency: int
    jitter: int = 0

    def shape(self, piece: Piece, passed: Passed, chance: Random) -> Sequence[Piece]:
        """Delay a piece."""
        late = max(0.0, self.latency + chance.uniform(-self.jitter, self.jitter)) / 1000
        passed.until = max(passed.until, piece.at + late)
        return (Piece(piece.data, passed.until, piece.end),)


@dataclass(frozen=True)
class Bandwidth(Toxic):
    """At most `rate` kilobytes (1,000 bytes) a second pass.

    Raises:
        ValueError: the rate is not positive; `Timeout(0)` lets nothing pass.
    """

    rate: int

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"rate is {self.rate}, and must be positive; Timeout(0) lets nothing pass")

    def shape(self, piece: Piece, passed: Passed, chance: Random) -> Sequence[Piece]:
        """Let a tenth of a second's worth pass at a time."""
        del chance
        pieces = []
        for data in cut(piece.data, [self.rate * 100]):
            passed.until = max(passed.until, piece.at) + len(data) / (self.rate * 1000)
            pieces.append(Piece(data, passed.until))
        if piece.end is not None:
            pieces.append(Piece(b"", max(passed.until, piece.at), piece.end))
        return pieces


@dataclass(frozen=True)
class Timeout(Toxic):
    """Nothing passes, and after `timeout` milliseconds the connection is closed; with 0 it never is.

    That is a peer out of reach: nothing refuses, nothing answers. Both directions, unless told otherwise.
    """

    timeout: int
    stream: Stream = field(default=Stream.BOTH, kw_only=True)

    def shape(self, piece: Piece, passed: Passed, chance: Random) -> Sequence[Piece]:
        """Lose a piece."""
        del piece, passed, chance
        return ()

    @property
    def cuts(self) -> tuple[float, End] | None:
        """An orderly close in the end."""
        return (self.timeout / 1000, End.CLOSE) if self.timeout else None

    @property
    def swallows(self) -> bool:
        """Everything."""
        return True


@dataclass(frozen=True)
class ResetPeer(Toxic):
    """The connection is reset after `timeout` milliseconds, in which nothing passes."""

    timeout: int = 0
    stream: Stream = field(default=Stream.BOTH, kw_only=True)

    def shape(self, piece: Piece, passed: Passed, chance: Random) -> Sequence[Piece]:
        """Lose a piece."""
        del piece, passed, chance
        return ()

    @property
    def cuts(self) -> tuple[float, End] | None:
        """A reset in the end."""
        return (self.timeout / 1000, End.RESET)

    @property
    def swallows(self) -> bool:
        """Everything."""
        return True


@dataclass(frozen=True)
class SlowClose(Toxic):
    """Data passes as ever; that a side has finished is passed on `delay` milliseconds late."""

    delay: int

    def shape(self, piece: Piece, passed: Passed, chance: Random) -> Sequence[Piece]:
        """Delay an end."""
        del passed, chance
        return (piece if piece.end is None else Piece(piece.data, piece.at + self.delay / 1000, piece.end),)


@dataclass(frozen=True)
class LimitData(Toxic):
    """The connection is closed once so many bytes have passed since the toxic is there."""

    bytes: int

    def shape(self, piece: Piece, passed: Passed, chance: Random) -> Sequence[Piece]:
        """Let pass what still may."""
        del chance
        rest = self.bytes - passed.count
        if len(piece.data) < rest:
            passed.count += len(piece.data)
            return (piece,)
        passed.count = self.bytes
        return (Piece(piece.data[:rest], piece.at, End.CLOSE),)


@dataclass(frozen=True)
class Slicer(Toxic):
    """Data passes in slices of `average_size` bytes, give or take `size_variation`.

    `delay` is microseconds between two slices.

    Raises:
        ValueError: a slice could be empty.
    """

    average_size: int
    size_variation: int = 0
    delay: int = 0

    def __post_init__(self) -> None:
        if self.average_size - self.size_variation < 1:
            raise ValueError(f"size_variation must be less than average_size, which is {self.average_size}")

    def shape(self, piece: Piece, passed: Passed, chance: Random) -> Sequence[Piece]:
        """Cut a piece up."""
        low, high = self.average_size - self.size_variation, self.average_size + self.size_variation
        sizes = [chance.randint(low, high) for _ in range(len(piece.data) // low + 1)]
        pieces = []
        for data in cut(piece.data, sizes):
            passed.until = max(passed.until + self.delay / 1e6, piece.at)
            pieces.append(Piece(data, passed.until))
        if piece.end is not None:
            pieces.append(Piece(b"", max(passed.until, piece.at), piece.end))
        return pieces


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """Data in pieces of these sizes, which begin anew when they are used up."""
    pieces, at, turn = [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        pieces.append(data[at : at + size])
        at, turn = at + size, turn + 1
    return pieces


def shaped(
    piece: Piece, toxics: Sequence[Toxic], passed: dict[Toxic, Passed], chance: Random
) -> Sequence[Piece]:
    """What becomes of a piece that goes through these toxics, in their order."""
    pieces: Sequence[Piece] = (piece,)
    for toxic in toxics:
        memory = passed.setdefault(toxic, Passed())
        pieces = [result for one in pieces for result in toxic.shape(one, memory, chance)]
    return pieces
