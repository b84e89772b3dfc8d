"""Which film of an evaluation is made: of all trials of its first environment, or of some trials of a typical one."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ringrl.errors import UserError
from ringrl.files import write_text
from ringrl.returns import TrialReturn
from ringrl.rollout.evaluated import Evaluated, Start, load_evaluated
from ringrl.rollout.video import check_film, record
from ringrl.run_tables import FILM


@dataclass(frozen=True)
class Film:
    """A film that is to be made.

    Attributes:
        path: of the file.
        trials: that it shows side by side, from 1 on; none: all, one after the other.
    """

    path: Path
    trials: tuple[int, ...] = ()

    def check(self, task: str, trials: int) -> None:
        """See, before anything is rolled out, whether it can be made of `trials` trials. Raises UserError."""
        if any(not 1 <= trial <= trials for trial in self.trials):
            shown = " ".join(map(str, self.trials))
            raise UserError(f"--video-trials {shown}: the evaluation has trials 1 to {trials}")
        check_film(self.path, task)

    def choose(self, rows: Sequence[TrialReturn]) -> int:
        """The environment: where trials are shown, that with the median gain from the first of them to the last."""
        returns = {(row.env, row.trial + 1): row.return_ for row in rows}
        if not self.trials:
            return 0
        first, last = self.trials[0], self.trials[-1]
        both = [env for env in {row.env for row in rows} if (env, first) in returns and (env, last) in returns]
        gains = sorted((returns[env, last] - returns[env, first], env) for env in both)
        return gains[len(gains) // 2][1] if gains else 0

    def record(self, evaluated: Evaluated, start: Start) -> None:
        """Roll one environment out once more, as it was evaluated, and write the film. Raises as `video.record`.

        Of a film in the folder of the evaluation's tables, film.json there says what it shows, for the report.
        """
        rows = [row for row in evaluated.run.read_table() if row.agent == evaluated.agent.name]
        env, setting = self.choose(rows), evaluated.setting
        options = {"seed": setting.seed + env, "action_repeat": evaluated.agent.config.data.action_repeat}
        task = evaluated.task
        earned = record(self.path, lambda envs: start(envs, env), task, setting.trials, beside=self.trials, **options)
        folder = evaluated.run.evaluation
        if self.path.resolve().parent == folder.resolve():
            files = {"film": self.path.name, "sha256": _hash(self.path), "of": _hash(evaluated.run.table())}
            about = files | {"trials": list(self.trials), "env": env, "run": evaluated.run.path.resolve().name}
            about["returns"] = [earned[trial - 1] for trial in self.trials] if self.trials else earned
            write_text(folder / FILM, json.dumps(about, indent=1) + "\n")


def film_run(run: Path, film: Film) -> None:
    """Make a film of a run that was evaluated under its own settings. Raises UserError where it cannot be made."""
    evaluated = load_evaluated(run, "latest", {})
    film.check(evaluated.task, evaluated.setting.trials)
    film.record(evaluated, evaluated.session)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
