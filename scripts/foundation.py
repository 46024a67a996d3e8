"""The study `foundation`: ResNet-20 on CIFAR-10 for a few epochs, float32 beside int4, same seed, data and schedule.

    python scripts/foundation.py --data-dir DIR [--epochs 3] [--seed 0]

Runs `subbyte train` for each scheme into runs/foundation-* (a run that exists goes on, one that is finished is only
read), then writes results/foundation.jsonl (a row a run), results/foundation.md and results/foundation.png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from subbyte.provenance import commit, machine
from subbyte.train import RunFolder, plot_curves, read_rows
from subbyte.train.checkpoint import write_text

STUDY = "foundation"
SCHEMES = ("float", "int4")
ROOT = Path(__file__).resolve().parent.parent


def command(scheme: str, args: argparse.Namespace, out: Path) -> list[str]:
    """The command of one run, as a user types it."""
    settings = ["--task", "cifar10", "--model", "resnet20", "--scheme", scheme, "--epochs", str(args.epochs)]
    run = ["subbyte", "train", *settings, "--data-dir", str(args.data_dir), "--seed", str(args.seed), "--out", str(out)]
    return [*run, "--resume"] if (out / "config.json").is_file() else run


def row(scheme: str, args: argparse.Namespace, out: Path) -> dict[str, object]:
    """The finished run as one row of results/foundation.jsonl."""
    folder = RunFolder(out)
    config = folder.config().to_dict()
    last = [r for r in read_rows(folder.metrics_file) if r["kind"] == "epoch"][-1]
    report = json.loads(folder.report_file.read_text())
    threads = config.pop("threads")
    data_free = {k: v for k, v in config.items() if k not in ("data_dir", "scheme", "task", "model", "seed", "epochs")}
    shown = ["DIR" if word == str(args.data_dir) else word for word in command(scheme, args, out) if word != "--resume"]
    return {
        "study": STUDY,
        "task": "cifar10",
        "model": "resnet20",
        "scheme": scheme,
        "quantizer": "none" if scheme == "float" else config["scheme"]["layer"]["gradient"]["type"],
        "seed": args.seed,
        "epochs": args.epochs,
        "metric": "test_accuracy",
        "value": last["test_accuracy"],
        "train_loss": last["train_loss"],
        "test_loss": last["test_loss"],
        "integer_share": report["integer_share"],
        "seconds": last["seconds"],
        "command": " ".join(shown),
        "commit": commit(),
        "machine": machine(threads),
        "settings": data_free,
    }


def table(rows: list[dict]) -> str:
    """results/foundation.md: the rows as a table, made by this script alone."""
    head = (
        "# foundation: ResNet-20 on CIFAR-10\n\n"
        "Made by `python scripts/foundation.py --data-dir DIR`. One seed and few epochs: it shows that 4-bit training\n"
        "works end to end, not how much accuracy it costs.\n\n"
        "| scheme | epochs | seed | test accuracy | train loss | integer share | seconds | commit | machine |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    lines = (
        f"| {r['scheme']} | {r['epochs']} | {r['seed']} | {100 * r['value']:.2f} % | {r['train_loss']:.4f} "
        f"| {100 * r['integer_share']:.2f} % | {r['seconds']:.0f} | {r['commit']} | {r['machine']} |\n"
        for r in rows
    )
    return head + "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows, curves = [], {}
    for scheme in SCHEMES:
        out = Path("runs") / f"{STUDY}-{scheme}-e{args.epochs}-seed{args.seed}"
        subprocess.run([sys.executable, "-m", "subbyte.cli", *command(scheme, args, out)[1:]], check=True, cwd=ROOT)
        rows.append(row(scheme, args, ROOT / out))
        curves[scheme] = read_rows(RunFolder(ROOT / out).metrics_file)
    results = ROOT / "results"
    results.mkdir(exist_ok=True)
    write_text(results / f"{STUDY}.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    write_text(results / f"{STUDY}.md", table(rows))
    plot_curves(curves, results / f"{STUDY}.png")
    print(table(rows))


if __name__ == "__main__":
    main()
