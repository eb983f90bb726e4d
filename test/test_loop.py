"""The loop: many connections, quiet and busy ones, and none that costs the others anything."""

import os
import resource
import socket
import time

import pytest

from wire import PINGRESP, Closed, connect as connect_packet, pingreq, publish, V311, wait_for

PINGRESP_BYTES = b"\xd0\x00"


def raise_own_limit(n):
    """Descriptors of the tests themselves, and some to spare; where they cannot be had, the test is skipped."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < n + 100:
        pytest.skip(f"a process may have only {hard} descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, n)), hard))


@pytest.fixture
def crowd():
    """crowd(broker, n): n connected sockets that were answered, closed at the end."""
    sockets = []

    def create(broker, n, prefix="crowd"):
        raise_own_limit(n + 200)
        new = []
        for i in range(n):
            s = socket.create_connection(broker.address, timeout=20)
            s.sendall(connect_packet(V311, f"{prefix}{i}", keepalive=0))
            new.append(s)
        sockets.extend(new)
        for s in new:
            assert s.recv(4) == b"\x20\x02\x00\x00"
        return new

    yield create
    for s in sockets:
        s.close()


def ping_all(sockets):
    for s in sockets:
        s.sendall(pingreq())
    for s in sockets:
        assert s.recv(2) == PINGRESP_BYTES


def status(broker, field):
    with open(f"/proc/{broker.pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(field + ":"))


def cpu_ticks(broker):
    with open(f"/proc/{broker.pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def until_quiet(broker, n, crowd):
    """Traffic of one client, beside the n of the crowd, until the loop has let all of these go:
    their descriptors are in signal-driven mode then (O_ASYNC, 020000 in fdinfo's flags)."""
    def armed():
        ping_all(crowd[:1])
        flags = []
        for fd in os.listdir(f"/proc/{broker.pid}/fdinfo"):
            try:
                with open(f"/proc/{broker.pid}/fdinfo/{fd}") as f:
                    flags.append(int(next(x for x in f if x.startswith("flags:")).split()[1], 8))
            except FileNotFoundError:
                pass
        return sum(bool(x & 0o20000) for x in flags) >= n - 1
    for _ in range(4):
        try:
            return wait_for(armed, "quiet connections", timeout=8)
        except AssertionError:
            # Heard over more than one look, so that the last few were not worth a signal each: now together.
            ping_all(crowd)
            ping_all(crowd)
    raise AssertionError("no quiet connections")


def test_quiet_connections_are_heard(new_broker, crowd):
    """After a silence each of a thousand is answered, again and again, and notices the end."""
    broker = new_broker("sys_interval 0", "log_type information")
    sockets = crowd(broker, 1000)
    for _ in range(3):
        until_quiet(broker, 1000, sockets)
        ping_all(sockets)
    until_quiet(broker, 1000, sockets)
    for s in sockets:
        s.sendall(b"\xe0\x00")
    for s in sockets:
        assert s.recv(1) == b""


def test_more_bells_than_the_kernel_keeps(new_broker, crowd):
    """The queue of signals is small here: what does not fit is found all the same."""
    broker = new_broker("sys_interval 0", "log_type information", "user root")
    sockets = crowd(broker, 300)
    resource.prlimit(broker.pid, resource.RLIMIT_SIGPENDING, (5, 5))
    for _ in range(3):
        until_quiet(broker, 300, sockets)
        ping_all(sockets)


def test_large_packet_to_a_quiet_connection(new_broker, crowd):
    """Input that does not fit into one read: nothing is left lying in the socket."""
    broker = new_broker("sys_interval 0", "log_type information")
    sockets = crowd(broker, 50)
    until_quiet(broker, 50, sockets)
    size = 1_500_000
    sockets[7].sendall(publish(V311, "big", bytes(size)) + pingreq())
    assert sockets[7].recv(2) == PINGRESP_BYTES


def test_no_wake_ups_when_nothing_is_due(new_broker, connect):
    """Connections are there, nothing happens: the process does not run."""
    broker = new_broker("sys_interval 0")
    clients = [connect(broker=broker, keepalive=0) for _ in range(20)]
    clients[0].ping()
    wait_for(lambda: stands_still(broker), "a process that sleeps")


def stands_still(broker):
    before = status(broker, "voluntary_ctxt_switches")
    time.sleep(1)   # the subject is that nothing happens in a time
    return status(broker, "voluntary_ctxt_switches") == before


def test_a_flood_leaves_others_their_turn(new_broker, connect, dial):
    """One publisher at full speed to many subscribers, and requests of others in between."""
    broker = new_broker("log_type information")
    subs = [connect(broker=broker, receive_buffer=65536) for _ in range(50)]
    for s in subs:
        s.subscribe("flood")
    flooder, other = connect(broker=broker), connect(broker=broker)
    chunk = publish(V311, "flood", b"x") * 5000
    flooder.sock.setblocking(False)
    for _ in range(50):
        try:
            flooder.sock.send(chunk)
        except BlockingIOError:
            pass
        other.ping()


def test_descriptors_run_out(new_broker, connect, dial):
    """Those who are connected notice nothing, the process does not spin, and when one leaves
    another can come."""
    broker = new_broker("sys_interval 0", "user root")
    first = connect(broker=broker)
    resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (20, 20))
    clients = [first]
    with pytest.raises((Closed, AssertionError, OSError)):
        for _ in range(30):
            clients.append(connect(broker=broker, timeout=1))
    broker.wait_log("No more connections can be accepted")
    before = cpu_ticks(broker)
    for _ in range(20):
        first.ping()
    assert cpu_ticks(broker) - before < 20
    assert broker.log().count("No more connections can be accepted") == 1
    for c in clients[1:6]:
        c.disconnect()
    late = connect(broker=broker)
    late.ping()


def test_memory_of_idle_connections(new_broker, crowd):
    """No buffers stay behind, neither after large messages."""
    broker = new_broker("sys_interval 0", "log_type information")
    n = 1000
    if "Sanitizer" in open(f"/proc/{broker.pid}/maps").read() or "asan" in os.environ.get("MIDGE", ""):
        pytest.skip("resident memory means nothing under AddressSanitizer")
    ping_all(crowd(broker, 10, "warm"))
    before = status(broker, "VmRSS")
    sockets = crowd(broker, n)
    for s in sockets[::10]:
        s.sendall(publish(V311, "nobody", bytes(100_000)) + pingreq())
        assert s.recv(2) == PINGRESP_BYTES
    used = (status(broker, "VmRSS") - before) * 1024
    assert used / n < 1200


@pytest.mark.parametrize("closing", ["reset", "close"])
def test_ends_while_quiet(new_broker, crowd, connect, closing):
    """A quiet connection that goes away is noticed without traffic."""
    broker = new_broker("sys_interval 0", args=["-v"])
    sockets = crowd(broker, 60)
    until_quiet(broker, 60, sockets)
    mark = broker.mark()
    if closing == "reset":
        sockets[33].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sockets[33].close()
    broker.wait_log("Client crowd33 .*disconnected", after=mark)


def test_pings_without_reading(new_broker, dial, connect):
    """A client that takes no answers is no longer read, and goes on when it takes them."""
    broker = new_broker("log_type information")
    greedy = dial(broker, receive_buffer=4096, timeout=20)
    greedy.connect("greedy")
    n = 0
    greedy.sock.setblocking(False)
    try:
        while True:
            n += greedy.sock.send(pingreq() * 10000)
    except BlockingIOError:
        pass
    connect(broker=broker).ping()
    greedy.sock.settimeout(20)
    got = 0
    while got < n - n % 2:
        data = greedy.sock.recv(1 << 16)
        assert data
        got += len(data)
    greedy.sock.sendall(pingreq()[n % 2:])
    assert greedy.expect(PINGRESP)


def test_large_packet_while_the_output_is_full(new_broker, connect):
    """A client that takes nothing sends a large packet in pieces: the rest of it waits, and arrives
    once the client reads."""
    broker = new_broker("log_type information")
    stuck, other = connect(broker=broker, receive_buffer=4096, timeout=20), connect(broker=broker, timeout=20)
    stuck.subscribe("flood")
    other.subscribe("large")
    large = publish(V311, "large", bytes(1_000_000))
    stuck.send(large[:600_000])
    for _ in range(30):
        other.publish("flood", bytes(900_000))
    other.ping()
    stuck.sock.settimeout(0.01)
    sent = 600_000
    got = 0
    while sent < len(large):
        try:
            sent += stuck.sock.send(large[sent:sent + 50_000])
        except TimeoutError:
            got += len(stuck.sock.recv(1 << 20))
    stuck.sock.settimeout(20)
    assert len(other.expect_publish("large", timeout=20).payload) == 1_000_000
