"""How the processes of a run reach process 0 for their heartbeat: who may connect, and where it listens.

Process 0 listens on one interface, that of the coordinator's address: on the loopback where all processes are on its
machine. Who connects must say the run's token, which it finds in the key-value store of `jax.distributed`; who says
nothing, or something else, is closed and delays nobody.
"""

import ipaddress
import logging
import os
import secrets
import selectors
import socket
import time
from collections.abc import Callable, Iterable

from ringrl.errors import UserError

_log = logging.getLogger(__name__)

_TOKEN_SECONDS = 10.0  # in which a connection must have said the token
_LONGEST = 128  # bytes of the token and a number
_STRANGERS = 64  # connections beside those expected that may be waiting to speak; the oldest is closed for another


def wait_for_host(address: str, seconds: float) -> None:
    """Return as soon as something listens at `address`, HOST:PORT; where nothing does, JAX aborts with a stack trace.

    Raises:
        UserError: if nothing does within `seconds`.
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


def addresses_of(host: str) -> list[str]:
    """The addresses of `host` as this machine knows them, those of IPv4 first; empty where it knows none."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return sorted(dict.fromkeys(str(address[0]) for *_, address in found), key=lambda address: ":" in address)


def bind_address(coordinator: str) -> str | None:
    """Where JAX's own service, which asks for no token, should listen, as ADDRESS:PORT; None: JAX is to choose.

    A name that is only the loopback here may be another address elsewhere, so that it says nothing. Where the user has
    said it to JAX (`JAX_COORDINATOR_BIND_ADDRESS`), that holds.

    Args:
        coordinator: HOST:PORT of this process.
    """
    host, _, port = coordinator.rpartition(":")
    host = host.strip("[]")
    for address in () if "JAX_COORDINATOR_BIND_ADDRESS" in os.environ else addresses_of(host):
        if _is_loopback(address) and host not in ("localhost", address):
            continue
        try:
            _listen_at(address, 1).close()
        except OSError:  # it is not of this machine: of a gateway
            continue
        return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return None


def listen(
    host: str, seen: Iterable[str], count: int, seconds: float
) -> tuple[str, Callable[[], dict[socket.socket, int]]]:
    """Process 0's side of the connections.

    Args:
        host: the name by which the others reach process 0.
        seen: the addresses of `host` as the others know them (`addresses_of`). It listens at one of them: at the
            loopback where they know no other. Where none is this machine's, as behind a gateway, it listens on all
            interfaces, and the log says so.
        count: the number of the others.
        seconds: in which all should have connected.

    Returns:
        The address for `connect`, and a function that waits for the others and returns their sockets and numbers; it
        raises UserError if they have not connected in time.
    """
    known = list(dict.fromkeys(seen))
    outside = [address for address in known if not _is_loopback(address)]
    at, server = host, None
    for address in outside or known:
        try:
            at, server = address, _listen_at(address, count)
            break
        except OSError:
            continue
    if server is None:
        _log.warning("%s is no address of this machine: the heartbeat listens on all interfaces", host)
        at, server = host, socket.create_server(("", 0), backlog=count + 64)
    token = secrets.token_hex(16)
    return f"{at}|{server.getsockname()[1]}|{token}", lambda: _Door(server, token, count).wait(seconds)


def connect(address: str, me: int, seconds: float) -> dict[socket.socket, int]:
    """The other processes' side: process `me`'s socket, connected with process 0 at the `address` that it gave.

    Raises:
        UserError: if process 0 cannot be reached.
    """
    host, port, token = address.split("|")
    try:
        peer = socket.create_connection((host, int(port)), timeout=seconds)
        peer.sendall(f"{token} {me}\n".encode())
    except OSError as error:
        raise UserError(
            f"process {me} cannot reach process 0 at {host}:{port} ({error}): open the ports between the hosts"
        ) from error
    return {peer: 0}


class _Door:
    """A listening socket, and the connections that have not said the token yet."""

    def __init__(self, server: socket.socket, token: str, count: int):
        self._server, self._token, self._count = server, token.encode(), count
        self._selector = selectors.DefaultSelector()
        self._waiting: dict[socket.socket, tuple[float, bytearray]] = {}  # until when, and what it has said so far
        self._peers: dict[socket.socket, int] = {}

    def wait(self, seconds: float) -> dict[socket.socket, int]:
        deadline = time.monotonic() + seconds
        self._server.setblocking(False)
        self._selector.register(self._server, selectors.EVENT_READ)
        try:
            while len(self._peers) < self._count:
                if time.monotonic() > deadline:
                    missing = sorted(set(range(1, self._count + 1)) - set(self._peers.values()))
                    for peer in self._peers:
                        peer.close()
                    raise UserError(f"processes {missing} did not reach process 0 within {seconds:.0f} s")
                for key, _ in self._selector.select(0.2):
                    other: socket.socket = key.fileobj  # pyright: ignore[reportAssignmentType]
                    if other is self._server:
                        self._greet()
                    elif other in self._waiting:
                        self._hear(other)
                for stranger in [each for each, (until, _) in self._waiting.items() if time.monotonic() > until]:
                    self._close(stranger)
        finally:
            for stranger in list(self._waiting):
                self._close(stranger)
            self._selector.close()
            self._server.close()
        return self._peers

    def _greet(self) -> None:
        try:
            other, _ = self._server.accept()
        except OSError:  # it was closed again
            return
        if len(self._waiting) >= self._count + _STRANGERS:
            self._close(next(iter(self._waiting)))
        other.setblocking(False)
        self._selector.register(other, selectors.EVENT_READ)
        self._waiting[other] = time.monotonic() + _TOKEN_SECONDS, bytearray()

    def _hear(self, other: socket.socket) -> None:
        """Read to the end of the first line, and no further: what follows is the heartbeat's."""
        said = self._waiting[other][1]
        try:
            while not said.endswith(b"\n"):
                byte = other.recv(1)
                if not byte or len(said) == _LONGEST:
                    return self._close(other)
                said += byte
        except BlockingIOError:
            return None
        except OSError:
            return self._close(other)
        token, _, number = bytes(said).strip().partition(b" ")
        free = {str(each).encode() for each in set(range(1, self._count + 1)) - set(self._peers.values())}
        if not (secrets.compare_digest(token, self._token) and number in free):
            return self._close(other)
        self._selector.unregister(other)
        del self._waiting[other]
        other.setblocking(True)
        self._peers[other] = int(number)
        return None

    def _close(self, other: socket.socket) -> None:
        self._selector.unregister(other)
        del self._waiting[other]
        other.close()


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _listen_at(address: str, count: int) -> socket.socket:
    """A listening socket at a free port. OSError: the address is not of this machine."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, 0), family=family, backlog=count + 64)
