"""A rollout as a film: one environment, its trials one after the other, or some of them side by side."""

import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ringrl.envs import VectorEnv, make_env, make_vector
from ringrl.errors import UserError, unwritable
from ringrl.files import atomic_file
from ringrl.rollout.session import Session
from ringrl.rollout.trials import Group, TrialRows, run_trials

_GAP = 16
"""Pixels between films side by side; encoders cut pictures into squares of 16."""


class WatchedEnvs:
    """A `ringrl.rollout.trials.SteppedEnvs` that lets someone look after each step, before ended episodes are reset.

    Attributes:
        num_envs: environments.
        ended: episodes that have ended.
    """

    def __init__(self, envs: VectorEnv, look: Callable[[], None]):
        """`look` is called after each agent step of `envs`, while their states are those after it."""
        self._envs, self._look, self.num_envs = envs, look, envs.num_envs
        self._restart, self.ended = False, 0

    def reset(self) -> tuple[Any, dict[str, Any]]:
        """First observations."""
        return self._envs.reset()

    def step_async(self, actions: Any, which: Any, *, restart: bool) -> None:
        """Begin a step, without `restart`."""
        self._envs.step_async(actions, which)
        self._restart = restart

    def step_wait(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Wait for the step, let `look` see it, and then begin the next episodes of those that ended."""
        observation, reward, terminated, truncated, info = self._envs.step_wait()
        self._look()
        done = terminated | truncated
        self.ended += int(done.sum())
        if self._restart and done.any():
            observation, _ = self._envs.reset(options={"reset_mask": done})
        return observation, reward, terminated, truncated, info


def check_film(path: Path, task: str) -> None:
    """See, before anything is rolled out for it, whether a film of `task` can be written to `path`.

    Raises:
        UserError: imageio is not installed, the ending names no format, the folder cannot be written, or the machine
            cannot render.
    """
    ffmpeg = any(importlib.util.find_spec(name) for name in ("imageio_ffmpeg", "av"))
    if importlib.util.find_spec("imageio") is None or not (ffmpeg or path.suffix.lower() == ".gif"):
        raise UserError('films need imageio and ffmpeg: pip install "ringrl[video]"')
    if not path.suffix:
        raise UserError(f"{path}: the ending chooses the format; give a name.mp4")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise unwritable(path, error) from error
    env = make_env(task, render_mode="rgb_array")
    env.reset(seed=0)
    env.render()
    env.close()


def record(
    path: Path,
    start: Callable[[VectorEnv], Session],
    task: str,
    trials: int,
    *,
    seed: int,
    action_repeat: int,
    beside: Sequence[int] = (),
) -> list[float]:
    """Roll out one environment for `trials` trials and write a film: the state after each of their agent steps.

    `start` makes who acts, given the environment, a batch of one. With `beside`, the film is of these trials (from 1),
    all at once and side by side; one that ends before the others shows its last state. Returns what all trials earned.

    The ending of `path` chooses the format (.mp4, .gif). The film is complete or not there. Raises UserError where
    imageio is not installed, the format is unknown, or the machine cannot render (see `DMControlEnv.render`).
    """
    check_film(path, task)
    import imageio

    envs = make_vector(task, 1, seed=seed, action_repeat=action_repeat, render_mode="rgb_array")
    frames: list[list[UInt8[np.ndarray, "height width 3"]]] = [[] for _ in range(trials)]
    try:
        fps = envs.envs[0].metadata["render_fps"]
        with atomic_file(path) as partial, warnings.catch_warnings(), imageio.get_writer(partial, fps=fps) as film:
            # The encoder is a child process that executes right after its fork: JAX's threads do not matter.
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)

            def add_frame() -> None:
                if beside and watched.ended + 1 not in beside:
                    return
                frame: Any = envs.envs[0].render()
                if beside:
                    frames[watched.ended].append(frame)
                else:
                    film.append_data(frame)  # pyright: ignore[reportAttributeAccessIssue]

            watched = WatchedEnvs(envs, add_frame)
            rows = run_trials([Group(start(envs), watched, TrialRows("", task, seed))], trials)
            for frame in _side_by_side([frames[trial - 1] for trial in beside]):
                film.append_data(frame)  # pyright: ignore[reportAttributeAccessIssue]
        return [row.return_ for row in rows]
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be written ({' '.join(str(error).split())[:200]}); give a name.mp4") from error
    finally:
        envs.close()


def _side_by_side(films: Sequence[Sequence[np.ndarray]]) -> Iterator[np.ndarray]:
    """Frames that show one frame of each film, white between them; a film that has ended shows its last one."""
    for number in range(max(map(len, films), default=0)):
        shown: list[np.ndarray] = []
        for frames in filter(None, films):
            frame = frames[min(number, len(frames) - 1)]
            shown += [np.full((frame.shape[0], _GAP, 3), 255, np.uint8)] * bool(shown) + [frame]
        yield np.concatenate(shown, axis=1)
