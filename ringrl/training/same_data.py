"""Whether the data of a run that goes on are those that it began with."""

from pathlib import Path
from typing import Any

from ringrl.errors import UserError
from ringrl.run import RunDirectory

# Entries of dataset.json that earlier runs do not have.
_SINCE = ("features", "seed", "scales", "lengths", "collected", "action_bounds")


def refuse_changed(card: dict, run: Path, where: str, but: tuple[str, ...] = ()) -> None:
    """Raise UserError where `card` is not what `run` began with, in any entry but those named `but`.

    What a run of an earlier ringrl does not say of its features and labels (`_SINCE`) is not compared, nor the numbers
    themselves (`content`) where it or the store is of one.
    """
    known = RunDirectory(run).dataset()
    changed = [name for name, value in card.items() if name not in but and _differs(name, known.get(name), value)]
    if changed:
        raise UserError(
            f"{where}: not the data that {run} began with ({', '.join(changed)} changed); "
            "give them back, or train a new run"
        )


def _differs(name: str, known: Any, value: Any) -> bool:
    if name in _SINCE and known is None:
        return False
    if name == "content":  # the arrays of which both know it
        return any((known or {}).get(array, digest) != digest for array, digest in value.items())
    if name == "labels" and isinstance(known, dict):
        return known != {key: each for key, each in value.items() if key in known or key not in _SINCE}
    return known != value
