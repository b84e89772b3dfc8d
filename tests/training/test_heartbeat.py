"""The connections between processes; what happens when one dies is in tests/training/test_processes.py."""

import socket
import threading

import pytest

from ringrl.errors import UserError
from ringrl.training.heartbeat import connect, listen, wait_for_host


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_coordinator_that_does_not_answer_is_named():
    with pytest.raises(UserError, match="nothing answers at --coordinator 127.0.0.1:.*is process 0 running"):
        wait_for_host(f"127.0.0.1:{free_port()}", 0.3)


def test_strangers_are_not_let_in_and_the_missing_are_named():
    address, accept = listen("127.0.0.1", 2, seconds=1.5)
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
