"""MQTT 5.0: what outlives a connection.

Clean Start and Session Expiry (3.1.2.4, 3.1.2.11.2, 4.1), takeover of a client id (3.1.4), the Will and
its delay (3.1.2.5, 3.1.3.2), what is sent again (4.4)."""

import time

import pytest

import wire
from v5 import *
from v5 import connect, dial
from wire import V31, V311, V5, Will

NEVER = 0xFFFFFFFF


def expiry(seconds):
    return {"session_expiry_interval": seconds}


# 3.1.2.4: Clean Start

def test_clean_start_1_discards(connect, cid, topic):
    """Clean Start 1: subscriptions, queued messages, messages in flight and received ids of an earlier
    session are gone. [MQTT5-3.1.2-4] [MQTT5-3.2.2-2] [MQTT5-3.1.4-4]"""
    old, pub = connect(cid, properties=LASTING), connect()
    old.subscribe(topic, qos=2)
    pub.publish(topic, "in flight", qos=1)
    old.expect_publish(topic, "in flight", flow=False)
    old.publish(topic + "/x", "x", qos=2, pid=3, flow=False)
    old.await_packet(PUBREC, 3)
    old.disconnect()
    pub.publish(topic, "queued", qos=1)
    new = connect(cid, clean=True, properties=LASTING)
    assert not new.connack.session_present
    new.nothing()
    pub.publish(topic, "not subscribed", qos=1)
    new.nothing()
    assert new.pubrel(3).reason == ID_NOT_FOUND
    new.subscribe(topic, qos=1)
    new.disconnect()
    new = connect(cid, clean=False)
    assert new.connack.session_present      # the new session, however, lasts
    pub.publish(topic, "y", qos=1)
    new.expect_publish(topic, "y", qos=1)


def test_clean_start_0_resumes(connect, cid, topic):
    """Clean Start 0: without a session one is created, later it is resumed with subscriptions, their
    options and identifiers, and with the QoS 1 and 2 messages that came meanwhile.
    [MQTT5-3.1.2-5] [MQTT5-3.1.2-6] [MQTT5-3.1.2-23] [MQTT5-3.2.2-3] [MQTT5-4.5.0-1] [MQTT5-3.1.3-2]"""
    client, pub = connect(cid, clean=False, properties=LASTING), connect()
    assert not client.connack.session_present
    client.subscribe((topic + "/1", 1), (topic + "/2", options(2, as_published=True)),
                     properties={"subscription_identifier": 12})
    client.disconnect()
    for qos in (1, 2):
        pub.publish(topic + "/2", f"away{qos}", qos=qos, retain=True)
    other = connect(cid + "x", clean=False, properties=LASTING)     # another id, another session
    assert not other.connack.session_present
    other.nothing()
    client = connect(cid, clean=False, properties=LASTING)
    assert client.connack.session_present
    for qos in (1, 2):
        p = client.expect_publish(topic + "/2", f"away{qos}", qos=qos, retain=True)
        assert p.properties == [("subscription_identifier", 12)]
    pub.publish(topic + "/1", "live", qos=2)
    assert client.expect_publish(topic + "/1", "live", qos=1).properties == [("subscription_identifier", 12)]
    client.nothing()
    pub.publish(topic + "/2", retain=True)


def test_session_without_expiry(connect, cid, topic):
    """Interval 0 or none: the session ends with the connection, however that ends.
    [MQTT5-4.1.0-2] [MQTT5-3.2.2-3]"""
    for props in (None, expiry(0)):
        for end in ("disconnect", "close", "reset"):
            client = connect(cid, clean=False, properties=props)
            assert not client.connack.session_present
            client.subscribe(topic, qos=1)
            client.disconnect() if end == "disconnect" else client.close(reset=end == "reset")
    connect().publish(topic, "x", qos=1)
    last = connect(cid, clean=False)
    assert not last.connack.session_present
    last.nothing()


def test_expiry_in_disconnect(connect, cid):
    """DISCONNECT may set the interval anew: 0 ends the session at once. Without one the value of the
    CONNECT holds. Nothing may come out of 0. [MQTT5-4.1.0-2] [MQTT5-3.1.2-23]"""
    def again(first, last, reason=0):
        client = connect(cid, clean=True, properties=first)
        client.disconnect(reason, last)
        return connect(cid, clean=False).connack.session_present

    assert again(LASTING, None)
    assert again(LASTING, {})
    assert again(LASTING, expiry(30))
    assert again(LASTING, expiry(NEVER))
    assert again(expiry(NEVER), None)
    assert not again(LASTING, expiry(0))
    assert not again(LASTING, expiry(0), DISCONNECT_WITH_WILL)
    assert not again(None, expiry(0))
    assert not again(None, None)
    client = connect(cid, clean=True)
    client.send(wire.disconnect(V5, 0, expiry(5)))
    expect_end(client, PROTOCOL_ERROR)
    assert not connect(cid, clean=False).connack.session_present


def test_session_expiry(connect, cid, topic):
    """The session lasts for the interval, counted from the end of the connection, and no longer; while
    the connection is open it lasts in any case. The last CONNECT or DISCONNECT sets the interval. An
    unacknowledged message is not sent again while the connection lasts.
    [MQTT5-4.1.0-1] [MQTT5-4.1.0-2] [MQTT5-3.1.2-23] [MQTT5-4.4.0-1]"""
    def away(name, *connects, last=None):
        for props in connects:
            client = connect(cid + name, clean=False, properties=props)
            client.subscribe(topic, qos=1)
            client.disconnect(0 if last else None, last)

    def present(name):
        client = connect(cid + name, clean=False)
        return client.connack.session_present, payloads(collect(client))

    stays = connect(cid + "stays", properties=expiry(1))
    waits = connect(properties=expiry(1))
    waits.subscribe(topic + "/waits", qos=2)
    pub = connect()
    for qos in (1, 2, 2):
        pub.publish(topic + "/waits", "x", qos=qos)
    unacked = [waits.expect_publish(flow=False) for _ in range(3)]
    waits.ack(PUBREC, unacked[2].pid)
    waits.expect(PUBREL, pid=unacked[2].pid)

    away("short", expiry(1))
    away("shortened", LASTING, expiry(1))
    away("shortened-late", LASTING, last=expiry(1))
    away("lengthened", expiry(1), LASTING)
    away("lengthened-late", expiry(1), last=LASTING)
    away("never", expiry(NEVER))
    start = time.monotonic()
    pub.publish(topic, "x", qos=1)
    let_pass(start, 2.2)

    assert present("short") == (False, [])
    assert present("shortened") == (False, [])
    assert present("shortened-late") == (False, [])
    assert present("lengthened") == (True, [b"x"])
    assert present("lengthened-late") == (True, [b"x"])
    assert present("never") == (True, [b"x"])
    stays.close()
    assert present("stays") == (True, [])
    waits.nothing()
    for name in ("lengthened", "lengthened-late", "never", "stays"):
        connect(cid + name, clean=True)


def test_session_without_connection_queues_in_order(connect, cid, topic):
    """What comes while the client is away waits, in order; QoS 0 may. [MQTT5-4.5.0-1] [MQTT5-4.6.0-5]"""
    client, pub = connect(cid, properties=LASTING), connect()
    client.subscribe(topic, qos=2)
    client.close()
    sent = [(b"%d" % i, i % 3) for i in range(30)]
    for payload, qos in sent:
        pub.publish(topic, payload, qos=qos)
    client = connect(cid, clean=False)
    got = [(p.payload, p.qos) for p in collect(client)]
    assert [m for m in got if m[1]] == [m for m in sent if m[1]]
    assert [m for m in got if not m[1]] in ([], [m for m in sent if not m[1]])


# 4.4: message delivery again

def test_order_of_what_is_sent_again(connect, cid, topic):
    """After a reconnect unacknowledged PUBLISHes are sent again in their original order with their ids and
    DUP 1, the PUBREL that misses its PUBCOMP too, then what is new. What was acknowledged is not.
    [MQTT5-4.4.0-1] [MQTT5-4.6.0-1] [MQTT5-4.3.3-6] [MQTT5-3.3.1-1] [MQTT5-3.3.1-3] [MQTT5-4.1.0-1]"""
    client, pub = connect(cid, properties=LASTING), connect()
    client.subscribe(topic, qos=2)
    for i, qos in enumerate([1, 2, 2, 1, 1, 2, 2]):
        pub.publish(topic, str(i), qos=qos)
    pids = [client.expect_publish(topic, str(i), dup=False, flow=False).pid for i in range(7)]
    client.ack(PUBREC, pids[1])
    client.expect(PUBREL, pid=pids[1])
    client.ack(PUBACK, pids[3])
    client.ack(PUBREC, pids[5])
    client.expect(PUBREL, pid=pids[5])
    client.ack(PUBCOMP, pids[5])
    client.ping()
    client.close()
    pub.publish(topic, "new", qos=1)
    client = connect(cid, clean=False, properties=LASTING)
    got = [client.receive() for _ in range(6)]
    assert [(p.type, p.pid) for p in got if p.type == PUBREL] == [(PUBREL, pids[1])]
    again = [p for p in got if p.type == PUBLISH]
    assert [(p.payload, p.pid, p.dup) for p in again[:4]] == \
        [(b"%d" % i, pids[i], True) for i in (0, 2, 4, 6)]
    assert (again[4].payload, again[4].dup) == (b"new", False)
    assert again[4].pid not in [pids[i] for i in (0, 1, 2, 4, 6)]
    for p in got:
        client.ack({PUBREL: PUBCOMP}.get(p.type, PUBACK if p.type == PUBLISH and p.qos == 1 else PUBREC), p.pid)
    for i in (2, 6):
        client.expect(PUBREL, pid=pids[i], reason=SUCCESS)
        client.ack(PUBCOMP, pids[i])
    client.nothing()
    client.disconnect()
    client = connect(cid, clean=False)
    assert client.connack.session_present
    client.nothing()


# 3.1.4: takeover

def test_takeover(connect, cid, topic):
    """A second connection with the same client id: the first gets DISCONNECT 0x8E and is closed, the
    session goes on with the second. A server's DISCONNECT has no Session Expiry Interval.
    [MQTT5-3.1.4-3] [MQTT5-3.1.2-5] [MQTT5-3.14.4-2] [MQTT5-3.14.2-2]"""
    first, pub = connect(cid, properties=LASTING), connect()
    first.subscribe(topic, qos=1)
    pub.publish(topic, "unacked", qos=1)
    pid = first.expect_publish(topic, "unacked", flow=False).pid
    second = connect(cid, clean=False, properties=LASTING)
    assert second.connack.session_present
    p = first.expect_disconnect(TAKEN_OVER)
    assert p.prop("session_expiry_interval") is None
    second.expect_publish(topic, "unacked", dup=True, pid=pid)
    pub.publish(topic, "x", qos=1)
    second.expect_publish(topic, "x")
    third = connect(cid, clean=True)
    assert not third.connack.session_present
    second.expect_disconnect(TAKEN_OVER)
    third.nothing()


def test_takeover_ends_a_session_without_expiry(connect, cid, topic):
    """The session of the first connection ends with it if its interval is 0, so there is none to resume.
    [MQTT5-3.1.4-3] [MQTT5-4.1.0-2] [MQTT5-3.2.2-3]"""
    first = connect(cid)
    first.subscribe(topic, qos=1)
    second = connect(cid, clean=False, properties=LASTING)
    first.expect_disconnect(TAKEN_OVER)
    assert not second.connack.session_present
    connect().publish(topic, "x", qos=1)
    second.nothing()


@pytest.mark.parametrize("version", [V31, V311])
def test_takeover_among_versions(connect, cid, version):
    """Client ids are the same in all versions; each connection is ended in its own way.
    [MQTT5-3.1.4-3] [MQTT5-3.1.3-2]"""
    new = connect(cid)
    old = connect(cid, version=version)
    new.expect_disconnect(TAKEN_OVER)
    new = connect(cid)
    old.expect_closed()
    new.nothing()


def test_session_of_another_version(connect, cid, topic):
    """A session that the other version left behind is resumed or discarded, and Session Present says
    which. [MQTT5-3.2.2-3] [MQTT5-3.1.2-5]"""
    pub = connect()
    old = connect(cid, version=V311, clean=False)
    old.subscribe(topic, qos=1)
    old.disconnect()
    pub.publish(topic, "1", qos=1)
    new = connect(cid, clean=False, properties=LASTING)
    assert payloads(collect(new)) == ([b"1"] if new.connack.session_present else [])
    new.subscribe(topic, qos=1)
    new.disconnect()
    pub.publish(topic, "2", qos=1, properties={"content_type": "ct"})
    old = connect(cid, version=V311, clean=False)
    assert payloads(collect(old)) == ([b"2"] if old.connack.session_present else [])
    old.disconnect()
    connect(cid, clean=True)


# 3.1.2.5, 3.1.3.2: the Will

def test_will(connect, topic):
    """The Will is published as the CONNECT said when the connection ends without DISCONNECT 0x00, once,
    to all subscribers; with Will Retain it is stored, without it is not.
    [MQTT5-3.1.2-7] [MQTT5-3.1.2-8] [MQTT5-3.1.2-10] [MQTT5-3.1.2-14] [MQTT5-3.1.2-15]"""
    sub = connect()
    sub.subscribe((topic + "/#", options(2, as_published=True)))
    for qos in (0, 1, 2):
        for retain in (False, True):
            for end in ("close", "reset"):
                name = f"{topic}/{qos}{retain}{end}"
                client = connect(will=Will(name, b"\x00\xff", qos, retain))
                sub.nothing()
                client.close(reset=end == "reset")
                p = sub.expect_publish(name, b"\x00\xff", qos=qos, retain=retain)
                assert p.properties == []
                connect(client.id).disconnect()
                sub.nothing()           # never twice
                late = connect()
                late.subscribe(name, qos=2)
                assert [(p.payload, p.qos) for p in collect(late)] == ([(b"\x00\xff", qos)] if retain else [])
                late.publish(name, retain=True)
                sub.expect_publish(name, "")


def test_empty_will(connect, topic):
    """A Will without payload is published too; with Will Retain it clears the topic.
    [MQTT5-3.1.2-15] [MQTT5-3.3.1-6] [MQTT5-3.3.1-7]"""
    sub = connect()
    sub.subscribe(topic)
    sub.publish(topic, "kept", retain=True)
    sub.expect_publish(topic, "kept")
    connect(will=Will(topic, "", 0, True)).close()
    sub.expect_publish(topic, "")
    late = connect()
    late.subscribe(topic)
    late.nothing()


def test_will_properties(connect, topic):
    """The properties of the Will are those of the message, user properties in their order; the delay
    stays with the server. [MQTT5-3.1.3-10] [MQTT5-3.1.2-9] [MQTT5-3.3.2-4] [MQTT5-3.3.2-18]"""
    props = [("user_property", ("z", "1")), ("will_delay_interval", 0), ("payload_format_indicator", 1),
             ("user_property", ("a", "2")), ("message_expiry_interval", 1000), ("content_type", "text"),
             ("response_topic", "r/t"), ("user_property", ("z", "1")), ("correlation_data", b"\x00\xff"),
             ("user_property", ("", ""))]
    sub = connect()
    sub.subscribe(topic, qos=1)
    connect(will=Will(topic, "text", 1, True, props)).close()
    late = connect()
    p = sub.expect_publish(topic, "text", qos=1)
    late.subscribe(topic)
    for p in (p, late.expect_publish(topic, "text", retain=True)):
        assert p.props("user_property") == [("z", "1"), ("a", "2"), ("z", "1"), ("", "")]
        rest = dict(p.properties)
        assert rest.pop("message_expiry_interval") in (999, 1000)
        del rest["user_property"]
        assert rest == {"payload_format_indicator": 1, "content_type": "text", "response_topic": "r/t",
                        "correlation_data": b"\x00\xff"}
    late.publish(topic, retain=True)


def test_will_of_the_last_connect(connect, cid, topic):
    """A CONNECT without a Will leaves none of an earlier one; one with another Will replaces it.
    [MQTT5-3.1.2-7] [MQTT5-3.1.2-10]"""
    sub = connect()
    sub.subscribe(topic)
    connect(cid, properties=LASTING, will=Will(topic, "one")).disconnect()
    connect(cid, clean=False, properties=LASTING, will=Will(topic, "two")).close()
    sub.expect_publish(topic, "two")
    connect(cid, clean=False, properties=LASTING).close()
    connect(cid).disconnect()
    sub.nothing()


def test_will_delay(connect, cid, topic):
    """The Will is published when its delay has passed or the session ends, whichever comes first. Who
    comes back in time takes it away; who comes back with Clean Start 1 ends the session. DISCONNECT
    0x00 takes it away, any other code does not. A message's expiry begins when it is published.
    [MQTT5-3.1.2-8] [MQTT5-3.1.2-10] [MQTT5-3.1.3-9] [MQTT5-3.14.4-3]"""
    sub = connect()
    sub.subscribe(topic + "/#")

    def will(name, delay, **props):
        return Will(f"{topic}/{name}", name, 0, False, {"will_delay_interval": delay, **props})

    def expect(*names):
        got = sorted(sub.expect_publish().payload.decode() for _ in names)
        assert got == sorted(names)

    # no delay, or no session to wait for
    connect(properties=LASTING, will=will("no-delay", 0)).close()
    expect("no-delay")
    connect(will=will("no-session", 60)).close()
    expect("no-session")
    client = connect(properties=LASTING, will=will("session-ended", 60))
    client.disconnect(DISCONNECT_WITH_WILL, expiry(0))
    expect("session-ended")
    client = connect(properties=LASTING, will=will("clean", 60))
    client.close()
    connect(client.id, clean=True)
    expect("clean")
    sub.nothing()

    start = time.monotonic()
    back = connect(cid, properties=LASTING, will=will("back", 1))
    back.close()
    back = connect(cid, clean=False, properties=LASTING, will=will("back-again", 1))
    connect(properties=LASTING, will=will("normal", 1)).disconnect()
    connect(properties=LASTING, will=will("late", 60)).close()
    connect(properties=LASTING, will=will("delay", 1, message_expiry_interval=100)).close()
    connect(properties=LASTING, will=will("with-will", 1)).disconnect(DISCONNECT_WITH_WILL)
    connect(properties=LASTING, will=will("error", 1)).disconnect(PROTOCOL_ERROR)
    connect(properties=expiry(1), will=will("expiry", 60)).close()
    connect(properties=LASTING, will=will("expiry-late", 60)).disconnect(DISCONNECT_WITH_WILL, expiry(1))
    got = [sub.expect_publish()]
    assert time.monotonic() - start > 0.9
    got += [sub.expect_publish() for _ in range(4)]
    assert time.monotonic() - start < 5
    assert sorted(p.payload for p in got) == [b"delay", b"error", b"expiry", b"expiry-late", b"with-will"]
    found, = [p for p in got if p.payload == b"delay"]
    assert found.prop("message_expiry_interval") in (99, 100)
    assert found.props("will_delay_interval") == []
    back.disconnect()
    sub.nothing()


def test_will_at_takeover(connect, topic):
    """At a takeover the Will of the first connection is sent if it has no delay, or if the session ends:
    its interval is 0, or the second comes with Clean Start 1. Otherwise the second has come in time.
    [MQTT5-3.1.2-8] [MQTT5-3.1.3-9] [MQTT5-3.1.4-3]"""
    sub = connect()
    sub.subscribe(topic)

    def sent(session, delay, clean):
        first = connect(properties=expiry(session), will=Will(topic, "x", properties={"will_delay_interval": delay}))
        second = connect(first.id, clean=clean, properties=LASTING)
        first.expect_disconnect(TAKEN_OVER)
        assert second.connack.session_present == (session > 0 and not clean)
        found = payloads(collect(sub))
        assert found in ([], [b"x"])
        second.close()
        connect(first.id).disconnect()
        sub.nothing()
        return bool(found)

    assert sent(session=60, delay=0, clean=False)
    assert sent(session=60, delay=0, clean=True)
    assert sent(session=0, delay=60, clean=False)
    assert sent(session=0, delay=60, clean=True)
    assert sent(session=60, delay=60, clean=True)
    assert not sent(session=60, delay=60, clean=False)


def test_will_of_a_refused_connect(connect, dial, topic):
    """A CONNECT that was refused leaves no Will. [MQTT5-3.1.2-7] [MQTT5-3.1.4-6]"""
    sub = connect()
    sub.subscribe(topic)
    client = dial()
    client.send(wire.connect(V5, "refused", will=Will(topic, "x"), properties={"authentication_method": "x"}))
    expect_refused(client, BAD_METHOD, NOT_AUTHORIZED)
    sub.nothing()


def test_receive_maximum_starts_anew(new_broker, connect):
    """Each connection starts with the whole quota, whatever PUBRELs are still to come; only what is sent
    on it counts. [MQTT5-3.3.4-7] [MQTT5-4.9.0-1]"""
    broker = new_broker("max_inflight_messages 3")
    client = connect("quota", broker=broker, properties={"session_expiry_interval": 60})
    for pid in (1, 2, 3):
        client.publish("x", "old", qos=2, pid=pid, flow=False)
        client.expect(wire.PUBREC, pid=pid)
    client.close()
    client = connect("quota", broker=broker, clean=False, properties={"session_expiry_interval": 60})
    for pid in (4, 5, 6):
        client.publish("x", "new", qos=2, pid=pid, flow=False)
        client.expect(wire.PUBREC, pid=pid)
    client.publish("x", "one too many", qos=2, pid=7, flow=False)
    client.expect_disconnect(0x93)
