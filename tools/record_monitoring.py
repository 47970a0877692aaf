"""Quantiles of streams by Datadog's ddsketch, for the tests of qlab's sketch.

The package is not among the book's requirements. In an environment of its own,

    python -m venv A && A/bin/pip install numpy ddsketch==3.0.1

and then, from the root of the project,

    A/bin/python tools/record_monitoring.py

which writes qlab/records/monitoring.json. It takes a second, and does not depend on any model.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from pathlib import Path

import numpy as np

RECORD = Path(__file__).resolve().parents[1] / "qlab" / "records" / "monitoring.json"
ERRORS = (0.01, 0.05)
QUANTILES = (0.0, 0.25, 0.5, 0.95, 0.99, 1.0)


def streams() -> dict[str, np.ndarray]:
    """Latencies in seconds as they occur, and streams that are hard for a sketch."""
    rng = np.random.default_rng(0)
    return {
        "log-normal": rng.lognormal(-3, 0.6, 2000),
        "two humps": np.concatenate([rng.normal(0.02, 0.002, 900), rng.normal(2, 0.1, 100)]),
        "heavy tail": rng.pareto(1.1, 3000) + 0.001,
        "constant": np.full(50, 0.25),
        "one outlier": np.append(np.full(99, 0.01), 1000.0),
        "zeros": np.concatenate([np.zeros(30), rng.uniform(0.1, 1, 70)]),
        "one number": np.array([0.7]),
        "huge and tiny": np.array([1e-5, 1e-3, 1.0, 1e6, 1e12]),
    }


def main() -> None:
    from ddsketch import DDSketch

    found = {}
    for name, stream in streams().items():
        found[name] = {}
        for error in ERRORS:
            sketch = DDSketch(error)
            for x in stream:
                sketch.add(float(x))
            found[name][str(error)] = [sketch.get_quantile_value(q) for q in QUANTILES]
    record = {
        "made_by": "tools/record_monitoring.py",
        "date": datetime.date.today().isoformat(),
        "versions": {"ddsketch": importlib.metadata.version("ddsketch")},
        "quantiles": QUANTILES,
        "streams": found,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
