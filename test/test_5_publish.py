"""MQTT 5.0: PUBLISH and what answers it.

PUBLISH (3.3), PUBACK to PUBCOMP (3.4 to 3.7), quality of service (4.3), order (4.6), flow control
(4.9), retained messages, topic aliases, message expiry, and 5.0 beside 3.1.1."""

import math
import time

import pytest

import wire
from v5 import *
from v5 import connect, dial
from wire import V31, V311, V5, Will


# 3.3.4, 4.3: the answer by quality of service

def test_qos_0(connect, topic):
    """QoS 0 has no packet id and no answer, and is sent once.
    [MQTT5-2.2.1-2] [MQTT5-3.3.4-1] [MQTT5-4.3.1-1]"""
    sub, pub = connect(), connect()
    sub.subscribe(topic, qos=2)
    pub.publish(topic, b"\x00\x01")
    pub.nothing()
    p = sub.expect_publish(topic, b"\x00\x01", qos=0, retain=False)
    assert p.raw == b"\x30" + wire.varint(len(topic) + 5) + wire.string(topic) + b"\x00" + b"\x00\x01"
    sub.nothing()


@pytest.mark.parametrize("pid", [1, 255, 256, 65535])
def test_acks_echo_the_id(connect, topic, pid):
    """QoS 1 is answered with PUBACK, QoS 2 with PUBREC and, after PUBREL, with PUBCOMP, all with the
    id of the PUBLISH.
    [MQTT5-3.3.4-1] [MQTT5-2.2.1-5] [MQTT5-4.3.2-4] [MQTT5-4.3.3-8] [MQTT5-4.3.3-11]
    [MQTT5-3.4.2-1] [MQTT5-3.5.2-1] [MQTT5-3.7.2-1]"""
    sub, pub = connect(), connect()
    sub.subscribe(topic, qos=0)
    pub.publish(topic, "one", qos=1, pid=pid, flow=False)
    pub.expect(PUBACK, pid=pid, reason=SUCCESS)
    pub.publish(topic, "two", qos=2, pid=pid, flow=False)
    pub.expect(PUBREC, pid=pid, reason=SUCCESS)
    pub.ack(PUBREL, pid)
    pub.expect(PUBCOMP, pid=pid, reason=SUCCESS)
    pub.nothing()
    sub.expect_publish(topic, "one")
    sub.expect_publish(topic, "two")
    sub.nothing()


def test_nobody_listens(connect, topic):
    """Without a subscriber the code may be 0x10 instead of 0x00; the message is retained all the
    same. [MQTT5-3.4.2-1] [MQTT5-3.5.2-1]"""
    pub = connect()
    for qos in (1, 2):
        pid = pub.publish(topic, "x", qos=qos, flow=False)
        taken(pub.expect(PUBACK if qos == 1 else PUBREC, pid=pid))
        if qos == 2:
            assert pub.pubrel(pid).reason == SUCCESS
    taken(pub.publish(topic, "kept", qos=1, retain=True))
    sub = connect()
    sub.subscribe(topic)
    sub.expect_publish(topic, "kept", retain=True)
    pub.publish(topic, retain=True)


def test_qos_1_same_id_again(connect, topic):
    """Once the PUBACK is out, the same id is a new message, whatever DUP says.
    [MQTT5-4.3.2-5] An incoming DUP is not passed on. [MQTT5-3.3.1-3]"""
    sub, pub = connect(), connect()
    sub.subscribe(topic, qos=2)
    for payload, dup in [("a", False), ("b", True), ("b", True), ("c", False)]:
        pub.publish(topic, payload, qos=1, pid=7, dup=dup)
    for payload in "abbc":
        sub.expect_publish(topic, payload, qos=1, dup=False)
    sub.nothing()


def test_qos_2_exactly_once(connect, topic):
    """Until PUBREL each repeat of the id is answered with PUBREC and not delivered again; after
    PUBCOMP the id is a new message. DUP makes no difference.
    [MQTT5-4.3.3-10] [MQTT5-4.3.3-11] [MQTT5-4.3.3-12] [MQTT5-3.3.1-3]"""
    sub, pub = connect(), connect()
    sub.subscribe(topic, qos=2)
    for round, dups in [("first", (False, True, False, True)), ("second", (True, False, True))]:
        for dup in dups:
            pub.publish(topic, round, qos=2, pid=7, dup=dup, flow=False)
            pub.expect(PUBREC, pid=7, reason=SUCCESS)
        assert pub.pubrel(7).reason == SUCCESS
        sub.expect_publish(topic, round, qos=2, dup=False)
        sub.nothing()


def test_qos_2_across_connections(connect, cid, topic):
    """The received ids are part of the session: after a reconnect the repeat is still no new
    message, and PUBREL is still awaited. With Clean Start they are forgotten.
    [MQTT5-4.3.3-10] [MQTT5-3.1.2-23] [MQTT5-3.1.2-5] [MQTT5-3.1.2-4]"""
    sub = connect()
    sub.subscribe(topic, qos=2)
    pub = connect(cid, properties=LASTING)
    for pid, payload in [(5, "a"), (6, "b")]:
        pub.publish(topic, payload, qos=2, pid=pid, flow=False)
        pub.expect(PUBREC, pid=pid, reason=SUCCESS)
    pub.close()
    pub = connect(cid, clean=False, properties=LASTING)
    assert pub.connack.session_present
    pub.publish(topic, "a", qos=2, pid=5, dup=True, flow=False)
    pub.expect(PUBREC, pid=5, reason=SUCCESS)
    assert pub.pubrel(5).reason == SUCCESS
    assert pub.pubrel(6).reason == SUCCESS
    assert sorted(payloads(collect(sub))) == [b"a", b"b"]

    pub.publish(topic, "c", qos=2, pid=5, flow=False)
    pub.expect(PUBREC, pid=5)
    pub.disconnect()
    pub = connect(cid, clean=True)
    assert pub.pubrel(5).reason == ID_NOT_FOUND
    collect(sub)
    assert pub.publish(topic, "d", qos=2, pid=5).reason == SUCCESS
    assert payloads(collect(sub)) == [b"d"]


def test_pubrel_of_unknown_id(connect):
    """Every PUBREL is answered with PUBCOMP; 0x92 if the id is unknown. [MQTT5-4.3.3-11] [MQTT5-3.7.2-1]"""
    client = connect()
    for pid in (1, 65535):
        assert client.pubrel(pid).reason == ID_NOT_FOUND
    client.ack(PUBREL, 9, ID_NOT_FOUND, {"reason_string": "?"})
    client.expect(PUBCOMP, pid=9, reason=ID_NOT_FOUND)
    client.nothing()


def test_pubrec_of_unknown_id(connect):
    """PUBREC for an id that is not in flight: PUBREL 0x92, or nothing. [MQTT5-3.6.2-1]
    An error PUBREC asks for no PUBREL. Unknown PUBACK and PUBCOMP are ignored. [MQTT5-4.3.3-4]"""
    client = connect()
    client.ack(PUBREC, 77)
    client.send(wire.pingreq())
    p = client.receive()
    if p.type == PUBREL:
        assert (p.pid, p.reason) == (77, ID_NOT_FOUND)
        client.ack(PUBCOMP, 77, ID_NOT_FOUND)
        p = client.receive()
    assert p.type == PINGRESP
    client.ack(PUBREC, 78, UNSPECIFIED)
    client.ack(PUBACK, 79)
    client.ack(PUBCOMP, 80, ID_NOT_FOUND)
    client.nothing()


@pytest.mark.parametrize("qos, ack", [(1, PUBREC), (1, PUBCOMP), (2, PUBACK), (2, PUBCOMP)])
def test_ack_of_another_qos(connect, topic, qos, ack):
    """An ack that does not belong to the QoS or the stage of the flow is a protocol error, or it is
    ignored and the flow goes on. [MQTT5-4.3.2-3] [MQTT5-4.3.3-3]"""
    client = connect(properties={"receive_maximum": 1})
    client.subscribe(topic, qos=2)
    for payload in ("x", "y"):
        client.send(wire.publish(V5, topic, payload, qos, pid=1 if payload == "x" else 2))
        if qos == 2:
            client.await_packet(PUBREC)
            client.send(wire.ack(V5, PUBREL, 1 if payload == "x" else 2))
            client.await_packet(PUBCOMP)
        else:
            client.await_packet(PUBACK)
    pid = client.expect_publish(topic, "x", qos=qos, flow=False).pid
    client.ack(ack, pid)
    client.send(wire.pingreq())
    p = client.receive()
    if p.type == DISCONNECT:
        assert p.reason == PROTOCOL_ERROR
        client.expect_closed()
        return
    if p.type == PUBREL:
        assert (qos, p.reason) == (1, ID_NOT_FOUND)
        p = client.receive()
    assert p.type == PINGRESP
    client.nothing()        # x is still in the way of y
    if qos == 1:
        client.ack(PUBACK, pid)
    else:
        client.ack(PUBREC, pid)
        client.expect(PUBREL, pid=pid, reason=SUCCESS)
        client.ack(PUBCOMP, pid)
    client.expect_publish(topic, "y", qos=qos)


@pytest.mark.parametrize("reason, props", [
    (None, None), (0, None), (0, {}), (0, {"reason_string": "fine"}),
    (0x10, None), (0, [("user_property", ("a", "b")), ("user_property", ("a", "b")), ("reason_string", "r")])],
    ids=["no-code", "no-properties", "empty-properties", "reason-string", "0x10", "user-properties"])
def test_forms_of_acks(connect, topic, reason, props):
    """Code and properties of an ack may be left out when they say nothing. [MQTT5-2.2.2-1]
    [MQTT5-4.3.3-4] PUBREL and PUBCOMP have no 0x10."""
    client = connect(properties={"receive_maximum": 1})
    client.subscribe(topic, qos=2)
    plain = 0 if reason else reason
    for payload in ("a", "b"):      # with one place in the window, b proves that a has left it
        client.publish(topic, payload, qos=1)
        p = client.expect_publish(topic, payload, qos=1, flow=False)
        client.ack(PUBACK, p.pid, reason, props)
    for payload in ("c", "d"):
        client.send(wire.publish(V5, topic, payload, 2, pid=100))
        client.await_packet(PUBREC, 100)
        client.ack(PUBREL, 100, plain, props)
        assert client.await_packet(PUBCOMP, 100).reason == SUCCESS
        p = client.expect_publish(topic, payload, qos=2, flow=False)
        client.ack(PUBREC, p.pid, reason, props)
        client.expect(PUBREL, pid=p.pid, reason=SUCCESS)
        client.ack(PUBCOMP, p.pid, plain, props)
    client.nothing()


@pytest.mark.parametrize("reason", [0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99])
def test_error_acks_end_the_flow(connect, cid, topic, reason):
    """PUBACK or PUBREC with 0x80 or more ends the flow: no PUBREL, no retransmission, and the place in
    the window is free. [MQTT5-4.4.0-2] [MQTT5-4.3.3-4] [MQTT5-4.9.0-2]"""
    props = {"receive_maximum": 1, **LASTING}
    sub, pub = connect(cid, properties=props), connect()
    sub.subscribe(topic, qos=2)
    for qos, ack in [(1, PUBACK), (2, PUBREC), (1, PUBACK)]:
        pub.publish(topic, "refused", qos=qos)
        p = sub.expect_publish(topic, "refused", qos=qos, flow=False)
        sub.ack(ack, p.pid, reason)
    sub.nothing()
    sub.close()
    sub = connect(cid, clean=False, properties=props)
    assert sub.connack.session_present
    sub.nothing()
    pub.publish(topic, "next", qos=2)
    sub.expect_publish(topic, "next", qos=2)


@pytest.mark.parametrize("type, foreign", [
    (PUBACK, 0x01), (PUBACK, 0x82), (PUBACK, 0x92), (PUBACK, 0xFF), (PUBREC, 0x01), (PUBREC, 0x92),
    (PUBREL, 0x10), (PUBREL, 0x80), (PUBREL, 0x87), (PUBCOMP, 0x10), (PUBCOMP, 0x80), (PUBCOMP, 0x87)])
def test_foreign_codes_in_acks(connect, topic, type, foreign):
    """A code that the table of the packet does not list.
    [MQTT5-3.4.2-1] [MQTT5-3.5.2-1] [MQTT5-3.6.2-1] [MQTT5-3.7.2-1]"""
    client = connect()
    client.subscribe(topic, qos=2)
    if type == PUBREL:
        client.send(wire.publish(V5, topic, "x", 2, pid=100))
        pid = client.await_packet(PUBREC, 100).pid
        collect(client)
    else:
        client.publish(topic, "x", qos=1 if type == PUBACK else 2)
        pid = client.expect_publish(topic, "x", flow=False).pid
        if type == PUBCOMP:
            client.ack(PUBREC, pid)
            client.expect(PUBREL, pid=pid)
    client.ack(type, pid, foreign)
    client.expect_disconnect(MALFORMED, PROTOCOL_ERROR)


def test_denied(new_broker, connect, dial, topic):
    """A PUBLISH that is not allowed gets 0x87. PUBREC with 0x87 frees the id at once: it means a
    new message, and a PUBREL finds nothing. QoS 0 is dropped, or ends the connection. A Will fares no
    better: its CONNECT is refused, or it is not published.
    [MQTT5-4.3.3-9] [MQTT5-3.4.2-1] [MQTT5-3.5.2-1]"""
    broker = new_broker("acl_file {dir}/acl", start=False)
    with open(broker.path("acl"), "w") as f:
        f.write(f"topic readwrite {topic}/free\ntopic read {topic}/#\n")
    broker.start()
    sub, pub = connect(broker=broker), connect(broker=broker)
    sub.subscribe(topic + "/#", qos=2)
    assert pub.publish(topic + "/closed", "x", qos=1, pid=1).reason == NOT_AUTHORIZED
    assert pub.publish(topic + "/closed", "x", qos=2, pid=2).reason == NOT_AUTHORIZED
    assert pub.pubrel(2).reason == ID_NOT_FOUND
    assert pub.publish(topic + "/closed", "x", qos=2, pid=3).reason == NOT_AUTHORIZED
    assert pub.publish(topic + "/free", "y", qos=2, pid=3).reason == SUCCESS
    assert pub.publish(topic + "/closed", "r", qos=1, retain=True).reason == NOT_AUTHORIZED
    pub.publish(topic + "/closed", "z")
    pub.send(wire.pingreq())
    p = pub.receive()
    assert p.type == PINGRESP or p.reason == NOT_AUTHORIZED
    assert payloads(collect(sub)) == [b"y"]
    willing = dial(broker)
    willing.send(wire.connect(V5, "willing", will=Will(topic + "/closed", "x", 1, True)))
    reason = willing.expect(CONNACK).reason
    assert reason in (SUCCESS, NOT_AUTHORIZED)
    willing.close()
    connect("willing", broker=broker).disconnect()
    late = connect(broker=broker)
    late.subscribe(topic + "/#")
    late.nothing()
    sub.nothing()


# 4.3: the server as sender

def test_ids_of_the_server(connect, topic):
    """Each new PUBLISH of the server has DUP 0 and an id that is not in use towards that client, at
    QoS 2 until PUBCOMP.
    [MQTT5-2.2.1-4] [MQTT5-4.3.2-1] [MQTT5-4.3.2-2] [MQTT5-4.3.3-1] [MQTT5-4.3.3-2]"""
    sub, pub = connect(), connect()
    sub.subscribe(topic, qos=2)
    in_use = set()
    for i in range(10):
        pub.publish(topic, str(i), qos=1 + i % 2)
        p = sub.expect_publish(topic, str(i), qos=1 + i % 2, dup=False, flow=False)
        assert p.pid not in in_use
        in_use.add(p.pid)
        if p.qos == 2:
            sub.ack(PUBREC, p.pid)
            sub.expect(PUBREL, pid=p.pid, reason=SUCCESS)
    sub.nothing()


def test_ids_go_round(new_broker, connect, topic):
    """An id in use is passed over when all others have had their turn. [MQTT5-2.2.1-4] [MQTT5-4.3.2-1]"""
    broker = new_broker("max_inflight_messages 0")
    sub, pub = connect(broker=broker), connect(broker=broker)
    sub.subscribe(topic, qos=2)
    held = []
    for qos in (1, 2, 2):
        pub.publish(topic, "held", qos=qos)
        held.append(sub.expect_publish(topic, qos=qos, flow=False).pid)
    sub.ack(PUBREC, held[2])
    sub.expect(PUBREL, pid=held[2])

    n = 500
    size = len(wire.publish(V5, topic, "", 1, pid=1))
    data = b"".join(wire.publish(V5, topic, "", 1, pid=i + 1) for i in range(n))
    seen = set()
    for _ in range(65536 // n + 1):     # raw bytes, for speed
        pub.send(data)
        got = bytearray()
        while len(got) < n * size:
            got += sub.sock.recv(n * size - len(got))
        ids = [bytes(got[i + size - 3:i + size - 1]) for i in range(0, len(got), size)]
        assert got == b"".join(wire.publish(V5, topic, "", 1, pid=int.from_bytes(pid, "big")) for pid in ids)
        assert len(set(ids)) == n
        seen.update(ids)
        sub.send(b"".join(b"\x40\x02" + pid for pid in ids))
        pub.ping()
    seen = {int.from_bytes(pid, "big") for pid in seen}
    assert not seen & set(held) and 0 not in seen
    sub.nothing()


def test_ids_of_both_sides_are_apart(connect, topic):
    """The ids of client and server are independent, also when they are the same number.
    [MQTT5-2.2.1-5]"""
    client = connect()
    client.subscribe(topic, qos=2)
    client.publish(topic, "theirs", qos=2)
    p = client.expect_publish(topic, "theirs", flow=False)
    client.send(wire.publish(V5, topic + "/other", "mine", 2, pid=p.pid))
    taken(client.expect(PUBREC, pid=p.pid))
    client.ack(PUBREC, p.pid)
    client.expect(PUBREL, pid=p.pid, reason=SUCCESS)
    client.ack(PUBREL, p.pid)
    client.expect(PUBCOMP, pid=p.pid, reason=SUCCESS)
    client.ack(PUBCOMP, p.pid)
    client.nothing()


def test_unacknowledged_until_acked(connect, cid, topic):
    """A message stays unacknowledged until PUBACK; at QoS 2 the PUBLISH until PUBREC, then the PUBREL
    until PUBCOMP, and the PUBLISH is not sent again after that. What is unacknowledged is sent again
    on the next connection, with its id and DUP 1.
    [MQTT5-4.3.2-3] [MQTT5-4.3.3-3] [MQTT5-4.3.3-5] [MQTT5-4.3.3-6] [MQTT5-4.4.0-1] [MQTT5-3.3.1-1]"""
    def again():
        sub.close()
        return connect(cid, clean=False, properties=LASTING)

    sub, pub = connect(cid, properties=LASTING), connect()
    sub.subscribe(topic, qos=2)
    pub.publish(topic, "one", qos=1)
    one = sub.expect_publish(topic, "one", qos=1, flow=False).pid
    pub.publish(topic, "two", qos=2)
    two = sub.expect_publish(topic, "two", qos=2, flow=False).pid
    for _ in range(2):
        sub = again()
        sub.expect_publish(topic, "one", qos=1, dup=True, pid=one, flow=False)
        sub.expect_publish(topic, "two", qos=2, dup=True, pid=two, flow=False)
        sub.nothing()
    sub.ack(PUBREC, two)
    sub.expect(PUBREL, pid=two, reason=SUCCESS)
    for _ in range(2):
        sub = again()
        got = sorted([sub.receive(), sub.receive()], key=lambda p: p.type)
        assert [(p.type, p.pid) for p in got] == [(PUBLISH, one), (PUBREL, two)]
        assert got[0].dup
        sub.nothing()
    sub.ack(PUBACK, one)
    sub.ack(PUBCOMP, two)
    sub.nothing()
    sub = again()
    assert sub.connack.session_present
    sub.nothing()


# 4.6: order

def test_order_of_acks(connect, topic):
    """PUBACK and PUBREC come in the order of the PUBLISHes. [MQTT5-4.6.0-2] [MQTT5-4.6.0-3]"""
    pub = connect()
    n = min(15, pub.connack.prop("receive_maximum", 65535))
    ids = [(i * 37 + 11) % 101 + 1 for i in range(n)]
    for qos, ack in [(1, PUBACK), (2, PUBREC)]:
        pub.send(*[wire.publish(V5, topic, "x", qos, pid=pid) for pid in ids])
        assert [pub.expect(ack).pid for _ in ids] == ids
    pub.send(*[wire.ack(V5, PUBREL, pid) for pid in reversed(ids)])
    assert [pub.expect(PUBCOMP).pid for _ in ids] == ids[::-1]


def test_order_of_pubrels(connect, topic):
    """PUBRELs of the server come in the order of the PUBRECs. [MQTT5-4.6.0-4]"""
    sub, pub = connect(), connect()
    sub.subscribe(topic, qos=2)
    for i in range(10):
        pub.publish(topic, str(i), qos=2)
    ids = [sub.expect_publish(topic, str(i), qos=2, flow=False).pid for i in range(10)]
    swapped = ids[5:] + ids[:5]
    sub.send(*[wire.ack(V5, PUBREC, pid) for pid in swapped])
    assert [sub.expect(PUBREL).pid for _ in ids] == swapped
    for pid in swapped:
        sub.ack(PUBCOMP, pid)
    sub.nothing()


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_order_of_messages(connect, topic, qos):
    """Subscribers get the messages of one publisher, topic and QoS in the order of publication,
    whatever topic it is. [MQTT5-4.6.0-5] [MQTT5-4.6.0-6]"""
    subs = [connect(properties={"receive_maximum": 3}), connect()]
    for sub in subs:
        sub.subscribe(topic + "/#", qos=2)
    pub = connect()
    sent = [(f"{topic}/{i % 2}", b"%d" % i) for i in range(60)]
    for to, payload in sent:
        pub.publish(to, payload, qos=qos)
    pub.ping()
    for sub in subs:
        got = [(p.topic, p.payload) for p in collect(sub)]
        for t in (topic + "/0", topic + "/1"):
            assert [m for m in got if m[0] == t] == [m for m in sent if m[0] == t]


# 4.9: flow control

def test_receive_maximum_of_the_client(connect, topic):
    """At most Receive Maximum PUBLISHes of QoS 1 and 2 are unacknowledged towards the client. QoS 0 and
    everything else still flows. PUBACK, PUBCOMP and an error PUBREC give a place back, PUBREC does not,
    and no ack for an unknown id widens the window.
    [MQTT5-3.3.4-9] [MQTT5-3.3.4-10] [MQTT5-4.9.0-1] [MQTT5-4.9.0-2] [MQTT5-4.9.0-3]"""
    sub, pub = connect(properties={"receive_maximum": 1}), connect()
    sub.subscribe(topic, qos=2)
    for payload, qos in [("a", 1), ("b", 2), ("c", 2), ("d", 1)]:
        pub.publish(topic, payload, qos=qos)
    a = sub.expect_publish(topic, "a", qos=1, flow=False)
    sub.nothing()                                       # window full, PINGRESP flows
    assert sub.subscribe(topic + "/0").reasons == [0]   # so do SUBACK,
    assert sub.unsubscribe(topic + "/x").reasons == [NO_SUBSCRIPTION]
    pub.publish(topic + "/0", "zero")
    sub.expect_publish(topic + "/0", "zero", qos=0)     # QoS 0
    taken(sub.publish(topic + "/else", qos=2))          # and the acks of what the client sends
    sub.ack(PUBACK, 4000)
    sub.ack(PUBCOMP, 4001)
    sub.nothing()                                       # nothing was given back
    sub.ack(PUBACK, a.pid)
    b = sub.expect_publish(topic, "b", qos=2, flow=False)
    sub.ack(PUBREC, b.pid)
    sub.expect(PUBREL, pid=b.pid)
    sub.nothing()                                       # PUBREC gives nothing back
    sub.ack(PUBCOMP, b.pid)
    c = sub.expect_publish(topic, "c", qos=2, flow=False)
    sub.nothing()
    sub.ack(PUBREC, c.pid, UNSPECIFIED)
    sub.expect_publish(topic, "d", qos=1, flow=False)
    sub.nothing()


def test_receive_maximum_above_one(connect, topic):
    """The initial quota is at least 1 and not above Receive Maximum; after acks it is never more.
    [MQTT5-4.9.0-1] [MQTT5-3.3.4-9]"""
    sub, pub = connect(properties={"receive_maximum": 3}), connect()
    sub.subscribe(topic, qos=1)
    for i in range(9):
        pub.publish(topic, str(i), qos=1)
    got, waiting = [], []
    while len(got) < 9:
        sub.send(wire.pingreq())
        p = sub.receive()
        while p.type == PUBLISH:
            got.append(p.payload)
            waiting.append(p.pid)
            p = sub.receive()
        assert p.type == PINGRESP
        assert 1 <= len(waiting) <= 3
        sub.ack(PUBACK, waiting.pop(0))
    assert got == [b"%d" % i for i in range(9)]


def test_receive_maximum_after_reconnect(connect, cid, topic):
    """The quota starts anew with each connection, and what is sent again needs it too.
    [MQTT5-4.9.0-1] [MQTT5-3.3.4-9] [MQTT5-4.4.0-1]"""
    sub, pub = connect(cid, properties=LASTING), connect()
    sub.subscribe(topic, qos=2)
    for payload, qos in [("a", 1), ("b", 2), ("c", 1)]:
        pub.publish(topic, payload, qos=qos)
        sub.expect_publish(topic, payload, qos=qos, flow=False)
    sub.close()
    sub = connect(cid, clean=False, properties={"receive_maximum": 1, **LASTING})
    for payload, qos in [("a", 1), ("b", 2), ("c", 1)]:
        p = sub.expect_publish(topic, payload, qos=qos, dup=True, flow=False)
        sub.nothing()
        if qos == 2:
            sub.ack(PUBREC, p.pid)
            sub.expect(PUBREL, pid=p.pid)
            sub.nothing()
        sub.ack(PUBACK if qos == 1 else PUBCOMP, p.pid)
    sub.nothing()


def test_pubrels_need_no_quota(connect, cid, topic):
    """PUBRELs are sent again whatever the Receive Maximum. [MQTT5-3.3.4-10] [MQTT5-4.4.0-1]"""
    sub, pub = connect(cid, properties=LASTING), connect()
    sub.subscribe(topic, qos=2)
    pids = []
    for payload in "abc":
        pub.publish(topic, payload, qos=2)
        pids.append(sub.expect_publish(topic, payload, qos=2, flow=False).pid)
        sub.ack(PUBREC, pids[-1])
        sub.expect(PUBREL, pid=pids[-1])
    sub.close()
    sub = connect(cid, clean=False, properties={"receive_maximum": 1})
    for pid in pids:
        sub.expect(PUBREL, pid=pid, reason=SUCCESS)
    for pid in pids:
        sub.ack(PUBCOMP, pid)
    for payload, qos in [("d", 2), ("e", 1)]:       # and three PUBCOMPs do not widen a window of one
        pub.publish(topic, payload, qos=qos)
    sub.expect_publish(topic, "d", qos=2, flow=False)
    sub.nothing()


def test_receive_maximum_of_the_server(new_broker, connect, topic):
    """The client may have as many QoS 2 messages unreleased as the server announced; one more is
    met with DISCONNECT 0x93. PUBCOMP frees the place. [MQTT5-3.3.4-7]"""
    broker = new_broker("max_inflight_messages 3")
    client = connect(broker=broker)
    assert client.connack.prop("receive_maximum") == 3

    def start(pid):
        client.publish(topic, str(pid), qos=2, pid=pid, flow=False)

    for pid in (1, 2, 3):
        start(pid)
        taken(client.expect(PUBREC, pid=pid))
    for pid in (4, 5, 6):
        assert client.pubrel(pid - 3).reason == SUCCESS
        start(pid)
        taken(client.expect(PUBREC, pid=pid))
    taken(client.publish(topic, "0", qos=0) or client.pubrel(4))
    start(7)
    taken(client.expect(PUBREC, pid=7))
    client.publish(topic, "7", qos=2, pid=7, dup=True, flow=False)  # the same one again
    taken(client.expect(PUBREC, pid=7))
    start(8)
    client.expect_disconnect(RECEIVE_MAXIMUM_EXCEEDED)


def test_slow_subscriber(connect, topic):
    """A subscriber that does not read for a while gets its messages late, in order, as they should be: at
    the granted QoS, with RETAIN and identifier of its subscription. Some at QoS 0 may be lost, none
    comes twice. The publisher does not wait for it. [MQTT5-3.8.4-8] [MQTT5-4.6.0-5] [MQTT5-4.3.1-1]"""
    slow = [connect(receive_buffer=4096, properties={"receive_maximum": 10}) for _ in range(3)]
    for qos, sub in enumerate(slow):
        sub.subscribe((topic, options(qos, as_published=True)), properties={"subscription_identifier": qos + 1})
    pub = connect()
    sent = [b"%d " % i + b"." * 20000 for i in range(300)]
    for i, payload in enumerate(sent):
        assert pub.publish(topic, payload, qos=1 + i % 2, retain=i % 3 == 0).reason == SUCCESS
    for granted, sub in enumerate(slow):
        got = collect(sub)
        assert {p.topic for p in got} == {topic}
        at = [sent.index(p.payload) for p in got]
        for p, i in zip(got, at):
            assert (p.qos, p.retain, p.dup) == (min(granted, 1 + i % 2), i % 3 == 0, False)
            assert p.properties == [("subscription_identifier", granted + 1)]
        if granted:
            assert at == list(range(300))
        else:
            assert at and at == sorted(set(at))
    pub.publish(topic, retain=True)


# 3.1.2.11.4: the client's Maximum Packet Size

def sized(topic, payload_size, qos, props=None):
    """A payload for which the server's PUBLISH has payload_size bytes, header and all."""
    empty = wire.publish(V5, topic, b"", qos, pid=1 if qos else None, properties=props)
    n = payload_size - len(empty)
    while len(wire.publish(V5, topic, bytes(n), qos, pid=1 if qos else None, properties=props)) > payload_size:
        n -= 1
    return b"." * n


def test_maximum_packet_size_of_the_client(connect, topic):
    """A PUBLISH larger than the client wants is dropped for this client as if it had been delivered:
    it holds no place in the window, others get it. Size is the whole packet with header.
    [MQTT5-3.1.2-24] [MQTT5-3.1.2-25]"""
    small = connect(properties={"maximum_packet_size": 200, "receive_maximum": 1})
    other, pub = connect(), connect()
    small.subscribe((topic, 2))
    small.subscribe((topic + "/id", 2), properties={"subscription_identifier": 300})
    other.subscribe(topic + "/#", qos=2)
    for to, props in [(topic, None), (topic + "/id", {"subscription_identifier": 300}),
                      (topic, {"user_property": ("name", "v" * 50)})]:
        sent = None if "subscription_identifier" in (props or {}) else props
        for qos in (0, 1, 2):
            fits = sized(to, 200, qos, props)
            pub.publish(to, fits + b".", qos=qos, properties=sent)
            pub.publish(to, fits, qos=qos, properties=sent)
            pub.publish(to, fits + b"." * 5000, qos=qos, properties=sent)
            pub.ping()
            p, = collect(small)
            assert p.payload == fits and len(p.raw) == 200
            assert payloads(collect(other)) == [fits + b".", fits, fits + b"." * 5000]


def test_maximum_packet_size_and_stored_messages(connect, cid, topic):
    """The limit also holds for retained messages and for what was queued meanwhile; it is that of
    the present connection. [MQTT5-3.1.2-24] [MQTT5-3.1.2-25]"""
    pub = connect()
    pub.publish(topic + "/large", "L" * 300, qos=1, retain=True)
    pub.publish(topic + "/small", "S", qos=1, retain=True)
    small = {"maximum_packet_size": 100, "receive_maximum": 1, **LASTING}
    sub = connect(cid, properties=LASTING)
    sub.subscribe(topic + "/#", qos=1)
    assert sorted(payloads(collect(sub))) == [b"L" * 300, b"S"]
    sub.disconnect()
    for payload in ("a" * 300, "b", "c" * 300, "d"):
        pub.publish(topic, payload, qos=1)
    sub = connect(cid, clean=False, properties=small)
    assert payloads(collect(sub)) == [b"b", b"d"]
    sub.subscribe(topic + "/#", qos=1)
    assert payloads(collect(sub)) == [b"S"]
    for name in ("large", "small"):
        pub.publish(f"{topic}/{name}", retain=True)


# 3.3.1.3: RETAIN

def retained(connect, topic, qos=2):
    """The retained messages for a new subscriber, as (topic, payload, QoS)."""
    sub = connect()
    sub.subscribe(topic, qos=qos)
    found = collect(sub)
    assert all(p.retain for p in found)
    sub.disconnect()
    return [(p.topic, p.payload, p.qos) for p in found]


def test_retained_message(connect, topic):
    """RETAIN 1 replaces the retained message of the topic, QoS and all; RETAIN 0 leaves it alone; an
    empty one removes it and is not kept itself. Live subscribers get each of them.
    [MQTT5-3.3.1-5] [MQTT5-3.3.1-6] [MQTT5-3.3.1-7] [MQTT5-3.3.1-8] [MQTT5-3.3.1-12]"""
    live, pub = connect(), connect()
    live.subscribe(topic, qos=2)
    kept = []
    for payload, qos, retain in [
        ("plain", 1, False), ("a", 2, True), ("b", 0, True), ("plain", 2, False), ("", 1, False), ("c", 1, True),
            ("", 0, True), ("plain", 0, False), ("", 1, True), ("d", 0, True), ("", 2, True)]:
        pub.publish(topic, payload, qos=qos, retain=retain)
        pub.ping()
        live.expect_publish(topic, payload, qos=qos, retain=False)
        if retain:
            kept = [(topic, payload.encode(), qos)] if payload else []
        assert retained(connect, topic) == kept
    live.nothing()


def test_retained_qos(connect, topic):
    """A retained message is delivered at the lower of its QoS and the granted one. [MQTT5-3.8.4-8]"""
    pub = connect()
    for qos in (0, 1, 2):
        pub.publish(topic, "x", qos=qos, retain=True)
        pub.ping()
        for granted in (0, 1, 2):
            assert retained(connect, topic, granted) == [(topic, b"x", min(qos, granted))]
    pub.publish(topic, retain=True)


def test_retained_outlives_session(connect, topic):
    """Retained messages are no part of the session. [MQTT5-3.3.1-5]"""
    pub = connect()
    pub.publish(topic, "kept", qos=1, retain=True)
    pub.disconnect()
    again = connect(pub.id, clean=True)
    assert retained(connect, topic) == [(topic, b"kept", 1)]
    again.publish(topic, retain=True, qos=1)
    assert retained(connect, topic) == []


# 3.3.2.3: properties

PASSED_ON = [
    [("payload_format_indicator", 1)], [("payload_format_indicator", 0)],
    [("content_type", "text/plain; charset=utf-8")], [("content_type", "")],
    [("response_topic", "answer/here")],
    [("correlation_data", b"\x00\xff\x80")], [("correlation_data", b"")],
    [("user_property", ("b", "1")), ("user_property", ("a", "2")), ("user_property", ("b", "1")),
     ("user_property", ("", "")), ("user_property", ("b", "\ufeff\u20ac\U0001f600"))],
    [("user_property", ("z", "1")), ("response_topic", "r"), ("user_property", ("y", "2")),
     ("correlation_data", b"c"), ("payload_format_indicator", 1), ("user_property", ("z", "0")),
     ("content_type", "t")],
]


def same_properties(p, props):
    """The properties are these; the order of the user properties is kept."""
    users = [value for name, value in props if name == "user_property"]
    assert p.props("user_property") == users
    assert sorted(p.properties, key=repr) == sorted(props, key=repr)


@pytest.mark.parametrize("props", PASSED_ON, ids=lambda props: "+".join(dict(props)))
def test_properties_are_passed_on(connect, cid, topic, props):
    """What the publisher says about the message reaches the subscriber unchanged, be it live, queued
    or retained. User properties are all there, in their order, the same name as often as it came.
    A payload format of 0 is what its absence means.
    [MQTT5-3.3.2-4] [MQTT5-3.3.2-15] [MQTT5-3.3.2-16] [MQTT5-3.3.2-17] [MQTT5-3.3.2-18] [MQTT5-3.3.2-20]"""
    away = connect(cid, properties=LASTING)
    away.subscribe(topic, qos=1)
    away.disconnect()
    live, pub = connect(), connect()
    live.subscribe(topic)
    pub.publish(topic, "text", qos=1, retain=True, properties=props)
    late = connect()
    late.subscribe(topic)
    away = connect(cid, clean=False)
    for sub in (live, late, away):
        p = sub.expect_publish(topic, "text")
        if p.prop("payload_format_indicator") is None:
            same_properties(p, [one for one in props if one != ("payload_format_indicator", 0)])
        else:
            same_properties(p, props)
    pub.publish(topic, retain=True)


def test_payload_format(connect, topic):
    """The server may check that the payload is UTF-8 if the publisher says so: 0x99. If it does not, or
    if the publisher says nothing of the kind, the payload is passed on. [MQTT5-3.3.2-4]"""
    sub, pub = connect(), connect()
    sub.subscribe(topic)
    reason = pub.publish(topic, b"\xff", qos=1, properties={"payload_format_indicator": 1}).reason
    assert reason in (SUCCESS, PAYLOAD_INVALID)
    pub.publish(topic, b"\xfe", qos=1, properties={"payload_format_indicator": 0})
    assert payloads(collect(sub)) == ([b"\xff"] if reason == SUCCESS else []) + [b"\xfe"]


def test_request_and_response(connect, topic):
    """4.10: the answer goes to the Response Topic with the Correlation Data of the request.
    [MQTT5-3.3.2-15] [MQTT5-3.3.2-16]"""
    asker, service = connect(), connect()
    asker.subscribe(topic + "/answers/1")
    service.subscribe(topic + "/service")
    asker.publish(topic + "/service", "2+2", properties={
        "response_topic": topic + "/answers/1", "correlation_data": b"\x07"})
    question = service.expect_publish(topic + "/service", "2+2")
    service.publish(question.prop("response_topic"), "4", properties={
        "correlation_data": question.prop("correlation_data")})
    assert asker.expect_publish(topic + "/answers/1", "4").properties == [("correlation_data", b"\x07")]


@pytest.mark.parametrize("bad", ["#", "+", "a/#", "a/+/b", "a+"])
def test_response_topic_with_wildcards(connect, topic, bad):
    """[MQTT5-3.3.2-14] [MQTT5-4.7.0-1]"""
    client = connect()
    client.publish(topic, "x", properties={"response_topic": bad})
    client.expect_disconnect(MALFORMED, PROTOCOL_ERROR, TOPIC_INVALID)


# 3.3.2.3.3: Message Expiry Interval

def test_message_expiry(connect, cid, topic):
    """The interval is passed on less the time that the message has waited. A copy whose delivery has
    not begun in time is dropped, for subscribers of 3.1.1 too. One whose delivery has begun is not,
    and a QoS 2 handshake is finished in any case.
    [MQTT5-3.3.2-5] [MQTT5-3.3.2-6] [MQTT5-4.3.3-7] [MQTT5-4.3.3-13] [MQTT5-4.4.0-1]"""
    def expiry(seconds):
        return {"message_expiry_interval": seconds}

    pub = connect()
    away = connect(cid, properties=LASTING)
    away.subscribe((topic, 2), (topic + "/begun", 2))
    away.disconnect()
    old = connect(cid + "-old", version=V311, clean=False)
    old.subscribe(topic, qos=2)
    old.disconnect()
    live = connect()
    live.subscribe(topic, qos=1)
    window = connect(properties={"receive_maximum": 1})     # full: the rest waits in the queue
    window.subscribe(topic, qos=1)

    started = connect(cid + "-begun", properties=LASTING)   # delivery begins before the end
    started.subscribe(topic + "/begun", qos=2)
    pub.publish(topic + "/begun", "q1", qos=1, properties=expiry(1))
    pub.publish(topic + "/begun", "q2", qos=2, properties=expiry(1))
    pub.publish(topic + "/begun", "rec", qos=2, properties=expiry(1))
    begun = [started.expect_publish(topic + "/begun", name, dup=False, flow=False).pid
             for name in ("q1", "q2", "rec")]
    pub.publish(topic + "/inbound", "x", qos=2, pid=9, flow=False, properties=expiry(1))
    taken(pub.expect(PUBREC, pid=9))

    before = time.monotonic()
    for name, interval in [("none", None), ("zero", 0), ("one", 1), ("ten", 10)]:
        for qos in (1, 2):
            pub.publish(topic, f"{name}-{qos}", qos=qos, properties=None if interval is None else expiry(interval))
        pub.publish(f"{topic}/retained/{name}", name, qos=1, retain=True,
                    properties=None if interval is None else expiry(interval))
    after = time.monotonic()

    first = window.expect_publish(topic, "none-1", flow=False)
    now = {p.payload: p.prop("message_expiry_interval") for p in collect(live)}
    assert now[b"none-1"] is None and now[b"none-2"] is None
    assert now[b"ten-1"] in (9, 10) and now[b"ten-2"] in (9, 10)
    assert now.get(b"one-1", 1) in (0, 1)

    let_pass(after, 2.2)

    def left_of(ten, when):
        assert 10 - math.ceil(when - before) <= ten <= 10 - math.floor(when - after) + 0, (ten, when - before)

    when = time.monotonic()
    away = connect(cid, clean=False)
    got = collect(away)
    assert payloads(got) == [b"none-1", b"none-2", b"ten-1", b"ten-2"]
    assert got[0].properties == got[1].properties == []
    left_of(got[2].prop("message_expiry_interval"), when)
    left_of(got[3].prop("message_expiry_interval"), when)

    window.ack(PUBACK, first.pid)
    when = time.monotonic()
    got = collect(window)
    assert payloads(got) == [b"none-2", b"ten-1", b"ten-2"]
    left_of(got[1].prop("message_expiry_interval"), when)

    old = connect(cid + "-old", version=V311, clean=False)
    assert payloads(collect(old)) == [b"none-1", b"none-2", b"ten-1", b"ten-2"]
    connect(old.id, version=V311, clean=True)

    late = connect()
    when = time.monotonic()
    late.subscribe(topic + "/retained/#")
    got = {p.payload: p for p in collect(late)}
    assert set(got) == {b"none", b"ten"}
    assert got[b"none"].properties == []
    left_of(got[b"ten"].prop("message_expiry_interval"), when)

    assert pub.pubrel(9).reason == SUCCESS
    started.ack(PUBREC, begun[2])
    started.expect(PUBREL, pid=begun[2], reason=SUCCESS)
    started.close()
    started = connect(cid + "-begun", clean=False)
    got = sorted([started.receive() for _ in range(3)], key=lambda p: p.type)
    assert [(p.type, p.pid) for p in got] == [(PUBLISH, begun[0]), (PUBLISH, begun[1]), (PUBREL, begun[2])]
    assert got[0].dup and got[1].dup
    started.nothing()


# 3.3.2.3.4: Topic Alias, from the client

def alias(n):
    return {"topic_alias": n}


def test_topic_alias(connect, topic):
    """Every alias from 1 to the announced maximum can be set, used without the topic, at any QoS, and
    set anew. It is not passed on. [MQTT5-3.3.2-12] [MQTT5-3.1.2-27]"""
    sub, pub = connect(), connect()
    sub.subscribe(topic + "/#", qos=2)
    last = pub.connack.prop("topic_alias_maximum", 0)
    assert last > 0
    for n in range(1, last + 1):
        pub.publish(f"{topic}/{n}", "set", properties=alias(n))
    for n in range(1, last + 1):
        pub.publish("", "used", qos=n % 3, properties=alias(n))
    pub.ping()
    got = collect(sub)
    assert [(p.topic, p.payload) for p in got] == \
        [(f"{topic}/{n}", what) for what in (b"set", b"used") for n in range(1, last + 1)]
    pub.publish(topic + "/new", "set", properties=alias(1))
    pub.publish("", "used", qos=2, retain=True, properties=alias(1))
    pub.publish(topic + "/plain", "no alias")
    pub.publish("", "again", properties=alias(1))
    pub.ping()
    got += collect(sub)
    assert [(p.topic, p.payload) for p in got[-4:]] == [
        (topic + "/new", b"set"), (topic + "/new", b"used"), (topic + "/plain", b"no alias"), (topic + "/new", b"again")]
    assert all(p.properties == [] for p in got)
    pub.publish("", retain=True, properties=alias(1))


def test_topic_alias_belongs_to_the_connection(connect, cid, topic):
    """Mappings are not part of the session and no business of other connections.
    [MQTT5-3.3.2-7]"""
    sub = connect()
    sub.subscribe(topic, qos=1)
    first = connect(cid, properties=LASTING)
    first.publish(topic, "set", qos=1, properties=alias(1))
    other = connect()
    other.publish("", "x", properties=alias(1))
    other.expect_disconnect(PROTOCOL_ERROR, TOPIC_ALIAS_INVALID)
    first.publish("", "used", qos=1, properties=alias(1))
    first.close()
    first = connect(cid, clean=False, properties=LASTING)
    assert first.connack.session_present
    first.publish("", "x", properties=alias(1))
    first.expect_disconnect(PROTOCOL_ERROR, TOPIC_ALIAS_INVALID)
    assert payloads(collect(sub)) == [b"set", b"used"]


def test_bad_topic_alias(new_broker, connect, topic):
    """0 and anything above the announced maximum are invalid, with or without a topic; if nothing was
    announced, every alias is. No topic and no alias, or one that was never set, is a protocol error.
    [MQTT5-3.3.2-8] [MQTT5-3.3.2-9] [MQTT5-3.2.2-17] [MQTT5-3.2.2-18] [MQTT5-4.7.3-1] [MQTT5-3.3.2-1]"""
    some, none = new_broker("max_topic_alias 3"), new_broker("max_topic_alias 0")
    assert connect(broker=some).connack.prop("topic_alias_maximum") == 3
    assert connect(broker=none).connack.prop("topic_alias_maximum", 0) == 0
    for broker, name, props, reasons in [
        (some, topic, alias(0), [TOPIC_ALIAS_INVALID]),
        (some, topic, alias(4), [TOPIC_ALIAS_INVALID]),
        (some, topic, alias(65535), [TOPIC_ALIAS_INVALID]),
        (some, "", alias(0), [TOPIC_ALIAS_INVALID]),
        (some, "", alias(4), [TOPIC_ALIAS_INVALID]),
        (some, "", alias(3), [PROTOCOL_ERROR]),
        (some, "", None, [PROTOCOL_ERROR]),
        (none, topic, alias(1), [TOPIC_ALIAS_INVALID]),
        (none, "", None, [PROTOCOL_ERROR]),
    ]:
        for qos in (0, 1):
            client = connect(broker=broker)
            client.publish(name, "x", qos=qos, flow=False, properties=props)
            client.expect_disconnect(*reasons)
    good = connect(broker=some)
    good.publish(topic, "x", properties=alias(3))
    good.nothing()


# Topic Alias, from the server

class Names:
    """What the aliases of one connection stand for."""

    def __init__(self, maximum):
        self.maximum = maximum
        self.topic_of = {}

    def of(self, p):
        n = p.prop("topic_alias")
        if n is None:
            return p.topic
        assert 1 <= n <= self.maximum, f"alias beyond {self.maximum}: {p}"
        if p.topic:
            self.topic_of[n] = p.topic
        return self.topic_of[n]


@pytest.mark.parametrize("maximum", [None, 0, 1, 2, 65535])
def test_topic_alias_of_the_server(connect, cid, topic, maximum):
    """The server uses an alias only within the client's maximum, none without one; the first use
    comes with the topic. On a new connection it starts anew, with what is sent again, too.
    [MQTT5-3.1.2-26] [MQTT5-3.1.2-27] [MQTT5-3.3.2-8] [MQTT5-3.3.2-11] [MQTT5-3.3.2-7]"""
    props = dict(LASTING) if maximum is None else {"topic_alias_maximum": maximum, **LASTING}
    topics = [f"{topic}/{name}" for name in "abc"]
    sub, pub = connect(cid, properties=props), connect()
    sub.subscribe(topic + "/#", qos=1)
    names = Names(maximum or 0)
    for name in topics * 3:
        pub.publish(name, "x", qos=0)
        assert names.of(sub.expect_publish(None, "x")) == name
    for name in topics:
        pub.publish(name, "unacked", qos=1)
        assert names.of(sub.expect_publish(None, "unacked", flow=False)) == name
    sub.close()
    for name in topics * 2:
        pub.publish(name, "queued", qos=1)
    sub = connect(cid, clean=False, properties=props)
    names = Names(maximum or 0)
    got = collect(sub)
    assert [(names.of(p), p.payload, p.dup) for p in got] == \
        [(name, b"unacked", True) for name in topics] + [(name, b"queued", False) for name in topics * 2]


# 5.0 beside 3.1.1 and 3.1

@pytest.mark.parametrize("version", [V31, V311])
def test_old_subscriber(connect, topic, version):
    """A subscriber of an older version gets topic and payload; the properties are lost to it."""
    old, pub = connect(version=version), connect()
    old.subscribe(topic, qos=2)
    props = {"content_type": "ct", "user_property": ("k", "v"), "message_expiry_interval": 100,
             "response_topic": "r", "correlation_data": b"c", "payload_format_indicator": 1}
    for qos in (0, 1, 2):
        pub.publish(topic, f"q{qos}", qos=qos, retain=qos == 2, properties=props)
        old.expect_publish(topic, f"q{qos}", qos=qos)
    pub.publish(topic, "aliased", properties={"topic_alias": 1})
    pub.publish("", "by alias", properties={"topic_alias": 1})
    old.expect_publish(topic, "aliased", qos=0)
    old.expect_publish(topic, "by alias", qos=0)
    late = connect(version=version)
    late.subscribe(topic)
    late.expect_publish(topic, "q2", retain=True)
    pub.publish(topic, retain=True)


@pytest.mark.parametrize("version", [V31, V311])
def test_old_publisher(connect, topic, version):
    """What an older client publishes has no properties, not even after it was retained; its Will
    neither. [MQTT5-2.2.2-1]"""
    sub = connect()
    sub.subscribe(topic, qos=2)
    pub = connect(version=version, will=Will(topic, "will", 1))
    for qos in (0, 1, 2):
        pub.publish(topic, f"q{qos}", qos=qos, retain=qos == 1)
        assert sub.expect_publish(topic, f"q{qos}", qos=qos).properties == []
    pub.close()
    assert sub.expect_publish(topic, "will", qos=1).properties == []
    late = connect()
    late.subscribe((topic, options(2, as_published=True)), properties={"subscription_identifier": 4})
    assert late.expect_publish(topic, "q1", qos=1, retain=True).properties == [("subscription_identifier", 4)]
    late.publish(topic, retain=True)
