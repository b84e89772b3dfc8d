"""In-context reinforcement learning at any context length, in JAX.

Start here: `import ringrl` is enough. Data go in as episodes, an agent comes out of a run:

    Episode                     one trajectory: T + 1 observations, T actions and rewards
    make_env, relabel           the tasks; the rewards of any of them, from recorded physics states
    build_store, open_store     many episodes on a disk, ready to be sampled from
    train, evaluate, report     a config -> a run directory -> tables of returns -> a page
    load_agent                  a trained agent that acts in an environment of yours
    attention                   exact attention: dense, blockwise, over a ring of devices

`help(ringrl.train)` and so on show an example of each. The same on the command line: `ringrl --help`, and
`ringrl demo` for all of it at once. What agents, data steps and configs there are: `ringrl ls`. Other modules of the
package are described in ARCHITECTURE.md; what is not listed here may change between versions.

JAX and MuJoCo are imported when a name above is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringrl import attention
    from ringrl.envs import make_env
    from ringrl.episode import Episode
    from ringrl.relabelling.relabel_source import relabel
    from ringrl.reporting import write_report as report
    from ringrl.rollout.evaluate import evaluate
    from ringrl.rollout.trained_agent import load_agent
    from ringrl.store.builder import build as build_store
    from ringrl.store.episode_store import open_store
    from ringrl.training.start import train

__version__ = "0.1.0"

__all__ = [
    "Episode",
    "attention",
    "build_store",
    "evaluate",
    "load_agent",
    "make_env",
    "open_store",
    "relabel",
    "report",
    "train",
]

# Where each name is defined: a module, and the name in it; None is the module itself.
_DEFINED: dict[str, tuple[str, str | None]] = {
    "Episode": ("ringrl.episode", "Episode"),
    "attention": ("ringrl.attention", None),
    "build_store": ("ringrl.store.builder", "build"),
    "evaluate": ("ringrl.rollout.evaluate", "evaluate"),
    "load_agent": ("ringrl.rollout.trained_agent", "load_agent"),
    "make_env": ("ringrl.envs", "make_env"),
    "open_store": ("ringrl.store.episode_store", "open_store"),
    "relabel": ("ringrl.relabelling.relabel_source", "relabel"),
    "report": ("ringrl.reporting", "write_report"),
    "train": ("ringrl.training.start", "train"),
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used (PEP 562)."""
    if name not in _DEFINED:
        raise AttributeError(f"module 'ringrl' has no attribute {name!r}")
    module, attribute = _DEFINED[name]
    found = importlib.import_module(module)
    value = found if attribute is None else getattr(found, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, whether they have been used or not."""
    return sorted({*globals(), *__all__})
