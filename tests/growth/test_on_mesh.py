"""Growth where the parameters live, on meshes that split the axes that grow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "widen_on_eight_devices.py"


@pytest.mark.slow
def test_growth_in_width_is_the_same_on_eight_devices_and_on_one():
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        cwd=PROGRAM.parents[3],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    # Copies and shares are exact; what is drawn may differ between meshes in the last bit.
    differences = json.loads(done.stdout)
    assert differences["split"] == 0
    assert differences["zero_width"] <= 2e-7
