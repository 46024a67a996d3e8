"""Writes src/subbyte/data/digits.npz from scikit-learn's copy of the UCI handwritten digits.

Not needed to use the package: the file is in the repository, and `tests/test_data.py` compares it with scikit-learn's.

    python scripts/make_digits.py [OUTPUT.npz]
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

OUTPUT = Path(__file__).resolve().parents[1] / "src" / "subbyte" / "data" / "digits.npz"


def main(output: Path) -> None:
    """images (1797, 8, 8) uint8 in 0..16 and labels (1797,) uint8, in scikit-learn's order, nothing else."""
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    if not np.array_equal(images, digits.images) or images.max() != 16:
        raise SystemExit("scikit-learn's digits are no longer integers in 0..16")
    np.savez_compressed(output, images=images, labels=labels)
    print(f"{output}: {len(labels)} images, {output.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT)
