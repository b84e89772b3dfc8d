"""A folder of relabelled files, made by many workers, by a run that may die, or by several runs at once.

A job is what the result depends on: the input files (names, sizes, times), the tasks, the mode and the versions of
ringrl, MuJoCo, dm_control and NumPy. Its finished files gather in `OUT.relabel-KEY/buffer` beside OUT, where KEY is a
digest of all that; when none is missing, the folder is renamed to OUT. The input is only read. So
- a run that dies continues where it stopped, if the same command is given again;
- runs of the same job, on one machine or several that share the file system, divide the work: each file is written
  elsewhere and renamed, its bytes are the same in every run, and the final rename of one run serves all;
- runs of different jobs for the same OUT use different folders: the first to finish makes OUT, the other ends with an
  error that says so.

No lock is taken (`ringrl.locks.exclusive` is for one machine): locks are unreliable on shared file systems, and the
runs of one job are meant to work at the same time. Instead every run has a folder of its own, `OUT.relabel-KEY.run-ID`,
in which it writes what it then renames. It also shows that the run is there, so that another run that fails early does
not remove the work folder.
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
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringrl.episode import Dims, Episode
from ringrl.errors import UserError
from ringrl.files import check_replaceable, replace_folder, write_text
from ringrl.formats.archive import Member
from ringrl.formats.description import RELABEL
from ringrl.formats.exorl import EpisodeFile, write_file
from ringrl.manifest import seal
from ringrl.readers import ObjectRecord, read_json
from ringrl.relabelling.workers import BadFile, Workers, parallel_map, relabel_file

BUFFER = "buffer"
SKIPPED = "skipped.txt"

_RUN = ".run-"  # in the names of the runs' own folders, beside the work folder

# Results are a line each, so that workers need hardly ever wait for each other.
_AHEAD = 1024


@dataclass(frozen=True)
class RelabelJob:
    """The inputs that determine a relabelled folder.

    Attributes:
        files: the input, in order; no two have one name.
        dims: the widths that they must have.
        about: the content of `relabel.json`, with at least `tasks`, `mode` and the versions; `clip` if actions are.
        left_out: the reasons for which other files are no input, a line each.
    """

    files: tuple[EpisodeFile, ...]
    dims: Dims
    about: dict[str, Any]
    left_out: tuple[str, ...] = ()

    @functools.cached_property
    def key(self) -> str:
        """16 hexadecimal digits, equal for equal jobs."""
        content = json.dumps([[_fingerprint(file) for file in self.files], self.about], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def work_folder(self, out: Path) -> Path:
        """The folder of the finished files, until none is missing."""
        return out.with_name(f"{out.name}.relabel-{self.key}")

    def made(self, out: Path) -> bool:
        """Whether `out` is this job's result."""
        try:
            return read_json(out / RELABEL, ObjectRecord, "make it anew").get("job") == self.key
        except UserError:
            return False


def relabel_folder(
    job: RelabelJob,
    out: Path,
    *,
    workers: Workers,
    overwrite: bool = False,
    skip_bad: bool = False,
) -> Iterator[bool]:
    """Do what is missing of a job and then make `out` appear, whole; yields as files are finished.

    The files are in `out/buffer`, as ExoRL's are; beside it are `relabel.json` and, if files were skipped,
    `skipped.txt` with a line for each.

    Args:
        job: what to do.
        out: the folder to be. It and the input must lie where all workers see them, under the same names.
        workers: the processes.
        overwrite: replace `out`, if it is a folder that this function made.
        skip_bad: leave out the files that `read_episode` refuses; else such a file is an error.

    Yields:
        For each file, whether it is in `out` (else it was damaged); nothing, if this job's `out` is there already.

    Raises:
        UserError: if `out` is there and is another's, or cannot be written; if a file is damaged or cannot be
            relabelled. Finished files stay in the work folder, for the next run; if there are none, nothing stays.
    """
    if not overwrite and job.made(out):
        return
    check_replaceable(out, RELABEL, overwrite)
    work = job.work_folder(out)
    with _own_folder(work, out) as own:
        joined = _open_work(job, out, own)
        try:
            yield from _relabel_missing(job, work, own, workers, joined, skip_bad)
            _publish(job, work, own, out, overwrite)
        except BaseException as error:
            if job.made(out) and not work.is_dir():  # another run has finished this job
                return
            explained = _explain(error, work, own)
            if explained is None:
                raise
            raise explained from error


def _relabel_missing(
    job: RelabelJob, work: Path, own: Path, workers: Workers, joined: bool, skip_bad: bool
) -> Iterator[bool]:
    """Make `work` complete; yields as `relabel_folder` does."""
    # A run that joins another takes the files in random order, or both would do the same ones at the same time.
    files = random.sample(job.files, len(job.files)) if joined else job.files
    relabel = functools.partial(
        relabel_file,
        task_ids=tuple(job.about["tasks"]),
        mode=job.about["mode"],
        dims=job.dims,
        clip=job.about.get("clip", False),
    )
    finish = functools.partial(_finish_file, work=work, own=own, relabel=relabel)
    damaged: dict[EpisodeFile, str] = {}
    with closing(parallel_map(finish, files, workers, ahead=_AHEAD)) as results:
        for file, error in zip(files, results, strict=True):
            if error is not None and not (error.damaged and skip_bad):
                raise UserError(error.reason)
            if error is not None:
                damaged[file] = error.reason
            yield error is None
    if len(damaged) == len(files):
        raise UserError(f"no file could be relabelled; the first: {damaged[job.files[0]]}")
    _write_skipped(work, own, [*job.left_out, *(damaged[file] for file in job.files if file in damaged)])


def _explain(error: BaseException, work: Path, own: Path) -> UserError | None:
    """The error to raise in place of `error`, if any. A work folder without finished files is removed, unless another
    run is at work on it.
    """
    if isinstance(error, OSError) and not work.is_dir():
        return UserError(f"{work} was removed while this run was at work on it; give the same command again")
    finished = sum(1 for _ in (work / BUFFER).glob("*.npz"))
    if not finished and set(_own_folders(work)) <= {own}:
        shutil.rmtree(work, ignore_errors=True)
    kept = f"finished files, {finished}, stay in {work}; the same command continues, also with --skip-bad"
    what = f"{error.filename or work}: {error.strerror or error}" if isinstance(error, OSError) else str(error)
    if isinstance(error, OSError | UserError):
        return UserError(f"{what} ({kept})" if finished else what)
    return None


def _fingerprint(file: EpisodeFile) -> list[Any]:
    stat = (file.archive if isinstance(file, Member) else file).stat()
    return [file.name, stat.st_size, stat.st_mtime_ns]


@contextmanager
def _own_folder(work: Path, out: Path) -> Iterator[Path]:
    """A folder beside `work` that exists as long as this run does; a killed run's stays until `out` is made."""
    own = work.with_name(f"{work.name}{_RUN}{uuid.uuid4().hex}")  # of no other run, on this machine or another
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        own.mkdir()
    except OSError as error:
        raise _cannot_be_made(out, error) from error
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _own_folders(work: Path) -> Iterator[Path]:
    """The own folders of all runs of this job."""
    return work.parent.glob(f"{glob.escape(work.name)}{_RUN}*")


def _open_work(job: RelabelJob, out: Path, own: Path) -> bool:
    """Make the work folder, with `relabel.json` from its first moment on; whether it was there before."""
    work = job.work_folder(out)
    if not work.is_dir():
        new = own / "new"
        try:
            (new / BUFFER).mkdir(parents=True)
            (new / RELABEL).write_text(json.dumps(job.about | {"job": job.key}, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise _cannot_be_made(out, error) from error
        try:
            new.rename(work)
            return False
        except OSError:  # another run of this job was first
            pass
    if not job.made(work):
        raise UserError(f"{work} is not this job's, though it is named like it: remove it")
    return True


def _cannot_be_made(out: Path, error: OSError) -> UserError:
    return UserError(f"{out}: cannot be made ({error.strerror}); choose another place with --out")


def _finish_file(
    file: EpisodeFile, work: Path, own: Path, relabel: Callable[[EpisodeFile], Episode | BadFile]
) -> BadFile | None:
    """Relabel one file into the work folder, unless it is there."""
    target = work / BUFFER / file.name
    # The name alone could be there without the content if the machine, not the run, has died.
    if zipfile.is_zipfile(target):
        return None
    result = relabel(file)
    if isinstance(result, BadFile):
        return result
    write_file(target, result, staging=own)
    return None


def _write_skipped(work: Path, own: Path, reasons: list[str]) -> None:
    """Write the reasons, in the files' order; the file of an earlier run that died is replaced or removed."""
    if reasons:
        write_text(work / SKIPPED, "".join(f"{reason}\n" for reason in reasons), staging=own)
    else:
        (work / SKIPPED).unlink(missing_ok=True)


def _publish(job: RelabelJob, work: Path, own: Path, out: Path, overwrite: bool) -> None:
    """Rename the work folder to `out`."""
    check_replaceable(out, RELABEL, overwrite)
    try:
        seal(work, staging=own)
        replace_folder(out, work, aside=own / "old")
    except OSError as error:
        if job.made(out):
            return
        if not out.exists():
            raise _cannot_be_made(out, error) from error
        raise UserError(f"{out} cannot be made; another run may have made it meanwhile ({error})") from error
    for folder in _own_folders(work):  # with what was replaced, and what dead runs have left
        shutil.rmtree(folder, ignore_errors=True)
