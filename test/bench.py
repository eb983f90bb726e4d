#!/usr/bin/python3
"""Measures midge and mosquitto in turn, on this machine, with test/load.c.

    /usr/bin/python3 test/bench.py [--quick] [--only NAME ...]
                                   [--rounds 2] [--broker build/midge]

The broker runs on one core, the load generator on another; both brokers keep
their defaults, except for what a row says. CPU time is that of the broker,
user and system, per delivered message, without connecting and subscribing.
Figures are medians of the rounds; machines drift, so trust the ratios more.
Mosquitto is optional.
"""
import argparse
import glob
import os
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from contextlib import contextmanager, nullcontext

import bench_disk
import bench_tls

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LOAD = os.path.join(ROOT, "build", "load")
CORES = sorted(os.sched_getaffinity(0))
BROKER_CORE, LOAD_CORE = CORES[0], CORES[-1]


# Who may do everything, after some rules that do not fit.
RULES = "".join(f"topic read room/{i}/+\n" for i in range(20)) + "topic #\n"


class Failed(Exception):
    """A workload that didn't end well, in words for the table."""


def start(command, core, **keywords):
    return subprocess.Popen(
        command, preexec_fn=lambda: os.sched_setaffinity(0, {core}), **keywords)


def stop(process):
    """Ends this one process, by its own pid."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def last_line(file):
    file.seek(0)
    lines = file.read().strip().splitlines()
    return lines[-1] if lines else ""


@contextmanager
def run_broker(program, config=""):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, \
            tempfile.TemporaryFile("w+") as errors:
        os.chmod(directory, 0o755)      # mosquitto drops the rights of root
        path = os.path.join(directory, "broker.conf")
        with open(os.path.join(directory, "rules"), "w") as file:
            file.write(RULES)
        with open(path, "w") as file:
            file.write(f"listener {port} 127.0.0.1\n"
                       f"allow_anonymous true\nlog_type error\n{config}")
        process = start([program, "-c", path], BROKER_CORE, cwd=directory,
                        stdout=errors, stderr=errors)
        try:
            broker = Broker(process, port, errors)
            broker.wait_until_it_accepts()
            yield broker
        finally:
            stop(process)


class Broker:
    def __init__(self, process, port, errors):
        self.process, self.port, self.errors = process, port, errors

    def check(self):
        if self.process.poll() is not None:
            raise Failed(f"broker has ended: {last_line(self.errors)}")

    def wait_until_it_accepts(self):
        for _ in range(500):
            self.check()
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(.01)
        raise Failed("broker doesn't accept connections")

    def proc_sum(self, name, pattern):
        """Sum of the numbers that match in such files of /proc/PID."""
        self.check()
        return sum(int(n)
                   for path in glob.glob(f"/proc/{self.process.pid}/{name}")
                   for n in re.findall(pattern, open(path).read(), re.M))

    def cpu_us(self):
        return self.proc_sum("task/*/schedstat", r"^\d+") / 1000

    def switches(self):
        return self.proc_sum("task/*/status", r"ctxt_switches:\s+(\d+)")

    def rss(self):
        """Resident bytes; VmRSS in status is only a rough count since 6.2."""
        return self.proc_sum("smaps_rollup", r"^Rss:\s+(\d+)") * 1024


@contextmanager
def run_load(broker, arguments):
    """The load generator, ready, held until Load.run."""
    with tempfile.TemporaryFile("w+") as errors:
        process = start([LOAD, "--hold", "1", *arguments.split(),
                         str(broker.port)], LOAD_CORE, stderr=errors,
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                        text=True)
        try:
            load = Load(process, errors)
            load.answer()
            time.sleep(.1)      # the broker may be busy with the last SUBACK
            yield load
        finally:
            stop(process)


class Load:
    def __init__(self, process, errors):
        self.process, self.errors = process, errors

    def answer(self):
        text = self.process.stdout.readline()
        if not text:
            self.process.wait()
            raise Failed(last_line(self.errors))
        return text

    def run(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        result = dict(pair.split("=") for pair in self.answer().split())
        bad = [f"{key}={result[key]}" for key in
               ("lost", "doubled", "misordered", "unacked", "late")
               if result[key] != "0"]
        if bad:
            raise Failed(" ".join(bad))
        return result


# What a measurement says: label -> Figure. Rate is in messages/s or None.
Figure = namedtuple("Figure", "value rate", defaults=[None])


def traffic(label, arguments, beside="", config="", seconds=3, latency=False):
    """CPU per delivered message, perhaps beside connections that only wait."""
    def measure(program, quick):
        ms = int(seconds * (200 if quick else 1000))
        with run_broker(program, config) as broker, \
                run_load(broker, beside) if beside else nullcontext(), \
                run_load(broker, f"-d {ms} {arguments}") as load:
            before = broker.cpu_us()
            result = load.run()
            us = (broker.cpu_us() - before) / float(result["delivered"])
        figures = {f"{label}: CPU us": Figure(us, float(result["rate"]))}
        if latency:
            for key in "p50", "p99":
                figures[f"{label}: latency {key} us"] = Figure(
                    float(result[key + "_us"]))
        return figures
    return measure


def retained(program, quick):
    n = 100000
    with run_broker(program) as broker:
        before = broker.rss()
        with run_load(broker, f"-n {n} retained") as load:
            memory = broker.rss() - before
            cpu = broker.cpu_us()
            result = load.run()
            cpu = broker.cpu_us() - cpu
    return {f"{n} retained, 16 B: bytes each": Figure(memory / n),
            f"{n} retained, 16 B, to `#`: CPU us": Figure(
                cpu / n, float(result["rate"]))}


def bare(program, quick):
    seconds = 4 if quick else 20
    with run_broker(program) as broker:
        time.sleep(1)
        memory = broker.rss()
        before = broker.switches()
        time.sleep(seconds)
        wakeups = (broker.switches() - before) * 60 / seconds
    return {"nothing connected: resident kB": Figure(memory / 1024),
            "nothing connected: wake-ups per minute": Figure(wakeups)}


def idle(program, quick):
    n = 2000
    figures = {}
    for label, each in ("plain", 0), ("with a subscription", 1):
        with run_broker(program) as broker:
            before = broker.rss()
            with run_load(broker, f"-n {n} -k {each} idle"):
                figures[f"idle connection, {label}: bytes"] = Figure(
                    (broker.rss() - before) / n)
    return figures


@contextmanager
def run_tls_broker(program, key, client=False):
    """A broker with a listener for TLS too: (broker, folder, port)."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, \
            socket.socket() as s:
        os.chmod(directory, 0o755)
        bench_tls.make_certificates(directory)
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
        s.close()
        with run_broker(program, bench_tls.config(directory, port, key,
                                                  client)) as broker:
            yield broker, directory, port


def tls_handshakes(program, quick):
    figures = {}
    for label, key, client, resumed, n in (
            ("full, RSA-2048", "rsa", False, False, 200),
            ("full, P-256", "ec", False, False, 400),
            ("full, P-256 with client certificate", "ec", True, False, 200),
            ("resumed", "ec", False, True, 1000)):
        with run_tls_broker(program, key, client) as (broker, directory, port):
            us = bench_tls.handshakes(broker, directory, port, client,
                                      resumed, n // 10 if quick else n)
        figures[f"TLS handshake, {label}: CPU us"] = Figure(us, 1e6 / us)
    return figures


def tls_bulk(program, quick):
    figures = {}
    for name, ciphers in bench_tls.SUITES.items():
        for size, n in (1024, 40000), (16384, 10000):
            n = n // 10 if quick else n
            with run_tls_broker(program, "ec") as (broker, directory, port):
                us = bench_tls.bulk_in(broker, directory, port, ciphers, size,
                                       n)
                figures[f"TLS, {name}, {size} B in: CPU us"] = Figure(
                    us, 1e6 / us)
                us = bench_tls.bulk_out(broker, directory, port, broker.port,
                                        ciphers, size, n)
                figures[f"TLS, {name}, {size} B out: CPU us"] = Figure(
                    us, 1e6 / us)
    return figures


def tls_idle(program, quick):
    figures = {}
    for label, client in ("TLS", False), ("TLS with client certificate", True):
        with run_tls_broker(program, "ec", client) as (broker, directory,
                                                       port):
            figures[f"idle connection, {label}: bytes"] = Figure(
                bench_tls.idle(broker, directory, port, client,
                               200 if quick else 2000))
    return figures


LASTING = "max_queued_messages 0\nmax_queued_bytes 0\n"


def durable(program, quick):
    """QoS 1 to a lasting session, with and without the journal."""
    figures, ms = {}, 500 if quick else 3000
    label = "100 to 1 lasting, QoS 1"
    for words, keeps in ("in memory", False), ("on disk", True):
        with bench_disk.Disk() as disk, \
                run_broker(program, LASTING + (disk.config(program) if keeps
                                               else "")) as broker, \
                run_load(broker, f"-d {ms} -L 1 -n 100 -w 10 -q 1 fanin"
                         ) as load:
            before, written = broker.cpu_us(), disk.written()
            result = load.run()
            n = float(result["delivered"])
            figures[f"{label}, {words}: CPU us"] = Figure(
                (broker.cpu_us() - before) / n, float(result["rate"]))
            if keeps:
                figures[f"{label}: bytes to the {disk.kind} each"] = Figure(
                    (disk.written() - written) / n)
    return figures


def durable_lone(program, quick):
    """One message at a time: what it takes, and how many syncs."""
    label = "1 to 1 lasting, one at a time, QoS 1"
    ms = 500 if quick else 3000
    with bench_disk.Disk() as disk, \
            run_broker(program, disk.config(program)) as broker, \
            run_load(broker, f"-d {ms} -L 1 -n 1 -w 1 -q 1 pairs") as load:
        before, syncs = broker.cpu_us(), disk.syncs()
        written = disk.written()
        result = load.run()
        n = float(result["delivered"])
        figures = {f"{label}: CPU us": Figure(
            (broker.cpu_us() - before) / n, float(result["rate"]))}
        if program.endswith("midge"):
            figures[f"{label}: syncs each"] = Figure(
                (disk.syncs() - syncs) / n)
        figures[f"{label}: bytes to the {disk.kind} each"] = Figure(
            (disk.written() - written) / n)
    return figures


def durable_update(program, quick):
    """Few new values among many retained ones, and none at all."""
    n = 50 if quick else 200
    with bench_disk.Disk() as disk, \
            run_broker(program, disk.config(program)) as broker:
        bench_disk.retain(broker.port, range(1000), 100)
        before = disk.written()
        bench_disk.retain(broker.port, [i * 7 % 1000 for i in range(n)], 100,
                          at_once=1, pause=.02)
        update = (disk.written() - before) / n
        time.sleep(2)
        before = disk.written()
        time.sleep(2 if quick else 20)
        idle_bytes = disk.written() - before
    return {f"1 of 1000 retained of 100 B: bytes to the {disk.kind} each":
            Figure(update),
            f"nothing to do: bytes to the {disk.kind}": Figure(idle_bytes)}


def recovery(program, quick):
    """Start with 100 000 retained and 10 000 queued messages."""
    n, queued = 100000, 10000
    with bench_disk.Disk() as disk:
        config = LASTING + disk.config(program, each=False)
        with run_broker(program, config) as broker:
            bench_disk.subscribe(broker.port)
            bench_disk.retain(broker.port, range(n), 16)
            bench_disk.queue(broker.port, queued)
            memory = broker.rss()
        started = time.monotonic()
        with run_broker(program, config) as broker:
            bench_disk.connect(broker.port, "first").disconnect()
            ms = (time.monotonic() - started) * 1000
            again = broker.rss()
            left = bench_disk.count(broker.port)
    if left != queued:
        raise Failed(f"{left} of {queued} queued messages came")
    label = f"{n} retained, {queued} queued"
    return {f"{label}: start ms": Figure(ms),
            f"{label}: resident kB before": Figure(memory / 1024),
            f"{label}: resident kB after": Figure(again / 1024)}


# The windows keep what is outstanding for a subscriber at 1000 or less, the
# usual length of a queue. Mosquitto handles so few of the acknowledgements of
# a busy subscriber that fan-in with QoS 1 overflows a queue of any length.
ROWS = {
    "pairs": traffic("10 pairs, QoS 0, 16 B", "pairs"),
    "pairs-acl": traffic("10 pairs, QoS 0, 16 B, ACL of 21 rules", "pairs",
                         config="acl_file rules\n"),
    "pairs-1k": traffic("10 pairs, QoS 0, 1 KB", "-s 1024 pairs"),
    "pairs-q1": traffic("10 pairs, QoS 1, 16 B", "-q 1 pairs"),
    "pairs-q2": traffic("10 pairs, QoS 2, 16 B", "-q 2 pairs"),
    "single": traffic("10 pairs, one at a time each, QoS 0", "-w 1 pairs"),
    "single-q1": traffic("10 pairs, one at a time each, QoS 1",
                         "-w 1 -q 1 pairs"),
    "ping": traffic("1 pair, one at a time, QoS 0", "-n 1 -w 1 pairs"),
    "pairs-64k": traffic("10 pairs, QoS 0, 64 KB", "-s 65536 -w 8 pairs"),
    "fanout-100": traffic("1 to 100, full speed", "-n 100 fanout"),
    "fanout-100-acl": traffic("1 to 100, full speed, ACL of 21 rules",
                              "-n 100 fanout", config="acl_file rules\n"),
    "fanout-1000": traffic("1 to 1000, full speed", "-n 1000 -w 200 fanout"),
    "fanout-100-single": traffic("1 to 100, one at a time",
                                 "-n 100 -w 1 fanout"),
    "fanout-1000-single": traffic("1 to 1000, one at a time",
                                  "-n 1000 -w 1 fanout"),
    "fanin": traffic("100 to 1, QoS 0", "-n 100 -w 10 fanin"),
    "fanin-q1": traffic("100 to 1, QoS 1, unlimited queue",
                        "-n 100 -w 10 -q 1 fanin",
                        config="max_queued_messages 0\n"),
    "pairs-idle": traffic("10 pairs beside 5000 idle", "pairs",
                          beside="-n 5000 idle"),
    "rate": traffic("1000 msg/s", "rate", seconds=6, latency=True),
    "rate-idle": traffic("1000 msg/s beside 5000 idle", "rate", seconds=6,
                         latency=True, beside="-n 5000 idle"),
    "subs": traffic("10 pairs beside 100000 subscriptions", "pairs",
                    beside="-n 100000 subs"),
    "durable": durable,
    "durable-lone": durable_lone,
    "durable-update": durable_update,
    "recovery": recovery,
    "storm": traffic("connect and leave (per connection)", "-n 10000 storm"),
    "retained": retained,
    "bare": bare,
    "idle": idle,
    "tls-handshakes": tls_handshakes,
    "tls-bulk": tls_bulk,
    "tls-idle": tls_idle,
}


def number(value):
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def measure_row(name, programs, rounds, quick):
    """Measures in the order A B A B; returns the lines of the table."""
    seen, failures = {}, {}
    for turn in range(rounds):
        for broker, program in programs.items():
            if not program:
                continue
            print(f"{name}: {broker}, round {turn + 1}", file=sys.stderr)
            try:
                for label, figure in ROWS[name](program, quick).items():
                    seen.setdefault(label, {}).setdefault(broker, []).append(
                        figure)
            except Failed as failure:
                failures[broker] = f"failed: {failure}"
    return [line(label, seen[label], programs, failures) for label in seen] \
        or [line(name, {}, programs, failures)]


def line(label, figures, programs, failures):
    def median(broker, field):
        values = [getattr(f, field) for f in figures.get(broker, [])]
        return statistics.median(values) if values and None not in values \
            else None

    rates = [number(median(b, "rate")) for b in programs]
    values = [failures.get(b) or median(b, "value") for b in programs]
    ratio = None
    if all(isinstance(v, float) for v in values) and values[-1] > 0:
        ratio = f"{values[0] / values[-1]:.2f}"
    return [label, *rates, *map(number, values), number(ratio)]


def print_table(lines):
    widths = [max(map(len, column)) for column in zip(*lines)]
    for i, cells in enumerate(lines):
        print("|", " | ".join(
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(cells, widths))), "|")
        if i == 0:
            print("|", " | ".join("-" * (w - 1) + (":" if n else "-")
                                  for n, w in enumerate(widths)), "|")


def build_load():
    source = os.path.join(ROOT, "test", "load.c")
    if os.path.exists(LOAD) and \
            os.path.getmtime(LOAD) >= os.path.getmtime(source):
        return
    os.makedirs(os.path.dirname(LOAD), exist_ok=True)
    subprocess.run(["cc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-o", LOAD,
                    source], check=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true",
                        help="short runs, one round: two minutes for all")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=ROWS)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--broker", default=os.path.join(ROOT, "build/midge"))
    options = parser.parse_args()
    if not os.access(options.broker, os.X_OK):
        sys.exit(f"bench: {options.broker} can't be run; build it first")
    programs = {"midge": os.path.abspath(options.broker),
                "mosquitto": shutil.which(
                    "mosquitto", path=os.environ["PATH"] + ":/usr/sbin")}
    build_load()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    lines = [["what", *(f"{name} msg/s" for name in programs), *programs,
              "ratio"]]
    try:
        for name in options.only or ROWS:
            lines += measure_row(name, programs, options.rounds or
                                 (1 if options.quick else 2), options.quick)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    print_table(lines)


if __name__ == "__main__":
    main()
