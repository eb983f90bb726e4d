"""What README.md says about the tests is so."""

import glob
import os
import re

from wire import ROOT


def test_promises_have_their_tests():
    """Each row of the table of promises names tests that there are."""
    with open(os.path.join(ROOT, "README.md")) as f:
        rows = re.findall(r"^\|.*?\|.*?\|([^|]*`(?:test_|make )[^|]*)\|$", f.read(), re.M)
    tests = set()
    for path in glob.glob(os.path.join(ROOT, "test", "test_*.py")):
        with open(path) as f:
            tests |= set(re.findall(r"^def (test_\w+)", f.read(), re.M))
    assert len(rows) >= 15
    for row in rows:
        named = set(re.findall(r"`(test_\w+)`", row))
        assert named and named <= tests, f"no such tests: {named - tests or row}"
