"""A rollout as a film: one environment, its trials one after the other."""

import warnings
from collections.abc import Callable
from pathlib import Path

from ringrl.envs import VectorEnv, make_vector
from ringrl.errors import UserError
from ringrl.files import atomic_file
from ringrl.rollout.session import Session
from ringrl.rollout.trials import Group, TrialRows, run_trials


def record(
    path: Path, start: Callable[[VectorEnv], Session], task: str, trials: int, *, seed: int, action_repeat: int
) -> None:
    """Roll out one environment for `trials` trials and write a film, one frame an agent step.

    `start` makes who acts, given the environment, a batch of one.

    The ending of `path` chooses the format (.mp4, .gif). The film is complete or not there. Raises UserError where
    imageio is not installed, the format is unknown, or the machine cannot render (see `DMControlEnv.render`).
    """
    try:
        import imageio
    except ImportError as error:
        raise UserError('films need imageio: pip install "ringrl[video]"') from error
    envs = make_vector(task, 1, seed=seed, action_repeat=action_repeat, render_mode="rgb_array")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        fps = envs.envs[0].metadata["render_fps"]
        with atomic_file(path) as partial, warnings.catch_warnings(), imageio.get_writer(partial, fps=fps) as film:
            # The encoder is a child process that executes right after its fork: JAX's threads do not matter.
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)

            def add_frame(_: int) -> None:
                film.append_data(envs.envs[0].render())  # pyright: ignore[reportAttributeAccessIssue]

            run_trials([Group(start(envs), envs, TrialRows("", task, seed))], trials, on_step=add_frame)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be written ({' '.join(str(error).split())[:200]}); give a name.mp4") from error
    finally:
        envs.close()
