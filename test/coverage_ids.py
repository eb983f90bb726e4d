"""Which conformance statements have a test that names them?

Reads the tables test/mqtt311-conformance.tsv and test/mqtt5-conformance.tsv and
looks for their ids in the test sources: [MQTT-3.1.4-3] names a statement of
3.1.1, [MQTT5-3.1.4-3] one of 5.0. Counted are statements that concern a server
(role server, both or client, for a server has to react to bad clients) and show
on the wire. Lists those without test and without a reason in the table, and ids
in the tests that no table knows; exits with 1 if there are any.
"""

import csv
import glob
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))

TABLES = [("3.1.1", "mqtt311-conformance.tsv", "MQTT-"), ("5.0", "mqtt5-conformance.tsv", "MQTT5-")]


def ids_in_tests():
    """{id: names of the files that mention it}"""
    found = {}
    for path in sorted(glob.glob(os.path.join(HERE, "test_*.py")) + glob.glob(os.path.join(HERE, "test_*.c"))):
        with open(path) as f:
            for name in re.findall(r"\[(MQTT5?-[0-9.]+-[0-9]+)\]", f.read()):
                found.setdefault(name, set()).add(os.path.basename(path))
    return found


def main():
    named = ids_in_tests()
    known = set()
    bad = False
    for version, table, prefix in TABLES:
        with open(os.path.join(HERE, table), newline="") as f:
            rows = list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))
        for row in rows:
            row["id"] = row["id"].replace("MQTT-", prefix)
            known.add(row["id"])
        wanted = [r for r in rows if r["role"] in ("server", "both", "client") and r["testable"] == "wire"]
        tested = [r for r in wanted if r["id"] in named]
        excused = [r for r in wanted if r["id"] not in named and r["reason"]]
        missing = [r for r in wanted if r["id"] not in named and not r["reason"]]
        print(f"{version}: {len(tested)} of {len(wanted)} statements have a test, "
              f"{len(excused)} a reason for having none, {len(missing)} neither")
        for row in excused:
            print(f"  {row['id']}  {row['reason']}")
        for row in missing:
            print(f"  {row['id']}  NO TEST")
        bad = bad or bool(missing)
    for name in sorted(set(named) - known):
        print(f"  {name}  not in any table, but in {' '.join(sorted(named[name]))}")
        bad = True
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
