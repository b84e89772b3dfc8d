"""The data-set card: its numbers on stores that can be checked by eye, its words, and its page in a real browser."""

import json
import re

import numpy as np
import pytest

from ringrl.card.card_page import describe, write_card
from ringrl.card.card_sample import principal_components
from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.store.episode_store import DataSource, build, open_store
from tests.reporting.browser import check_drawing, check_width, each_scheme, each_width, needs_browser


def make_store(path, returns, lengths=None, observation=3, action=0.5, tasks=None, ends=(), **provenance):
    """A store whose source s has an episode for each of `returns[s]`, which is a number or one for each task.

    Episodes `ends` really end.
    """
    rng = np.random.default_rng(0)
    rows = [(source, np.atleast_1d(value)) for source, mine in enumerate(returns) for value in mine]
    tasks = tasks or [f"walker_{index}" for index in range(len(rows[0][1]))]

    def episodes():
        for index, (source, value) in enumerate(rows):
            length = 10 if lengths is None else lengths[index]
            reward = np.zeros((length, len(tasks)), np.float32)
            reward[-1] = value
            seen = rng.normal(size=(length + 1, observation)).astype(np.float32)
            seen[:, 0] = 7
            acted, discount = np.full((length, 2), action, np.float32), np.ones(length, np.float32)
            discount[-1] = index not in ends
            yield Episode(seen, acted, reward, discount, rng.normal(size=(length + 1, 4))), source

    sources = [DataSource(f"walker/{chr(97 + index)}", "x", f"c{index % 3}") for index in range(len(returns))]
    about = {"relabel": "exact"} | provenance
    return build(path, episodes(), domain="walker", tasks=tasks, sources=sources, provenance=about)


def card_of(store):
    return json.loads(json.dumps(describe(open_store(store))[0], allow_nan=False))


@pytest.mark.parametrize(
    ("ends", "note", "unit"),
    [
        ((), None, "none really ends"),
        ((1,), "1 of 4 episodes really end (discount 0); the others stop at a time limit.", "1 of 4 really end"),
        ((0, 1, 2, 3), "All 4 episodes really end (discount 0).", "all really end"),
    ],
)
def test_how_many_episodes_really_end_is_said_as_it_is(ends, note, unit, tmp_path):
    page = write_card(make_store(tmp_path / "s", [[1, 2, 3, 4]], ends=ends))
    card = json.loads(page.with_name("card.json").read_text())
    assert [each for each in card["notes"] if "really end" in each] == ([note] if note else [])
    assert card["coverage"]["ending_episodes"] == len(ends) and unit in page.read_text()


def test_of_a_large_store_it_is_said_how_many_were_looked_at(tmp_path):
    card = card_of(make_store(tmp_path / "s", [range(500)], ends=range(500)))
    drawn = card["coverage"]["sampled_episodes"]
    assert drawn < 500 and card["coverage"]["ending_episodes"] == drawn
    assert f"All {drawn} episodes that were looked at, of 500 in all, really end (discount 0)." in card["notes"]


def test_counts_and_returns_are_those_of_every_episode(tmp_path):
    card = card_of(make_store(tmp_path / "s", [[1, 2, 3, 4], [9, 8]], lengths=[5, 5, 5, 5, 20, 20]))
    assert (card["episodes"], card["steps"], card["domain"], card["store"]) == (6, 60, "walker", "s")
    assert card["widths"] == {"observation": 3, "action": 2, "reward": 1, "physics": 4}
    assert card["episode_length"] == {"min": 5, "median": 5, "max": 20}
    assert [(each["name"], each["share"]) for each in card["sources"]] == [
        ("walker/a", 0.333333),
        ("walker/b", 0.666667),
    ]
    task = card["tasks"]["walker_0"]
    assert task["quantiles"] == {"0": 1, "0.1": 1.5, "0.5": 3.5, "0.9": 8.5, "1": 9}
    assert sum(task["histogram"]) == 6 and task["mean"] == 4.5
    assert [each["monotonicity"] for each in task["sources"]] == [1, -1]
    assert [each["persistence"] for each in task["sources"]] == [1, 0]  # two episodes are too few to measure it
    for whole, *parts in zip(task["histogram"], *(each["histogram"] for each in task["sources"]), strict=True):
        assert whole == sum(parts)
    size = sum(path.stat().st_size for path in (tmp_path / "s").rglob("*") if path.is_file())
    assert card["bytes"] == size


def test_coverage_is_of_equally_many_steps_of_every_source(tmp_path):
    card = card_of(make_store(tmp_path / "s", [range(60), range(3)]))
    coverage = card["coverage"]
    assert coverage["sampled_episodes"] == 63 and coverage["sampled_steps"] == 630
    assert list(coverage["cells"]) == ["a", "b"]
    assert abs(coverage["cells"]["a"] - coverage["cells"]["b"]) < 0.2  # of one distribution, but of unlike numbers
    assert coverage["observation"]["min"][0] == coverage["observation"]["max"][0] == 7


def test_the_same_seed_gives_the_same_card(tmp_path):
    store = make_store(tmp_path / "s", [range(500)])
    assert card_of(store) == card_of(store)
    assert describe(open_store(store), seed=1)[0]["coverage"] != card_of(store)["coverage"]


def test_principal_components_of_a_line_are_the_line():
    along = np.linspace(-1, 1, 50)
    observation = np.column_stack([along, 10 * along + 3, np.full(50, 4.0)]).astype(np.float32)
    projection, explained = principal_components(observation)
    np.testing.assert_allclose(explained, [1, 0], atol=1e-6)
    assert abs(np.corrcoef(projection[:, 0], along)[0, 1]) > 0.9999
    for few in (observation[:, :1], observation[:, 2:]):
        assert principal_components(few)[0].shape == (50, 2)


@pytest.mark.parametrize(
    "options, note",
    [
        ({"returns": [[5, 5, 5]]}, "walker_0: every episode returns 5; there is nothing to learn from."),
        ({"returns": [[0, 0, 0, 1]]}, "walker_0: 75% of the episodes return exactly 0."),
        ({"returns": [[1, 2], [3, 3]]}, "walker_0: all episodes of walker/b return the same."),
        ({"returns": [[3, 2, 1]]}, "walker_0: no history rises"),
        ({"returns": [[1.5, 2.5, 1.5, 2.5, 1.5, 2.5]]}, "4 episodes equal an earlier one in length and every return"),
        ({"returns": [[(1, 1), (2, 2)]]}, "walker_1 pays every episode what walker_0 pays it."),
        ({"returns": [[1, 2], []]}, "No episode of walker/b is in the store"),
        ({"returns": [[1, 2]]}, "Observations never change in dimension 0 of 3."),
        ({"returns": [[1, 2]], "action": 1.0}, "100% of the actions are at the limit, -1 or 1."),
        ({"returns": [[1, 2]], "relabel": "exorl"}, "leaves out the action"),
    ],
)
def test_what_is_odd_is_said_in_words(tmp_path, options, note):
    notes = card_of(make_store(tmp_path / "s", **options))["notes"]
    assert any(note in each for each in notes), notes


def test_a_good_store_has_nothing_odd_but_its_still_dimension(tmp_path):
    assert len(card_of(make_store(tmp_path / "s", [[1, 2, 3], [2, 3, 4]]))["notes"]) == 1


def test_returns_that_do_not_persist_are_called_luck(tmp_path):
    lucky = card_of(make_store(tmp_path / "a", [np.random.default_rng(0).permutation(100) + 0.5]))
    assert any("luck more than policy" in note for note in lucky["notes"])
    for index, returns in enumerate([np.arange(100) + 0.5, np.random.default_rng(0).permutation(50) + 0.5]):
        card = card_of(make_store(tmp_path / f"b{index}", [returns]))
        assert not any("luck" in note for note in card["notes"]), "they rise, or are too few to tell"


def test_what_a_clone_of_the_best_tenth_can_expect(tmp_path):
    def best_tenth(name, *returns):
        return card_of(make_store(tmp_path / name, returns))["tasks"]["walker_0"]["best_tenth"]

    rising, falling = np.arange(100.0), 1000 - np.arange(100.0)
    assert best_tenth("a", rising) == {"return": 94.5, "expected": 94.5}  # it persists
    swinging = np.where(np.arange(100) % 2, 9.0, 1.0)
    assert best_tenth("b", swinging) == {"return": 9, "expected": 5}  # it does not
    # Each history is measured by its own mean; of one that is not chosen, it does not matter that it is short.
    assert best_tenth("c", falling, swinging) == {"return": 990.5, "expected": 990.5}
    assert best_tenth("d", falling, [1, 2, 3]) == {"return": 995.5, "expected": 995.5}
    assert best_tenth("e", rising, [500, 600])["expected"] is None


@pytest.mark.parametrize("sources, groups", [(9, 9), (12, 3)])
def test_many_sources_are_shown_by_collector(tmp_path, sources, groups):
    card = card_of(make_store(tmp_path / "s", [[index, index + 1] for index in range(sources)]))
    assert len({source["group"] for source in card["sources"]}) == groups
    write_card(tmp_path / "s")
    assert (tmp_path / "s.card" / "index.html").read_text().count('<span style="flex:') == groups


def test_one_episode_of_one_step_has_a_card(tmp_path):
    card = card_of(make_store(tmp_path / "s", [[1]], lengths=[1], observation=1))
    write_card(tmp_path / "s")
    assert card["episodes"] == 1 and card["tasks"]["walker_0"]["sources"][0]["monotonicity"] == 0


def test_the_page_needs_no_other_file_and_escapes_what_users_named(tmp_path):
    page = write_card(make_store(tmp_path / "<b>s", [[1, 2], [3, 4]], tasks=["walker_run"]), tmp_path / "card")
    text = page.read_text()
    assert sorted(path.name for path in page.parent.iterdir()) == ["SHA256SUMS", "card.json", "index.html"]
    assert "<b>s" not in text and "&lt;b&gt;s" in text and text.count("<script") == 1
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) and len(text) < 400_000
    card = json.loads((page.parent / "card.json").read_text(), parse_constant=pytest.fail)
    assert card.pop("written") and card == card_of(tmp_path / "<b>s")


def test_a_dollar_in_a_name_is_a_dollar(tmp_path):
    rng = np.random.default_rng(0)
    ones = np.ones((10, 1), np.float32)
    episode = Episode(rng.normal(size=(11, 3)).astype(np.float32), 0.5 * ones, ones, ones[:, 0], np.zeros((11, 2)))
    sources = [DataSource(name, "x", name) for name in ("a $\\frac{1$ b", "$x")]
    about = {"domain": "walker", "tasks": ("walker_$run$",), "provenance": {"relabel": "exact"}}
    build(tmp_path / "s", [(episode, 0), (episode, 1)], sources=sources, **about)
    assert "a $\\frac{1$ b</text>" in write_card(tmp_path / "s").read_text()


def test_what_cannot_be_read_or_written_is_said(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        write_card(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: cannot be written"):
        write_card(make_store(tmp_path / "s", [[1, 2]]), tmp_path / "file")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    base = tmp_path_factory.mktemp("card")
    rng = np.random.default_rng(0)
    rising = [(400 * k / 80 + rng.normal(0, 20), rng.normal(50, 9)) for k in range(80)]
    flat = [(rng.normal(90, 20), rng.normal(50, 9)) for _ in range(60)]
    return write_card(make_store(base / "walker.store", [rising, flat, rising], observation=24))


@needs_browser
@each_scheme
def test_the_page_shows_itself_without_complaint(page, tmp_path, dark):
    drawn = check_drawing(page, tmp_path, dark)
    assert drawn[:300].any() and drawn[600:1000].any() and drawn[1200:].any()  # heading, tables, figures


@needs_browser
@each_width
def test_nothing_is_wider_than_the_screen(page, tmp_path, width, narrow):
    check_width(page, tmp_path, width, narrow)
