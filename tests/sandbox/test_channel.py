"""Test frames between the host and one guest: written whole and in order, read in turns, and never kept for ever."""

import asyncio
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

import pytest

from aca_sessions.sandbox import wire
from aca_sessions.sandbox.session.channel import Channel, Inbox, Outbox, UnfinishedFrames

LARGE = 3_000_000  # bytes of one frame: more than any socket's buffer holds


@pytest.fixture
def link() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        yield ours, theirs


async def read(theirs: socket.socket, count: int) -> list[bytes]:
    """Return the next payloads, as the guest reads them."""
    frames, payloads = wire.Frames(1 << 30), list[bytes]()
    while len(payloads) < count:
        payloads += frames.feed(await asyncio.get_running_loop().sock_recv(theirs, 1 << 16))
    return payloads


def framed(letter: str, size: int = LARGE) -> bytes:
    return struct.pack("<I", size) + letter.encode() * size


async def test_frames_sent_in_parallel_arrive_whole_and_in_order(link: tuple[socket.socket, socket.socket]) -> None:
    outbox = Outbox(link[0])
    sent = [outbox.put(framed(letter, size)) for letter in "abcd" for size in (LARGE, 10)]
    payloads = await read(link[1], 8)
    assert [(payload[:1], len(payload)) for payload in payloads] == [(letter.encode(), size) for letter in "abcd" for size in (LARGE, 10)]
    assert all(len({*payload}) == 1 for payload in payloads)
    await asyncio.gather(*sent)
    assert (len(outbox), outbox.size) == (0, 0)


async def test_a_frame_whose_sender_is_cancelled_is_sent_whole_or_not_at_all(link: tuple[socket.socket, socket.socket]) -> None:
    outbox = Outbox(link[0])
    begun, waiting = outbox.put(framed("a")), outbox.put(framed("b"))
    begun.cancel()
    waiting.cancel()
    last = outbox.put(framed("c"))
    payloads = await read(link[1], 2)
    assert [{*payload} for payload in payloads] == [{*b"a"}, {*b"c"}]
    await last


async def test_descriptors_are_sent_with_the_first_byte_of_their_own_frame(link: tuple[socket.socket, socket.socket]) -> None:
    outbox, (end, other) = Outbox(link[0]), os.pipe()
    sent = [outbox.put(framed("a")), outbox.put(framed("b", 10), [end]), outbox.put(framed("c", 10), [other])]
    sent[2].cancel()
    received, brought = b"", list[int]()
    while len(received) < LARGE + 18:
        try:
            data, descriptors, _, _ = socket.recv_fds(link[1], 1 << 16, 4)
        except BlockingIOError:
            await asyncio.sleep(0)
            continue
        received, brought = received + data, brought + descriptors
    assert (received[-10:], [os.fstat(one).st_ino for one in brought]) == (b"b" * 10, [os.fstat(end).st_ino])
    for descriptor in (end, other, *brought):
        os.close(descriptor)


async def test_no_sender_waits_for_a_guest_that_is_gone(link: tuple[socket.socket, socket.socket]) -> None:
    outbox = Outbox(link[0])
    waiting = outbox.put(framed("a"))
    link[1].close()
    await waiting
    await outbox.put(framed("b"))
    assert outbox.size == 0


class Guest:
    """The guest's end of a pipe, and the payloads that the host read from it."""

    def __init__(self, unfinished_frames: UnfinishedFrames) -> None:
        end, self.pipe = os.pipe()
        self.inbox = Inbox(end, unfinished_frames=unfinished_frames)
        self.taken: list[int] = []
        self.on_refused, self.on_end = asyncio.Event(), asyncio.Event()
        self._writers: list[threading.Thread] = []

    def listen(self) -> None:
        def take(payload: bytes) -> None:
            self.taken.append(len(payload))

        self.inbox.listen(take, most=wire.MAX_FROM_GUEST, on_refused=self.on_refused.set, on_end=self.on_end.set)

    def write(self, data: bytes) -> None:
        """Write from a thread, since a full pipe blocks the writer."""
        self._writers.append(threading.Thread(target=partial(self._write, memoryview(data))))
        self._writers[-1].start()

    def _write(self, data: memoryview) -> None:
        try:
            while data:
                data = data[os.write(self.pipe, data) :]
        except BrokenPipeError:
            pass

    def close(self) -> None:
        self.inbox.close()
        for writer in self._writers:
            writer.join()
        os.close(self.pipe)


@pytest.fixture
async def guests() -> AsyncIterator[list[Guest]]:
    unfinished_frames = UnfinishedFrames(40 << 20)
    made = [Guest(unfinished_frames) for _ in range(3)]
    for guest in made:
        guest.listen()
    yield made
    for guest in made:
        guest.close()
    assert unfinished_frames.size == 0


async def until(reached: Callable[[], bool]) -> None:
    while not reached():
        await asyncio.sleep(0)


async def test_a_flood_of_frames_leaves_other_guests_their_turn(guests: list[Guest]) -> None:
    guest, in_a_turn = guests[0], list[int]()
    guest.write(framed("a", 60) * 5000)
    while len(guest.taken) < 5000:
        before = len(guest.taken)
        await asyncio.sleep(0)
        in_a_turn.append(len(guest.taken) - before)
    assert max(in_a_turn) < 100


async def test_a_flood_is_throttled_after_its_burst(guests: list[Guest]) -> None:
    guest, count = guests[0], 200_000
    guest.write(framed("a", 60) * count)
    await until(lambda: len(guest.taken) > 5000)
    for _ in range(count // 64 + 1):  # as many turns as would be enough without throttling
        await asyncio.sleep(0)
    assert len(guest.taken) < count


async def test_the_end_of_a_pipe_comes_after_its_frames(guests: list[Guest]) -> None:
    guest = guests[0]
    guest.write(framed("a", 60) * 500)
    guest._writers[0].join(5)
    spare = os.open(os.devnull, os.O_RDONLY)
    os.dup2(spare, guest.pipe)
    os.close(spare)
    await guest.on_end.wait()
    assert (len(guest.taken), guest.on_refused.is_set()) == (500, False)


async def test_what_a_guest_wrote_before_it_ended_is_read(guests: list[Guest]) -> None:
    guest = guests[0]
    os.write(guest.pipe, framed("a", 60) * 500)
    guest.inbox.finish()
    assert len(guest.taken) == 500


async def test_a_large_frame_arrives(guests: list[Guest]) -> None:
    guests[0].write(framed("a", 30 << 20) + framed("b", 5))
    await until(lambda: len(guests[0].taken) == 2)
    assert guests[0].taken == [30 << 20, 5]


async def test_a_frame_over_the_current_limit_is_refused_before_it_is_read(guests: list[Guest]) -> None:
    guest = guests[0]
    guest.inbox.most = 1000
    guest.write(framed("a", 1000) + struct.pack("<I", 1001))
    await guest.on_refused.wait()
    assert guest.taken == [1000]


async def test_the_first_of_the_unfinished_frames_over_the_limit_is_dropped(guests: list[Guest]) -> None:
    first, second, third = guests
    unfinished_frames, size = first.inbox._unfinished_frames, 15 << 20
    for guest in (first, second):
        guest.write(struct.pack("<I", 2 * size) + bytes(size))
    await until(lambda: unfinished_frames.size >= 2 * size)
    oldest, other = unfinished_frames._held
    third.write(framed("a", size))
    await until(lambda: bool(third.taken))
    assert [guest.on_refused.is_set() for guest in guests] == [guest.inbox is oldest for guest in guests]
    (second if other is second.inbox else first).write(bytes(size))
    await until(lambda: bool(first.taken or second.taken))


async def test_text_written_after_a_frame_is_reported_after_it(link: tuple[socket.socket, socket.socket]) -> None:
    (frames, send), (out, stdout), (err, stderr) = os.pipe(), os.pipe(), os.pipe()
    channel, seen = Channel(link[0], frames, (out, err), limit=1000), list[str]()

    def take(text: str) -> None:
        seen.append(text)
        if text == "A":  # now that its text was read, the guest sends a frame and writes on at once
            os.write(send, framed("f", 1))
            os.write(stdout, b"B")

    channel.streams[0].forward(take)
    channel.listen(lambda payload: seen.append(payload.decode()), most=10, on_refused=lambda: None, on_end=lambda: None)
    os.write(stdout, b"A")
    await until(lambda: len(seen) == 3)
    channel.close()
    for end in (send, stdout, stderr):
        os.close(end)
    assert seen == ["A", "f", "B"]
