"""MQTT 3.1 (MQIsdp, level 3) where it differs from 3.1.1, and 3.x bridges.

The text of 3.1 has no numbered statements; the comments name its sections.
"""

import pytest

from wire import (CONNECT, DISCONNECT, PINGREQ, PINGRESP, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL,
                  SUBACK, SUBSCRIBE, UNSUBACK, UNSUBSCRIBE, V31, V311, Closed, Will, connect as connect_packet,
                  packet, password_line, publish, string, subscribe, u16, unsubscribe)

ACCEPTED = b"\x20\x02\x00\x00"


@pytest.fixture
def connect31(connect):
    return lambda *args, **fields: connect(*args, version=V31, **fields)


def accepted(dial, raw):
    """A client whose CONNECT, these bytes, is accepted."""
    client = dial(version=V31)
    client.send(raw)
    assert client.receive().raw == ACCEPTED
    return client


def refused(dial, raw):
    client = dial(version=V31)
    client.send(raw)
    client.expect_closed()


# 3.1 CONNECT

def test_connect_bytes(dial, cid):
    """3.1: protocol name MQIsdp, version 3. [MQTT-3.1.2-1] another protocol for 3.1.1."""
    accepted(dial, b"\x10" + bytes([14 + len(cid)]) + b"\x00\x06MQIsdp\x03\x02\x00\x3c" + string(cid))


@pytest.mark.parametrize("level", [0, 1, 2, 4, 5, 6])
def test_name_of_3_1_with_another_level(dial, cid, level):
    """3.1: version numbers above or below are refused, with code 1 or without a word."""
    client = dial(version=V31)
    client.send(connect_packet(V31, cid, level=level))
    try:
        assert client.receive().raw == b"\x20\x02\x00\x01"
    except Closed:
        return
    client.expect_closed()


def test_no_session_present_in_3_1(connect31, connect, cid):
    """3.2: the first byte of CONNACK is reserved in 3.1, also for a resumed session."""
    for _ in range(2):
        client = connect31(cid, clean=False)
        assert client.connack.raw == ACCEPTED
        client.disconnect()


@pytest.mark.parametrize("clean", [True, False])
def test_empty_client_id(dial, clean):
    """3.1: 1 to 23 characters, otherwise code 2."""
    client = dial(version=V31)
    client.connect("", clean=clean, reason=2)
    client.expect_closed()


@pytest.mark.parametrize("length", [23, 24, 100])
def test_long_client_id(dial, length):
    """3.1: more than 23 characters have code 2 by the letter; accepting them is common."""
    client = dial(version=V31)
    reason = client.connect("x" * length, reason=None).reason
    if reason == 0:
        client.nothing()
    else:
        assert length > 23 and reason == 2
        client.expect_closed()


@pytest.mark.parametrize("flags", [2 | 1, 2 | 8, 2 | 16, 2 | 32, 2 | 32 | 16 | 1])
def test_unused_connect_flags_are_ignored(dial, cid, flags):
    """3.1: bit 0 is not used; Will QoS and Will Retain only count with the Will flag."""
    accepted(dial, connect_packet(V31, cid, flags=flags)).nothing()


def test_will_qos_3(dial, cid):
    """3.1: a reserved value."""
    refused(dial, connect_packet(V31, cid, flags=2 | 4 | 24, will=Will("t", "p")))


@pytest.mark.parametrize("flags, fields", [(128, {}), (128 | 64, {}), (128 | 64, dict(username="u"))],
                         ids=["user name", "both", "password"])
def test_flags_without_user_name_or_password(dial, cid, flags, fields):
    """3.1: for older clients the flags may be set and the strings missing at the end."""
    accepted(dial, connect_packet(V31, cid, flags=2 | flags, **fields)).nothing()


def test_password_without_user_name(dial, cid):
    """3.1: a password needs a user name."""
    refused(dial, connect_packet(V31, cid, password="p"))


def test_second_connect(connect31, connect, topic):
    """3.1: closed, the Will is published."""
    sub = connect()
    sub.subscribe(topic)
    client = connect31(will=Will(topic, "will"))
    client.send(connect_packet(V31, client.id))
    client.expect_closed()
    sub.expect_publish(topic, "will")


# 2.1 Fixed header: DUP, QoS and RETAIN bits mean nothing where they are not used

@pytest.mark.parametrize("flags", [2, 8, 10, 15])
@pytest.mark.parametrize("type", [PINGREQ, SUBSCRIBE, UNSUBSCRIBE, PUBREL])
def test_header_bits_are_not_checked(connect31, topic, type, flags):
    """2.1: bits of the header that a packet does not use are free; DUP marks a repeated
    SUBSCRIBE, UNSUBSCRIBE or PUBREL (0x8A, 0xAA, 0x6A)."""
    client = connect31()
    body, answer = {PINGREQ: (b"", PINGRESP), SUBSCRIBE: (u16(5) + string(topic) + b"\1", SUBACK),
                    UNSUBSCRIBE: (u16(5) + string(topic), UNSUBACK), PUBREL: (u16(5), PUBCOMP)}[type]
    client.send(packet(type, flags, body))
    client.expect(answer)
    client.nothing()


@pytest.mark.parametrize("flags", [0, 2, 8])
def test_header_bits_of_disconnect(connect31, connect, topic, flags):
    """2.1, 3.14: a DISCONNECT whatever its bits, so no Will."""
    sub = connect()
    sub.subscribe(topic)
    client = connect31(will=Will(topic, "will"))
    client.send(packet(DISCONNECT, flags))
    client.expect_closed()
    sub.nothing()


def test_header_bits_of_connect(dial, cid):
    """2.1"""
    accepted(dial, packet(CONNECT, 8, connect_packet(V31, cid)[2:]))


@pytest.mark.parametrize("type", [PUBACK, PUBREC, PUBCOMP])
def test_header_bits_of_acks(connect31, connect, topic, type):
    """2.1: an ack with DUP is an ack."""
    sub, pub = connect31(), connect()
    sub.subscribe(topic, qos=1 if type == PUBACK else 2)
    pub.publish(topic, "x", qos=2)
    pid = sub.expect_publish(topic, "x", flow=False).pid
    if type == PUBCOMP:
        sub.ack(PUBREC, pid)
        sub.expect(PUBREL, pid=pid)
    sub.send(packet(type, 8, u16(pid)))
    if type == PUBREC:
        sub.expect(PUBREL, pid=pid)
    sub.nothing()


# 3.8 SUBSCRIBE

@pytest.mark.parametrize("options, granted", [(0xfc, 0), (0x81, 1), (0x42, 2)])
def test_upper_bits_of_requested_qos(connect31, topic, options, granted):
    """3.8: the upper six bits are not used."""
    client = connect31()
    client.send(subscribe(V31, 1, [(topic, options)]))
    client.expect(SUBACK, pid=1, reasons=[granted])


def test_requested_qos_3(connect31, topic):
    """3.8: reserved."""
    client = connect31()
    client.send(subscribe(V31, 1, [(topic, 3)]))
    client.expect_closed()


@pytest.mark.parametrize("raw", [publish(V31, "a/#", "x"), publish(V31, "", "x"), publish(V31, "a\0b", "x"),
                                 packet(PUBLISH, 6, string("a") + u16(1)), publish(V31, "a", "x", 1, pid=0),
                                 subscribe(V31, 1, [("a#", 0)]), packet(0), packet(15), packet(SUBACK, 0, b"\0\1\0")],
                         ids=["wildcard", "empty topic", "nul", "qos 3", "id 0", "bad filter", "type 0", "type 15",
                              "suback"])
def test_violations_close_the_connection(connect31, raw):
    """What no version allows."""
    client = connect31()
    client.send(raw)
    client.expect_closed()


@pytest.mark.parametrize("raw, answer", [(subscribe(V31, 1, []), b"\x90\x02\x00\x01"),
                                         (unsubscribe(V31, 1, []), b"\xb0\x02\x00\x01")],
                         ids=["subscribe", "unsubscribe"])
def test_no_filter_at_all(connect31, raw, answer):
    """3.8, 3.10: 3.1 does not say; an empty answer or the end."""
    client = connect31()
    client.send(raw)
    try:
        assert client.receive().raw == answer
    except Closed:
        return
    client.nothing()


# Everyday work

@pytest.mark.parametrize("versions", [(V31, V31), (V31, V311), (V311, V31)], ids=str)
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_messages(connect, topic, versions, qos):
    """4.1: all flows, alone and together with 3.1.1."""
    sub, pub = (connect(version=version) for version in versions)
    sub.subscribe(topic, qos=qos)
    pub.publish(topic, "live", qos=qos, retain=True)
    sub.expect_publish(topic, "live", qos=qos, retain=False)
    sub.subscribe(topic, qos=qos)
    sub.expect_publish(topic, "live", qos=qos, retain=True)
    sub.unsubscribe(topic)
    pub.publish(topic, "none", qos=qos)
    pub.ping()
    sub.nothing()


def test_lasting_session(connect31, connect, topic, cid):
    """3.1, 4.2: subscriptions, waiting messages and unfinished flows of a session."""
    sub, pub = connect31(cid, clean=False), connect()
    sub.subscribe(topic, qos=2)
    pub.publish(topic, "held", qos=2)
    held = sub.expect_publish(topic, "held", flow=False)
    sub.disconnect()
    pub.publish(topic, "waiting", qos=1)
    sub = connect31(cid, clean=False)
    sub.expect_publish(topic, "held", dup=True, pid=held.pid)
    sub.expect_publish(topic, "waiting", dup=False)
    sub.disconnect()
    connect31(cid, clean=True).disconnect()
    pub.publish(topic, "gone", qos=1)
    connect31(cid, clean=False).nothing()


def test_takeover(connect31, connect, cid, topic):
    """3.1: the older client of that id is disconnected; its Will is due."""
    sub = connect()
    sub.subscribe(topic)
    old = connect31(cid, will=Will(topic, "will", 1))
    connect31(cid).nothing()
    old.expect_closed()
    sub.expect_publish(topic, "will")


def test_session_of_another_version(connect, topic, cid):
    """The same id with 3.1 and 3.1.1: the session is resumed as a whole or not at all."""
    pub = connect()
    for first, second in [(V31, V311), (V311, V31)]:
        connect(cid, clean=True).disconnect()
        sub = connect(cid, version=first, clean=False)
        sub.subscribe(topic, qos=1)
        sub.disconnect()
        pub.publish(topic, "waiting", qos=1)
        sub = connect(cid, version=second, clean=False)
        pub.publish(topic, "new", qos=1)
        sub.ping()
        sub.ping()
        got = list(sub.inbox)
        assert [(p.topic, p.payload, p.qos) for p in got] in ([], [(topic, b"waiting", 1), (topic, b"new", 1)])
        sub.disconnect()


def test_will_at_an_abrupt_end_and_not_at_disconnect(connect31, connect, topic):
    """3.1"""
    sub = connect()
    sub.subscribe(topic, qos=2)
    connect31(will=Will(topic, "will", 2, True)).close()
    sub.expect_publish(topic, "will", qos=2, retain=False)
    connect31(will=Will(topic, "will")).disconnect()
    sub.nothing()


def test_refused_publish_is_acknowledged(new_broker, connect):
    """4.1, 3.4: 3.1 knows no refusal of a message, it must be acknowledged."""
    broker = new_broker("acl_file {dir}/rules", start=False)
    with open(broker.path("rules"), "w") as f:
        f.write("topic read #\ntopic readwrite ok\n")
    broker.start()
    sub, pub = connect(broker=broker), connect(broker=broker, version=V31)
    sub.subscribe("#")
    pub.publish("forbidden", "1", qos=1)
    pub.publish("forbidden", "2", qos=2)
    pub.publish("ok", "3", qos=1)
    sub.expect_publish("ok", "3")
    sub.nothing()


def test_subscribe_without_permission(new_broker, connect):
    """3.9: SUBACK of 3.1 has no failure code: granted on paper, nothing is delivered."""
    broker = new_broker("acl_file {dir}/rules", start=False)
    with open(broker.path("rules"), "w") as f:
        f.write("topic write #\ntopic read ok\n")
    broker.start()
    client = connect(broker=broker, version=V31)
    assert all(granted <= 2 for granted in client.subscribe("secret", "ok", qos=1, check=False).reasons)
    client.publish("secret", "1", qos=1)
    client.publish("ok", "2", qos=1)
    client.expect_publish("ok", "2")
    client.nothing()


def test_refused_login(new_broker, dial):
    """3.2: code 4 or 5."""
    broker = new_broker(config="listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {dir}/users\n",
                        start=False)
    with open(broker.path("users"), "w") as f:
        f.write(password_line("u", "right"))
    broker.start()
    for fields, reasons in [(dict(), (4, 5)), (dict(username="u", password="wrong"), (4, 5)),
                            (dict(username="u", password="right"), (0,))]:
        client = dial(broker, version=V31)
        assert client.connect("x", reason=None, **fields).reason in reasons
        if reasons != (0,):
            client.expect_closed()


# Bridges: level 0x83 or 0x84

@pytest.fixture(params=[V31, V311], ids=["0x83", "0x84"])
def bridge(request, dial):
    """A connected bridge, as mosquitto and RSMB announce themselves."""
    client = dial(version=request.param)
    client.id = f"bridge-{request.node.name}"
    client.connect(client.id, level=request.param | 0x80)
    return client


def test_bridge_is_logged(bridge, broker):
    broker.wait_log(r"New bridge connected from 127\.0\.0\.1:\d+ as " + bridge.id.replace("[", r"\["))


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_bridge_gets_the_retain_flag_as_published(bridge, connect, topic, qos):
    """Retain As Published."""
    pub = connect()
    bridge.subscribe(topic, qos=2)
    for retain in (True, False):
        pub.publish(topic, "x", qos=qos, retain=retain)
        bridge.expect_publish(topic, "x", qos=qos, retain=retain)


def test_bridge_does_not_hear_itself(bridge, connect, topic):
    """No Local, whatever the filter; others hear it, and it hears others."""
    other = connect()
    other.subscribe(topic + "/#", qos=1)
    bridge.subscribe(topic + "/#", topic + "/a", qos=1)
    bridge.publish(topic + "/a", "own", qos=1)
    other.expect_publish(topic + "/a", "own", retain=False)
    bridge.nothing()
    other.publish(topic + "/b", "other", qos=1)
    bridge.expect_publish(topic + "/b", "other")


def test_bridge_gets_retained_messages(bridge, connect, topic):
    connect().publish(topic, "kept", qos=1, retain=True)
    bridge.subscribe(topic)
    bridge.expect_publish(topic, "kept", retain=True)


def test_two_bridges_hear_each_other(bridge, dial, topic, cid):
    second = dial(version=V311)
    second.connect(cid, level=0x84)
    for client in (bridge, second):
        client.subscribe(topic, qos=1)
    bridge.publish(topic, "1", qos=1, retain=True)
    second.expect_publish(topic, "1", retain=True)
    second.publish(topic, "2", qos=1)
    bridge.expect_publish(topic, "2", retain=False)
    bridge.nothing()
    second.nothing()


def test_bridge_session_lasts(dial, connect, topic, cid):
    """A resumed bridge is still a bridge to its old subscriptions."""
    first = dial(version=V311)
    first.connect(cid, clean=False, level=0x84)
    first.subscribe(topic, qos=1)
    first.disconnect()
    connect().publish(topic, "away", qos=1, retain=True)
    again = dial(version=V311)
    assert again.connect(cid, clean=False, level=0x84).session_present
    again.expect_publish(topic, "away", qos=1, retain=True)
    again.publish(topic, "own", qos=1)
    again.nothing()


def test_a_bridge_under_the_old_id_is_a_plain_client_without_the_bit(dial, topic, cid):
    """The bit belongs to the connection: without it the client hears itself again."""
    first = dial(version=V311)
    first.connect(cid, clean=False, level=0x84)
    first.subscribe(topic, qos=1)
    first.disconnect()
    plain = dial(version=V311)
    plain.connect(cid, clean=False)
    plain.subscribe(topic, qos=1)
    plain.publish(topic, "own", qos=1, retain=True)
    plain.expect_publish(topic, "own", retain=False)


@pytest.mark.parametrize("name, level", [("MQTT", 0x85), ("MQTT", 0x83), ("MQIsdp", 0x84), ("MQTT", 0x86)])
def test_bridge_bit_with_other_levels(dial, cid, name, level):
    """Refused with code 1 (or 0x84 in the form of 5.0), or closed for a wrong name."""
    client = dial(version=V311)
    client.send(connect_packet(V311, cid, name=name, level=level))
    first = client.sock.recv(100)
    assert first in (b"\x20\x02\x00\x01", b"\x20\x03\x00\x84\x00", b"")
    if first:
        client.expect_closed()
