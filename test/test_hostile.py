"""Sequences that once harmed somebody: each is answered, and nobody else notices."""

import os
import signal
import socket
import time

import pytest

from tls import ANYBODY, listener, trusting
from wire import (PUBACK, PUBLISH, PUBREC, PUBREL, SUBACK, V311, V5, Will, connect as connect_packet, pingreq, publish,
                  subscribe, wait_for)
from test_loop import cpu_ticks, crowd, until_quiet  # noqa: F401


def test_scan_waits_for_acknowledgements(new_broker, connect):
    """Many retained messages for one who does not acknowledge: they wait, and the broker sleeps."""
    broker = new_broker("sys_interval 0", "max_queued_bytes 1000")
    pub = connect(broker=broker)
    for i in range(100):
        pub.publish(f"r/{i}", bytes(2000), qos=1, retain=True)
    sub = connect(broker=broker)
    sub.subscribe("r/#", qos=1)
    first = [sub.expect_publish(flow=False) for _ in range(20)]
    sub.nothing()
    before = cpu_ticks(broker)
    time.sleep(1)   # the subject is what happens in a time
    assert cpu_ticks(broker) - before < 20
    for p in first:
        sub.ack(PUBACK, p.pid)
    topics = {p.topic for p in first} | {sub.expect_publish().topic for _ in range(80)}
    assert topics == {f"r/{i}" for i in range(100)}


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_end_amid_a_large_packet(new_broker, connect, dial, pki, secure):
    """Half of a packet and the end: nothing of it is published, the will is."""
    broker = new_broker(config="sys_interval 0\nlistener {port} 127.0.0.1\n" + ANYBODY +
                        (listener(pki.server(), port="port2") if secure else ""))
    watch = connect(broker=broker)
    watch.subscribe("#")
    address = ("127.0.0.1", broker.ports["port2" if secure else "port"])
    for reset in False, True:
        lost = dial(address=address, context=trusting(pki.ca) if secure else None)
        lost.connect("lost", will=Will("gone", "x"))
        whole = publish(V311, "large", bytes(1_000_000))
        lost.send(whole[:300_000])
        lost.close(reset=reset)
        watch.expect_publish("gone", "x")
    watch.nothing()


def test_more_filters_than_one_packet_may_have(new_broker, connect):
    """Ten thousand are granted, those behind are refused, each with its code; the connection stays."""
    broker = new_broker("sys_interval 0")
    for version, refused in ((V311, 0x80), (V5, 0x97)):
        client = connect(broker=broker, version=version, timeout=20)
        reasons = client.subscribe(*(f"f/{i}" for i in range(10_005)), check=False).reasons
        assert reasons == [0] * 10_000 + [refused] * 5
        client.publish("f/9999", "x")
        client.expect_publish("f/9999", "x")
        client.publish("f/10000", "x")
        client.nothing()


def test_shared_subscription_with_one_who_does_not_read(new_broker, connect):
    """What a member that stands still cannot take goes to the others, and nothing is lost."""
    broker = new_broker("sys_interval 0")
    stuck, well = (connect(broker=broker, receive_buffer=4096, timeout=20) for _ in range(2))
    for member in stuck, well:
        member.subscribe("$share/team/jobs")
    pub = connect(broker=broker, timeout=20)
    n, payload = 3000, bytes(5000)
    for i in range(n):
        pub.publish("jobs", payload)
        if i % 50 == 49:
            pub.ping()
            well.ping()     # what has come meanwhile is in the inbox

    def count(member):
        member.ping()
        return sum(p.type == PUBLISH for p in member.inbox)

    assert count(well) > 0.6 * n
    wait_for(lambda: count(well) + count(stuck) == n, "message that is missing")


def test_bell_while_input_is_left_over(new_broker, connect, crowd):
    """A quiet client sends so much work at once that it takes many turns, and then one thing more."""
    broker = new_broker("sys_interval 0", "log_type information")
    sockets = crowd(broker, 300)
    subscriber = subscribe(V311, 1, [("busy", 0)])
    for s in sockets[:200]:
        s.sendall(subscriber)
    for s in sockets[:200]:
        assert s.recv(5)[0] >> 4 == SUBACK
        s.setblocking(False)
    quiet = sockets[250]
    until_quiet(broker, 300, sockets[299:] + sockets[:299])
    quiet.sendall(publish(V311, "busy", b"") * 4000)
    quiet.sendall(pingreq())
    quiet.settimeout(20)
    assert quiet.recv(2) == b"\xd0\x00"
    quiet.sendall(pingreq())
    assert quiet.recv(2) == b"\xd0\x00"


def test_shared_messages_of_one_who_leaves(new_broker, connect):
    """What waits for a member that leaves is kept with its session if nobody can take it at once."""
    broker = new_broker("max_inflight_messages 1", "max_queued_messages 100")
    keep = {"session_expiry_interval": 100}
    leaver = connect("leaver", broker=broker, version=V5, properties=keep)
    other, pub = connect("other", broker=broker, version=V5), connect(broker=broker, version=V5)
    leaver.subscribe("$share/g/job", qos=1)
    for i in range(91):
        pub.publish("job", str(i), qos=1)
    other.subscribe("own", qos=1)
    for i in range(91):
        pub.publish("own", "x", qos=1)
    other.subscribe("$share/g/job", qos=1)
    leaver.close()
    broker.wait_log("Client leaver .*disconnected")
    leaver = connect("leaver", broker=broker, version=V5, clean=False, properties=keep)
    got = {leaver.expect_publish("job", dup=None).payload for _ in range(91)}
    assert got == {b"%d" % i for i in range(91)}


def test_unsubscribe_of_very_many(new_broker, connect):
    """[MQTT-3.10.4-1] However many filters: each is gone."""
    broker = new_broker("log_type information", "max_subscriptions 0")
    client = connect(broker=broker, timeout=20)
    filters = [f"f/{i}" for i in range(10_500)]
    client.subscribe(*filters[:6000])
    client.subscribe(*filters[6000:])
    client.unsubscribe(*filters)
    client.publish("f/10499", "x")
    client.nothing()


def test_overlapping_filters_by_the_thousand(new_broker, connect):
    """A message that matches thousands of filters of one client costs a turn no more than others do."""
    broker = new_broker("log_type information")
    greedy, other = connect(broker=broker, timeout=30), connect(broker=broker, timeout=10)
    levels = 13
    filters = ["/".join("a+"[i >> k & 1] for k in range(levels)) for i in range(1 << levels)]
    greedy.subscribe(*filters)
    greedy.send(publish(V311, "/".join("a" * levels), b"") * 5000)
    other.ping()


def test_group_of_absent_members(new_broker, connect):
    """One who is there gets the messages, however many are away."""
    broker = new_broker("log_type information")
    for i in range(300):
        away = connect(f"away{i}", broker=broker, clean=False)
        away.subscribe("$share/g/t", qos=1)
        away.disconnect()
    here, pub = connect("here", broker=broker), connect(broker=broker)
    here.subscribe("$share/g/t", qos=1)
    for i in range(300, 400):
        away = connect(f"away{i}", broker=broker, clean=False)
        away.subscribe("$share/g/t", qos=1)
        away.disconnect()
    for i in range(20):
        pub.publish("t", str(i), qos=i % 2)
        here.expect_publish("t", str(i))


def test_connack_too_large(new_broker, dial):
    """[MQTT5-3.1.2-24] A client that takes only ten bytes: no CONNACK fits, the connection ends."""
    broker = new_broker()
    client = dial(broker, version=V5)
    client.send(connect_packet(V5, "tiny", keepalive=0, properties={"maximum_packet_size": 10}))
    client.expect_closed()


def test_keep_alive_after_a_pause_of_the_broker(new_broker):
    """The broker did not run for a while (swapped out, stopped): who has sent in time is heard."""
    broker = new_broker("sys_interval 0", "log_type information")
    connected = crowd_with_keepalive(broker, 50)
    try:
        os.kill(broker.pid, signal.SIGSTOP)
        for s in connected:
            s.sendall(pingreq())
        time.sleep(2)   # longer than 1.5 times the keep alive
        os.kill(broker.pid, signal.SIGCONT)
        for s in connected:
            assert s.recv(2) == b"\xd0\x00"
    finally:
        for s in connected:
            s.close()


def crowd_with_keepalive(broker, n):
    found = []
    for i in range(n):
        s = socket.create_connection(broker.address, timeout=10)
        s.sendall(connect_packet(V311, f"alive{i}", keepalive=1))
        assert s.recv(4) == b"\x20\x02\x00\x00"
        found.append(s)
    return found


@pytest.mark.parametrize("room", range(0, 8))
def test_alias_at_the_size_limit(new_broker, connect, room):
    """[MQTT5-3.1.2-24] An alias never makes a packet larger than the client takes."""
    broker = new_broker()
    payload = bytes(16384 - 140)
    properties = [("user_property", ("k", "v" * 116))]
    limit = len(publish(V5, "t/abc", payload, properties=properties)) + room
    sub = connect(broker=broker, version=V5, properties={"maximum_packet_size": limit, "topic_alias_maximum": 5})
    sub.subscribe("t/abc")
    sub.publish("t/abc", payload, properties=properties)
    assert len(sub.expect_publish(payload=payload).raw) <= limit


def test_unix_socket_in_the_log(new_broker, connect):
    """Who comes by a unix socket is named so."""
    broker = new_broker(args=["-v"], start=False)
    path = broker.path("sock")
    broker.config += f"\nlistener 0 {path}\n"
    broker.start()
    connect("local", address=path).disconnect()
    broker.wait_log(r"New client connected from unix socket as local")
    broker.wait_log(r"Client local \[unix socket\] disconnected")


def test_cache_of_topics_is_bounded(new_broker, connect):
    """Messages to ever new topics, with no subscriber, leave nothing behind."""
    broker = new_broker("sys_interval 1", "log_type information", "memory_limit 3000000")
    client, watch = connect(broker=broker), connect(broker=broker)
    for i in range(3000):
        client.send(publish(V311, f"{i}/" + "x" * 3000, b""))
    client.ping()
    client.disconnect()
    watch.subscribe("$SYS/broker/heap/current")
    wait_for(lambda: int(watch.expect_publish(timeout=5).payload) < 1_200_000, "memory to fall", timeout=10)
    connect(broker=broker).ping()


def test_idle_client_beside_a_full_memory(new_broker, connect):
    """Somebody fills the memory with what stays; who is connected is still answered."""
    broker = new_broker("memory_limit 2000000")
    idle, greedy = connect(broker=broker), connect(broker=broker, version=V5)
    reason, i = 0, 0
    while reason < 0x80 and i < 3000:
        reason = greedy.publish(f"k/{i}", bytes(10_000 if i < 150 else 100), qos=1, retain=True).reason
        i += 1
    for _ in range(10):
        idle.ping()


def test_qos2_without_memory(new_broker, connect):
    """[MQTT-4.3.3-2] Before 5.0 PUBREC cannot say no: nothing is acknowledged that was not taken."""
    broker = new_broker("memory_limit 2000000")
    client = connect(broker=broker)
    acknowledged = 0
    with pytest.raises(AssertionError):
        for i in range(100):
            client.publish(f"k/{i}", bytes(100_000), qos=2, retain=True)
            acknowledged += 1
    client.expect_closed()
    reader = connect(broker=broker)
    reader.subscribe("k/#")
    assert {reader.expect_publish().topic for _ in range(acknowledged)} == {f"k/{i}" for i in range(acknowledged)}


def test_all_pubrels_after_a_resume(new_broker, connect):
    """[MQTT5-4.4.0-1] However many PUBRELs are unanswered, and whatever the window now is, all are sent
    again when the client comes back, without its doing anything."""
    broker = new_broker("max_inflight_messages 0", "max_queued_messages 0", "log_type information")
    keep = {"session_expiry_interval": 100}
    n = 4500
    sub = connect("sub", broker=broker, version=V5, properties=keep, timeout=20)
    pub = connect("pub", broker=broker, timeout=20)
    sub.subscribe("t", qos=2)
    pub.send(b"".join(publish(V311, "t", b"", 2, pid=i + 1) for i in range(n)))
    for _ in range(n):
        sub.ack(PUBREC, sub.expect_publish(flow=False).pid)
    for _ in range(n):
        sub.expect(PUBREL)
    sub.close()
    sub = connect("sub", broker=broker, version=V5, clean=False, timeout=20,
                  properties={**keep, "receive_maximum": 20})
    for i in range(n):
        sub.expect(PUBREL, pid=i + 1)
