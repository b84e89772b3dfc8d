"""Which environment a film shows, and what is said where it cannot be made."""

from pathlib import Path

import numpy as np
import pytest

from ringrl.errors import UserError
from ringrl.returns import TrialReturn
from ringrl.rollout import film
from ringrl.rollout.film import Film
from ringrl.rollout.video import _side_by_side


def test_the_median_gain_is_filmed():
    gains = {0: 5.0, 1: -2.0, 2: 1.0, 3: 9.0, 4: 3.0}
    rows = [
        TrialReturn("a", "task", 0, env, trial, 10.0 + gain * (trial == 2), 5, float("nan"))
        for env, gain in gains.items()
        for trial in range(3)
    ]
    assert Film(Path("film.mp4"), (1, 3)).choose(rows) == 4  # -2, 1, 3, 5, 9
    assert Film(Path("film.mp4")).choose(rows) == 0
    assert Film(Path("film.mp4"), (1, 4)).choose(rows) == 0  # no environment has the fourth


def test_trials_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(film, "check_film", lambda path, task: None)
    Film(tmp_path / "film.mp4", (1, 8)).check("cartpole_balance", 8)
    with pytest.raises(UserError, match="--video-trials 1 9: the evaluation has trials 1 to 8"):
        Film(tmp_path / "film.mp4", (1, 9)).check("cartpole_balance", 8)


def test_a_film_that_has_ended_shows_its_last_frame():
    short, long = ([np.full((4, 6, 3), shade, np.uint8) for shade in shades] for shades in ((1, 2), (3, 4, 5)))
    frames = list(_side_by_side([short, long]))
    assert [frame.shape for frame in frames] == [(4, 28, 3)] * 3
    assert [(int(f[0, 0, 0]), int(f[0, 6, 0]), int(f[0, -1, 0])) for f in frames] == [
        (1, 255, 3),
        (2, 255, 4),
        (2, 255, 5),
    ]
