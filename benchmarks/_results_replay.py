"""Gymnasium's Hopper from a learner's replay, as Minari's data sets and D4RL's medium-replay are (docs/results.md).

Minari's own sets could not be had. These are the episodes of one online TD3 from its first random one on, so what is
recorded rises from nothing to what that learner had reached.
"""

from collections.abc import Mapping

from benchmarks._results_jobs import DATA, Data, Job

_FILES, _STORE = DATA / "hopper" / "td3", DATA / "hopper.store"
_MADE = (
    Data(
        _FILES,
        "collect --task Hopper-v5 --policy td3 --action-repeat 1 --episodes 600"
        " --learner.actor-lr 3e-4 --learner.critic-lr 3e-4 --learner.tau 0.005",
    ),
    Data(_STORE, f"build_store {_FILES} --tasks Hopper-v5"),
)
_WHERE = {"data.store": _STORE, "data.task": "Hopper-v5", "data.action_repeat": 1}
_WHERE |= {"evaluation.trials": 2, "evaluation.envs": 32}
_SEQUENCES = {"model.max_steps": 1000, "training.steps": 1500}


def _job(name: str, config: str, label: str, settings: Mapping[str, object]) -> Job:
    return Job(f"hopper_{name}", config, (_MADE,), {**_WHERE, **settings, "label": label})


ROWS = {
    "hopper": (
        _job("bc", "results_bc10", "BC, all data", _SEQUENCES | {"agent.fraction": 1.0}),
        _job("bc10", "results_bc10", "BC-10 %", _SEQUENCES),
        _job("dt", "results_dt", "DT", _SEQUENCES | {"agent.fraction": 1.0}),
        _job("td3bc", "results_td3", "TD3+BC", {"agent.n_step": 1, "agent.bc_weight": 0.4, "training.steps": 50_000}),
    )
}
