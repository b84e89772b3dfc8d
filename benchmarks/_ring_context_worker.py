"""What a process of `benchmarks.ring_context` computes: a run's gradients on its own batches, on a ring or one device.

Its configuration is a run's with a few settings changed, its data and labels are that run's, and its mesh is a ring of
simulated CPU devices. Nothing is read from or written to a compile cache: see CONTRIBUTING.md.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._train_step_subjects import resident
from benchmarks._workers import seconds_of
from ringrl.config import RunConfig, load_config
from ringrl.run import RunDirectory

TRIAL = 100
"""Agent steps of a trajectory of row 0's data, each a token."""


@dataclass(frozen=True)
class Case:
    """A context length, a batch, and how attention is computed."""

    trajectories: int  # in each context, which fills a row
    rows: int = 1
    ring: int = 1  # devices over which a row is spread
    dense: bool = False  # attention with all scores in memory, on one device
    calls: int = 0  # that are timed, after one that is not where there are several; 0: the step is compiled alone
    limit: int = 0  # bytes of temporaries above which the step is not run; 0: none

    @property
    def tokens(self) -> int:
        """In a context."""
        return self.trajectories * TRIAL

    def config(self, run: Path, steps: int = 1) -> RunConfig:
        """The run's configuration with this case's contexts and mesh, for so many training steps."""
        agent = (f"agent.trajectories={self.trajectories}", f"agent.fewest={self.trajectories}")
        rows = (f"training.batch={self.rows}", f"training.row_steps={self.tokens}", f"training.steps={steps}")
        return load_config(RunDirectory(run).settings(), (*agent, *rows, f"mesh.seq={self.ring}"))


@dataclass(frozen=True)
class Found:
    """What a case needs, and where it was timed, how long a step takes."""

    temporaries: int  # bytes on one device, by XLA's buffer assignment
    resident: int | None = None  # bytes by which the process grew while it ran
    seconds: float | None = None  # a step: forward and backward; the median
    core_seconds: float | None = None  # processor time of the same, of all cores
    mfu: float | None = None  # model FLOPs utilisation of a core: of what a large matrix product reaches on it


class Subject:
    """A trainer of the case on simulated devices; its state is new. Call once in a process: it sets JAX's devices."""

    def __init__(self, case: Case, run: Path, steps: int = 1):
        """Opens the run's data. Raises UserError where they are not there."""
        os.environ["JAX_PLATFORMS"] = "cpu"
        import jax

        jax.config.update("jax_num_cpu_devices", case.ring)
        from ringrl.agent import make_agent
        from ringrl.training.mesh import place_batch
        from ringrl.training.processes import local_shard

        self.case, self.config = case, case.config(run, steps)
        agent = make_agent(self.config.agent)
        assert agent.decoder is not None
        self.decoder, self.trainer = agent.decoder, agent.make_trainer(self.config)
        with tempfile.TemporaryDirectory() as folder:
            self.trainer.data.prepare(Path(folder))
        self.state: Any = self.trainer.init()
        self.mesh = self.trainer.mesh
        shard = local_shard(self.mesh, case.rows, case.tokens)
        batches = self.trainer.data.batches(0, shard)  # pyright: ignore[reportAttributeAccessIssue]
        self.batches: Iterator[Any] = (place_batch(batch, self.mesh, shard) for batch in batches)

    def gradient(self) -> Callable:
        """(parameters, batch) -> the loss of a step and its gradient, as `ringrl train` computes them."""
        import jax
        import jax.numpy as jnp

        from ringrl.attention import dense_attention
        from ringrl.model.transformer import make_attend
        from ringrl.training.state import abstract_state, merge_model

        graph, _ = abstract_state(self.config, self.decoder, self.trainer.data.sizes, self.mesh)
        attend: Any = make_attend(self.mesh, self.config.mesh.ring_layout, None)
        if self.case.dense:
            attend = lambda q, k, v, segments: dense_attention(q, k, v, segment_ids=segments)  # noqa: E731

        def loss(parameters: Any, batch: Any) -> jax.Array:
            model = merge_model(graph, parameters)
            losses = model.losses(batch, partial(self.decoder.loss, model.head), attend, self.mesh)
            return jnp.sum(losses * batch["weight"]) / jnp.sum(batch["weight"])

        return jax.jit(jax.value_and_grad(loss))

    def train_step(self) -> Callable:
        """The step of `ringrl train`."""
        import jax

        from ringrl.training.state import abstract_state, make_train_step

        graph, _ = abstract_state(self.config, self.decoder, self.trainer.data.sizes, self.mesh)
        shardings = jax.tree.map(lambda x: x.sharding, self.state)
        return make_train_step(self.config, self.decoder, graph, self.mesh, shardings)


def train(case: Case, run: Path, steps: int, out: Path) -> Found:
    """Train from the run's seed, and save of every step the loss and the gradient of all parameters in `out` (npz)."""
    import jax

    subject = Subject(case, run, steps)
    batch, train_step = next(subject.batches), subject.train_step()
    gradient = subject.gradient().lower(subject.state.params, batch).compile()
    losses, gradients, seconds = [], [], []
    for _ in range(steps):
        began = time.perf_counter()
        loss, found = jax.block_until_ready(gradient(subject.state.params, batch))
        seconds.append(time.perf_counter() - began)
        losses.append(float(loss))
        gradients.append(np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(found)]))
        subject.state, _ = train_step(subject.state, batch)
        batch = next(subject.batches)
    np.savez(out, losses=np.array(losses), gradients=np.stack(gradients))
    return Found(gradient.memory_analysis().temp_size_in_bytes, seconds=statistics.median(seconds))


def measure(case: Case, run: Path) -> Found:
    """Compile a case's forward and backward pass, and time it."""
    import jax

    from ringrl.model.flops import model_flops

    subject = Subject(case, run)
    batch, parameters = next(subject.batches), subject.state.params
    compiled = subject.gradient().lower(parameters, batch).compile()
    needed = compiled.memory_analysis().temp_size_in_bytes
    if not case.calls or (case.limit and needed > case.limit):
        return Found(needed)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak of what is resident starts anew
    step = lambda: jax.block_until_ready(compiled(parameters, batch))  # noqa: E731
    if case.calls > 1:
        step()
    seconds, core_seconds = map(statistics.median, zip(*(both_times(step) for _ in range(case.calls)), strict=True))
    shape = {"rows": case.rows, "steps": case.tokens, "tokens_per_step": 1}
    useful = model_flops(subject.config.model, parameters, **shape)
    grown = resident("VmHWM") - before
    return Found(needed, grown, seconds, core_seconds, useful / core_seconds / core_peak())


def core_peak(size: int = 1536) -> float:
    """FLOPs of a float32 matrix product in a second of processor time: the most of 5, as `peak_flops` of a run's log.

    Processor time, for other work on the machine changes it little.
    """
    import jax
    import jax.numpy as jnp

    a, product = jnp.ones((size, size), jnp.float32), jax.jit(jnp.matmul)
    call = lambda: product(a, a).block_until_ready()  # noqa: E731
    call()
    return 2.0 * size**3 / min(both_times(call)[1] for _ in range(5))


def both_times(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds that a call takes, and the processor time of this process meanwhile."""
    began = time.process_time()
    return seconds_of(call), time.process_time() - began


def work(case: Case, run: Path, steps: int, out: Path | None) -> None:
    """Be one process: train where there is somewhere to save to, else measure. The last line printed is `Found`."""
    print(json.dumps(vars(measure(case, run) if out is None else train(case, run, steps, out))))
