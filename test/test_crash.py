"""Acknowledged is acknowledged, whenever the broker is killed: see crash.py.

The long form is `make crash N=1000`; CRASH_SEED=S repeats the choices of a run.
"""

import os
import random

import pytest

import crash

SEED = int(os.environ.get("CRASH_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)


@pytest.mark.limit(150)
def test_killed_again_and_again():
    print(f"seed {SEED}")
    crash.Run(20, SEED).run()
