"""A folder or archive of episode files -> the same files with rewards of other tasks: `ringrl.relabel`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from ringrl import __version__
from ringrl.errors import UserError
from ringrl.files import user_path
from ringrl.formats.description import describe_folder
from ringrl.formats.exorl import list_episodes, read_folder
from ringrl.progress import tracked
from ringrl.relabelling.relabelled_folder import SKIPPED, RelabelJob, relabel_folder
from ringrl.relabelling.rewards import Mode, Relabeler, relabelable_tasks
from ringrl.relabelling.workers import Backend, Workers


@dataclass(frozen=True)
class Relabelled:
    """A folder of relabelled files.

    Attributes:
        folder: where it is; the files are in `folder/buffer`.
        tasks: the task ids, in the order of the reward columns.
        episodes: the number of files.
        skipped: the reasons for which files are missing, one line each, which names the file.
        made: whether this call made the folder; False where it was complete already.
    """

    folder: Path
    tasks: tuple[str, ...]
    episodes: int
    skipped: tuple[str, ...]
    made: bool


def relabel(
    source: Path | str,
    out: Path | str,
    *,
    tasks: Sequence[str] = (),
    mode: Mode = "exact",
    domain: str | None = None,
    jobs: int = 0,
    backend: Backend = "loky",
    address: str | None = None,
    skip_bad: bool = False,
    clip: bool = False,
    overwrite: bool = False,
) -> Relabelled:
    """Compute the rewards of any tasks of the domain from recorded physics states, and write the files with them.

    Column k of an episode's rewards is r_t = R_k(s_{t+1}, a_t), R_k being the reward function of dm_control's task k.
    The result has ExoRL's layout. The source is only read. The folder appears when all files are finished. A call that
    was interrupted continues where it ended, and calls on several machines that share the file system divide the work
    (`ringrl.relabelling.relabelled_folder`).

    Args:
        source: the folder of episode files, or the one above it that contains `buffer/`; or a .zip of either.
        out: the folder to make.
        tasks: task ids, such as `walker_run`, in the order of the columns; none: all of the domain that the recorded
            states and observations allow.
        mode: `exact`, as dm_control pays; `exorl`, ExoRL's own number, which leaves out the action.
        domain: such as `walker`, where neither `collect.json` nor the path DOMAIN/ALGORITHM tells it.
        jobs: processes; 0: one for each core, or fewer for few files.
        backend: joblib's: `loky` are processes of this machine, `dask` and `ray` those of a cluster.
        address: of the Dask scheduler or Ray cluster; None: one that is started here.
        skip_bad: leave damaged and foreign files out, instead of stopping at the first.
        clip: clip actions to [-1, 1], for an environment that does so too; the files get the clipped ones.
        overwrite: replace `out`, if it was made by this function.

    Returns:
        What `out` contains.

    Raises:
        UserError: in one line, for anything wrong with the source, a file, the tasks or `out`, which is not made then.

    Example:
        >>> import numpy as np
        >>> import ringrl
        >>> from ringrl.collect.record import record_episode
        >>> from ringrl.formats.exorl import write_episode
        >>> env = ringrl.make_env("cartpole_swingup", seed=0)
        >>> episode, _ = record_episode(env, lambda observation: np.zeros(1, np.float32))
        >>> _ = write_episode("cartpole/zeros/buffer", 0, episode)
        >>> found = ringrl.relabel("cartpole/zeros", "relabelled/zeros", tasks=["cartpole_balance"], jobs=1)
        >>> found.tasks, found.episodes
        (('cartpole_balance',), 1)
    """
    source, out = user_path(source).absolute(), user_path(out).absolute()
    job = _describe_job(source, tasks, mode, domain, skip_bad, clip)
    workers = Workers(jobs, backend, address)
    finished = relabel_folder(job, out, workers=workers, overwrite=overwrite, skip_bad=skip_bad)
    done = list(tracked(finished, f"relabelling {source}", len(job.files)))
    skipped = (out / SKIPPED).read_text(encoding="utf-8").splitlines() if (out / SKIPPED).exists() else []
    return Relabelled(out, tuple(job.about["tasks"]), len(list_episodes(out)), tuple(skipped), bool(done))


def _describe_job(
    source: Path, tasks: Sequence[str], mode: Mode, domain: str | None, skip_bad: bool, clip: bool
) -> RelabelJob:
    """The job, after a check that the tasks are of the source's domain and can be relabelled."""
    description = describe_folder(source, domain)
    reader = read_folder(source, skip_bad=skip_bad, move=False, clip=clip)
    if not reader.dims.physics:
        raise UserError(f"{source}: its files have no physics states, of which rewards are computed: keep their own")
    possible = partial(relabelable_tasks, description.domain, reader.dims.physics, mode)
    relabeler = Relabeler(tuple(tasks) or possible(observation_width=reader.dims.observation), mode)
    if relabeler.domain != description.domain:
        raise UserError(f"{source} is of {description.domain}, the tasks of {relabeler.domain}")
    about = {
        "domain": relabeler.domain,
        "tasks": list(relabeler.tasks),
        "mode": mode,
        "ringrl": __version__,
        "mujoco": version("mujoco"),
        "dm_control": version("dm-control"),
        "numpy": version("numpy"),
        "collect": description.source.collected,
    }
    about |= {"clip": True} if clip else {}
    return RelabelJob(tuple(reader.files), reader.dims, about, tuple(reader.reasons))
