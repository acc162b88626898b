"""aiotrace_sinks._tracecmd_messages: the bytes of trace-cmd's protocol 3, and nothing else is believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace_sinks import _tracecmd_messages as M
from support.listeners import rinit


def test_request_equals_that_of_trace_cmd() -> None:
    """make_tinit() in trace-msg.c, put together by hand; that 3.1.6 takes it is seen in test_tracecmd.py."""
    assert M.make_tinit(2, 4096) == bytes.fromhex("0000001c 00000001 0000000c 00000002 00001000 00000001 74637000")


@given(content=st.binary(max_size=3 * M.MESSAGE_MAX))
def test_the_headers_arrive_whole_in_messages_that_are_not_too_long(content: bytes) -> None:
    found = b""
    for message in M.make_data(content):
        assert M.HEADER_SIZE < len(message) <= M.MESSAGE_MAX
        command, size = M.unpack_header(message[: M.HEADER_SIZE])
        assert command == M.SEND_DATA
        assert size == len(message) - M.HEADER_SIZE
        found += message[M.HEADER_SIZE :]
    assert found == content


def ports_of(message: bytes, cpus: int) -> list[int]:
    command, size = M.unpack_header(message[: M.HEADER_SIZE])
    assert size == len(message) - M.HEADER_SIZE
    return M.unpack_ports(command, message[M.HEADER_SIZE :], cpus)


@given(ports=st.lists(st.integers(1, 65535), min_size=1, max_size=32))
def test_each_cpu_has_its_port(ports: list[int]) -> None:
    assert ports_of(rinit(ports), len(ports)) == ports


@pytest.mark.parametrize(
    "message",
    [
        rinit([1500]),
        rinit([1500, 1501, 1502]),
        rinit([1500, 1501], count=3),
        rinit([1500, 1501], count=2**32 - 1),
        rinit([1500, 0]),
        rinit([1500, 65536]),
        rinit([1500, 10**30]),
        rinit([1500, -1]),
        rinit([1500, 1501])[:-1],
        rinit([1500, 1501]).replace(b"1500", "¹⁵".encode()),
        rinit([]),
        M.FIN,
        M.CLOSE,
        M.make_tinit(2, 4096),
    ],
)
def test_unrequested_number_of_ports_is_refused(message: bytes) -> None:
    size = len(message).to_bytes(4, "big")
    with pytest.raises(M.NonsenseError):
        ports_of(size + message[4:], 2)


@pytest.mark.parametrize(
    ("size", "fields"), [(0, 0), (11, 0), (8193, 0), (2**31, 0), (2**32 - 1, 0), (16, 5), (16, 2**32 - 1)]
)
def test_invalid_sizes_are_refused(size: int, fields: int) -> None:
    header = size.to_bytes(4, "big") + bytes(4) + fields.to_bytes(4, "big")
    with pytest.raises(M.NonsenseError, match=str(size)):
        M.unpack_header(header)


@given(header=st.binary(min_size=12, max_size=12))
def test_header_length_is_limited_to_the_size_of_a_message(header: bytes) -> None:
    try:
        _, size = M.unpack_header(header)
    except M.NonsenseError:
        return
    assert 0 <= size <= M.MESSAGE_MAX - M.HEADER_SIZE


@given(body=st.binary(max_size=80), cpus=st.integers(1, 4))
def test_ports_are_ports_or_nonsense(body: bytes, cpus: int) -> None:
    try:
        ports = M.unpack_ports(M.RINIT, body, cpus)
    except M.NonsenseError:
        return
    assert len(ports) == cpus
    assert all(0 < port < 65536 for port in ports)
