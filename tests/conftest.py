"""JAX made strict, eight CPU devices, ringrl's shape annotations executed by beartype, and a kept compile cache."""

import dataclasses
import os
import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from tests import compile_cache
from tests.builders import TINY, make_config

# MuJoCo must not look for a display on a machine that has none; tests render nothing unless they say so.
os.environ.setdefault("MUJOCO_GL", "disabled")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.update(compile_cache.environment())  # before JAX is imported, and for the processes that tests start
# Nearly all the time of the tests goes into compiling small programs. XLA's newer way of emitting fused loops for CPUs
# takes two fifths of it. `make test-all` compiles as XLA does for users.
AS_FOR_USERS = os.environ.get("RINGRL_TEST_AS_FOR_USERS") == "1"
if not AS_FOR_USERS:
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.environ.get('XLA_FLAGS', '')}".rstrip()
install_import_hook("ringrl", "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# XLA optimises their programs little. What they compute is the same up to rounding.
COMPILED_QUICKLY = {"agents", "collect", "data", "model", "reliability", "rollout", "training"}
if not AS_FOR_USERS:
    COMPILED_QUICKLY |= {"attention"}


def pytest_sessionstart(session):
    """One process, not each xdist worker, keeps the compile cache small."""
    if not hasattr(session.config, "workerinput"):
        compile_cache.prune()


@pytest.fixture(scope="session", autouse=True)
def own_record_of_trust(tmp_path_factory):
    """What tests train with is not remembered as trusted by who runs them (`ringrl.trust`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("settings")))
        yield


@pytest.fixture(scope="module", autouse=True)
def compile_quickly(request):
    """In the folders of COMPILED_QUICKLY, XLA optimises little, also in the processes that tests start."""
    if request.path.parent.name not in COMPILED_QUICKLY:
        yield
        return
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def drop_programs():
    """Programs of a module end with it: all together are 15,000 mappings of memory, and Linux allows 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory) -> Path:
    """The path of a store of 8 short cartpole episodes, 36 to 43 environment steps, from two sources.

    Every action is applied for 4 environment steps. Its tasks are cartpole_balance and cartpole_swingup.
    """
    from ringrl import envs, recipes
    from ringrl.collect.record import record_episode
    from ringrl.relabelling.rewards import Relabeler
    from ringrl.store.episode_store import DataSource, build

    collect = recipes.load("data", "collect")
    tasks = ("cartpole_balance", "cartpole_swingup")
    relabel = Relabeler(tasks)
    policy = collect.RandomCollector(1, seed=0)

    def episodes():
        for index in range(8):
            env = envs.make_env(tasks[0], seed=0, action_repeat=4, time_limit=36 + index)
            for _ in range(index):  # each episode starts at another of the states that one seed draws
                env.reset()
            episode, _ = record_episode(env, policy.act)
            yield dataclasses.replace(episode, reward=relabel(episode)), index // 4

    sources = [DataSource("one", "one", "random"), DataSource("two", "two", "random")]
    path = tmp_path_factory.mktemp("tiny") / "cartpole.store"
    return build(path, episodes(), domain="cartpole", tasks=tasks, sources=sources, provenance={"relabel": "exact"})


@pytest.fixture(scope="session")
def tiny_config(tiny_store):
    """A function (agent settings, **sections) -> RunConfig of a run on `tiny_store` that takes seconds."""
    base = TINY | {"data": TINY["data"] | {"store": str(tiny_store)}}
    return lambda agent, **sections: make_config(base, agent=agent, **sections)


@pytest.fixture
def ringrl(monkeypatch, capsys):
    """A function (*arguments) -> (status, stdout, stderr) of `ringrl ARGUMENTS`, run in this process."""

    from ringrl import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ringrl", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run
