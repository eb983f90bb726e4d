"""Prints the branch coverage of the protocol code, from what llvm-cov(1) exports on stdin.

    llvm-cov export ... | coverage.py MISSING LEAST

Each condition has two outcomes, and both should have been seen; the lines of those that were not go to the file
MISSING. An assert() has an outcome that must never be, and so has a switch that names all cases: these are left out.
The exit code is 1 if less than LEAST per cent of all were seen."""

import json
import os
import re
import sys

MODULES = ("mqtt", "conn", "topic", "session", "send", "route", "client")


def main():
    missing, least = sys.argv[1], float(sys.argv[2])
    files = {os.path.basename(f["filename"]): f for f in json.load(sys.stdin)["data"][0]["files"]}
    all_seen = all_there = 0
    with open(missing, "w") as out:
        for name in MODULES:
            seen, there = module(files[name + ".c"], out)
            print(f"{name:8} {seen:5} of {there:5} outcomes {100 * seen / there:6.1f} %")
            all_seen += seen
            all_there += there
    share = 100 * all_seen / all_there
    print(f"{'all':8} {all_seen:5} of {all_there:5} outcomes {share:6.1f} %; the others are in {missing}")
    return share < least


def module(file, out):
    with open(file["filename"]) as f:
        text = f.read().splitlines()
    outcomes = {}
    for line, column, _, _, yes, no, *_ in file["branches"]:
        if not re.match(r"\s*(assert|switch) ?\(", text[line - 1]):
            for outcome, count in (True, yes), (False, no):
                where = line, column, outcome
                outcomes[where] = outcomes.get(where, 0) + count
    for line, column, outcome in sorted(where for where, count in outcomes.items() if count == 0):
        name = os.path.basename(file["filename"])
        out.write(f"{name}:{line}:{column}: never {str(outcome).lower()}: {text[line - 1].strip()}\n")
    return sum(count > 0 for count in outcomes.values()), len(outcomes)


sys.exit(main())
