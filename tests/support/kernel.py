"""Comparing what we read of a trace with what `trace-cmd report -R -t` prints of it.

A line of it is `comm-pid [cpu] seconds.nanoseconds: event: name=value name=value`, all fields raw. A value is a number
(decimal or hex), a function's name and offset (where the event's print fmt has %pS), a string, or `ARRAY[bytes]`.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

from aiotrace._decode.event_format import FieldKind, FormatField, Place
from aiotrace.decode import Event, Trace

BEGINNING = re.compile(
    r"\s*(?:\S+:\s+)?(?P<comm>.*?)-(?P<pid>\d+)\s+\[(?P<cpu>\d+)\]\s+(?P<time>\d+\.\d{9}):\s(?P<name>\w+):\s*"
)
"""What comes before the fields."""


def raw_report(trace_cmd: str, path: str) -> str:
    """What trace-cmd says of the file."""
    done = subprocess.run([trace_cmd, "report", "-R", "-t", "-i", path], capture_output=True, check=True)
    return done.stdout.decode("utf-8", "surrogateescape")


def records(report: str) -> Iterator[str]:
    """The events of a report; one whose strings hold newlines is more than one line."""
    lines: list[str] = []
    for line in report.split("\n"):
        if BEGINNING.match(line) or "EVENTS DROPPED]" in line:
            if lines:
                yield "\n".join(lines)
            lines = [line]
        elif lines:
            lines.append(line)
    if lines:
        yield "\n".join(lines)


def compare(trace: Trace, report: str) -> int:
    """Assert that events, order, times, cpus, pids and every field agree; returns how many events did."""
    count = 0
    theirs = records(report)
    for event in trace:
        line = next(theirs, None)
        assert line is not None, f"trace-cmd has no more events, we have {event}"
        if event.is_loss:
            number = event.fields["count"]
            expected = f"CPU:{event.cpu} [{'' if number is None else f'{number} '}EVENTS DROPPED]"
            assert expected in line, f"{line!r} against {event}"
            continue
        assert_same(trace, event, line)
        count += 1
    left = next(theirs, None)
    assert left is None or not left.strip(), f"we have no more events, trace-cmd has {left!r}"
    return count


def assert_same(trace: Trace, event: Event, line: str) -> None:
    match = BEGINNING.match(line)
    assert match, f"not a line of a report: {line!r}"
    seconds, nanoseconds = match["time"].split(".")
    found = (int(seconds) * 10**9 + int(nanoseconds), int(match["cpu"]), int(match["pid"]), match["name"])
    assert (event.timestamp_ns, event.cpu, event.pid, event.name.partition(":")[2]) == found, f"{line!r}: {event}"
    comm = match["comm"].strip()
    assert event.comm == comm, f"{line!r}: {event.comm!r}"
    assert event.format is not None
    fields = event.format.own_fields
    texts = split_fields([field.name for field in fields], line[match.end() :])
    for field, text in zip(fields, texts, strict=True):
        value = event.fields[field.name]
        assert same_value(trace, field, value, text), f"{line!r}: {field.name} is {value!r} here, {text!r} there"


def split_fields(names: list[str], text: str) -> list[str]:
    """The values; each field's name is searched after the value of the one before."""
    if not names:
        return []
    match = pattern_of(tuple(names)).fullmatch(text)
    assert match, f"{names} should be in {text!r}"
    return list(match.groups())


@cache
def pattern_of(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(r"\s".join(f"{re.escape(name)}=(.*)" for name in names), re.DOTALL)


def same_value(trace: Trace, field: FormatField, value: Any, text: str) -> bool:
    if type(value) is int and text == str(value):
        return True  # as most are
    if not isinstance(value, str):
        text = text.strip()
    if text == "(nil)":
        text = "0x0"
    if isinstance(value, str):
        # A report ends each event with a newline of its own.
        return value == text or value.rstrip("\n") == text.rstrip("\n")
    if isinstance(value, (bytes, tuple)):
        return same_array(field, value, text)
    if field.kind is FieldKind.SYMBOL or not re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)", text):
        return same_address(trace, value, text)
    bits = field.size * 8
    return int(value) % (1 << bits) == number(text) % (1 << bits)


def number(text: str) -> int:
    """`0x1f`, `-5`, `007`: a print fmt may ask for leading zeros, and means no octal number."""
    return int(text, 16 if "0x" in text else 10)


@lru_cache(maxsize=4096)
def bytes_of(text: str) -> bytes | None:
    """Of `ARRAY[0f, 10]`. The stacks of a recording are few."""
    items = re.fullmatch(r"ARRAY\[(.*)\]", text, re.DOTALL)
    return None if items is None else bytes(int(item, 16) for item in items[1].split(", ") if item)


def same_array(field: FormatField, value: Any, text: str) -> bool:
    theirs = bytes_of(text)
    if theirs is None:
        return False
    if isinstance(value, bytes):
        ours = value
    else:
        ours = b"".join((item % (1 << field.element_size * 8)).to_bytes(field.element_size, "little") for item in value)
    if field.place is Place.TAIL:  # trace-cmd shows the declared 8 callers, whether there are more or fewer
        shorter = min(len(ours), len(theirs))
        return shorter > 0 and ours[:shorter] == theirs[:shorter]
    return ours == theirs


def same_address(trace: Trace, value: int, text: str) -> bool:
    found = trace.find_function(value)
    if found is None:
        return int(text, 16) == value if re.fullmatch(r"(0x)?[0-9a-fA-F]+", text) else False
    name, offset = found
    return text in (name, f"{name}+0x{offset:x}", f"0x{value:x}", f"{value:x}", str(value))
