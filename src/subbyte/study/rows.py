"""The rows of a study, results/<study>.jsonl: written as runs end, read back to skip them and to make tables."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from subbyte import provenance, quantizers
from subbyte.study.select import Row
from subbyte.study.study import Run
from subbyte.train import Config, Outcome, RunFolder, read_rows
from subbyte.train.folder import to_json

TRAINED = "test_accuracy"
"""The metric of a training's own row."""

_OF_TRAINING = ("value", "train_loss", "test_loss", "best", "curve", "integer_share", "steps", "seconds")
_OF_RUNS = {"key", "variant", "seed", "time"}  # every row of a run has them, and no other kind of results all
_IN_ROW = ("task", "model", "seed", "epochs")  # fields of Config that are columns of their own


class RowFile:
    """One jsonl file that several processes may append to: the rows of a run in a single write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Row]:
        """All rows; of a run that is there twice the later ones. A line cut off by a crash is left out."""
        runs: dict[str, list[Row]] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if not row.keys() >= _OF_RUNS:  # another kind of results
                continue
            rows = runs.setdefault(row["key"], [])
            if rows and rows[0]["time"] != row["time"]:
                rows.clear()
            rows.append(row)
        return [row for rows in runs.values() for row in rows]

    def keys(self) -> set[str]:
        """The runs that are done."""
        return {row["key"] for row in self.read()}

    def append(self, rows: Iterable[Row]) -> None:
        """Adds the rows of one finished run, all or none."""
        time = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        plain = (json.loads(to_json({**row, "time": row.get("time", time)})) for row in rows)
        text = "".join(json.dumps(row) + "\n" for row in plain).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if _unfinished_line(self.path):
                text = b"\n" + text
            os.write(handle, text)
            os.fsync(handle)
        finally:
            os.close(handle)


def rows_of_others(path: Path) -> dict[str, list[Row]]:
    """Key -> rows, of the other studies beside `path`: equal keys are equal runs, whatever the study."""
    found: dict[str, list[Row]] = {}
    for other in sorted(path.parent.glob("*.jsonl")):
        if other != path:
            runs: dict[str, list[Row]] = {}
            for row in RowFile(other).read():
                runs.setdefault(row["key"], []).append(row)
            found = {**runs, **found}
    return found


def _unfinished_line(path: Path) -> bool:
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def base_row(study: str, run: Run, config: Config, command: str, commit: str) -> Row:
    """What every row of a run has, before anything is measured; config: as it ran, with its place."""
    scheme = config.scheme
    settings = {k: v for k, v in config.to_dict().items() if k not in (*_IN_ROW, "data_dir", "threads", "version")}
    return {
        "study": study,
        "key": run.key(),
        "group": run.group,
        "variant": run.variant,
        "task": config.task,
        "model": config.model,
        "scheme": scheme.get("name", "custom"),
        "quantizer": _gradient_quantizer(scheme),
        "seed": config.seed,
        "epochs": config.epochs,
        "metric": TRAINED,
        "value": None,
        "seconds": None,
        "command": command,
        "commit": commit,
        "machine": provenance.machine(config.threads),
        "settings": {**settings, **run.settings},
    }


def beside(metric: str, **fields: Any) -> Row:
    """What an `after` yields for a row that is not the training's: another metric, and none of its figures."""
    return {"metric": metric, **dict.fromkeys(_OF_TRAINING), "settings": {}, **fields}


def _gradient_quantizer(scheme: Mapping[str, Any]) -> str:
    quantizer = quantizers.from_dict((scheme.get("layer") or {}).get("gradient"))
    return "none" if quantizer is None else str(quantizer)


def trained(folder: RunFolder, outcome: Outcome) -> Row:
    """The figures of a finished training."""
    epochs = [row for row in read_rows(folder.metrics_file) if row["kind"] == "epoch"]
    last = epochs[-1]
    return {
        "value": last["test_accuracy"],
        "train_loss": last["train_loss"],
        "test_loss": last["test_loss"],
        "best": outcome.best_accuracy,
        "curve": [row["test_accuracy"] for row in epochs],
        "integer_share": outcome.integer_share,
        "steps": outcome.step,
        "seconds": round(outcome.seconds, 1),
    }
