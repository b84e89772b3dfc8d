"""What `benchmarks.train_step` compares: a training step of ringrl, and one of PyTorch's stock modules."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ringrl.batch import BATCH_SCHEMA, link_previous

LAYERS, WIDTH, HEADS, FEED_FORWARD = 4, 256, 4, 4  # the last in widths, ringrl's default
OBSERVATION, ACTION, TOKENS_PER_STEP = 24, 6, 4
MAX_STEPS, MAX_TRIALS = 1000, 128
TABLES = MAX_STEPS + MAX_TRIALS  # rows of lookup tables, of WIDTH numbers each
LEARNING_RATE, WEIGHT_DECAY, BETA2, CLIP_NORM = 1e-4, 1e-4, 0.99, 1.0
BATCH = {1024: 4}  # rows by tokens of context; one row of any other


def rows(length: int) -> int:
    """Rows of the batch at a context of this many tokens."""
    return BATCH.get(length, 1)


def resident(field: str) -> int:
    """Bytes of this process in memory: now (`VmRSS`), or at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def synthetic_steps(length: int) -> dict[str, np.ndarray]:
    """The arrays of `ringrl.batch.Batch`: one segment a row, trials of up to MAX_STEPS steps."""
    rng, shape = np.random.default_rng(0), (rows(length), length // TOKENS_PER_STEP)
    sizes = {"observation": OBSERVATION, "action": ACTION}
    steps = {name: field.zeros(shape, sizes) for name, field in BATCH_SCHEMA.items()}
    for name in ("observation", "action", "reward", "return_to_go"):
        steps[name] = rng.standard_normal(steps[name].shape, np.float32)
    steps["action"] = np.tanh(steps["action"])
    steps["position"] += np.arange(shape[1], dtype=np.int32)
    steps["step"], steps["trial"] = steps["position"] % MAX_STEPS, steps["position"] // MAX_STEPS
    steps["segment_ids"] += 1
    steps["weight"] += 1
    return link_previous(steps)


def ringrl_step(batch: dict[str, np.ndarray], length: int, dtype: str) -> tuple[Callable[[], Any], int, int]:
    """A step of `ringrl train`, the number of parameters, and bytes resident before the model was there."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    from ringrl.agent import make_decoder
    from ringrl.training.mesh import make_mesh, place_batch
    from ringrl.training.state import init_state, make_train_step

    config = ringrl_config(length, dtype)
    decoder, mesh = make_decoder(config.agent), make_mesh(config.mesh)
    before = resident("VmRSS")
    graph, state = init_state(config, decoder, {"observation": OBSERVATION, "action": ACTION}, mesh)
    train_step = make_train_step(config, decoder, graph, mesh, jax.tree.map(lambda x: x.sharding, state))
    placed = place_batch(batch, mesh)

    def step() -> None:
        nonlocal state
        state, metrics = train_step(state, placed)
        jax.block_until_ready((state, metrics))

    return step, sum(x.size for x in jax.tree.leaves(state.params)), before


def ringrl_config(length: int, dtype: str) -> Any:
    """A run's configuration as a user writes it."""
    from ringrl.config import parse_config

    model = {"layers": LAYERS, "width": WIDTH, "heads": HEADS, "kv_heads": HEADS, "remat": "block"}
    model |= {"max_steps": MAX_STEPS, "max_trials": MAX_TRIALS, "trial_encoding": "table", "compute_dtype": dtype}
    rates = {"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "beta2": BETA2, "clip_norm": CLIP_NORM}
    return parse_config(
        {
            "data": {"store": "none", "task": "walker_run"},
            "agent": {"name": "agentic_transformer", "completion": False},
            "model": model,
            "optimizer": rates,
            "training": {"batch": rows(length), "row_steps": length // TOKENS_PER_STEP},
        },
        "benchmarks.train_step",
    )


def torch_step(
    batch: dict[str, np.ndarray], length: int, cores: int, compiled: bool
) -> tuple[Callable[[], Any], int, int]:
    """A step of the peer, the number of parameters, and bytes resident before the model was there."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]
    from torch.nn.attention import SDPBackend, sdpa_kernel  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(cores)
    torch.manual_seed(0)
    before = resident("VmRSS")
    sizes = {"return_to_go": 1, "observation": OBSERVATION, "action": ACTION, "reward": 1}
    tensors = {name: torch.from_numpy(x) for name, x in batch.items()}
    inputs = [tensors[name].reshape(*tensors["step"].shape, size) for name, size in sizes.items()]
    # Never read, for the flash kernel knows what is causal: but a layer wants one, and this takes no memory.
    mask = torch.zeros(1, 1).expand(length, length)

    class DecisionTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.modalities = nn.ModuleList(nn.Linear(size, WIDTH) for size in sizes.values())
            self.step, self.trial = nn.Embedding(MAX_STEPS, WIDTH), nn.Embedding(MAX_TRIALS, WIDTH)
            self.norm = nn.LayerNorm(WIDTH)
            options: Any = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
            layer = nn.TransformerEncoderLayer(WIDTH, HEADS, FEED_FORWARD * WIDTH, **options)
            last = nn.LayerNorm(WIDTH)
            self.layers = nn.TransformerEncoder(layer, LAYERS, norm=last, enable_nested_tensor=False)
            self.output = nn.Linear(WIDTH, ACTION)

        def forward(self) -> Any:
            when = self.step(tensors["step"]) + self.trial(tensors["trial"])
            tokens = [self.norm(embed(x) + when) for embed, x in zip(self.modalities, inputs, strict=True)]
            y = self.layers(torch.stack(tokens, dim=2).flatten(1, 2), mask=mask, is_causal=True)
            return torch.tanh(self.output(y[:, 1::TOKENS_PER_STEP]))

    model = DecisionTransformer()
    forward = torch.compile(model) if compiled else model
    settings: Any = {"lr": LEARNING_RATE, "betas": (0.9, BETA2), "weight_decay": WEIGHT_DECAY, "fused": True}
    optimizer = torch.optim.AdamW(model.parameters(), **settings)

    def step() -> float:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            loss = nn.functional.mse_loss(forward(), tensors["action"])
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step, sum(x.numel() for x in model.parameters()), before
