"""What is known of a download that is not finished."""

import pytest

from ringrl.download.partial_file import Remote, forget, load_remote, received, save_remote

URL = "http://host/x.zip"


@pytest.fixture
def partial(tmp_path):
    """Three bytes of ten."""
    path = tmp_path / "x.zip.partial"
    path.write_bytes(b"abc")
    save_remote(path, Remote(URL, 10, '"1"', None))
    return path


def test_a_partial_file_is_continued_from_its_own_address(partial):
    assert received(partial) == 3 and load_remote(partial, URL) == Remote(URL, 10, '"1"', None)
    assert load_remote(partial, "http://host/y.zip") is None


def test_more_bytes_than_the_file_has_or_a_damaged_description_are_not_continued(partial):
    partial.write_bytes(bytes(11))
    assert load_remote(partial, URL) is None
    partial.write_bytes(b"abc")
    for content in ("{", "[1]", '{"url": "x"}'):
        partial.with_name("x.zip.partial.json").write_text(content)
        assert load_remote(partial, URL) is None


def test_nothing_is_left_of_a_forgotten_one(partial):
    forget(partial)
    assert received(partial) == 0 and not list(partial.parent.iterdir())
    forget(partial)


@pytest.mark.parametrize("etag, expected", [('"1"', '"1"'), ('W/"1"', "date"), (None, "date")])
def test_a_weak_etag_does_not_validate(etag, expected):
    assert Remote(URL, 1, etag, "date").validator == expected
