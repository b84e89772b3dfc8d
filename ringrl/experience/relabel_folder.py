"""A folder of relabelled files, made by many workers, by a run that may die, or by several runs at once.

A job is what the result depends on: the input files (names, sizes, times), the tasks, the mode and the versions of
MuJoCo, dm_control and NumPy. Its finished files gather in `OUT.relabel-KEY` beside OUT, where KEY is a digest of all
that; when none is missing, the folder is renamed to OUT. So
- a run that dies continues where it stopped, if the same command is given again;
- runs of the same job, on one machine or several that share the file system, divide the work: each file is written
  elsewhere and renamed, its bytes are the same whoever wrote it, and one run's final rename is the other's too;
- runs of different jobs for the same OUT never meet: the first to finish has it, the other is told.
No lock is taken: they are not to be trusted on shared file systems, and a dead run would leave its own behind.
"""

import functools
import glob
import hashlib
import json
import random
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringrl.errors import UserError
from ringrl.experience.archive import Member
from ringrl.experience.exorl import Dims, EpisodeFile, write_episode
from ringrl.experience.folders import RELABEL
from ringrl.experience.relabel import Mode
from ringrl.experience.relabel_workers import BadFile, Workers, parallel_map, relabel_file

# Results are a line each, so that workers need hardly ever wait for each other.
_AHEAD = 1024


@dataclass(frozen=True)
class Job:
    """What a relabelled folder depends on.

    Attributes:
        files: the input, in order; no two have one name.
        dims: the widths that they must have.
        about: the content of `relabel.json`, with at least `tasks`, `mode` and the versions.
    """

    files: tuple[EpisodeFile, ...]
    dims: Dims
    about: dict[str, Any]

    @functools.cached_property
    def key(self) -> str:
        """16 hexadecimal digits, equal for equal jobs."""
        content = json.dumps([[_fingerprint(file) for file in self.files], self.about], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def work_folder(self, out: Path) -> Path:
        """Where finished files gather."""
        return out.with_name(f"{out.name}.relabel-{self.key}")

    def made(self, out: Path) -> bool:
        """Whether `out` is this job's result."""
        try:
            return json.loads((out / RELABEL).read_text(encoding="utf-8"))["job"] == self.key
        except (OSError, ValueError, KeyError, TypeError):
            return False


def relabel_folder(
    job: Job,
    out: Path,
    *,
    workers: Workers,
    overwrite: bool = False,
    on_damaged: Callable[[EpisodeFile, str], None] | None = None,
) -> Iterator[bool]:
    """Do what is missing of a job and then make `out` appear, whole; yields as files are finished.

    Args:
        job: what to do.
        out: the folder to be. It and the input must lie where all workers see them, under the same names.
        workers: who does it.
        overwrite: replace `out`, if it is a folder that this function made.
        on_damaged: called, when all is done, with each file that `read_episode` refuses and the reason; None: such a
            file is an error.

    Yields:
        For each file, whether it is in `out` (else it was damaged); nothing, if this job's `out` is there already.

    Raises:
        UserError: if `out` is there and is another's; if a file is damaged or cannot be relabelled. Finished files
            stay in the work folder, for the next run; if there are none, nothing stays.
    """
    if not overwrite and job.made(out):
        return
    _check(out, overwrite)
    work, joined = _open_work(job, out)
    # Whoever joins goes another way through the files, or all would do the same ones at the same time.
    files = random.sample(job.files, len(job.files)) if joined else job.files
    finish = functools.partial(
        _finish_file, work=work, task_ids=tuple(job.about["tasks"]), mode=job.about["mode"], dims=job.dims
    )
    damaged: list[tuple[EpisodeFile, str]] = []
    try:
        with closing(parallel_map(finish, files, workers, ahead=_AHEAD)) as results:
            for file, error in zip(files, results, strict=True):
                if error is not None and not (error.damaged and on_damaged is not None):
                    raise UserError(error.reason)
                if error is not None:
                    damaged.append((file, error.reason))
                yield error is None
        if len(damaged) == len(files):
            raise UserError(f"no file could be relabelled; the first: {damaged[0][1]}")
        _publish(job, work, out, overwrite)
    except BaseException as error:
        if job.made(out) and not work.is_dir():  # another run has finished this job
            return
        explained = _explain(error, work)
        if explained is None:
            raise
        raise explained from error
    for file, reason in damaged:
        if on_damaged is not None:
            on_damaged(file, reason)


def _explain(error: BaseException, work: Path) -> UserError | None:
    """What is to be said in place of `error`, if anything. A work folder without finished files is removed."""
    if isinstance(error, OSError) and not work.is_dir():
        return UserError(f"{work} was removed while this run was at work on it; give the same command again")
    finished = sum(1 for _ in work.glob("*.npz"))
    if not finished:
        shutil.rmtree(work, ignore_errors=True)
    elif isinstance(error, UserError):
        kept = f"finished files, {finished}, stay in {work}; the same command continues, also with --skip-bad"
        return UserError(f"{error} ({kept})")
    return None


def _fingerprint(file: EpisodeFile) -> list[Any]:
    stat = (file.archive if isinstance(file, Member) else file).stat()
    return [file.name, stat.st_size, stat.st_mtime_ns]


def _check(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists already; choose another name or pass --overwrite")
    if out.exists() and not (out / RELABEL).is_file():
        raise UserError(f"{out} has no {RELABEL}, so it was not made by this step and is not overwritten")


def _open_work(job: Job, out: Path) -> tuple[Path, bool]:
    """The work folder, with `relabel.json` from its first moment on; and whether it was there before."""
    work = job.work_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not work.is_dir():
        new = _own_folder(work)
        (new / RELABEL).write_text(json.dumps(job.about | {"job": job.key}, indent=2) + "\n", encoding="utf-8")
        try:
            new.rename(work)
            return work, False
        except OSError:  # another run of this job was first
            shutil.rmtree(new)
    if not job.made(work):
        raise UserError(f"{work} is not this job's, though it is named like it: remove it")
    return work, True


def _own_folder(work: Path) -> Path:
    """A new folder beside `work` that is nobody else's, on this machine or another."""
    own = work.with_name(f"{work.name}.part-{uuid.uuid4().hex}")
    own.mkdir()
    return own


def _finish_file(file: EpisodeFile, work: Path, task_ids: tuple[str, ...], mode: Mode, dims: Dims) -> BadFile | None:
    """Relabel one file into the work folder, unless it is there."""
    target = work / file.name
    # The name alone could be there without the content if the machine, not the run, has died.
    if zipfile.is_zipfile(target):
        return None
    result = relabel_file(file, task_ids, mode, dims)
    if isinstance(result, BadFile):
        return result
    own = _own_folder(work)
    try:
        write_episode(own, 0, result).replace(target)
    finally:
        shutil.rmtree(own, ignore_errors=True)
    return None


def _publish(job: Job, work: Path, out: Path, overwrite: bool) -> None:
    """Rename the work folder to `out`."""
    _check(out, overwrite)
    old = work.with_name(f"{work.name}.part-{uuid.uuid4().hex}")
    if out.exists():
        out.rename(old)
    try:
        work.rename(out)
    except OSError as error:
        if old.exists():
            old.rename(out)
        if job.made(out):
            return
        raise UserError(f"{out} cannot be made; another run may have made it meanwhile ({error})") from error
    for part in out.parent.glob(f"{glob.escape(work.name)}.part-*"):  # what was replaced, and what dead runs have left
        shutil.rmtree(part, ignore_errors=True)
