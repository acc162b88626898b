"""Both sides of the stream protocol, without a socket: for your own producers and collectors.

`Producer` keeps pages until a collector has acknowledged them. `Collector` receives pages and
acknowledges them at the level that was agreed: received, written or fsynced.
docs/reference/protocol.md specifies every byte, for implementations in other languages.
"""

from __future__ import annotations

from ._formats.frames import Level
from ._protocol.collector import Collector, CollectorEvent, Defined, Finished, Greeted, Limits, PageReceived
from ._protocol.messages import PROTOCOL_VERSION, Broken, Grant, Position, Positions, Refused, Request
from ._protocol.producer import Acknowledged, Ended, Granted, Producer, ProducerEvent

__all__ = [
    "PROTOCOL_VERSION",
    "Acknowledged",
    "Broken",
    "Collector",
    "CollectorEvent",
    "Defined",
    "Ended",
    "Finished",
    "Grant",
    "Granted",
    "Greeted",
    "Level",
    "Limits",
    "PageReceived",
    "Position",
    "Positions",
    "Producer",
    "ProducerEvent",
    "Refused",
    "Request",
]
