"""Squared error per test image of an autoencoder run beside that of PCA with as many axes, fitted on the same training split.

dlrun experiment=autoencoder_mnist hydra.run.dir=outputs/autoencoder
python scripts/compare_with_pca.py outputs/autoencoder
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from dlrun import checkpoint, rundir
from dlrun.build import build_parts


def pixels(parts, split: str) -> np.ndarray:
    """The images of a split as the loss sees them: (N, pixels) in [0, 1]."""
    return np.concatenate([parts.task.targets_of(batch.inputs).numpy() for batch in parts.data.split(split)])


def main(folder: Path) -> None:
    """Prints both errors; the autoencoder's is what results.json holds."""
    from sklearn.decomposition import PCA

    config = {**rundir.read_config(folder, "run"), "device": "cpu"}
    parts = build_parts(config, checkpoint.load(folder / rundir.BEST)["data"])
    size = config["model"]["code_size"]
    pca = PCA(size, random_state=0).fit(pixels(parts, "train"))
    test = pixels(parts, "test")
    error = ((pca.inverse_transform(pca.transform(test)) - test) ** 2).sum(1).mean()
    results = rundir.read_results(folder)
    assert results is not None, f"{folder} is not finished"
    print(f"test images {len(test)}, code size {size}")
    print(f"autoencoder {results['metrics']['test']['squared_error']:.3f}")
    print(f"PCA         {error:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
