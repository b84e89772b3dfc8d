"""What a run or an export says of its agent, and the check that its copy of the agent's source is the recorded one."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from ringrl.errors import UserError

_log = logging.getLogger(__name__)
_noted: set[Path] = set()
# (display name, whether its context spans trials), by the name of an agent's file, which is all that schema 0 says of
# it, and of who acts in tables without being a run's agent (`ringrl.rollout.retrieval`).
_SCHEMA_0 = {
    "agentic_transformer": ("Agentic Transformer", True),
    "algorithm_distillation": ("Algorithm Distillation", True),
    "behavior_cloning": ("Behavior Cloning", False),
    "decision_transformer": ("Decision Transformer", False),
    "retrieval": ("Retrieval", False),
    "td3": ("TD3", False),
}


@dataclass(frozen=True)
class AgentRecord:
    """What a run says of its agent."""

    name: str  # as the configuration names it: a shipped agent, or the path of a file
    display_name: str  # for tables and figures
    across_trials: bool  # whether its context continues from one trial to the next
    sha256: str | None = None  # of agent.py; None in schema 0, which has no copy

    @property
    def stem(self) -> str:
        """The name of its file, without folder and ending."""
        return Path(self.name).stem if self.name.endswith(".py") else self.name


def agent_of_schema_0(name: str) -> AgentRecord:
    """What is known of an agent by nothing but the name that a configuration or a table of returns gives."""
    stem = AgentRecord(name, "", False).stem
    return AgentRecord(name, *_SCHEMA_0.get(stem, (stem, False)))


def verify_source(file: Path, agent: AgentRecord) -> Path:
    """`file`, which must be the source that `agent` records. Raises UserError where it is not there or was changed."""
    found = sha256(file.read_bytes()) if file.is_file() else None
    if found != agent.sha256:
        raise UserError(
            f"{file}: {'is missing' if found is None else 'was changed'}; the recorded source of {agent.name} has "
            f"SHA-256 {str(agent.sha256)[:12]}...: restore it, or train the changed agent as a new run"
        )
    return file


def note_changed_source(copy: Path, agent: AgentRecord, source: str | None) -> None:
    """Say once, in the log, that the file that a run's agent was copied from is another now, or gone.

    Args:
        copy: the run's own, which is used.
        agent: what the run records.
        source: the file; None: the run is of an earlier ringrl, which does not say.
    """
    if source is None or copy.resolve() in _noted:
        return
    try:
        found = sha256(Path(source).read_bytes())
    except OSError:
        found = None
    if found != agent.sha256:
        _noted.add(copy.resolve())
        what = "is not there any more" if found is None else "has changed since the run began"
        _log.warning("%s: %s; the run's own copy, %s, is used", source, what, copy)


def sha256(source: bytes) -> str:
    """The SHA-256 of a source, in hexadecimal."""
    return hashlib.sha256(source).hexdigest()
