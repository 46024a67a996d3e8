"""Training from a Config into a run folder, and reading such a folder back."""

from subbyte.train.build import TrainedRun, load_run
from subbyte.train.checkpoint import Checkpoint, Progress
from subbyte.train.config import Config, default_run_dir
from subbyte.train.errors import CheckpointError, DivergedError, RunError
from subbyte.train.evaluate import Evaluation, evaluate
from subbyte.train.folder import RunFolder
from subbyte.train.loop import Outcome, train
from subbyte.train.measure import measure
from subbyte.train.metrics import read_rows
from subbyte.train.plots import plot_curves

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Config",
    "DivergedError",
    "Evaluation",
    "Outcome",
    "Progress",
    "RunError",
    "RunFolder",
    "TrainedRun",
    "default_run_dir",
    "evaluate",
    "load_run",
    "measure",
    "plot_curves",
    "read_rows",
    "train",
]
