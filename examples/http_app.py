"""What the two example services have in common: their events, and how a request is answered. No sockets.

The events are defined once, at import; calling one costs next to nothing while nothing is recording.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import anyio

import aiotrace

MAX_HEAD = 8192
"""Bytes that a request's head may have."""

connection_opened = aiotrace.event("http:connection_opened", peer_port="u16")
connection_closed = aiotrace.event("http:connection_closed", peer_port="u16", requests="u32")
request_received = aiotrace.event("http:request", method="symbol", path="str")
request_done = aiotrace.event("http:request_done", status="u16", size="u32", latency_ns="u64", path="str")

REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}


class Answer(NamedTuple):
    """A response, ready to be sent."""

    data: bytes
    keep_alive: bool


async def answer(head: bytes) -> Answer:
    """Answer the request whose head (up to the empty line) is given, and trace it."""
    started = time.monotonic_ns()
    try:
        request_line, *headers = head.decode("latin-1").split("\r\n")
        method, path, version = request_line.split(" ")
    except ValueError:
        request_done(400, 0, time.monotonic_ns() - started, "")
        return Answer(_encode(400, b"", keep_alive=False), keep_alive=False)
    keep_alive = version == "HTTP/1.1" and "connection: close" not in (header.lower() for header in headers)
    request_received(method, path)
    status, body = await _route(method, path)
    request_done(status, len(body), time.monotonic_ns() - started, path)
    return Answer(_encode(status, body, keep_alive), keep_alive)


async def _route(method: str, path: str) -> tuple[int, bytes]:
    if method != "GET":
        return 405, b"only GET is answered\n"
    if path == "/":
        return 200, b"hello\n"
    if path.startswith("/users/"):
        return 200, await _find_user(path.removeprefix("/users/"))
    return 404, b"there is no such page\n"


async def _find_user(name: str) -> bytes:
    with aiotrace.span("db:query", table="users", key=name):
        await anyio.sleep(0)  # where a real service would wait for its database
    return f"user {name}\n".encode()


def _encode(status: int, body: bytes, keep_alive: bool) -> bytes:
    connection = "keep-alive" if keep_alive else "close"
    head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Length: {len(body)}\r\nConnection: {connection}\r\n\r\n"
    return head.encode() + body
