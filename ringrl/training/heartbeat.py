"""Sockets that tell every process of a run, at once, that another has failed or is gone.

JAX's own heartbeat finds a dead process too, but late, and ends the others with a C++ stack trace; a collective that
waits for a dead peer may wait for ever. So process 0 keeps a TCP connection with each of the others. The kernel closes
a killed process's sockets, which is known at once; a machine that vanished is known by its silence.
"""

import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable

from ringrl.errors import UserError

PING, END, BYE = b".", b"end ", b"bye"
_SEND_SECONDS = 5.0
_LAST_WORDS_SECONDS = 2.0


class Heartbeat:
    """This process's connections: process 0's with every other, or another's with process 0.

    A daemon thread sends pings and listens. When a peer says that it ends, closes without a farewell, or has been
    silent for `silence` seconds, the news goes to all, and all end with one line and status 1.
    """

    def __init__(self, me: int, peers: dict[socket.socket, int], silence: float):
        """Start watching. `peers` maps connected sockets to the other process's number."""
        self._me, self._peers, self._silence = me, peers, silence
        self._leaving = threading.Event()  # the end is known; no more news is needed
        self._finished = threading.Event()
        self._parted: set[int] = set()
        self._sending = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="ringrl lifeline", daemon=True)
        self._thread.start()

    def fail(self, reason: str) -> None:
        """Tell the others that this process ends for `reason`, and give them a moment to hear it."""
        self._leaving.set()
        self._tell(END + f"process {self._me}: {reason}".replace("\n", " ").encode())
        self._thread.join(_LAST_WORDS_SECONDS)  # it ends when they have heard

    def wait_for_news(self, seconds: float) -> None:
        """Let the lifeline end this process first: what breaks when a peer dies often cannot say which and why."""
        self._thread.join(seconds)

    def close(self) -> None:
        """Part in peace; process 0 first waits until all the others have done so."""
        deadline = time.monotonic() + self._silence
        while self._me == 0 and len(self._parted) < len(self._peers) and time.monotonic() < deadline:
            time.sleep(0.02)
        self._leaving.set()
        self._tell(BYE)
        self._finished.set()
        self._thread.join(_SEND_SECONDS)

    def _watch(self) -> None:
        selector = selectors.DefaultSelector()
        heard = {}
        for peer in self._peers:
            peer.settimeout(_SEND_SECONDS)
            selector.register(peer, selectors.EVENT_READ, bytearray())
            heard[peer] = time.monotonic()
        pinged = 0.0
        while heard and not self._finished.is_set():
            for key, _ in selector.select(0.2):
                peer: socket.socket = key.fileobj  # pyright: ignore[reportAssignmentType]
                heard[peer] = time.monotonic()
                if not self._hear(peer, key.data):
                    selector.unregister(peer)
                    del heard[peer]
            now = time.monotonic()
            if now > pinged + self._silence / 8:
                pinged = now
                self._tell(PING)
            for peer, when in heard.items():
                if now > when + self._silence and self._peers[peer] not in self._parted:
                    silent = f"process {self._peers[peer]} has been silent for {self._silence:.0f} s"
                    self._end(f"{silent}: it hangs, or its machine failed; go on with --resume")

    def _hear(self, peer: socket.socket, buffer: bytearray) -> bool:
        """Take in what a peer sends; False when its connection is over."""
        number = self._peers[peer]
        try:
            data = peer.recv(4096)
        except OSError:
            data = b""
        *lines, rest = bytes(buffer + data).split(b"\n")
        buffer[:] = rest
        for line in lines:
            if line == BYE:
                self._parted.add(number)
            elif line.startswith(END):
                if self._leaving.is_set():
                    return False
                self._end(line.removeprefix(END).decode(errors="replace"))
        if not data and number not in self._parted:
            self._end(f"process {number} is gone: it was killed or its machine failed; go on with --resume")
        return bool(data)

    def _end(self, news: str) -> None:
        """End this process wherever it is: its main thread may wait in a collective that nothing interrupts."""
        if self._leaving.is_set():
            return
        self._tell(END + news.encode())
        print(f"ringrl: {news}", file=sys.stderr, flush=True)
        if self._me == 0:  # JAX ends those that outlive process 0 in a noisier way
            deadline = time.monotonic() + _LAST_WORDS_SECONDS
            for peer in self._peers:
                _wait_until_closed(peer, deadline)
        os._exit(1)

    def _tell(self, message: bytes) -> None:
        with self._sending:
            for peer in self._peers:
                try:
                    peer.sendall(message + b"\n")
                except OSError:
                    continue  # that it is gone is found where it is listened to


def _wait_until_closed(peer: socket.socket, deadline: float) -> None:
    try:
        peer.settimeout(max(deadline - time.monotonic(), 0.001))
        while peer.recv(4096):
            peer.settimeout(max(deadline - time.monotonic(), 0.001))
    except OSError:
        return


def wait_for_host(address: str, seconds: float) -> None:
    """Return as soon as something listens at host:port; JAX, where nothing does, aborts with a C++ stack trace.

    Raises UserError when nothing does within `seconds`.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"nothing answers at --coordinator {address} ({error}): is process 0 running?"
                ) from error
            time.sleep(0.2)


def invite(host: str, count: int, seconds: float) -> tuple[str, Callable[[], dict[socket.socket, int]]]:
    """Process 0's side: the address to give to the `count` others, and a function that waits until all have called.

    Raises UserError, from that function, when they have not within `seconds`.
    """
    server = socket.create_server(("", 0), backlog=max(count, 1), dualstack_ipv6=False)
    token = secrets.token_hex(16)  # strangers who find the port are not listened to
    address = f"{host}|{server.getsockname()[1]}|{token}"

    def welcome() -> dict[socket.socket, int]:
        peers: dict[socket.socket, int] = {}
        deadline = time.monotonic() + seconds
        with server:
            while len(peers) < count:
                server.settimeout(max(deadline - time.monotonic(), 0.001))
                try:
                    peer, _ = server.accept()
                    peer.settimeout(_SEND_SECONDS)
                    said, _, number = peer.recv(128).strip().partition(b" ")
                except TimeoutError:
                    if time.monotonic() < deadline:
                        continue
                    missing = sorted(set(range(1, count + 1)) - set(peers.values()))
                    for peer in peers:
                        peer.close()
                    raise UserError(f"processes {missing} did not reach process 0 within {seconds:.0f} s") from None
                except OSError:  # a stranger that hung up
                    continue
                if secrets.compare_digest(said, token.encode()):
                    peers[peer] = int(number)
                else:
                    peer.close()
        return peers

    return address, welcome


def call(address: str, me: int, seconds: float) -> dict[socket.socket, int]:
    """Another process's side: connect to process 0 at the `address` that it gave. Raises UserError if it cannot."""
    host, port, token = address.split("|")
    try:
        peer = socket.create_connection((host, int(port)), timeout=seconds)
        peer.sendall(f"{token} {me}\n".encode())
    except OSError as error:
        raise UserError(
            f"process {me} cannot reach process 0 at {host}:{port} ({error}): open the ports between the hosts"
        ) from error
    return {peer: 0}
