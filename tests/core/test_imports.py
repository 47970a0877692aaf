"""The core imports with NumPy and array-api-compat alone."""

import subprocess
import sys


def test_core_needs_no_heavy_library():
    code = (
        "import sys; import qlab.core, qlab; "
        "print([m for m in ('torch','numba','transformers','matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
