"""Redirects of a download: https stays https, and nothing else than http and https is followed."""

import urllib.request
from http.client import HTTPConnection

import pytest

from ringrl.download.http import fetch
from ringrl.errors import UserError
from tests.download.http_site import Site, running

CONTENT = bytes(range(256)) * 9


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with running(Site(CONTENT)) as site:
        yield site


def redirect(to):
    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def test_https_is_kept_through_redirects(site, tmp_path, monkeypatch):
    """Addresses of https are asked for over a plain connection here, for a server that has no certificate."""
    plain = lambda self, request: self.do_open(HTTPConnection, request)  # noqa: E731
    monkeypatch.setattr(urllib.request.HTTPSHandler, "https_open", plain)
    secure, partial = site.url.replace("http:", "https:"), tmp_path / "x.zip.partial"
    site.faults += [redirect(f"{secure}/b.zip"), redirect(f"{site.url}/c.zip")]
    with pytest.raises(UserError, match=f"{secure}/b.zip: the server redirects to {site.url}/c.zip, which is not enc"):
        fetch(f"{secure}/x.zip", partial, timeout=5.0)
    assert [each["path"] for each in site.requests] == ["/x.zip", "/b.zip"] and not partial.exists()
    site.faults += [redirect(f"{secure}/b.zip")]
    fetch(f"{secure}/x.zip", partial, timeout=5.0)
    assert partial.read_bytes() == CONTENT


def test_redirects_of_http_are_followed_but_not_to_other_kinds(site, tmp_path):
    site.faults += [redirect(f"{site.url}/b.zip")]
    fetch(f"{site.url}/x.zip", tmp_path / "x.zip.partial", timeout=5.0)
    assert (tmp_path / "x.zip.partial").read_bytes() == CONTENT
    site.faults += [redirect("ftp://127.0.0.1/c.zip")]
    with pytest.raises(UserError, match="redirects to ftp://"):
        fetch(f"{site.url}/y.zip", tmp_path / "y.zip.partial", timeout=5.0)
