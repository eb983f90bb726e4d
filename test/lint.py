"""Static checks: gcc -fanalyzer, clang-tidy, cppcheck and scan-build, over all of the program's sources.

    lint.py FILE.c...

A finding that test/lint.ignore does not explain is printed, and the exit code is 1. So is an explanation that
nothing needs any more. Findings are known by file, check and source line, not by line numbers."""

import collections
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

FLAGS = ["-std=c11", "-D_GNU_SOURCE"]
IGNORE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "lint.ignore")

# What clang-tidy looks for. Left out: rules that ask for another style, which has no faults to show:
#   easily-swappable-parameters, reserved-identifier   names and order of parameters
#   suspicious-string-compare   !strcmp() and strcmp() as conditions are the language's own way
#   sizeof-expression           sizeof *p where p is a pointer to a pointer: tables of pointers are meant
#   implicit-widening-...       products of constants and of values that the configuration bounds
#   DeprecatedOrUnsafeBuffer... wants the functions of Annex K, which no C library here has
#   Padding                     bytes, not faults
CHECKS = ("-*,bugprone-*,clang-analyzer-*,-bugprone-easily-swappable-parameters,-bugprone-reserved-identifier,"
          "-bugprone-suspicious-string-compare,-bugprone-sizeof-expression,"
          "-bugprone-implicit-widening-of-multiplication-result,-bugprone-assignment-in-if-condition,"
          "-clang-analyzer-security.insecureAPI.DeprecatedOrUnsafeBufferHandling,"
          "-clang-analyzer-optin.performance.Padding")

FINDING = re.compile(r"^(?:.*/)?(\w+\.[ch]):(\d+):\d+: (?:warning|error|portability|performance): (.*) \[([^]]+)\]$")


def output(words):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout


def gcc(file):
    return output(["gcc", *FLAGS, "-O2", "-fanalyzer", "-c", "-o", "/dev/null", file])


def tidy(file):
    return output(["clang-tidy", "--quiet", "-checks=" + CHECKS, file, "--", *FLAGS])


def cppcheck(file):
    return output(["cppcheck", "--std=c11", "--enable=warning,portability,performance", "-q", "-D_GNU_SOURCE",
                   "--template={file}:{line}:{column}: {severity}: {message} [{id}]", file])


def scan(file):
    with tempfile.TemporaryDirectory() as dir:
        return output(["scan-build", "-o", dir, "clang", *FLAGS, "-c", "-o", os.path.join(dir, "o"), file])


def findings(text, sources):
    found = set()
    for line in text.splitlines():
        match = FINDING.match(line)
        if match:
            name, number, words, check = match.groups()
            if name not in sources:
                with open(name) as f:
                    sources[name] = f.read().splitlines()
            found.add((name, check, sources[name][int(number) - 1].strip(), f"{name}:{number}: {words} [{check}]"))
    return found


def explained():
    """FILE CHECK SOURCE LINE, the reason as a comment above."""
    with open(IGNORE) as f:
        lines = [line.strip() for line in f]
    return collections.Counter(tuple(line.split(None, 2)) for line in lines if line and not line.startswith("#"))


def main():
    jobs = [(tool, file) for tool in (tidy, scan, gcc, cppcheck) for file in sys.argv[1:]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        texts = list(pool.map(lambda job: job[0](job[1]), jobs))
    sources, ignore, used, bad = {}, explained(), set(), False
    for name, check, line, words in sorted(set().union(*(findings(text, sources) for text in texts))):
        check = re.sub(r"^(?:clang-analyzer-|CWE-\d+\] \[)", "", check)
        if (name, check, line) in ignore:
            used.add((name, check, line))
        else:
            print(f"{words}\n    {line}")
            bad = True
    for unused in sorted(set(ignore) - used):
        print(f"{IGNORE}: nothing needs this any more: {' '.join(unused)}")
        bad = True
    return bad


sys.exit(main())
