#!/usr/bin/python3
"""Kills the broker again and again under load; at the end every message is accounted for.

    MIDGE=build/midge /usr/bin/python3 test/crash.py [--kills N] [--seed S]

Publishers, subscribers and retained topics at QoS 1 and 2, all with lasting sessions, and sessions
that come and go. Each round lets them work for a random while and then kills: the broker, most
often; only its helper; the broker while it makes a snapshot. Sometimes the disk is slow (disk.c).
What was acknowledged must hold: QoS 1 at least once, QoS 2 exactly once on both sides, each topic
in order, nothing retained that is older than acknowledged, sessions and subscriptions as told.

The seed decides all choices; the moment that a kill meets depends on the machine too.
"""

import argparse
import os
import random
import selectors
import signal
import socket
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import disk  # noqa: E402
import wire  # noqa: E402
from wire import (V311, V5, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK,  # noqa: E402
                  UNSUBACK)

CONFIG = wire.DEFAULT_CONFIG + ("persistence true\npersistence_location {dir}/journal\n"
                                "max_queued_messages 0\n")
WINDOW = 8              # messages that a publisher has in flight
AHEAD = 200             # messages that the slowest subscriber may be behind
RETAINED = 6            # topics
SETTLE_S = 60
RETRY_S = 0.02
QUOTA = 0x97            # nothing was done, as the journal cannot be written at the moment
LASTING = {"session_expiry_interval": 0xFFFFFFFF}


class Broken(AssertionError):
    """A promise was not kept."""


def check(condition, what):
    if not condition:
        raise Broken(what)


class Peer:
    """A client with a lasting session that survives its connections. Subclasses say what it does."""

    def __init__(self, run, name, version):
        self.run, self.name, self.version = run, name, version
        self.sock = None
        self.known = False      # the broker has told that the session exists
        self.ready = False
        self.away = False       # does not want to be connected at the moment
        self.again_at = None
        self.data, self.out = bytearray(), bytearray()

    # Connection

    def open(self):
        self.sock = socket.create_connection(self.run.broker.address, 5)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.run.selector.register(self.sock, selectors.EVENT_READ, self)
        self.data, self.out = bytearray(), bytearray()
        self.ready, self.again_at = False, None
        self.put(wire.connect(self.version, self.name, clean=False, keepalive=0,
                              properties={**LASTING, **self.limits()} if self.version == V5 else None))

    def limits(self):
        return {}

    def close(self):
        if self.sock:
            self.run.selector.unregister(self.sock)
            self.sock.close()
        self.sock = None
        self.ready = False

    def put(self, data):
        self.out += data

    def flush(self):
        if not self.out or not self.sock:
            return
        try:
            sent = self.sock.send(self.out)
            del self.out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.out.clear()    # what it has sent to us is read all the same

    def readable(self):
        try:
            got = self.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            got = b""
        if not got:
            self.close()
            return
        self.data += got
        while self.sock:
            size = wire.Client._packet_size(self)
            if not size or len(self.data) < size:
                break
            p = wire.decode(self.version, bytes(self.data[:size]))
            del self.data[:size]
            self.take(p)

    @property
    def _bytes(self):
        return self.data

    def take(self, p):
        if getattr(p, "reason", 0) == QUOTA and p.type in (PUBACK, PUBREC) and self.run.trouble:
            self.refused(p)
            return
        check(getattr(p, "reason", 0) in (0, 0x10, 0x92), f"{self.name} got {p}")
        if p.type == CONNACK:
            check(p.session_present or not self.known, f"the session of {self.name} is gone")
            self.known = self.ready = True
            self.connected()
        else:
            self.packet(p)

    def ack(self, type, pid):
        self.put(wire.ack(self.version, type, pid))

    # For subclasses

    def connected(self):
        pass

    def packet(self, p):
        check(False, f"{self.name} got {p}")

    refused = packet

    def again(self):
        """What was refused, once more."""

    def work(self):
        """Something new to do, while the broker is up."""

    def settled(self):
        return True


class Publisher(Peer):
    """Numbers to one topic. Packet identifiers are used again as soon as possible: one that the
    broker has not let go would swallow the next message."""

    def __init__(self, run, name, version, qos, retain=False, window=WINDOW):
        super().__init__(run, name, version)
        self.qos, self.retain, self.window = qos, retain, window
        self.topic = ("r/" if retain else "t/") + name
        self.sent = 0
        self.acked = 0          # all up to here are the broker's
        self.flight = {}        # pid: number, in the order sent
        self.releasing = {}     # pid: None, PUBREC came
        self.busy = False

    def publish(self, pid, dup):
        text = b"%d " % self.flight[pid] + b"x" * (self.flight[pid] % 97)
        self.put(wire.publish(self.version, self.topic, text, self.qos, self.retain, dup, pid))

    def connected(self):
        for pid in self.releasing:
            self.ack(PUBREL, pid)
        for pid in self.flight:
            self.publish(pid, True)

    def work(self):
        while self.ready and len(self.flight) + len(self.releasing) < self.window and \
                (self.retain or self.sent < self.run.slowest(self.name) + AHEAD):
            pid = next(i for i in range(1, 65536) if i not in self.flight and i not in self.releasing)
            self.sent += 1
            self.flight[pid] = self.sent
            self.publish(pid, False)

    def refused(self, p):
        """Only a publisher with a window of one can say it again in order; so only those use 5.0."""
        check(self.window == 1 and p.pid in self.flight, f"{self.name} got {p}")
        self.run.counts["refused"] += 1
        self.again_at = time.monotonic() + RETRY_S

    def again(self):
        for pid in self.flight:
            self.publish(pid, False)

    def packet(self, p):
        if p.type == PUBCOMP and self.qos == 2:
            check(p.pid in self.releasing, f"{self.name} got {p}")
            del self.releasing[p.pid]
            return
        check(p.type == (PUBACK if self.qos == 1 else PUBREC), f"{self.name} got {p}")
        check(p.pid in self.flight or p.pid in self.releasing, f"{self.name} got {p}")
        if p.pid in self.flight:
            number = self.flight.pop(p.pid)
            check(number == self.acked + 1, f"{self.name}: {number} acknowledged after {self.acked}")
            self.acked = number
            if self.qos == 2:
                self.releasing[p.pid] = None
        if self.qos == 2:
            self.ack(PUBREL, p.pid)

    def settled(self):
        return not self.flight and not self.releasing


class Subscriber(Peer):
    def __init__(self, run, name, version, qos, receive_maximum=None):
        super().__init__(run, name, version)
        self.qos, self.receive_maximum = qos, receive_maximum
        self.subscribed = False
        self.last = {}          # topic: number of the latest message
        self.received = {}      # pid: (topic, payload), QoS 2 and not released
        self.doubled = 0

    def limits(self):
        return {"receive_maximum": self.receive_maximum} if self.receive_maximum else {}

    def connected(self):
        if not self.subscribed:
            self.put(wire.subscribe(self.version, 1, [("t/#", self.qos)]))

    def packet(self, p):
        if p.type == SUBACK:
            self.subscribed = True
        elif p.type == PUBREL:
            self.received.pop(p.pid, None)
            self.ack(PUBCOMP, p.pid)
        else:
            check(p.type == PUBLISH, f"{self.name} got {p}")
            self.message(p)
            self.ack(PUBACK if p.qos == 1 else PUBREC, p.pid)

    def message(self, p):
        if p.qos == 2 and p.pid in self.received:
            check(self.received[p.pid] == (p.topic, p.payload),
                  f"{self.name}: packet id {p.pid} was not free: {self.received[p.pid]}, {p}")
            check(p.dup, f"{self.name}: again without DUP: {p}")
            return
        if p.qos == 2:
            self.received[p.pid] = (p.topic, p.payload)
        number, last = int(p.payload.split()[0]), self.last.get(p.topic, 0)
        if p.qos == 2:
            check(number == last + 1, f"{self.name}: {p.topic} {number} after {last} at QoS 2")
        else:
            check(number <= last + 1, f"{self.name}: {p.topic} {number} after {last} at QoS 1")
        self.doubled += number <= last
        self.last[p.topic] = max(number, last)

    def settled(self):
        return self.subscribed and not self.received and all(
            self.last.get(p.topic, 0) == p.sent for p in self.run.publishers)


class Changer(Peer):
    """Subscribes and unsubscribes, one filter after the other, and never twice what was acknowledged."""

    def __init__(self, run, name, version):
        super().__init__(run, name, version)
        self.has = set()
        self.wanted = None      # (filter, whether to have it), not yet acknowledged

    def again(self):
        self.ask()

    def ask(self):
        name, on = self.wanted
        self.put(wire.subscribe(self.version, 1, [(name, 1)]) if on else
                 wire.unsubscribe(self.version, 1, [name]))

    def connected(self):
        if self.wanted:
            self.ask()

    def work(self):
        if self.ready and not self.wanted:
            name = f"c/{self.run.rng.randrange(40)}"
            self.wanted = (name, name not in self.has)
            self.ask()

    def packet(self, p):
        check(self.wanted and p.type == (SUBACK if self.wanted[1] else UNSUBACK), f"{self.name} got {p}")
        if p.reasons and p.reasons[0] in (0x80, QUOTA) and self.run.trouble:
            self.run.counts["refused"] += 1
            self.again_at = time.monotonic() + RETRY_S
            return
        name, on = self.wanted
        (self.has.add if on else self.has.remove)(name)
        self.wanted = None

    def settled(self):
        return not self.wanted


class Run:
    def __init__(self, kills, seed, say=print):
        self.kills, self.rng, self.say = kills, random.Random(seed), say
        self.selector = selectors.DefaultSelector()
        self.disk = disk.Disk()
        self.broker = wire.Broker(config=CONFIG, env=self.disk.env)
        os.mkdir(self.broker.path("journal"))
        os.chmod(self.broker.path("journal"), 0o777)
        self.publishers = [Publisher(self, "p1", V311, 1), Publisher(self, "p2", V5, 1, window=1),
                           Publisher(self, "p3", V311, 2), Publisher(self, "p4", V5, 2, window=1)]
        self.keepers = [Publisher(self, f"k{i}", V311, 1 + i % 2, True, 1 + i // 2) for i in range(RETAINED)]
        self.subscribers = [Subscriber(self, "s1", V311, 2), Subscriber(self, "s2", V5, 2, 3),
                            Subscriber(self, "s3", V5, 1)]
        self.changers = [Changer(self, "c1", V311), Changer(self, "c2", V5)]
        self.peers = self.subscribers + self.publishers + self.keepers + self.changers
        self.made = {}          # client id: whether its session was to stay, as acknowledged
        self.counts = dict.fromkeys(["broker", "broker while it makes a snapshot", "helper", "stop", "slow",
                                     "refused"], 0)
        self.trouble = False    # a helper was killed in this life of the broker

    def slowest(self, name):
        return min(s.last.get("t/" + name, 0) for s in self.subscribers)

    # The loop

    def turn(self, until):
        for peer in self.peers:
            if not peer.sock and not peer.away and self.broker.process:
                peer.open()
            if peer.ready and peer.again_at and time.monotonic() > peer.again_at:
                peer.again_at = None
                peer.again()
            peer.flush()
        for key, _ in self.selector.select(max(0, min(0.01, until - time.monotonic()))):
            if key.data.sock:
                key.data.readable()

    def work(self, seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for peer in self.peers:
                peer.work()
            self.turn(until)

    def drain(self):
        """All that was sent before the end is read."""
        deadline = time.monotonic() + 5
        while any(peer.sock for peer in self.peers):
            check(time.monotonic() < deadline, "connections to a dead process")
            for key, _ in self.selector.select(0.1):
                if key.data.sock:
                    key.data.readable()

    def settle(self):
        """Nothing new; all that is under way arrives."""
        deadline = time.monotonic() + SETTLE_S
        for peer in self.peers:
            peer.away = False
        while not all(peer.ready and peer.settled() for peer in self.peers):
            late = [p.name for p in self.peers if not (p.ready and p.settled())]
            check(time.monotonic() < deadline,
                  f"{late} wait in vain: " + str([(s.name, s.last) for s in self.subscribers] +
                                                [(p.topic, p.sent) for p in self.publishers]))
            self.turn(deadline)

    # Rounds

    def start(self):
        mark = [(k.topic, k.acked, k.sent) for k in self.keepers]
        if self.rng.random() < 0.4:
            self.disk.slow(self.rng.choice([2, 10, 40]))
            self.counts["slow"] += 1
        else:
            self.disk.well()
        self.broker.start()
        self.trouble = False
        for line in self.broker.log().splitlines():
            check("made no sense" not in line, line)
        self.look_at_retained(mark)

    def look_at_retained(self, mark):
        client = wire.Client(self.broker.address, timeout=20)
        client.connect("looker")
        client.subscribe("r/#")
        client.ping()
        found = {p.topic: int(p.payload.split()[0]) for p in client.inbox}
        client.disconnect()
        for topic, acked, sent in mark:
            number = found.get(topic, 0)
            check(acked <= number <= sent, f"{topic}: {number} is retained, {acked} was acknowledged, {sent} sent")

    def sessions(self):
        """One more session that stays, and perhaps one that ends; acknowledged or not."""
        try:
            client = wire.Client(self.broker.address, timeout=20)
            name = f"n{len(self.made)}"
            client.connect(name, clean=False, reason=None)
            if client.connack.reason:
                check(self.trouble and client.connack.reason == 3, f"{name} got {client.connack}")
                return
            self.made[name] = True
            lasting = [n for n, stays in self.made.items() if stays]
            client.close()
            if len(lasting) > 5:
                name = self.rng.choice(lasting)
                client = wire.Client(self.broker.address, timeout=20)
                client.connect(name)
                self.made[name] = False
                client.close()
        except (wire.Closed, OSError):
            pass

    def children(self):
        pid = self.broker.pid
        with open(f"/proc/{pid}/task/{pid}/children") as f:
            return [int(n) for n in f.read().split()]

    def kill(self):
        kind = self.rng.choice(["broker"] * 6 + ["broker while it makes a snapshot"] * 3 + ["helper"] * 2 + ["stop"])
        self.counts[kind] += 1
        if kind == "helper":
            self.trouble = True
            for pid in self.children():
                os.kill(pid, signal.SIGKILL)
            self.work(self.rng.uniform(0, 0.2))
            return
        if kind == "stop":
            self.broker.signal(signal.SIGTERM)
            self.broker.wait()
        else:
            if kind != "broker":
                self.broker.signal(signal.SIGUSR1)
                self.work(self.rng.expovariate(200))
            self.broker.kill()
        self.drain()
        self.start()

    def round(self):
        for peer in self.subscribers + self.publishers:
            peer.away = self.rng.random() < 0.1
        for peer in self.peers:
            if peer.sock and (peer.away or self.rng.random() < 0.03):
                peer.close()
        self.work(self.rng.choice([0, 0.02, 0.1, 0.3]) * self.rng.random() + 0.01)
        if self.rng.random() < 0.3:
            self.sessions()
        self.work(self.rng.expovariate(30))
        self.kill()

    # The end

    def look_at_sessions(self):
        for name, stays in self.made.items():
            client = wire.Client(self.broker.address)
            client.connect(name, clean=False)
            check(client.connack.session_present == stays, f"session {name}: to stay {stays}, {client.connack}")
            client.connack = client.disconnect()

    def look_at_subscriptions(self):
        """Each filter gets a message; it arrives where the filter is subscribed, and only there."""
        sender = wire.Client(self.broker.address, timeout=20)
        sender.connect("sender")
        clients = []
        for changer in self.changers:
            changer.close()
            changer.away = True
            client = wire.Client(self.broker.address, changer.version, timeout=20)
            client.connect(changer.name, clean=False,
                           properties=LASTING if changer.version == V5 else None)
            clients.append(client)
        for i in range(40):
            sender.publish(f"c/{i}", "x", qos=1)
        for changer, client in zip(self.changers, clients):
            client.ping()
            client.ping()
            found = {p.topic for p in client.inbox if p.type == PUBLISH}
            while len(found) < len(changer.has):
                found.add(client.expect_publish().topic)
            check(found == changer.has, f"{changer.name} subscribes {changer.has}, gets {found}")
            client.disconnect()
        sender.disconnect()

    def run(self):
        try:
            self.start()
            self.settle()
            for i in range(self.kills):
                self.round()
                if i % 100 == 99:
                    self.settle()
                    self.say(f"{i + 1} kills, {self.total()} messages")
            self.settle()
            self.broker.kill()
            self.drain()
            self.start()
            self.settle()
            self.look_at_retained([(k.topic, k.sent, k.sent) for k in self.keepers])
            self.look_at_sessions()
            self.look_at_subscriptions()
            self.say(f"{self.total()} messages and {len(self.made)} sessions accounted for; " +
                     ", ".join(f"{k}: {n}" for k, n in self.counts.items()) +
                     f"; {sum(s.doubled for s in self.subscribers)} came twice at QoS 1")
        except BaseException:
            self.say("The end of the log:\n" + self.broker.tail())
            raise
        finally:
            for peer in self.peers:
                peer.close()
            self.selector.close()
            if self.broker.process:
                self.broker.kill()
            self.broker.cleanup()
            self.disk.cleanup()

    def total(self):
        return sum(p.sent for p in self.publishers + self.keepers)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    Run(options.kills, options.seed, lambda text: print(text, flush=True)).run()


if __name__ == "__main__":
    main()
