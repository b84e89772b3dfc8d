"""JAX made strict, eight CPU devices, and every shape annotation of ringrl executed by beartype."""

import os

# MuJoCo must not look for a display on a machine that has none; tests render nothing unless they say so.
os.environ.setdefault("MUJOCO_GL", "disabled")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("ringrl", "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

import dataclasses  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

# Nearly all the time of their tests goes into compiling small programs, some of them once for every test.
COMPILED_QUICKLY = {"agents", "collect", "data", "model", "rollout", "training"}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> Path:
    """Where this process keeps what it has compiled."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module", autouse=True)
def compile_quickly(request, compiled):
    """Programs of those tests are optimised little and compiled once; what they compute is the same up to rounding."""
    if request.path.parent.name not in COMPILED_QUICKLY:
        yield
        return
    use_compiled(str(compiled), quickly=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # of the processes that tests start
        yield
    use_compiled(None, quickly=False)


def use_compiled(folder: str | None, quickly: bool) -> None:
    compilation_cache.reset_cache()  # else it goes on as it was first used
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_disable_most_optimizations", quickly)


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory) -> Path:
    """The path of a store of 8 short cartpole episodes, 36 to 43 control steps, from two sources; actions held for 4.

    Its tasks are cartpole_balance and cartpole_swingup.
    """
    from ringrl import envs, recipes
    from ringrl.collect.record import record_episode
    from ringrl.relabelling.rewards import Relabeler
    from ringrl.store.episode_store import DataSource, build

    collect = recipes.load("data", "collect")
    tasks = ("cartpole_balance", "cartpole_swingup")
    relabel = Relabeler(tasks)
    env = envs.make(tasks[0], seed=0, action_repeat=4)
    policy = collect.Random(1, seed=0)

    def episodes():
        for index in range(8):
            env._env._step_limit = 36 + index
            episode, _ = record_episode(env, policy.act)
            yield dataclasses.replace(episode, reward=relabel(episode)), index // 4

    sources = [DataSource("one", "one", "random"), DataSource("two", "two", "random")]
    path = tmp_path_factory.mktemp("tiny") / "cartpole.store"
    return build(path, episodes(), domain="cartpole", tasks=tasks, sources=sources, provenance={"relabel": "exact"})


@pytest.fixture(scope="session")
def tiny_config(tiny_store):
    """A function (agent settings, **sections) -> RunConfig of a run that takes seconds."""
    from ringrl.config import parse_config

    def make(agent: dict, **sections: dict):
        values = {
            "data": {"store": str(tiny_store), "task": "cartpole_balance", "action_repeat": 4},
            "agent": agent,
            "model": {"layers": 1, "width": 16, "heads": 2, "kv_heads": 2, "max_steps": 16, "max_trials": 4},
            "training": {"steps": 5, "batch": 4, "row_steps": 24, "log_every": 1, "checkpoint_every": 100},
            "optimizer": {"warmup_steps": 2},
            "evaluation": {"trials": 2, "envs": 2},
        }
        for name, section in sections.items():
            values[name] = values.get(name, {}) | section
        return parse_config(values, "tiny")

    return make
