"""The connections between processes; what happens when one dies is in tests/training/test_processes.py."""

import socket
import threading
import time

import pytest

from ringrl.errors import UserError
from ringrl.training import rendezvous
from ringrl.training.rendezvous import addresses_of, bind_address, connect, listen, wait_for_host


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_coordinator_that_does_not_answer_is_named():
    with pytest.raises(UserError, match="nothing answers at --coordinator 127.0.0.1:.*is process 0 running"):
        wait_for_host(f"127.0.0.1:{free_port()}", 0.3)


def test_strangers_are_not_let_in_and_the_missing_are_named():
    address, accept = listen("127.0.0.1", ["127.0.0.1"], 2, seconds=1.5)
    host, port, _ = address.split("|")

    def visit():
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(b"hello 2\n")
            stranger.recv(1)

    visitor = threading.Thread(target=visit, daemon=True)
    visitor.start()
    friend = connect(address, 1, seconds=5.0)
    with pytest.raises(UserError, match=r"processes \[2\] did not reach process 0 within 2 s"):
        accept()
    visitor.join()
    for peer in friend:
        peer.close()


def test_who_says_nothing_delays_nobody():
    address, accept = listen("localhost", ["127.0.0.1"], 2, seconds=30.0)
    host, port, token = address.split("|")
    said = (b"", b"he", f"{token} 3\n".encode(), f"{token} 0\n".encode(), f"{token}\n".encode(), b"x" * 500)
    strangers = [socket.create_connection((host, int(port))) for _ in said]
    for stranger, words in zip(strangers, said, strict=True):
        stranger.sendall(words)
    friends = [connect(address, me, seconds=5.0) for me in (2, 1)]
    for friend in friends:
        (peer,) = friend
        peer.sendall(b".\nend now\n")  # with the token in one packet: it belongs to the heartbeat
    began = time.monotonic()
    peers = accept()
    assert time.monotonic() - began < 3 and sorted(peers.values()) == [1, 2]
    for peer in peers:
        assert peer.recv(100) == b".\nend now\n"
    for stranger in strangers:
        stranger.settimeout(5)
        try:
            assert stranger.recv(1) == b""
        except ConnectionResetError:
            assert stranger is strangers[-1]  # what it sent was not all read
    for each in (*strangers, *peers, *(peer for friend in friends for peer in friend)):
        each.close()


def test_who_takes_a_number_that_is_taken_is_closed_and_so_is_who_waits_too_long(monkeypatch):
    monkeypatch.setattr(rendezvous, "_TOKEN_SECONDS", 0.3)
    monkeypatch.setattr(rendezvous, "_STRANGERS", 1)
    address, accept = listen("localhost", ["127.0.0.1"], 2, seconds=2.5)
    host, port, _ = address.split("|")
    friend, again = (connect(address, 1, seconds=5.0) for _ in range(2))
    flood = [socket.create_connection((host, int(port))) for _ in range(20)]
    with pytest.raises(UserError, match=r"processes \[2\] did not reach"):
        accept()
    assert flood[-1].recv(1) == b""
    for each in (*flood, *friend, *again):
        each.close()


def test_it_listens_on_one_interface_alone(caplog):
    """127.0.0.2 is another interface than 127.0.0.1 is, but of this machine."""
    for known, where in ((["127.0.0.1"], "127.0.0.1"), (["127.0.0.2", "127.0.0.1"], "127.0.0.2")):
        address, accept = listen("node7", known, 1, seconds=5.0)
        host, port, _ = address.split("|")
        assert host == where
        for other in {"127.0.0.1", "127.0.0.2", "127.0.0.3"} - {where}:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((other, int(port)), timeout=5)
        friend = connect(address, 1, seconds=5.0)
        (peer,) = accept()
        for each in (peer, *friend):
            each.close()
        with pytest.raises(ConnectionRefusedError):  # all have come
            socket.create_connection((where, int(port)), timeout=5)
    assert not caplog.text


def test_behind_a_gateway_it_listens_on_all_interfaces_and_says_so(caplog):
    """192.0.2.1 is no machine's address: it is for documentation. The loopback that some see is not the others'."""
    address, accept = listen("127.0.0.1", ["192.0.2.1", "127.0.0.1"], 1, seconds=5.0)
    assert address.startswith("127.0.0.1|") and "listens on all interfaces" in caplog.text
    friend = connect(address, 1, seconds=5.0)
    for each in (*accept(), *friend):
        each.close()


def test_jaxs_own_service_listens_at_the_coordinators_address(monkeypatch):
    port = free_port()
    assert bind_address(f"127.0.0.1:{port}") == bind_address(f"localhost:{port}") == f"127.0.0.1:{port}"
    assert bind_address(f"192.0.2.1:{port}") is None
    monkeypatch.setattr(rendezvous, "addresses_of", lambda host: ["127.0.1.1"])
    assert bind_address(f"node7:{port}") is None  # others know another address of it
    monkeypatch.undo()
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "0.0.0.0:1")
    assert bind_address(f"127.0.0.1:{port}") is None
    assert addresses_of("no.such.host.invalid") == []
