"""The stream protocol, for producers and collectors of one's own: both sides, without a socket.

`Producer` keeps pages until a collector has them; `Collector` takes them and says how safe they
are. docs/reference/protocol.md has every byte, for other languages.
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
