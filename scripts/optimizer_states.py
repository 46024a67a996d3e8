"""The study `optimizers`: AdamW with its state in 32, 8 and 4 bits on int4 models: bytes, time of a step, accuracy.

    python scripts/optimizer_states.py

Writes results/optimizers.jsonl, a row a figure, and results/optimizers.md. The optimizers of a case alternate in one
process; a time is the median of the steps. Takes about five minutes on two cores.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

import subbyte as sb
from subbyte import models
from subbyte.provenance import commit, machine
from subbyte.train import Config, train
from subbyte.train.checkpoint import write_text
from subbyte.train.optim import make_optimizer, optimizer_tensors

STUDY = "optimizers"
ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python scripts/optimizer_states.py"
OPTIMIZERS = ("adamw", "adamw8bit", "adamw4bit")
NETWORKS = ("resnet20", "resnet18")
STEPS = 7
SEEDS = (0, 1, 2)


def digits(optimizer: str, seed: int = 0) -> Config:
    """The digits in int4 with the task's own settings."""
    return Config.for_task("digits", scheme=sb.Scheme.from_name("int4").to_dict(), optimizer=optimizer, seed=seed)


def state_rows(network: str) -> list[dict]:
    """Bytes of the state and seconds of a step of the optimizer alone, for each optimizer on `network`."""
    cases = []
    for name in OPTIMIZERS:
        torch.manual_seed(0)
        model = sb.quantize_(models.build(network, 10, in_channels=3, stem="cifar", image_size=32), "int4")
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer = make_optimizer(model, digits(name))
        optimizer.step()  # makes the state
        cases.append((name, model, optimizer, []))
    for _ in range(STEPS):
        for _, _, optimizer, seconds in cases:
            began = time.perf_counter()
            optimizer.step()
            seconds.append(time.perf_counter() - began)
    rows = []
    for name, model, optimizer, seconds in cases:
        tensors = {t.data_ptr(): t.nbytes for t in optimizer_tensors(model, optimizer).values()}  # a shared table once
        rows.append(row(network, name, "state_bytes", sum(tensors.values())))
        rows.append(row(network, name, "step_seconds", statistics.median(seconds)))
    return rows


def accuracy_rows() -> list[dict]:
    """Test accuracy of smallcnn on the digits, `SEEDS` for each optimizer."""
    rows = []
    for name in OPTIMIZERS:
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                outcome = train(digits(name, seed), Path(folder) / "run")
            rows.append({**row("smallcnn", name, "test_accuracy", outcome.test_accuracy), "seed": seed})
    return rows


def row(network: str, optimizer: str, metric: str, value: float | None) -> dict:
    """One figure with all that it needs to be measured again."""
    facts = {"study": STUDY, "model": network, "scheme": "int4", "optimizer": optimizer, "metric": metric}
    return {
        **facts,
        "value": value,
        "command": COMMAND,
        "commit": commit(),
        "machine": machine(torch.get_num_threads()),
    }


def table(rows: list[dict]) -> str:
    """results/optimizers.md."""

    def values(network: str, optimizer: str, metric: str) -> list[float]:
        return [r["value"] for r in rows if (r["model"], r["optimizer"], r["metric"]) == (network, optimizer, metric)]

    lines = [f"# {STUDY}: AdamW's state in 32, 8 and 4 bits, int4 models\n\nMade by `{COMMAND}`.\n\n"]
    lines += ["| model | optimizer | bytes of state | of float32 | a step of the optimizer |\n|---|---|---|---|---|\n"]
    for network in NETWORKS:
        whole = values(network, OPTIMIZERS[0], "state_bytes")[0]
        for name in OPTIMIZERS:
            size, seconds = values(network, name, "state_bytes")[0], values(network, name, "step_seconds")[0]
            lines.append(f"| {network} | `{name}` | {size:,.0f} | {size / whole:.1%} | {1000 * seconds:.1f} ms |\n")
    lines.append(f"\n| digits, smallcnn: test accuracy | seeds {', '.join(map(str, SEEDS))} |\n|---|---|\n")
    for name in OPTIMIZERS:
        shown = ", ".join(f"{v:.2%}" for v in values("smallcnn", name, "test_accuracy"))
        lines.append(f"| `{name}` | {shown} |\n")
    return "".join([*lines, f"\n{rows[0]['machine']}, commit {rows[0]['commit']}.\n"])


def main() -> None:
    rows = [r for network in NETWORKS for r in state_rows(network)] + accuracy_rows()
    write_text(ROOT / "results" / f"{STUDY}.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    write_text(ROOT / "results" / f"{STUDY}.md", table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
