"""Reading events: from a file with `open_trace`, from pages that a sink is given with `Decoder`.

    with aiotrace.open_trace("trace.dat") as trace:
        for event in trace:
            print(event.timestamp_ns, event.name, event.fields)

    pages of CPU 0   --walk-->  e e e  --+
    pages of CPU 1   --walk-->  e   e  --+--heap-->  events in the order of time
    pages of CPU 2   --walk-->    e e  --+

One page of each CPU is in memory, whatever the file's size. A loss is an event: where events are missing, one named
"aiotrace:lost" takes their place. Decoding is lazy: records are skipped by id and pid, and fields are decoded on first
access.
"""

from ._decode.event import LOST, Event, format_line
from ._decode.report_lines import format_time
from ._traces.decoder import Decoder
from ._traces.open_trace import open_trace
from ._traces.page_sources import Damage
from ._traces.statistics import EventCount, Loss, TraceStatistics, WriterCount
from ._traces.trace import Trace

__all__ = [
    "LOST",
    "Damage",
    "Decoder",
    "Event",
    "EventCount",
    "Loss",
    "Trace",
    "TraceStatistics",
    "WriterCount",
    "format_line",
    "format_time",
    "open_trace",
]
