"""Arrays that quantizers meet, and some that they should not have to."""

from functools import cache
from pathlib import Path

import numpy as np

from qlab.gguf import block_type

ROWS, COLUMNS = 4, 512


@cache
def hard_arrays():
    """name -> float32 (ROWS, COLUMNS)."""
    rng = np.random.default_rng(0)
    shape = (ROWS, COLUMNS)
    normal = rng.normal(size=(20, *shape))
    signs = np.where(np.arange(COLUMNS) % 2, 1.0, -1.0)
    outlier = normal[0] * 1e-3
    outlier[:, 5] = 100
    scales = 10.0 ** rng.integers(-12, 3, (ROWS, COLUMNS // 32)).repeat(32, 1)
    arrays = {
        "normal": normal[1] * 0.02,
        "uniform": rng.uniform(-1, 1, shape),
        "positive": rng.uniform(0.5, 1, shape),
        "negative": -rng.uniform(0.5, 1, shape),
        "heavy-tailed": rng.standard_t(1.5, shape),
        "sparse": normal[2] * (rng.random(shape) < 0.05),
        "one weight": np.where(np.arange(COLUMNS) % 256 == 77, -0.3, 0.0) * np.ones(shape),
        "constant": np.full(shape, 0.37) * np.array([1, -1, 1e-4, 7])[:, None],
        "zero": np.zeros(shape),
        "zeros of both signs": np.where(rng.random(shape) < 0.5, 0.0, -0.0),
        "outlier": outlier,
        "denormal": normal[3] * 1e-39,
        "smallest": rng.integers(-3, 4, shape) * 1.4e-45,
        "below the threshold of zero": normal[4] * 1e-16,
        "small": normal[5] * 1e-9,
        "huge": normal[6] * 1e38,
        "large": normal[7] * 1e6,
        "near the largest float8": normal[10] * 900,
        "squares overflow": normal[8] * 1e19,
        "alternating": signs * rng.uniform(0.9, 1.1, shape),
        "plus and minus one": signs * np.ones(shape),
        "integers": rng.integers(-8, 8, shape),
        "ternary": rng.integers(-1, 2, shape) * 0.05,
        "halves": rng.integers(-16, 16, shape) / 2,
        "scales far apart": normal[9] * scales,
        "a ramp": np.linspace(-1, 1, COLUMNS) * np.ones(shape),
        "powers of two": signs * 2.0 ** rng.integers(-20, 20, shape),
    }
    return {k: np.clip(v, -3e38, 3e38).astype(np.float32) for k, v in arrays.items()}


@cache
def importances():
    """name -> float32 (COLUMNS,), or None."""
    rng = np.random.default_rng(1)
    values = {
        "like activations": rng.chisquare(1, COLUMNS),
        "equal": np.ones(COLUMNS),
        "zero": np.zeros(COLUMNS),
        "sparse": (rng.random(COLUMNS) < 0.1) * rng.random(COLUMNS),
        "far apart": 10.0 ** rng.uniform(-12, 6, COLUMNS),
    }
    return {"none": None} | {k: v.astype(np.float32) for k, v in values.items()}


def importance_for(name, columns):
    """Equal importance for the types that refuse to work without, else None."""
    return np.ones(columns, np.float32) if block_type(name).needs_importance else None


@cache
def story_matrices():
    """Some of the storyteller's weights, float32 by name; the embedding as its first 64 rows."""
    from safetensors.torch import load_file

    import qlab.story

    path = Path(qlab.story.__file__).parent / "data" / "storyteller" / "model.safetensors"
    tensors = {k: v.float().numpy() for k, v in load_file(path).items() if v.ndim == 2}
    chosen = [k for k in tensors if "embed" in k or "layers.0" in k or "layers.1.mlp" in k]
    assert len(chosen) >= 6
    return {k: np.ascontiguousarray(tensors[k][:64]) for k in chosen}
