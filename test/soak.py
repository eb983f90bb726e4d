"""Mixed load for as long as asked, and whether anything grows: make soak T=600 (seconds).

Rounds of all that clients and operators do, each of which leaves the broker as it found it: connections with
and without TLS that come and go, lasting sessions, wills, retained messages, shared subscriptions, clients that
send nonsense, reloads, compactions, rotated logs, the death of the journal's helper. Between rounds the memory,
the descriptors and the ledger are looked at, within them the latency. At the end the four quarters are compared:
the first is for warming up, and what grows from the second to the third and on to the fourth is not flat.
"""

import collections
import os
import re
import signal
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import tls  # noqa: E402
import wire  # noqa: E402
from wire import V5, V311, Client, Will, wait_for  # noqa: E402

SAMPLES = 50            # of the latency, per round

CONFIG = """listener {port} 127.0.0.1
allow_anonymous true
password_file {dir}/users
user root
persistence true
persistence_location {dir}/journal
sys_interval 1
log_dest stderr
log_dest file {dir}/log
log_file_size 50000
"""


class Soak:
    """A broker under load; round() and sample()."""

    def __init__(self, pki):
        self.pki = pki
        self.context = tls.trusting(pki.ca)
        self.broker = wire.Broker(config=CONFIG + tls.listener(pki.server(), port="port2"))
        self.rounds = 0
        self.told = {}          # warnings and errors in the log: how often

    def start(self):
        with open(self.broker.path("users"), "w") as f:
            f.write(wire.password_line("pupil", "secret"))
        os.chmod(self.broker.path("users"), 0o600)
        self.broker.start()
        self.watcher = self.client("watcher")
        self.watcher.subscribe("will/#", "done", qos=1)
        self.probe = self.client("probe")
        self.probe.subscribe("probe")
        self.clock = self.client("clock")
        self.clock.subscribe("$SYS/broker/uptime")
        self.resting = self.descriptors()
        return self

    def client(self, name, encrypted=False, version=V311, **fields):
        port = self.broker.ports["port2" if encrypted else "port"]
        client = Client(("127.0.0.1", port), version=version, timeout=20, context=self.context if encrypted else None)
        client.connect(name, **fields)
        return client

    # What clients do

    def come_and_go(self):
        for i in range(20):
            version = (wire.V31, V311, V5)[i % 3]
            a = self.client(f"guest{i}", version=version, username="pupil", password="secret")
            a.subscribe("hall/+", qos=2)
            a.publish("hall/a", b"x" * (i * 700), qos=i % 3)
            a.expect_publish("hall/a")
            a.disconnect() if i % 2 else a.close(reset=i % 4 == 0)

    def encrypted(self):
        for i in range(4):
            a = self.client(f"safe{i}", encrypted=True)
            a.subscribe("vault")
            a.publish("vault", b"y" * 5000)
            a.expect_publish("vault")
            a.close()

    def lasting_session(self):
        a = self.client("keeper", clean=False)
        a.subscribe("keep/#", qos=2)
        a.disconnect()
        for i in range(40):
            self.probe.publish("keep/q", str(i), qos=1 + i % 2)
        a = self.client("keeper", clean=False)
        for i in range(40):
            a.expect_publish("keep/q", str(i))
        a.disconnect()
        self.client("keeper").disconnect()      # clean: the session ends

    def wills(self):
        for i in range(5):
            a = self.client("mortal", will=Will(f"will/{i}", b"gone", qos=1))
            a.close(reset=True)
            self.watcher.expect_publish(f"will/{i}")

    def retained(self):
        for i in range(50):
            self.probe.publish(f"state/{i}/x", b"z" * (1 + i * 50), qos=1, retain=True)
        a = self.client("reader", version=V5)
        a.subscribe("state/#")
        for _ in range(50):
            a.expect_publish(retain=True)
        a.disconnect()
        for i in range(50):
            self.probe.publish(f"state/{i}/x", b"", qos=1, retain=True)

    def shared(self):
        team = [self.client(f"worker{i}", version=V5) for i in range(3)]
        for a in team:
            a.subscribe("$share/team/jobs")
        for i in range(30):
            self.probe.publish("jobs", str(i), qos=1)
        got = 0
        for a in team:
            a.ping()
            a.ping()
            got += len(a.inbox)
            a.close()
        assert got == 30, f"{got} of 30 jobs were handed out"

    def nonsense(self):
        for data in (b"", b"GET / HTTP/1.0\r\n\r\n", b"\x10\xff\xff\xff\x7f", b"\x16\x03\x01\x00\x05hello"):
            for port in ("port", "port2"):
                a = Client(("127.0.0.1", self.broker.ports[port]))
                a.send(data)
                a.close()

    # What operators do

    def reload(self):
        mark = self.broker.mark()
        self.broker.signal(signal.SIGHUP)
        self.broker.wait_log(r"The certificates of port \d+ were read anew", after=mark, timeout=20)

    def compact(self):
        before = self.snapshots()
        self.broker.signal(signal.SIGUSR1)
        wait_for(lambda: self.snapshots() - before, "snapshot", 20)

    def kill_helper(self):
        old = self.helpers()
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        self.probe.publish("done", "1", qos=1, retain=True)
        self.watcher.expect_publish("done")
        self.probe.publish("done", "", qos=1, retain=True)
        self.watcher.expect_publish("done")
        wait_for(lambda: len(self.helpers()) == 1 and self.helpers() != old, "new helper", 20)

    def report(self):
        self.broker.signal(signal.SIGUSR2)

    # Looking on

    def snapshots(self):
        return {name for name in os.listdir(self.broker.path("journal")) if re.search(r"\.snapshot-\d", name)}

    def helpers(self):
        with open(f"/proc/{self.broker.pid}/task/{self.broker.pid}/children") as f:
            return [int(pid) for pid in f.read().split()]

    def descriptors(self, pid=None):
        return len(os.listdir(f"/proc/{pid or self.broker.pid}/fd"))

    def memory(self):
        """Bytes that the broker alone has."""
        with open(f"/proc/{self.broker.pid}/smaps_rollup") as f:
            return 1024 * sum(int(line.split()[1]) for line in f if line.startswith("Private_"))

    def latency(self):
        """Microseconds from a publish to its arrival, the median of a few."""
        took = []
        for _ in range(SAMPLES):
            began = time.perf_counter()
            self.probe.publish("probe", b"?")
            self.probe.expect_publish("probe")
            took.append(time.perf_counter() - began)
        return 1e6 * statistics.median(took)

    def rest(self):
        """Waits until only the clients that stay are there, and no child but the helper."""
        wait_for(lambda: len(self.helpers()) == 1 and self.descriptors() <= self.resting, "rest", 20)

    def ledger(self):
        """Bytes that the broker counts as kept for clients, at rest."""
        self.rest()
        self.clock.ping()
        self.clock.inbox.clear()
        for _ in range(2):      # the second is later than the ping for sure
            self.clock.expect_publish(timeout=20)
        a = self.client("reader")
        a.subscribe("$SYS/broker/heap/current")
        value = int(a.expect_publish().payload)
        a.disconnect()
        self.rest()
        return value

    def read_log(self):
        """Counts what the log complained of, and forgets it."""
        for line in self.broker.take_log():
            found = re.search(r"(Warning|Error): .*", line)
            if found:
                kind = re.sub(r"\d+", "N", found.group())
                self.told[kind] = self.told.get(kind, 0) + 1

    def round(self):
        for step in (self.come_and_go, self.encrypted, self.lasting_session, self.wills, self.retained, self.shared,
                     self.nonsense, self.reload, self.report):
            step()
        if self.rounds % 4 == 1:
            self.compact()
        if self.rounds % 8 == 2:
            self.kill_helper()
        self.rounds += 1
        self.rest()
        self.read_log()

    def sample(self):
        us = self.latency()
        kept = self.ledger()
        return Sample(self.memory(), self.descriptors(), sum(self.descriptors(pid) for pid in self.helpers()),
                      us, kept)


# Bytes, descriptors of the broker and its helper, microseconds, bytes.
Sample = collections.namedtuple("Sample", "memory descriptors of_the_helper latency ledger")

# What a quarter may have more than the one before, as a share and beside that: noise.
NOISE = Sample((0.01, 16384), (0, 0), (0, 0), (0.1, 30), (0.01, 1024))


def verdict(samples):
    """The lines of a table, and whether all is flat: the medians of the last three quarters do not grow twice."""
    n = len(samples) // 4
    lines, flat = [], True
    for name, (share, beside) in zip(Sample._fields, NOISE):
        q = [statistics.median(getattr(s, name) for s in samples[k * n:(k + 1) * n]) for k in range(4)]
        grows = q[2] > q[1] * (1 + share) + beside and q[3] > q[2] * (1 + share) + beside or \
            q[3] > q[1] * (1 + 2 * share) + 2 * beside
        flat = flat and not grows
        numbers = "".join(f"{v:>12.0f}" for v in q)
        lines.append(f"{name.replace('_', ' '):>14}{numbers}  {'grows' if grows else 'flat'}")
    return lines, flat


def main():
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 600
    pki = tls.Pki()
    soak = Soak(pki)
    samples = []
    try:
        soak.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end or len(samples) < 4:
            for _ in range(8):
                soak.round()
            samples.append(soak.sample())
            print("round {}: memory {}, descriptors {} and {}, latency {:.0f} us, ledger {}".format(
                soak.rounds, *samples[-1]), flush=True)
        soak.broker.stop()
    finally:
        soak.broker.cleanup()
        pki.cleanup()
    lines, flat = verdict(samples)
    print(f"\n{soak.rounds} rounds; medians of the quarters:")
    print("\n".join(lines))
    for kind, n in soak.told.items():
        print(f"{n} x {kind}")
    sys.exit(not flat)


if __name__ == "__main__":
    main()
