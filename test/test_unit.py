"""The unit tests in C: each test of each program test_*.c is one test here.

The programs are in the folder $BUILD, by default build; `make test` makes them.
"""

import glob
import os
import subprocess

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(HERE, "..", os.environ.get("BUILD", "build"))


def collect():
    """(program, test) of all; a program that is not there has the test None."""
    for source in sorted(glob.glob(os.path.join(HERE, "test_*.c"))):
        name = os.path.splitext(os.path.basename(source))[0]
        program = os.path.join(BUILD, name)
        names = [None]
        if os.path.exists(program):
            names = subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout.split()
        for test in names:
            yield pytest.param(program, test, id=f"{name}-{test}")


@pytest.mark.parametrize("program, test", collect())
def test_c(program, test):
    assert test, f"{program} was not built"
    done = subprocess.run([program, test], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert done.returncode == 0, done.stdout
