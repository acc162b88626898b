"""Both sides of the stream protocol over a wire that is two queues of bytes, and a collector that keeps what is sent.

    producer --bytes--> [wire] --bytes--> collector --> Stored
             <--bytes--        <--bytes--

Nothing here has a socket or a clock: a test says how many bytes arrive, when the connection is cut, what time it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aiotrace.abc import Definition, Ledger, Page, StreamInfo
from aiotrace.protocol import (
    Acknowledged,
    Broken,
    Collector,
    CollectorEvent,
    Defined,
    Ended,
    Finished,
    Grant,
    Granted,
    Greeted,
    Level,
    Limits,
    PageReceived,
    Producer,
    ProducerEvent,
    Refused,
    Request,
)
from support import fakes

Part = tuple[int, int, int]
"""Writer, sequence and offset."""


class Machine(Protocol):
    """What both sides have in common for the code that moves bytes."""

    def pending(self) -> Sequence[bytes | bytearray | memoryview]: ...
    def sent(self, count: int) -> None: ...
    def buffer(self) -> memoryview: ...


def take(machine: Machine, count: int) -> bytes:
    """Bytes that it wants to send, as a transport that takes `count` of one gathering write."""
    taken = b"".join(machine.pending())[:count]
    machine.sent(len(taken))
    return taken


def take_all(machine: Machine) -> bytes:
    taken = b""
    while part := take(machine, 1 << 30):
        taken += part
    return taken


def give(machine: Producer | Collector, data: bytes, now: float = 0.0) -> list[ProducerEvent | CollectorEvent]:
    """Let bytes arrive, in the portions that its buffers make of them."""
    events: list[ProducerEvent | CollectorEvent] = []
    while data and not (isinstance(machine, Collector) and machine.is_over):
        buffer = machine.buffer()
        assert len(buffer), "no room for a byte"
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        data = data[count:]
        events += machine.received(count, now)
        if any(isinstance(event, Broken | Refused | Ended) for event in events):
            break
    return events


@dataclass
class Stored:
    """What a collector has made safe: it outlives the collector and its connections."""

    pages: list[Part] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)
    positions: dict[int, tuple[int, int]] = field(default_factory=dict)
    definitions: list[Definition] = field(default_factory=list)
    ledger: Ledger | None = None

    def store(self, page: PageReceived) -> None:
        entry = page.entry
        assert entry.definitions_needed <= len(self.definitions), "a page before its definitions"
        self.pages.append((entry.writer, entry.sequence, entry.offset))
        self.data.append(bytes(page.data))
        self.positions[entry.writer] = page.end


@dataclass
class Link:
    """One producer and one collector; `connect` makes a new connection, and whatever was on the way is gone."""

    producer: Producer
    stored: Stored = field(default_factory=Stored)
    credit: int = 4
    now: float = 0.0
    limits: Limits = field(default_factory=Limits)
    waives: bool = False
    acknowledged: list[Page] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    ended: bool = False
    on_page: Callable[[PageReceived], object] = lambda page: None

    def __post_init__(self) -> None:
        self.connected = False

    def connect(self) -> None:
        self.producer.connect(self.now)
        self.collector = Collector(self.now, limits=self.limits)
        self.to_collector = b""
        self.to_producer = b""
        self.held: list[PageReceived] = []
        self.finished: Ledger | None = None
        self.connected = True

    def send(self, count: int) -> None:
        """The producer's transport takes `count` bytes."""
        self.to_collector += take(self.producer, count)

    def answer(self, count: int) -> None:
        """The collector's transport takes `count` bytes."""
        self.to_producer += take(self.collector, count)

    def arrive(self, count: int) -> None:
        """So many bytes reach the collector."""
        data, self.to_collector = self.to_collector[:count], self.to_collector[count:]
        self._hear(give(self.collector, data, self.now))

    def _hear(self, events: Sequence[ProducerEvent | CollectorEvent]) -> None:
        for event in events:
            match event:
                case Greeted(_, request):
                    stored = self.stored
                    grant = Grant(
                        self.credit,
                        not self.waives or request.check_bodies,
                        len(stored.definitions),
                        stored.ledger is not None,
                    )
                    self.collector.accept(grant, stored.positions)
                case Defined(first, definitions):
                    assert first == len(self.stored.definitions)
                    self.stored.definitions += definitions
                case PageReceived():
                    self.on_page(event)
                    self.held.append(event)
                case Finished(ledger):
                    self.finished = ledger
                case Broken(reason) | Refused(reason):
                    self.broken.append(reason)

    def store(self, count: int) -> None:
        """The collector makes the next pages safe, and says so."""
        pages, self.held = self.held[:count], self.held[count:]
        for page in pages:
            self.stored.store(page)
            if not self.collector.is_over:
                self.collector.acknowledge({page.entry.writer: page.end})
            page.release()
        if self.finished is not None and not self.held and not self.collector.is_over:
            self.stored.ledger = self.finished
            self.collector.acknowledge_end()

    def hear(self, count: int) -> None:
        """So many bytes reach the producer."""
        data, self.to_producer = self.to_producer[:count], self.to_producer[count:]
        for event in give(self.producer, data, self.now):
            match event:
                case Acknowledged(pages):
                    self.acknowledged += pages
                case Ended():
                    self.ended = True
                case Broken(reason) | Refused(reason):
                    self.broken.append(reason)
                case _:
                    assert isinstance(event, Granted), event

    def settle(self) -> None:
        """Everything arrives, until neither side has anything to send."""
        while True:
            self.send(1 << 30)
            self.arrive(len(self.to_collector))
            self.store(len(self.held))
            self.answer(1 << 30)
            if not self.to_producer and not self.producer.pending():
                return
            self.hear(len(self.to_producer))


def make_producer(
    request: Request | None = None, info: StreamInfo | None = None, definitions: Sequence[Definition] | None = None
) -> Producer:
    definitions = fakes.DEFINITIONS if definitions is None else definitions
    return Producer(info or fakes.make_info(), definitions, request or Request(level=Level.WRITTEN))


def make_link(**options: object) -> Link:
    """A connected pair, before anything was said."""
    link = Link(make_producer(), **options)  # type: ignore[arg-type]
    link.connect()
    return link


def open_link(**options: object) -> Link:
    """A connected pair after the handshake."""
    link = make_link(**options)
    link.settle()
    assert link.producer.is_open
    return link
