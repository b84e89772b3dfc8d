"""What a run directory is known by, and where in its data a run goes on."""

from pathlib import Path

from ringrl.config import RunConfig, dump_config
from ringrl.errors import UserError
from ringrl.files import write_text
from ringrl.training.training_data import TrainingData


def next_batch(about: dict, config: RunConfig, run: Path) -> int:
    """The index of the next batch, as the checkpoint has it. UserError where it was trained with another seed."""
    loader = about["loader"]
    if loader["seed"] != config.seed:
        raise UserError(f"{run}: was trained with seed {loader['seed']}, not {config.seed}; name a new run with --out")
    return loader["next_batch"]


def write_run(config: RunConfig, run: Path, source: TrainingData) -> None:
    """The files beside the checkpoints; config.yaml comes last, for it says that the others are there."""
    run.mkdir(parents=True, exist_ok=True)
    source.write(run)
    write_text(run / "config.yaml", dump_config(config))
