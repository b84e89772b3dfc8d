"""A heartbeat between the processes of a run: where one fails, all end at once with one line that says why.

JAX has a heartbeat of its own (`jax.distributed.initialize(heartbeat_timeout_seconds=...)`), and launchers end the
other tasks of a job when one fails. What neither does is the reason for this file. Measured with jax 0.10.2, two
processes and a timeout of 10 s, JAX's alone: of a killed process the other learns after 10.8 s, of a stopped one after
10.0 s, and it ends by SIGABRT with 12 to 52 lines of a C++ stack trace, which name neither the process nor the reason;
an exception in one process does not reach the other at all before it is gone. A launcher's `srun --kill-on-bad-exit`
ends the others without a reason, and plain hosts have no launcher.

So process 0 keeps a TCP connection with each of the others. The kernel closes a killed process's sockets, which the
others see at once (0.4 s); a machine that was lost is found by the missing heartbeat; and a process that fails sends
its reason. JAX's timeout is set longer than this one and stays as the last resort.
"""

import os
import selectors
import socket
import sys
import threading
import time

from ringrl.files import clean_up

# Messages, a line each: a heartbeat; the end of all, with its reason; the regular end of this process.
BEAT, END, FINISHED = b".", b"end ", b"finished"
_SEND_SECONDS = 5.0
_END_SECONDS = 2.0  # in which the others should have received the reason


class Heartbeat:
    """This process's connections: process 0's with every other, or another's with process 0.

    A daemon thread sends and receives. When a peer sends END, closes its connection without FINISHED, or has sent
    nothing for `timeout` seconds, the reason goes to all, and all end with one line and status 1.
    """

    def __init__(self, me: int, peers: dict[socket.socket, int], timeout: float):
        """Start watching.

        Args:
            me: this process's number.
            peers: connected sockets, with the other process's number.
            timeout: seconds.
        """
        self._me, self._peers, self._timeout = me, peers, timeout
        self._ending = threading.Event()  # this process ends by itself, so messages no longer matter
        self._closed = threading.Event()
        self._finished: set[int] = set()
        self._sending = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="ringrl heartbeat", daemon=True)
        self._thread.start()

    def fail(self, reason: str) -> None:
        """Send the others the reason for which this process ends, and give them a moment to receive it."""
        self._ending.set()
        self._send(END + f"process {self._me}: {reason}".replace("\n", " ").encode())
        self._thread.join(_END_SECONDS)  # it ends when they have closed their connections

    def wait_for_end(self, seconds: float) -> None:
        """Let a peer's END finish this process first: a collective's error does not say which peer died and why."""
        self._thread.join(seconds)

    def close(self) -> None:
        """End regularly; process 0 first waits until all the others have."""
        deadline = time.monotonic() + self._timeout
        while self._me == 0 and len(self._finished) < len(self._peers) and time.monotonic() < deadline:
            time.sleep(0.02)
        self._ending.set()
        self._send(FINISHED)
        self._closed.set()
        self._thread.join(_SEND_SECONDS)

    def _watch(self) -> None:
        selector = selectors.DefaultSelector()
        last = {}  # when each peer was last heard of
        for peer in self._peers:
            peer.settimeout(_SEND_SECONDS)
            selector.register(peer, selectors.EVENT_READ, bytearray())
            last[peer] = time.monotonic()
        sent = 0.0
        while last and not self._closed.is_set():
            for key, _ in selector.select(0.2):
                peer: socket.socket = key.fileobj  # pyright: ignore[reportAssignmentType]
                last[peer] = time.monotonic()
                if not self._receive(peer, key.data):
                    selector.unregister(peer)
                    del last[peer]
            now = time.monotonic()
            if now > sent + self._timeout / 8:
                sent = now
                self._send(BEAT)
            for peer, when in last.items():
                if now > when + self._timeout and self._peers[peer] not in self._finished:
                    silent = f"process {self._peers[peer]} has been silent for {self._timeout:.0f} s"
                    self._end(f"{silent}: it hangs, or its machine failed; go on with --resume")

    def _receive(self, peer: socket.socket, buffer: bytearray) -> bool:
        """Read a peer's messages; False when its connection is over."""
        number = self._peers[peer]
        try:
            data = peer.recv(4096)
        except OSError:
            data = b""
        *lines, rest = bytes(buffer + data).split(b"\n")
        buffer[:] = rest
        for line in lines:
            if line == FINISHED:
                self._finished.add(number)
            elif line.startswith(END):
                if self._ending.is_set():
                    return False
                self._end(line.removeprefix(END).decode(errors="replace"))
        if not data and number not in self._finished:
            self._end(f"process {number} is gone: it was killed or its machine failed; go on with --resume")
        return bool(data)

    def _end(self, reason: str) -> None:
        """End this process at once: its main thread may wait in a collective that nothing interrupts."""
        if self._ending.is_set():
            return
        self._send(END + reason.encode())
        print(f"ringrl: {reason}", file=sys.stderr, flush=True)
        if self._me == 0:  # JAX ends processes that outlive process 0 with a stack trace
            deadline = time.monotonic() + _END_SECONDS
            for peer in self._peers:
                _wait_until_closed(peer, deadline)
        clean_up()
        os._exit(1)

    def _send(self, message: bytes) -> None:
        with self._sending:
            for peer in self._peers:
                try:
                    peer.sendall(message + b"\n")
                except OSError:
                    continue  # the next receive finds that it is gone


def _wait_until_closed(peer: socket.socket, deadline: float) -> None:
    try:
        peer.settimeout(max(deadline - time.monotonic(), 0.001))
        while peer.recv(4096):
            peer.settimeout(max(deadline - time.monotonic(), 0.001))
    except OSError:
        return
