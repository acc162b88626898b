"""The file of an arena: made with care, filled with what a reader needs, and removed at the end."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotrace._arena import file
from aiotrace._arena.file import HEADER_SIZE, is_arena, is_owned, pack_header, unpack_header
from aiotrace._arena.file_reader import ArenaReader
from aiotrace._arena.scan import DamagedPage
from aiotrace._base.crc32 import crc32
from aiotrace._base.errors import TraceFormatError
from aiotrace._page import layout as L
from aiotrace._page.definitions import SymbolDefinition
from aiotrace._ring.arena import Shape
from support.arenas import PAGE, Filled
from support.fakes import make_info

shapes = st.builds(
    Shape,
    st.sampled_from([4096, 65536, 1 << 20]),
    st.integers(1, 5000),
    st.integers(0, 1 << 24),
)


# --- the header -----------------------------------------------------------------------------------


@given(shapes, st.integers(1, 1 << 16))
def test_header_returns_what_it_was_packed_from(shape: Shape, writers: int) -> None:
    info = make_info(shape.page_size, writers)
    header = unpack_header(pack_header(shape, info), shape.size)
    assert (header.shape, header.writers, header.stream_id) == (shape, writers, info.stream_id)
    assert (header.pid, header.monotonic_ns, header.realtime_ns) == (
        info.pid, info.anchor.monotonic_ns, info.anchor.realtime_ns,
    )  # fmt: skip
    assert header.boot_id == info.anchor.boot_id


@given(shapes)
def test_the_parts_of_an_arena_do_not_overlap_and_are_aligned(shape: Shape) -> None:
    assert L.ARENA_REFUSED + 8 <= L.ARENA_HEADER_SIZE == shape.descriptors
    assert HEADER_SIZE <= L.ARENA_USED
    assert shape.descriptors + shape.pages * L.DESCRIPTOR_SIZE <= shape.definitions
    assert shape.definitions + shape.definitions_size <= shape.first_page
    assert shape.first_page % shape.page_size == shape.definitions % 4096 == 0
    assert shape.size == shape.first_page + shape.pages * shape.page_size


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (0, struct.pack("<I", 0), "no arena"),
        (8, struct.pack("<I", 2), "an arena of version 2; this aiotrace reads 1"),
        (12, struct.pack("<I", 8192), "parts should lie"),
        (16, struct.pack(">I", 0x01020304), "other byte order"),
        (20, struct.pack("<I", 0), "pages of 0 bytes"),
        (20, struct.pack("<I", 4097), "pages of 4097 bytes"),
        (20, struct.pack("<I", 1 << 31), "pages of 2147483648 bytes"),
        (24, struct.pack("<I", (1 << 32) - 1), "an arena of 4294967295 pages"),
        (28, struct.pack("<I", 64), "parts should lie"),
        (32, struct.pack("<Q", 2**64 - 1), "parts should lie"),
        (40, struct.pack("<Q", 2**31), "parts should lie"),
        (48, struct.pack("<Q", 2**64 - 1), "bytes of definitions"),
        (56, struct.pack("<Q", 0), "parts should lie"),
        (64, struct.pack("<Q", 2**63), "parts should lie"),
    ],
)
def test_invalid_header_is_refused_although_its_crc_is_right(offset: int, value: bytes, reason: str) -> None:
    shape = Shape(PAGE, 8, 1 << 16)
    header = bytearray(pack_header(shape, make_info(PAGE)))
    header[offset : offset + len(value)] = value
    header[-4:] = struct.pack("<I", crc32(header[:-4]))
    with pytest.raises(TraceFormatError, match=reason):
        unpack_header(bytes(header), shape.size)


def test_a_header_whose_crc_is_wrong_or_whose_file_was_cut_is_refused() -> None:
    shape = Shape(PAGE, 8, 1 << 16)
    header = pack_header(shape, make_info(PAGE))
    with pytest.raises(TraceFormatError, match="it was cut"):
        unpack_header(header, shape.size - 1)
    with pytest.raises(TraceFormatError, match="no arena"):
        unpack_header(header[:-1], shape.size)
    for byte in range(72, HEADER_SIZE):  # what no other check is of
        flipped = bytearray(header)
        flipped[byte] ^= 1
        with pytest.raises(TraceFormatError, match="crc32"):
            unpack_header(bytes(flipped), shape.size)


# --- the file -------------------------------------------------------------------------------------


def test_new_file_is_private_sparse_and_locked(tmp_path: Path) -> None:
    path = tmp_path / "arena"
    before = os.umask(0)
    try:
        filled = Filled(path, pages=1000)
    finally:
        os.umask(before)
    status = path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size > 1000 * PAGE
    shape = Shape(PAGE, 1000, 1 << 18)
    assert shape.definitions + (1 << 16) <= status.st_blocks * 512 < 400_000, "descriptors and the first definitions"
    with ArenaReader(str(path)) as reader:
        assert reader.is_alive
    filled.release()
    with ArenaReader(str(path)) as reader:
        assert not reader.is_alive


def test_existing_file_is_left_alone_and_error_suggests_a_way_out(tmp_path: Path) -> None:
    def check(path: Path, text: str) -> None:
        content = path.read_bytes()
        with pytest.raises(FileExistsError, match=text):
            Filled(path)
        assert path.read_bytes() == content

    other, alive, dead = tmp_path / "other", tmp_path / "alive", tmp_path / "dead"
    other.write_text("mine")
    check(other, "is no arena: choose another name")
    filled = Filled(alive)
    check(alive, "a running process has its arena there")
    Filled(dead).release()
    check(dead, "`aiotrace restore .*dead -o FILE` makes a trace of it and removes it")
    filled.release()


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(FileExistsError):
        Filled(tmp_path / "link")
    assert not (tmp_path / "target").exists()
    Filled(tmp_path / "arena").release()
    (tmp_path / "other").symlink_to(tmp_path / "arena")
    assert not is_arena(str(tmp_path / "other"))
    for path in (tmp_path, tmp_path / "missing"):
        assert not is_arena(str(path))


def test_file_is_removed_at_the_end_unless_its_name_was_reused(tmp_path: Path) -> None:
    for replaced in (False, True):
        path = tmp_path / f"arena{replaced}"
        filled = Filled(path)
        assert filled.file is not None
        if replaced:
            path.unlink()
            path.write_text("another")
        filled.file.remove()
        filled.file.remove()
        assert path.exists() is replaced


@pytest.mark.parametrize("call", ["posix_fallocate", "ftruncate", "fstat"])
def test_a_file_that_cannot_be_made_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(file.os, call, fail)
        with pytest.raises(OSError, match=r"No space left on device: an arena needs 8 KiB at once"):
            Filled(tmp_path / "arena")
    assert os.listdir(tmp_path) == []


def test_a_page_is_allocated_before_its_first_use_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = Filled(tmp_path / "arena", pages=4)
    allocated: list[int] = []
    real = os.posix_fallocate

    def watch(fd: int, offset: int, size: int) -> None:
        allocated.append(offset)
        assert size == PAGE
        real(fd, offset, size)

    monkeypatch.setattr(file.os, "posix_fallocate", watch)
    for _ in range(300):
        filled.write()
    first = filled.file.shape.first_page if filled.file else 0
    assert allocated == [first + n * PAGE for n in range(4)]
    filled.release()


@pytest.mark.parametrize("overrun", [False, True])
def test_a_full_file_system_refuses_a_page_and_the_events_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrun: bool
) -> None:
    filled = Filled(tmp_path / "arena", pages=8, overrun=overrun)
    real = os.posix_fallocate
    room = [2]

    def fallocate(fd: int, offset: int, size: int) -> None:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= 1
        real(fd, offset, size)

    monkeypatch.setattr(file.os, "posix_fallocate", fallocate)
    for _ in range(300):
        filled.write()
    writer = filled.all[0]
    assert filled.pages.pool.allocated == 2
    assert writer.written + writer.dropped_total == 300
    assert bool(writer.dropped["no_page"]) is not overrun, "the ring keeps the pages that it has"
    room[0] = 1
    filled.write()
    assert filled.pages.pool.allocated == 3 - overrun
    filled.release()


@pytest.mark.root
def test_a_full_tmpfs_does_not_kill_the_program(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(tmp_path)], check=True)
    try:
        filled = Filled(tmp_path / "arena", pages=256, overrun=False)
        for _ in range(20_000):
            filled.write()
        assert 0 < filled.pages.pool.allocated < 60
        assert filled.all[0].dropped["no_page"] > 10_000
        for number in range(10_000):
            filled.definitions.intern(f"a symbol that needs room, number {number}")
            assert filled.file is not None
            filled.file.definitions.follow()
        assert filled.file.definitions.refused > 0
        filled.release()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# --- definitions ----------------------------------------------------------------------------------


def read_definitions(path: Path) -> tuple[list[object], int]:
    with ArenaReader(str(path)) as reader:
        reader.read_definitions()
        assert reader.damage == []
        return list(reader.definitions), reader.definitions_refused


def test_definitions_are_in_the_file_before_they_can_be_used(tmp_path: Path) -> None:
    filled = Filled(tmp_path / "arena")
    table = filled.definitions
    assert filled.file is not None
    table.follow(filled.file.definitions.follow)
    for number in range(50):
        table.intern(f"text {number} ö\0\ud800")
        assert read_definitions(tmp_path / "arena") == (list(table), 0)
    table.name_command(7, "a task")
    table.locate(test_a_full_tmpfs_does_not_kill_the_program.__code__, 3)
    assert read_definitions(tmp_path / "arena") == (list(table), 0)
    table.unfollow(filled.file.definitions.follow)
    table.intern("unseen")
    assert len(read_definitions(tmp_path / "arena")[0]) == len(table) - 1
    filled.release()


def test_definitions_that_do_not_fit_are_refused_and_counted(tmp_path: Path) -> None:
    filled = Filled(tmp_path / "arena", size=20_000)
    table = filled.definitions
    assert filled.file is not None
    table.follow(filled.file.definitions.follow)
    for number in range(500):
        table.intern(f"text {number}")
    found, refused = read_definitions(tmp_path / "arena")
    assert 50 < len(found) < 400
    assert found == table[: len(found)]
    assert refused == filled.file.definitions.refused == len(table) - len(found)
    filled.release()


def test_a_definition_that_is_made_while_one_is_written_is_written_too(tmp_path: Path) -> None:
    filled = Filled(tmp_path / "arena")
    table, area = filled.definitions, filled.file.definitions if filled.file else None
    assert area is not None
    texts = iter(["from a signal handler", "from another"])
    real = area._put

    def put(frames: bytes) -> bool:
        for text in texts:
            table.intern(text)
            break
        return real(frames)

    area._put = put  # type: ignore[method-assign]
    table.follow(area.follow)
    table.intern("the first")
    assert read_definitions(tmp_path / "arena") == (list(table), 0)
    assert {each.text for each in table if isinstance(each, SymbolDefinition)} > {"the first", "from another"}
    filled.release()


def test_an_interrupt_while_a_definition_is_written_loses_none(tmp_path: Path) -> None:
    filled = Filled(tmp_path / "arena")
    table, area = filled.definitions, filled.file.definitions if filled.file else None
    assert area is not None
    table.follow(area.follow)
    real = area._put

    def interrupt(frames: bytes) -> bool:
        area._put = real  # type: ignore[method-assign]
        raise KeyboardInterrupt

    area._put = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        table.intern("interrupted")
    table.intern("the next")
    assert read_definitions(tmp_path / "arena") == (list(table), 0)
    filled.release()


# --- fork -----------------------------------------------------------------------------------------


@pytest.fixture
def child() -> Iterator[list[int]]:
    """The child's pid, for a fork in the test; it is ended afterwards."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_a_copy_and_no_lock(tmp_path: Path, child: list[int]) -> None:
    path = tmp_path / "arena"
    filled = Filled(path)
    filled.write()
    assert filled.file is not None
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            filled.write()
            filled.arena.page(3)[:5] = b"child"
            filled.definitions.intern("child")
            filled.file.definitions.follow()
            filled.file.remove()
            os.write(write_end, b"done")
            signal.pause()
        finally:
            os._exit(1)
    child.append(pid)
    assert os.read(read_end, 4) == b"done"
    os.close(read_end)
    os.close(write_end)
    assert bytes(filled.arena.page(3)[:5]) == bytes(5)
    with ArenaReader(str(path)) as reader:
        copies = [each for each in reader.scan() if not isinstance(each, DamagedPage)]
        assert [copy.events_count for copy in copies] == [1]
        assert list(reader.definitions) == list(filled.definitions)
        assert reader.is_alive
        filled.release()  # the parent is gone, the child lives
        assert not reader.is_alive


def test_checking_whether_a_process_lives_keeps_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "arena"
    Filled(path).release()
    with ArenaReader(str(path)) as reader:
        assert not is_owned(reader.fd)
        with ArenaReader(str(path)) as other:
            fcntl.flock(other.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
