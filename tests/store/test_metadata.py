"""What is said of a store whose server answers, but not as it should."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ringrl.errors import UserError
from ringrl.store.episode_store import open_store
from tests.store.test_episode_store import TASKS, build, make_episode


class Server(SimpleHTTPRequestHandler):
    """Python's own, which sends whole files only, and refuses what lies under /secret."""

    def do_GET(self):
        if self.path.startswith("/secret"):
            return self.send_error(403)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def url(tmp_path):
    """The URL of `tmp_path`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_servers_page_is_not_quoted(url):
    with pytest.raises(UserError, match="Forbidden .HTTP code 403.; check the address and the network") as caught:
        open_store(f"{url}/secret/walker")
    assert "http_response_body" not in str(caught.value) and "html" not in str(caught.value)


def test_a_server_that_sends_whole_files_only_is_no_damaged_store(tmp_path, url):
    build(tmp_path / "walker", [make_episode(5, 0)])
    with pytest.raises(UserError, match="ignored by server; take a server that answers requests for ranges of bytes"):
        open_store(f"{url}/walker").read(0, 0, 5, TASKS[0])
