"""R3: writers, ring, pool and deliveries against a short oracle, in any order of steps that hypothesis finds.

Each event carries the number that its writer gave to the call, refused calls included. So the oracle needs no pages:
it knows each request and its answer, and what each sink looked at and acknowledged, and so what the counters are.
Sequence numbers of pages start near 2**32, where a wrap-around would show.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aiotrace._page import layout as L
from aiotrace._ring.arena import Arena
from aiotrace._ring.delivery import Delivery, Part
from aiotrace._ring.page_cycle import PageCycle
from aiotrace._ring.writer import Writers
from support.page_oracle import walk

pytestmark = pytest.mark.pure_too

PAYLOAD = 1000
"""Bytes: four events on a page."""
FIRST_SEQUENCE = 2**32 - 3


class ModelSink:
    """What one sink saw, and what it must see next."""

    def __init__(self, delivery: Delivery, base: dict[int, int]) -> None:
        self.delivery = delivery
        self.base = base
        """By writer: number of the first event that is this sink's."""
        self.count: dict[int, int] = {}
        """By writer: events that it saw, and below, that it was told to have lost."""
        self.lost: dict[int, int] = {}
        self.looked: list[Part] = []
        self.parts: dict[int, list[Part]] = {}
        """By page, in the order in which they were offered: those not settled yet."""
        self.seen: dict[Part, list[tuple[int, int]]] = {}
        self.acknowledged: set[Part] = set()


class CoreMachine(RuleBasedStateMachine):
    @initialize(pages=st.integers(4, 8), overrun=st.booleans(), slots=st.integers(1, 3))
    def open(self, pages: int, overrun: bool, slots: int) -> None:
        self.now = 10**18
        self.arena = Arena(4096, pages)
        self.pages = PageCycle(self.arena, overrun=overrun)
        self.writers = Writers(self.pages, slots, self.clock, range(7), FIRST_SEQUENCE)
        for _ in range(slots):
            self.writers.lease()
        self.calls = [0] * slots
        self.written: list[set[int]] = [set() for _ in range(slots)]
        self.sinks: list[ModelSink] = []
        self.gone: list[ModelSink] = []
        self.delivered: set[tuple[int, int]] = set()
        self.sequences: set[tuple[int, int]] = set()

    def clock(self) -> int:
        return self.now

    # --- writers --------------------------------------------------------------------------------

    @rule(writer=st.integers(0, 2), count=st.integers(1, 9), gap=st.sampled_from([0, 1, 2**27 - 1, 2**27, 2**40]))
    def write(self, writer: int, count: int, gap: int) -> None:
        writer %= len(self.calls)
        for _ in range(count):
            self.now += gap
            number = self.calls[writer]
            self.calls[writer] += 1
            has_room = self.writers.all[writer].has_room(PAYLOAD)
            payload = struct.pack("=HBBiII", 2048, 0, 0, 1, writer, number).ljust(PAYLOAD, b"x")
            if self.writers.all[writer].write(payload):
                self.written[writer].add(number)
            else:
                held = all(self.arena.get(page, L.HOLDERS) for page in self.pages.ring)
                assert not has_room or (self.pages.can_overrun and held), "refused, and there was room"
                assert not len(self.pages.pool)

    @rule(writer=st.integers(0, 2), cause=st.sampled_from(["wrong_type", "fork"]))
    def refuse(self, writer: int, cause: str) -> None:
        writer %= len(self.calls)
        self.writers.all[writer].refuse(cause)
        self.calls[writer] += 1

    @rule(writer=st.integers(0, 2))
    def make_room(self, writer: int) -> None:
        """A turn with nothing written yet, as `send` makes it."""
        self.writers.all[writer % len(self.calls)].make_room(PAYLOAD)

    # --- the reader -----------------------------------------------------------------------------

    @rule()
    def swap(self) -> None:
        before = self.before_offers()
        self.pages.swap()
        self.note_offers(before)

    @rule(writer=st.integers(0, 2))
    def flush(self, writer: int) -> None:
        before = self.before_offers()
        each = self.writers.all[writer % len(self.calls)]
        with each.guard:
            prefix = each.committed_prefix()
            if prefix is not None and prefix.events:
                self.pages.offer_prefix(prefix)
        self.note_offers(before)

    def before_offers(self) -> list[int]:
        return [len(sink.delivery._queue) for sink in self.sinks]

    def note_offers(self, before: list[int]) -> None:
        for sink, count in zip(self.sinks, before, strict=True):
            for part in list(sink.delivery._queue)[count:]:
                sink.parts.setdefault(part.page, []).append(part)
                assert sink.delivery.held <= sink.delivery.quota

    # --- sinks ----------------------------------------------------------------------------------

    @precondition(lambda self: len(self.sinks) < 3)
    @rule(quota=st.integers(1, 3), skips=st.booleans(), prefixes=st.booleans())
    def attach(self, quota: int, skips: bool, prefixes: bool) -> None:
        delivery = Delivery(self.arena, quota, "skip" if skips else "wait")
        delivery.prefixes = prefixes
        numbers = {writer.slot: writer.first_unsealed for writer in self.writers.all}
        for page in reversed(list(self.pages.ring)):
            numbers[self.arena.get(page, L.WRITER)] = self.arena.get(page, L.FIRST_EVENT)
        self.pages.attach(delivery, dict(numbers))
        self.sinks.append(ModelSink(delivery, numbers))

    @precondition(lambda self: self.sinks)
    @rule(sink=st.integers(0, 2), count=st.integers(1, 3))
    def look(self, sink: int, count: int) -> None:
        model = self.sinks[sink % len(self.sinks)]
        for part in model.delivery.look(count):
            model.looked.append(part)
            numbers = self.numbers_on(part)
            if part in model.seen:  # again, after a failure: the very same
                assert model.seen[part] == numbers
                continue
            model.seen[part] = numbers
            assert part.sequence >= FIRST_SEQUENCE
            self.check_losses(model, part, numbers)

    def check_losses(self, model: ModelSink, part: Part, numbers: list[tuple[int, int]]) -> None:
        """What came and what was told as lost are all numbers up to here.

        Calls refused after the page began are reported with the next one.
        """
        writer, first = numbers[0]
        model.lost[writer] = model.lost.get(writer, 0) + part.lost_before
        before = first - model.base.get(writer, 0) - model.count.get(writer, 0) - model.lost[writer]
        page_begins = self.arena.get(part.page, L.FIRST_EVENT)
        assert before == sum(1 for number in range(page_begins, first) if number not in self.written[writer])
        assert numbers == sorted(numbers)
        assert {number for _, number in numbers} <= self.written[writer]
        model.count[writer] = model.count.get(writer, 0) + len(numbers)

    def numbers_on(self, part: Part) -> list[tuple[int, int]]:
        data = self.arena.page(part.page)
        start, end = L.PAGE_HEADER_SIZE + part.offset, L.PAGE_HEADER_SIZE + part.end
        records = list(walk(data, part.timestamp, start, end))
        assert len(records) == part.events
        assert all(10**18 <= record.timestamp <= self.now for record in records)
        return [struct.unpack_from("=II", data, record.start + 8) for record in records]

    @precondition(lambda self: any(sink.looked for sink in self.sinks))
    @rule(data=st.data())
    def acknowledge(self, data: Any) -> None:
        model = data.draw(st.sampled_from([sink for sink in self.sinks if sink.looked]))
        self.settle(model, model.looked.pop(data.draw(st.integers(0, len(model.looked) - 1))))

    def settle(self, model: ModelSink, part: Part) -> None:
        self.pages.acknowledge(model.delivery, [part])
        model.acknowledged.add(part)
        parts = model.parts[part.page]
        while parts and parts[0] in model.acknowledged:
            self.delivered |= set(model.seen[parts.pop(0)])

    @precondition(lambda self: self.sinks)
    @rule(sink=st.integers(0, 2))
    def fail(self, sink: int) -> None:
        model = self.sinks[sink % len(self.sinks)]
        model.delivery.rewind()
        model.looked.clear()

    @precondition(lambda self: self.sinks)
    @rule(sink=st.integers(0, 2))
    def detach(self, sink: int) -> None:
        model = self.sinks.pop(sink % len(self.sinks))
        self.pages.detach(model.delivery)
        self.gone.append(model)

    # --- the laws -------------------------------------------------------------------------------

    @invariant()
    def the_ledger_agrees(self) -> None:
        if not hasattr(self, "pages"):
            return
        written = sum(map(len, self.written))
        for writer, calls, numbers in zip(self.writers.all, self.calls, self.written, strict=True):
            assert writer.number == calls
            assert writer.written == len(numbers)
            assert sum(writer.dropped_by_cause().values()) == calls - len(numbers)
        assert self.pages.delivered == len(self.delivered)
        unsealed = sum(
            writer.events_on_page - self.arena.get(writer.page, L.DELIVERED)
            for writer in self.writers.all
            if writer.page is not None
        )
        in_flight = self.pages.events_in_flight() + unsealed
        lost = sum(self.pages.overrun.values()) + self.pages.abandoned
        assert written == self.pages.delivered + lost + in_flight
        assert sum(self.arena.states()) == self.arena.pages
        assert self.arena.states()[0] == len(self.pages.pool)
        assert self.arena.states()[2] == len(self.pages.ring)
        for model in (*self.sinks, *self.gone):
            each = model.delivery
            assert each.offered == each.delivered + each.missed + each.abandoned + each.events_in_flight
            settled = [part for part in model.acknowledged if part not in model.parts.get(part.page, ())]
            assert each.delivered == sum(len(model.seen[part]) for part in settled)

    def drain(self) -> None:
        """Every sink finishes; then its losses, those after its last page included, are all that it has not."""
        for model in self.sinks:
            self.fail(self.sinks.index(model))
        while True:
            for index, model in enumerate(self.sinks):
                self.look(index, 8)
                while model.looked:
                    self.settle(model, model.looked.pop())
            if not (len(self.pages.ring) and self.pages.room):
                break
            self.swap()
        assert not len(self.pages.ring) or not self.sinks
        for model in self.sinks:
            for writer, calls in enumerate(self.calls):
                lost_after = self.writers.all[writer].number - model.delivery.next_event(writer)
                known = model.count.get(writer, 0) + model.lost.get(writer, 0) + lost_after
                assert known == calls - model.base.get(writer, 0)

    def teardown(self) -> None:
        if not hasattr(self, "pages"):
            return
        self.writers.close()
        assert not self.writers.lease()[0].write(b"x" * 8)
        self.drain()
        while self.sinks:
            self.detach(0)
        self.pages.clear_ring()
        self.the_ledger_agrees()
        assert self.arena.states() == (self.arena.pages, 0, 0, 0), "all pages are home"
        missing = {(w, n) for w, numbers in enumerate(self.written) for n in numbers} - self.delivered
        assert len(missing) == sum(self.pages.overrun.values()) + self.pages.abandoned
        assert self.arena.close()


class TestModel(CoreMachine.TestCase):
    settings = settings(max_examples=100, stateful_step_count=40)


@pytest.mark.long
@pytest.mark.parametrize("number", range(25))
def test_the_model_for_long(number: int) -> None:
    machine = seed(number)(type("Machine", (CoreMachine,), {}))
    run_state_machine_as_test(machine, settings=settings(max_examples=2000, stateful_step_count=40))
