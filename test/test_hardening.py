"""hardening.sh, by which make check looks at the program, sees each protection that is missing."""

import os
import subprocess

import pytest

from wire import ROOT

SCRIPT = os.path.join(ROOT, "test", "hardening.sh")
SOURCE = """#include <string.h>
int main(int argc, char **argv) { char b[64]; strcpy(b, argv[argc - 1]); return b[0]; }
"""
ALL = ["-O2", "-fPIE", "-pie", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2",
       "-Wl,-z,relro,-z,now,-z,noexecstack"]


def check(directory, flags):
    """Builds a program so; what the script says about it."""
    source, program = str(directory / "p.c"), str(directory / "p")
    with open(source, "w") as f:
        f.write(SOURCE)
    subprocess.run(["cc", "-w", *flags, "-o", program, source], check=True)
    done = subprocess.run([SCRIPT, program], stderr=subprocess.PIPE, text=True)
    assert (done.returncode != 0) == bool(done.stderr)
    return done.stderr


def test_all_there(tmp_path):
    assert check(tmp_path, ALL) == ""


@pytest.mark.parametrize("flags, complaint", [
    (["-no-pie", "-fno-pie"], "not position independent"), (["-Wl,-z,norelro"], "tables stay writable"),
    (["-Wl,-z,lazy"], "not bound at start"), (["-Wl,-z,execstack"], "stack can be executed"),
    (["-fno-stack-protector"], "no stack protector"), (["-U_FORTIFY_SOURCE"], "no checked functions"),
], ids=["pie", "relro", "now", "stack", "protector", "fortify"])
def test_one_missing(tmp_path, flags, complaint):
    assert complaint in check(tmp_path, ALL + flags)
