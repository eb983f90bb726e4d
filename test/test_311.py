"""MQTT 3.1.1: what the standard asks of a server, statement by statement.

In the order of the standard: data representation, packet format, the packets,
then chapter 4. Where the standard leaves a choice the tests accept each of them.
"""

import os
import socket
import time

import pytest

from wire import (CONNACK, CONNECT, DISCONNECT, PINGREQ, PINGRESP, PUBACK, PUBCOMP, PUBLISH, PUBREC,
                  PUBREL, SUBACK, SUBSCRIBE, UNSUBACK, UNSUBSCRIBE, V311, Closed, Will, ack,
                  connect as connect_packet, disconnect, packet, password_line, pingreq, publish, string,
                  subscribe, u16, unsubscribe, varint)

ACCEPTED = b"\x20\x02\x00\x00"


def refused(dial, raw, **options):
    """The server closes without a CONNACK when the first packet is this."""
    client = dial(**options)
    client.send(raw)
    client.expect_closed()


def violation(connect, *raw):
    """The server closes a good connection, without a word, on these bytes."""
    client = connect()
    client.send(*raw)
    client.expect_closed()


# 1.5.3 UTF-8 encoded strings

BAD_UTF8 = {
    "overlong-2": b"\xc1\xa1", "overlong-nul": b"\xc0\x80", "overlong-3": b"\xe0\x81\xa1",
    "overlong-4": b"\xf0\x80\x81\xa1", "truncated": b"\xe2\x82", "broken": b"\xe2\x28\xa1",
    "continuation": b"\x80", "surrogate-low": b"\xed\xa0\x80", "surrogate-high": b"\xed\xbf\xbf",
    "surrogate-pair": b"\xed\xa0\x81\xed\xb0\x80", "above-10ffff": b"\xf4\x90\x80\x80",
    "f5": b"\xf5\x80\x80\x80", "fe": b"\xfe", "ff": b"\xff",
}

STRING_FIELDS = ["client id", "will topic", "user name", "publish", "subscribe", "unsubscribe"]


def send_string(connect, dial, field, value):
    """A client that has just sent this value in this field, otherwise all is well."""
    in_connect = {
        "client id": dict(client_id=value),
        "will topic": dict(client_id="strings", will=Will(value, b"gone")),
        "user name": dict(client_id="strings", username=value),
    }
    if field in in_connect:
        client = dial()
        client.send(connect_packet(**in_connect[field]))
        return client
    client = connect()
    client.send({"publish": publish(V311, value, b"x"),
                 "subscribe": subscribe(V311, 1, [(value, 0)]),
                 "unsubscribe": unsubscribe(V311, 1, [value])}[field])
    return client


@pytest.mark.parametrize("field", STRING_FIELDS)
@pytest.mark.parametrize("bad", BAD_UTF8.values(), ids=BAD_UTF8)
def test_ill_formed_utf8_closes_the_connection(connect, dial, field, bad):
    """[MQTT-1.5.3-1] [MQTT-3.1.3-4] [MQTT-3.1.3-10] [MQTT-3.1.3-11] [MQTT-3.3.2-1]
    [MQTT-3.8.3-1] [MQTT-3.10.3-1]"""
    send_string(connect, dial, field, b"good/" + bad + b"x").expect_closed()


@pytest.mark.parametrize("field", STRING_FIELDS)
def test_string_cut_in_the_middle_of_a_character_closes(connect, dial, field):
    """[MQTT-1.5.3-1] The string ends inside a character."""
    send_string(connect, dial, field, b"caf\xc3").expect_closed()


@pytest.mark.parametrize("field", STRING_FIELDS)
@pytest.mark.parametrize("value", [b"\0", b"a\0b", b"ab\0"])
def test_nul_character_closes_the_connection(connect, dial, field, value):
    """[MQTT-1.5.3-2] [MQTT-4.7.3-2]"""
    send_string(connect, dial, field, value).expect_closed()


def test_byte_order_mark_is_an_ordinary_character(connect, topic, cid):
    """[MQTT-1.5.3-3] U+FEFF stays where it is: another topic, another client id."""
    sub, pub = connect(), connect()
    with_mark = "\ufeff" + topic
    sub.subscribe(with_mark, topic + "/\ufeff")
    pub.publish(topic, "without")
    pub.publish(with_mark, "with")
    pub.publish(topic + "/\ufeff", "inside")
    sub.expect_publish(with_mark, "with")
    sub.expect_publish(topic + "/\ufeff", "inside")
    one, two = connect(cid), connect("\ufeff" + cid)
    one.nothing()
    two.nothing()


@pytest.mark.parametrize("text", ["\x80\u07ff", "\u0800\ud7ff\ue000\ufffd", "\U00010000\U0010fffd", "é/日本/🐝"],
                         ids=["two", "three", "four", "mixed"])
def test_every_length_of_character_passes_unchanged(connect, topic, text):
    """[MQTT-4.7.3-4] [MQTT-3.3.2-1] The first and last characters of each encoded length."""
    if "\x80" in text:
        text = text.replace("\x80", "\xa0")   # U+0080 may be refused as a control character
    client = connect()
    client.subscribe(f"{topic}/{text}")
    client.publish(f"{topic}/{text}", "x")
    client.expect_publish(f"{topic}/{text}", "x")


@pytest.mark.parametrize("char", ["\x01", "\x1f", "\x7f", "\x9f", "\ufdd0", "\uffff", "\U0010ffff"], ids=ascii)
def test_discouraged_characters_are_refused_or_left_alone(connect, topic, char):
    """1.5.3: a server may close on control characters and non-characters; else it keeps them."""
    client = connect()
    name = f"{topic}/{char}"
    client.send(subscribe(V311, 1, [(topic + "/+", 0)]), publish(V311, name, b"x"))
    try:
        client.await_packet(SUBACK)
        p = client.receive()
    except Closed:
        return
    assert (p.type, p.topic, p.payload) == (PUBLISH, name, b"x")


def test_binary_fields_are_not_strings(connect, dial, topic):
    """3.1.3: password and Will Message are bytes, ill-formed UTF-8 and zeros included."""
    sub = connect()
    sub.subscribe(topic)
    client = connect(username="u", password=b"\xff\0\xc0", will=Will(topic, b"\0\xff\xed\xa0\x80"))
    client.close()
    sub.expect_publish(topic, b"\0\xff\xed\xa0\x80")


# 2.2 Fixed header

def test_header_bits_of_everything_the_server_sends(connect, topic):
    """[MQTT-2.2.2-1] [MQTT-2.3.1-6] [MQTT-2.3.1-7] [MQTT-3.6.1-1] [MQTT-3.12.4-1]
    One of each packet, byte by byte."""
    client = connect()
    assert client.connack.raw == b"\x20\x02\x00\x00"
    client.send(subscribe(V311, 0x1234, [(topic, 2)]))
    assert client.receive().raw == b"\x90\x03\x12\x34\x02"
    client.send(publish(V311, topic, b"0"))
    assert client.receive().raw == b"\x30" + varint(len(topic) + 3) + string(topic) + b"0"
    client.send(publish(V311, topic, b"1", qos=1, pid=0x0102))
    assert client.await_packet(PUBACK).raw == b"\x40\x02\x01\x02"
    p = client.expect_publish(topic, "1", qos=1)
    assert p.raw == b"\x32" + varint(len(topic) + 5) + string(topic) + u16(p.pid) + b"1"
    client.send(publish(V311, topic, b"2", qos=2, pid=0xfffe))
    assert client.await_packet(PUBREC).raw == b"\x50\x02\xff\xfe"
    client.send(ack(V311, PUBREL, 0xfffe))
    assert client.await_packet(PUBCOMP).raw == b"\x70\x02\xff\xfe"
    p = client.expect_publish(topic, "2", qos=2, flow=False)
    assert p.raw == b"\x34" + varint(len(topic) + 5) + string(topic) + u16(p.pid) + b"2"
    client.ack(PUBREC, p.pid)
    assert client.receive().raw == b"\x62\x02" + u16(p.pid)
    client.ack(PUBCOMP, p.pid)
    client.send(unsubscribe(V311, 0x4321, [topic]))
    assert client.receive().raw == b"\xb0\x02\x43\x21"
    client.send(b"\xc0\x00")
    assert client.receive().raw == b"\xd0\x00"


WRONG_BITS = [(type, flags)
              for type, right in [(PUBACK, 0), (PUBREC, 0), (PUBREL, 2), (PUBCOMP, 0), (SUBSCRIBE, 2),
                                  (UNSUBSCRIBE, 2), (PINGREQ, 0), (DISCONNECT, 0)]
              for flags in (0, 1, 2, 4, 8, 3, 10, 15) if flags != right]


@pytest.mark.parametrize("type, flags", WRONG_BITS)
def test_wrong_header_bits_close_the_connection(connect, topic, type, flags):
    """[MQTT-2.2.2-2] [MQTT-3.6.1-1] [MQTT-3.8.1-1] [MQTT-3.10.1-1] [MQTT-3.14.1-1]"""
    body = {SUBSCRIBE: u16(1) + string(topic) + b"\0", UNSUBSCRIBE: u16(1) + string(topic),
            PINGREQ: b"", DISCONNECT: b""}.get(type, u16(1))
    violation(connect, packet(type, flags, body))


@pytest.mark.parametrize("flags", [1, 2, 4, 8, 15])
def test_wrong_header_bits_of_connect(dial, cid, flags):
    """[MQTT-2.2.2-2] [MQTT-3.1.4-1]"""
    refused(dial, packet(CONNECT, flags, connect_packet(client_id=cid)[2:]))


@pytest.mark.parametrize("type", [0, CONNACK, SUBACK, UNSUBACK, PINGRESP, 15])
def test_packets_that_no_client_may_send(connect, type):
    """[MQTT-4.8.0-1] Reserved types and those that flow from server to client only."""
    body = {CONNACK: b"\0\0", SUBACK: b"\0\1\0", UNSUBACK: b"\0\1"}.get(type, b"")
    violation(connect, packet(type, 0, body))


@pytest.mark.parametrize("raw", [b"\xc0\x80\x80\x80\x80", b"\x30\xff\xff\xff\xff", b"\x30\xff\xff\xff\xff\x7f"],
                         ids=lambda raw: raw.hex())
def test_remaining_length_of_five_bytes(connect, dial, raw):
    """2.2.3 [MQTT-4.8.0-1] A fourth byte with a continuation bit is already too much."""
    violation(connect, raw)
    refused(dial, b"\x10" + raw[1:])


@pytest.mark.parametrize("length", [2, 3, 4])
def test_padded_remaining_length(connect, dial, topic, cid, length):
    """2.2.3 of 3.1.1 does not ask for the shortest form."""
    body = connect_packet(client_id=cid)[2:]
    client = dial()
    client.send(b"\x10" + varint(len(body), length) + body)
    client.expect(CONNACK, reason=0)
    client.send(b"\xc0" + varint(0, length))
    client.expect(PINGRESP)
    body = u16(7) + string(topic) + b"\0"
    client.send(b"\x82" + varint(len(body), length) + body)
    client.expect(SUBACK, pid=7, reasons=[0])
    body = string(topic) + b"payload"
    client.send(b"\x30" + varint(len(body), length) + body)
    client.expect_publish(topic, "payload")


@pytest.mark.parametrize("size", [127, 128, 16383, 16384, 2097151, 2097152])
def test_remaining_length_at_each_step(new_broker, connect, size):
    """2.2.3 The last length of n bytes and the first of n + 1."""
    client = connect(broker=new_broker("max_packet_size 3000000"))
    client.subscribe("t")
    payload = bytes(size - 3)
    client.publish("t", payload)
    p = client.expect_publish("t", payload)
    assert p.raw[1:].startswith(varint(size))


def test_one_byte_at_a_time(dial, topic, cid):
    """4.2: the network is a stream, a packet may come in any pieces."""
    client = dial()
    for raw in (connect_packet(client_id=cid, will=Will(topic, "w"), username="u", password="p"),
                subscribe(V311, 1, [(topic, 1), (topic + "/+", 2)]), publish(V311, topic, b"x" * 200, 1, pid=9)):
        for i in range(len(raw)):
            client.send(raw[i:i + 1])
    client.expect(CONNACK, reason=0)
    client.expect(SUBACK, pid=1, reasons=[1, 2])
    client.await_packet(PUBACK, 9)
    client.expect_publish(topic, "x" * 200, qos=1)


def test_many_packets_in_one_segment(dial, topic, cid):
    """4.2, 3.1.4: a client need not wait for CONNACK; what follows is handled in order."""
    client = dial()
    client.send(connect_packet(client_id=cid), subscribe(V311, 1, [(topic, 0)]),
                *(publish(V311, topic, str(i)) for i in range(100)), pingreq(),
                unsubscribe(V311, 2, [topic]), publish(V311, topic, "late"))
    client.expect(CONNACK, reason=0)
    got = [client.receive() for _ in range(103)]
    assert [p.payload for p in got if p.type == PUBLISH] == [b"%d" % i for i in range(100)]
    assert [p.type for p in got if p.type != PUBLISH] == [SUBACK, PINGRESP, UNSUBACK]
    client.nothing()


def test_packet_and_a_half(connect, topic):
    """A packet is handled when it is complete, not when the next one is."""
    client = connect()
    client.send(subscribe(V311, 1, [(topic, 0)]), publish(V311, topic, "whole"), publish(V311, topic, "half")[:-2])
    client.await_packet(SUBACK)
    client.expect_publish(topic, "whole")
    client.send(b"lf")
    client.expect_publish(topic, "half")


@pytest.mark.parametrize("part", [1, 2, 5, -1])
def test_truncated_packet_is_not_handled(connect, topic, part):
    """The connection ends inside a PUBLISH: it is as if it had never begun. The Will is due."""
    sub = connect()
    sub.subscribe(topic)
    pub = connect(will=Will(topic, "will"))
    pub.send(publish(V311, topic, "truncated")[:part])
    pub.close()
    sub.expect_publish(topic, "will")
    sub.nothing()


BROKEN = {
    "connect again": connect_packet(client_id="again"),
    "publish without topic": packet(PUBLISH, 0, b""),
    "publish with half a length": packet(PUBLISH, 0, b"\0"),
    "publish topic past the end": packet(PUBLISH, 0, b"\0\x05abcd"),
    "publish without packet id": packet(PUBLISH, 2, string("a")),
    "publish with half a packet id": packet(PUBLISH, 4, string("a") + b"\1"),
    "puback empty": packet(PUBACK, 0, b""),
    "puback of one byte": packet(PUBACK, 0, b"\1"),
    "puback of three bytes": packet(PUBACK, 0, b"\0\1\0"),
    "pubrec of one byte": packet(PUBREC, 0, b"\1"),
    "pubrec of three bytes": packet(PUBREC, 0, b"\0\1\0"),
    "pubrel of one byte": packet(PUBREL, 2, b"\1"),
    "pubrel of three bytes": packet(PUBREL, 2, b"\0\1\0"),
    "pubcomp of one byte": packet(PUBCOMP, 0, b"\1"),
    "pubcomp of three bytes": packet(PUBCOMP, 0, b"\0\1\0"),
    "subscribe empty": packet(SUBSCRIBE, 2, b""),
    "subscribe of one byte": packet(SUBSCRIBE, 2, b"\1"),
    "subscribe without qos": packet(SUBSCRIBE, 2, u16(1) + string("a")),
    "subscribe second filter without qos": packet(SUBSCRIBE, 2, u16(1) + string("a") + b"\0" + string("b")),
    "subscribe past the end": packet(SUBSCRIBE, 2, u16(1) + b"\0\5ab\0"),
    "subscribe surplus byte": packet(SUBSCRIBE, 2, u16(1) + string("a") + b"\0\0"),
    "unsubscribe empty": packet(UNSUBSCRIBE, 2, b""),
    "unsubscribe of one byte": packet(UNSUBSCRIBE, 2, b"\1"),
    "unsubscribe past the end": packet(UNSUBSCRIBE, 2, u16(1) + b"\0\5ab"),
    "unsubscribe surplus byte": packet(UNSUBSCRIBE, 2, u16(1) + string("a") + b"\0"),
    "pingreq with body": packet(PINGREQ, 0, b"\0"),
    "disconnect with body": packet(DISCONNECT, 0, b"\0"),
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN)
def test_fields_and_length_must_agree(connect, raw):
    """[MQTT-4.8.0-1] Fields past the end, bytes after the last field."""
    violation(connect, raw)


def test_an_oversize_packet_ends_its_connection_only(new_broker, connect, dial):
    """[MQTT-4.8.0-2] max_packet_size counts the whole packet and is enforced as soon as the
    length is known; nobody else notices."""
    broker = new_broker("max_packet_size 100")
    other = connect(broker=broker)
    other.subscribe("t")
    client = connect(broker=broker)
    client.send(packet(PUBLISH, 0, string("t") + b"x" * 95))
    other.expect_publish("t", "x" * 95)
    client.send(b"\x30" + varint(99))
    client.expect_closed()
    refused(dial, b"\x10" + varint(99), broker=broker)
    other.nothing()


def test_a_large_announced_length_costs_nothing(broker, connect):
    """2.2.3 20 x 256 MB announced, a few bytes sent: no memory is set aside for what may never
    come. The connections may stay or end."""
    before = resident(broker.pid)
    clients = [connect() for _ in range(20)]
    for client in clients:
        client.send(b"\x30\xff\xff\xff\x7f\x00\x01a")
    connect().nothing()
    assert resident(broker.pid) - before < 16 << 20


def resident(pid):
    """The memory in use by a process, in bytes."""
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")


# 2.3.1 Packet identifier

@pytest.mark.parametrize("raw", [subscribe(V311, 0, [("a", 0)]), unsubscribe(V311, 0, ["a"]),
                                 publish(V311, "a", b"", 1, pid=0), publish(V311, "a", b"", 2, pid=0)],
                         ids=["subscribe", "unsubscribe", "qos1", "qos2"])
def test_packet_id_zero(connect, raw):
    """[MQTT-2.3.1-1]"""
    violation(connect, raw)


def test_packet_ids_are_free_again_after_the_ack(connect, topic):
    """[MQTT-2.3.1-3] [MQTT-2.3.1-6] [MQTT-2.3.1-7] One id serves all flows, one after the other."""
    client = connect()
    for i in range(3):
        client.subscribe(topic, qos=2, pid=77)
        client.publish(topic, f"one {i}", qos=1, pid=77)
        client.publish(topic, f"two {i}", qos=2, pid=77)
        client.unsubscribe(topic, pid=77)
    got = [client.expect_publish(topic).payload for _ in range(6)]
    assert sorted(got) == sorted(f"{name} {i}".encode() for name in ("one", "two") for i in range(3))
    client.nothing()


def test_the_two_directions_have_their_own_packet_ids(connect, topic):
    """2.3.1: client and server assign ids independently of each other."""
    client, pub = connect(), connect()
    client.subscribe(topic, qos=2)
    pub.publish(topic, "down", qos=2)
    down = client.expect_publish(topic, "down", flow=False)
    client.send(publish(V311, "elsewhere", b"up", 2, pid=down.pid))
    client.expect(PUBREC, pid=down.pid)
    client.ack(PUBREC, down.pid)
    client.expect(PUBREL, pid=down.pid)
    client.ack(PUBREL, down.pid)
    client.expect(PUBCOMP, pid=down.pid)
    client.ack(PUBCOMP, down.pid)
    client.nothing()


def test_server_frees_its_ids_on_puback_and_pubcomp_only(connect, topic):
    """[MQTT-2.3.1-4] [MQTT-2.3.1-1] Ids in use at any stage are not given to another message."""
    sub, pub = connect(), connect()
    sub.subscribe(topic, qos=2)
    held = {}
    for i in range(12):
        pub.publish(topic, str(i), qos=1 + i % 2)
        p = sub.expect_publish(topic, str(i), qos=1 + i % 2, flow=False)
        assert p.pid and p.pid not in held
        held[p.pid] = p
    for p in [p for p in held.values() if p.qos == 2][:3]:
        sub.ack(PUBREC, p.pid)
        sub.expect(PUBREL, pid=p.pid)     # still in use
    for p in [p for p in held.values() if p.qos == 1][:3]:
        sub.ack(PUBACK, p.pid)
        del held[p.pid]
    for i in range(6):
        pub.publish(topic, f"new {i}", qos=1)
        p = sub.expect_publish(topic, f"new {i}", flow=False)
        assert p.pid and p.pid not in held
        held[p.pid] = p
    sub.nothing()


def test_more_messages_than_packet_ids(new_broker, connect):
    """[MQTT-2.3.1-4] 66000 unacknowledged messages: ids stay unique, the surplus waits."""
    total, batch = 66000, 1000
    broker = new_broker("max_inflight_messages 0", "max_queued_messages 0")
    sub, pub = connect(broker=broker, timeout=20), connect(broker=broker, timeout=20)
    sub.subscribe("t", qos=1)
    got, held = 0, set()

    def read():
        """Reads what there is; the server may wait for acks."""
        nonlocal got
        sub.send(pingreq())
        while True:
            p = sub.receive()
            if p.type == PINGRESP:
                return
            assert p.payload == str(got).encode() and not p.dup
            assert p.pid not in held, "id used twice"
            held.add(p.pid)
            got += 1

    for start in range(0, total, batch):
        pub.send(*(publish(V311, "t", str(i), 1, pid=i % 65535 + 1) for i in range(start, start + batch)))
        for i in range(start, start + batch):
            pub.expect(PUBACK, pid=i % 65535 + 1)
        read()
    read()
    assert len(held) <= 65535
    while got < total or held:
        sub.send(*(ack(V311, PUBACK, pid) for pid in held))
        held.clear()
        read()
    sub.nothing()


def test_ids_wrap_around_what_is_still_in_use(new_broker, connect):
    """[MQTT-2.3.1-4] After 65535 more messages an id that was never acked is still not reused."""
    broker = new_broker("max_inflight_messages 600", "max_queued_messages 0")
    sub, pub = connect(broker=broker), connect(broker=broker)
    sub.subscribe("t", qos=1)
    pub.publish("t", "held", qos=1)
    held = sub.expect_publish("t", "held", flow=False).pid
    for _ in range(132):
        pub.send(*(publish(V311, "t", b"x", 1, pid=pid) for pid in range(1, 501)))
        pids = [sub.expect(PUBLISH).pid for _ in range(500)]
        assert held not in pids and len(set(pids)) == 500
        sub.send(*(ack(V311, PUBACK, pid) for pid in pids))
        for pid in range(1, 501):
            pub.expect(PUBACK, pid=pid)
    sub.nothing()


def test_qos_0_has_no_packet_id(connect, topic):
    """[MQTT-2.3.1-5] All bytes after the topic are payload, both ways."""
    client = connect()
    client.subscribe(topic)
    client.send(packet(PUBLISH, 0, string(topic) + b"\x00\x05abc"))
    assert client.receive().raw == packet(PUBLISH, 0, string(topic) + b"\x00\x05abc")


# 3.1 CONNECT

@pytest.mark.parametrize("raw", [pingreq(), publish(V311, "a", "b"), publish(V311, "a", "b", 1, pid=1),
                                 subscribe(V311, 1, [("a", 0)]), unsubscribe(V311, 1, ["a"]), disconnect(),
                                 ack(V311, PUBACK, 1), ack(V311, PUBREL, 1), ACCEPTED, b"\0\0", b"\xf0\0",
                                 b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(509)],
                         ids=["pingreq", "publish", "publish1", "subscribe", "unsubscribe", "disconnect", "puback",
                              "pubrel", "connack", "type0", "type15", "http", "tls"])
def test_first_packet_must_be_connect(dial, raw):
    """[MQTT-3.1.0-1]"""
    refused(dial, raw)


def test_nothing_before_connect_takes_effect(connect, dial, topic):
    """[MQTT-3.1.0-1] What comes before CONNECT is not processed."""
    sub = connect()
    sub.subscribe(topic)
    refused(dial, publish(V311, topic, "too early"))
    sub.nothing()


def test_second_connect(connect, topic, cid):
    """[MQTT-3.1.0-2] [MQTT-3.1.2-8] A violation: no second CONNACK, the Will is published."""
    sub = connect()
    sub.subscribe(topic)
    client = connect(cid, will=Will(topic, "violation"))
    client.send(connect_packet(client_id=cid))
    client.expect_closed()
    sub.expect_publish(topic, "violation")


@pytest.mark.parametrize("name", ["", "mqtt", "MQTt", "MQT", "MQTTT", "MQTT\0", "AMQP", "MQIsdp", "\ufeffMQTT"], ids=ascii)
def test_wrong_protocol_name(dial, cid, name):
    """[MQTT-3.1.2-1] [MQTT-3.1.4-1] Closed, never taken for 3.1.1. The name of 3.1 with
    level 4 may be answered with code 1."""
    client = dial()
    client.send(connect_packet(client_id=cid, name=name))
    if name == "MQIsdp":
        try:
            client.expect(CONNACK, reason=1)
        except Closed:
            return
    client.expect_closed()


@pytest.mark.parametrize("level", [0, 1, 2, 3, 6, 7, 0x7f, 0x80, 0x85, 0xff])
def test_unsupported_protocol_level(dial, cid, level):
    """[MQTT-3.1.2-2] [MQTT-3.2.2-4] [MQTT-3.2.2-5] Code 1; above 5 the answer may have the
    form of 5.0 instead, whose code is 0x84."""
    client = dial(version=V311)
    body = connect_packet(client_id=cid, level=level)
    client.send(body)
    first = client.sock.recv(100)
    later_form = {b"\x20\x03\x00\x84\x00"} if level > 5 else set()
    assert first in {b"\x20\x02\x00\x01"} | later_form
    client.expect_closed()


def test_reserved_connect_flag(dial, cid):
    """[MQTT-3.1.2-3] [MQTT-3.1.4-1]"""
    refused(dial, connect_packet(client_id=cid, flags=3))


BAD_CONNECT = {
    "will qos without will": connect_packet(client_id="bad", flags=2 | 8),
    "will qos 2 without will": connect_packet(client_id="bad", flags=2 | 16),
    "will retain without will": connect_packet(client_id="bad", flags=2 | 32),
    "will qos 3": connect_packet(client_id="bad", flags=2 | 4 | 24, will=Will("t", "p")),
    "will qos 3 without will": connect_packet(client_id="bad", flags=2 | 24),
    "will flag without will": connect_packet(client_id="bad", flags=2 | 4),
    "will topic only": packet(CONNECT, 0, connect_packet(client_id="bad", flags=2 | 4)[2:] + string("topic")),
    "will without will flag": connect_packet(client_id="bad", flags=2, will=Will("t", "p")),
    "user name without flag": connect_packet(client_id="bad", flags=2, username="u"),
    "user name flag alone": connect_packet(client_id="bad", flags=2 | 128),
    "password without flag": connect_packet(client_id="bad", flags=2 | 128, username="u", password="p"),
    "password missing": connect_packet(client_id="bad", flags=2 | 128 | 64, username="u"),
    "password without user name": connect_packet(client_id="bad", password="p"),
    "no client id": packet(CONNECT, 0, string("MQTT") + b"\x04\x02\x00\x3c"),
    "half a client id": packet(CONNECT, 0, string("MQTT") + b"\x04\x02\x00\x3c\x00\x05bad"),
    "no keep alive": packet(CONNECT, 0, string("MQTT") + b"\x04\x02"),
    "no flags": packet(CONNECT, 0, string("MQTT") + b"\x04"),
    "no level": packet(CONNECT, 0, string("MQTT")),
    "no name": packet(CONNECT, 0, b""),
    "surplus byte": packet(CONNECT, 0, connect_packet(client_id="bad")[2:] + b"\0"),
}


@pytest.mark.parametrize("raw", BAD_CONNECT.values(), ids=BAD_CONNECT)
def test_connect_that_breaks_the_format(dial, raw):
    """[MQTT-3.1.4-1] [MQTT-3.1.2-9] [MQTT-3.1.2-11] [MQTT-3.1.2-13] [MQTT-3.1.2-14]
    [MQTT-3.1.2-15] [MQTT-3.1.2-18] [MQTT-3.1.2-19] [MQTT-3.1.2-20] [MQTT-3.1.2-21]
    [MQTT-3.1.2-22] [MQTT-3.1.3-3] Closed without CONNACK."""
    refused(dial, raw)


def test_a_broken_connect_does_not_disturb_the_client_of_that_id(connect, dial):
    """[MQTT-3.1.4-1] [MQTT-3.1.4-2] Only a valid CONNECT takes a connection over."""
    client = connect("bad")
    for raw in BAD_CONNECT.values():
        refused(dial, raw)
    client.nothing()


def test_valid_connect_is_accepted(connect, cid):
    """[MQTT-3.1.4-4] [MQTT-3.2.2-1] [MQTT-7.1.1-1]"""
    assert connect(cid).connack.raw == ACCEPTED


@pytest.fixture
def guarded(new_broker):
    """A broker with users alice and bob and rules for topics."""
    broker = new_broker(config="listener {port} 127.0.0.1\nallow_anonymous false\n"
                               "password_file {dir}/users\nacl_file {dir}/rules\n", start=False)
    with open(broker.path("users"), "w") as f:
        f.write(password_line("alice", "secret") + password_line("bob", "b")
                + password_line("binary", b"\xff\0\xc0"))
    with open(broker.path("rules"), "w") as f:
        f.write("user alice\ntopic readwrite #\nuser bob\ntopic readwrite bob/#\n")
    return broker.start()


def test_connect_payload_order(guarded, connect, dial):
    """[MQTT-3.1.3-1] [MQTT-3.1.2-9] Client id, will topic, will message, user name, password:
    each field has the effect of its place."""
    sub = connect(broker=guarded, username="bob", password="b")
    sub.subscribe("bob/#")
    old = connect("the-id", broker=guarded, username="alice", password="secret")
    start = string("MQTT") + b"\x04\xc6\x00\x3c" + string("the-id") + string("bob/will") + string("message")
    client = dial(guarded)
    client.send(packet(CONNECT, 0, start + string("alice") + string("secret")))
    client.expect(CONNACK, reason=0)
    old.expect_closed()
    client.close()
    sub.expect_publish("bob/will", "message")
    client = dial(guarded)
    client.send(packet(CONNECT, 0, start + string("se-cret") + string("alice")))
    assert client.expect(CONNACK).reason in (4, 5)
    client.expect_closed()
    sub.nothing()


def test_password_is_binary(guarded, dial, connect):
    """3.1.3.5: 0 to 65535 bytes of any kind, all of them count."""
    connect(broker=guarded, username="binary", password=b"\xff\0\xc0").nothing()
    client = dial(guarded)
    assert client.connect("x", username="binary", password=b"\xff\0\xc1", reason=None).reason in (4, 5)


@pytest.mark.parametrize("fields", [dict(), dict(username="alice"), dict(username="alice", password=b"se"),
                                    dict(username="carol", password="x"), dict(username="", password="x")],
                         ids=["anonymous", "no password", "wrong password", "unknown", "empty name"])
def test_refused_login(guarded, dial, connect, fields):
    """[MQTT-3.2.2-4] [MQTT-3.2.2-5] [MQTT-3.1.4-2] Code 4 or 5, then the end. It does not
    disturb the client or the session of that id."""
    client = connect("the-id", broker=guarded, clean=False, username="alice", password="secret")
    client.subscribe("t")
    intruder = dial(guarded)
    assert intruder.connect("the-id", reason=None, **fields).reason in (4, 5)
    intruder.expect_closed()
    client.nothing()
    client.disconnect()
    intruder = dial(guarded)
    assert intruder.connect("the-id", reason=None, **fields).reason in (4, 5)
    client = connect("the-id", broker=guarded, clean=False, username="alice", password="secret")
    assert client.connack.session_present
    client.publish("t", "still subscribed")
    client.expect_publish("t", "still subscribed")


@pytest.mark.parametrize("bad, code", [(dict(level=6), 1), (dict(client_id="", clean=False), 2)],
                         ids=["level", "client id"])
def test_what_follows_a_refused_connect_is_ignored(connect, dial, topic, cid, bad, code):
    """[MQTT-3.1.4-5] [MQTT-3.1.3-9] [MQTT-3.2.2-5]"""
    sub = connect()
    sub.subscribe(topic)
    client = dial()
    client.send(connect_packet(**{"client_id": cid, **bad}), publish(V311, topic, "ignored"),
                publish(V311, topic, "ignored", 1, True, pid=1), subscribe(V311, 1, [(topic, 0)]))
    assert client.sock.recv(100) in (bytes([0x20, 2, 0, code]), b"\x20\x03\x00\x84\x00"[:5 * (code == 1)])
    client.expect_closed()
    sub.nothing()
    connect().subscribe(topic)


@pytest.mark.parametrize("length", range(1, 24))
def test_every_client_id_that_must_be_accepted(connect, length):
    """[MQTT-3.1.3-5] 1 to 23 characters of 0-9, a-z, A-Z."""
    characters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for start in range(0, len(characters), length):
        client_id = (characters * 2)[start:start + length]
        connect(client_id).disconnect()


@pytest.mark.parametrize("client_id", ["x" * 24, "x" * 1000, "a b", "a/b", "é", "$SYS", ":-)"])
def test_other_client_ids_are_accepted_or_refused_with_code_2(dial, client_id):
    """[MQTT-3.1.3-9] A server may allow them."""
    client = dial()
    if client.connect(client_id, reason=None).reason == 0:
        client.nothing()
    else:
        assert client.connack.raw == b"\x20\x02\x00\x02"
        client.expect_closed()


def test_clients_without_id_get_ids_of_their_own(connect, topic):
    """[MQTT-3.1.3-6]"""
    clients = [connect("") for _ in range(5)]
    for client in clients:
        assert not client.connack.session_present
        client.subscribe(topic)
    clients[0].publish(topic, "all")
    for client in clients:
        client.expect_publish(topic, "all")
        client.nothing()


def test_no_client_id_needs_clean_session(dial):
    """[MQTT-3.1.3-7] [MQTT-3.1.3-8] [MQTT-3.2.2-4] [MQTT-3.2.2-5] Code 2, then the end."""
    client = dial()
    assert client.connect("", clean=False, reason=2).raw == b"\x20\x02\x00\x02"
    client.expect_closed()


@pytest.mark.parametrize("will_topic", ["", "a/#", "a/+", "#", "+/a"])
def test_connect_refused_for_what_no_code_fits(connect, dial, cid, will_topic):
    """[MQTT-3.2.2-6] [MQTT-4.7.1-1] [MQTT-4.7.3-1] A Will Topic must be a topic name: closed
    without CONNACK."""
    refused(dial, connect_packet(client_id=cid, will=Will(will_topic, "w")))


def test_valid_connect_takes_over(connect, cid):
    """[MQTT-3.1.4-2] [MQTT-3.1.3-2]"""
    old = connect(cid)
    new = connect(cid)
    old.expect_closed()
    new.nothing()


def test_takeover_of_a_clean_session_leaves_nothing(connect, topic, cid):
    """[MQTT-3.1.2-6] [MQTT-3.2.2-3] The old session ends with its connection."""
    connect(cid, clean=True).subscribe(topic)
    new = connect(cid, clean=False)
    assert not new.connack.session_present
    new.publish(topic, "x")
    new.nothing()


def test_takeover_keeps_a_lasting_session(connect, topic, cid):
    """[MQTT-3.1.2-4] [MQTT-4.4.0-1] Subscriptions and unacknowledged messages move over."""
    old, pub = connect(cid, clean=False), connect()
    old.subscribe(topic, qos=1)
    pub.publish(topic, "held", qos=1)
    held = old.expect_publish(topic, "held", flow=False)
    new = connect(cid, clean=False)
    assert new.connack.session_present
    old.expect_closed()
    new.expect_publish(topic, "held", dup=True, pid=held.pid)
    pub.publish(topic, "next", qos=1)
    new.expect_publish(topic, "next")


def test_takeover_many_times(connect, cid):
    """[MQTT-3.1.4-2] Only the last of many connections remains."""
    clients = [connect(cid, clean=i % 2 == 0) for i in range(20)]
    for client in clients[:-1]:
        client.expect_closed()
    clients[-1].nothing()


# 3.1.2.4 Clean Session, 4.1 session state

def test_session_present(connect, cid):
    """[MQTT-3.2.2-1] [MQTT-3.2.2-2] [MQTT-3.2.2-3] [MQTT-3.1.2-6] [MQTT-3.1.4-3]
    Set exactly when an older session is resumed, even one without contents."""
    for clean, present in [(False, False), (False, True), (False, True), (True, False), (False, False)]:
        client = connect(cid, clean=clean)
        assert client.connack.raw == bytes([0x20, 2, present, 0])
        client.disconnect()


def test_lasting_session_keeps_subscriptions_and_messages(connect, topic, cid):
    """[MQTT-3.1.2-4] [MQTT-3.1.2-5] [MQTT-3.2.0-1] [MQTT-4.1.0-1] [MQTT-4.5.0-1] QoS 0 may be
    kept too."""
    sub, pub = connect(cid, clean=False), connect()
    sub.subscribe((topic + "/+", 2), (topic, 1))
    sub.disconnect()
    pub.publish(topic, "one", qos=1)
    pub.publish(topic + "/a", "two", qos=2)
    pub.publish(topic + "/b", "zero", qos=0)
    pub.publish(topic, "lowered", qos=2)
    sub = connect(cid, clean=False)
    got = {}
    for _ in range(4):
        p = sub.receive()
        assert p.type == PUBLISH and not p.dup and not p.retain
        got[p.payload] = (p.topic, p.qos)
        if p.payload == b"lowered":
            break
    got.pop(b"zero", None)
    assert got == {b"one": (topic, 1), b"two": (topic + "/a", 2), b"lowered": (topic, 1)}


def test_lasting_session_survives_an_abrupt_end(connect, topic, cid):
    """[MQTT-3.1.2-4] [MQTT-4.1.0-1] With or without DISCONNECT."""
    sub, pub = connect(cid, clean=False), connect()
    sub.subscribe(topic, qos=1)
    sub.close(reset=True)
    sub = connect(cid, clean=False)
    assert sub.connack.session_present
    pub.publish(topic, "x", qos=1)
    sub.expect_publish(topic, "x", qos=1)


def test_clean_session_lives_as_long_as_its_connection(connect, topic, cid):
    """[MQTT-3.1.2-6] [MQTT-4.1.0-2] [MQTT-4.3.3-2]"""
    client, pub = connect(cid), connect()
    client.subscribe(topic, qos=2)
    client.send(publish(V311, "elsewhere", "x", 2, pid=5))
    client.expect(PUBREC, pid=5)
    pub.publish(topic, "held", qos=2)
    client.expect_publish(topic, "held", flow=False)
    client.close()
    for clean in (True, False):
        client = connect(cid, clean=clean)
        assert not client.connack.session_present
        pub.publish(topic, "lost", qos=1)
        client.nothing()
        client.disconnect()


def test_clean_session_discards_the_stored_one(connect, topic, cid):
    """[MQTT-3.1.2-6] [MQTT-3.1.4-3] Messages that wait and subscriptions are gone at CONNACK."""
    sub, pub = connect(cid, clean=False), connect()
    sub.subscribe(topic, qos=1)
    sub.disconnect()
    pub.publish(topic, "waiting", qos=1)
    sub = connect(cid, clean=True)
    pub.publish(topic, "x", qos=1)
    sub.nothing()
    sub.disconnect()
    sub = connect(cid, clean=False)
    pub.publish(topic, "y", qos=1)
    sub.nothing()


def test_sessions_belong_to_exact_client_ids(connect, topic, cid):
    """[MQTT-3.1.3-2] Case, spaces and composed characters all make another client."""
    ids = [cid + "a", cid + "A", cid + "a ", cid + "\xe9", cid + "e\u0301"]
    for client_id in ids:
        client = connect(client_id, clean=False)
        assert not client.connack.session_present
        client.subscribe(topic + "/" + client_id, qos=1)
        client.disconnect()
    pub = connect()
    for client_id in ids:
        pub.publish(topic + "/" + client_id, client_id, qos=1)
    for client_id in ids:
        client = connect(client_id, clean=False)
        assert client.connack.session_present
        client.expect_publish(payload=client_id)
        client.nothing()


def test_retained_messages_outlive_the_session(connect, topic):
    """[MQTT-3.1.2-7]"""
    pub = connect()
    pub.publish(topic, "kept", qos=1, retain=True)
    pub.disconnect()
    sub = connect()
    sub.subscribe(topic)
    sub.expect_publish(topic, "kept", retain=True)


# 3.1.2.10 Keep Alive

def test_keep_alive(connect, topic):
    """[MQTT-3.1.2-24] Silence of one and a half times the Keep Alive ends the connection as a
    network failure would. Packets to the client, or parts of packets from it, do not count;
    any whole packet does; 0 turns it off."""
    watch, pub = connect(), connect()
    watch.subscribe(topic + "/will")
    start = time.monotonic()
    silent = connect(keepalive=1, will=Will(topic + "/will", "silent"))
    fed = connect(keepalive=1)
    fed.subscribe(topic + "/feed")
    partial = connect(keepalive=1)
    alive = connect(keepalive=1)
    off = connect(keepalive=0)
    bytes_left = iter(publish(V311, topic, bytes(100)))
    while time.monotonic() - start < 3:
        alive.ping()
        pub.publish(topic + "/feed", "x")
        partial.send(bytes([next(bytes_left)]))
        if time.monotonic() - start < 1.4:
            watch.nothing()
        time.sleep(0.3)
    watch.expect_publish(topic + "/will", "silent", timeout=0.1)
    silent.expect_closed(timeout=0.1)
    partial.expect_closed(timeout=0.1)
    with pytest.raises(Closed):
        while True:
            fed.expect_publish(topic + "/feed", "x", timeout=0.1)
    alive.nothing()
    off.nothing()


# 3.1.2.5 Will

def _close(client):
    client.close()


def _reset(client):
    client.close(reset=True)


def _half_close(client):
    client.sock.shutdown(socket.SHUT_WR)


def _garbage(client):
    client.send(b"\xff\xff\xff\xff\xff")


def _bad_topic(client):
    client.send(publish(V311, "a/#", "x"))


def _second_connect(client):
    client.send(connect_packet(client_id=client.id))


def _bad_disconnect(client):
    client.send(b"\xe1\x00")


def _long_disconnect(client):
    client.send(b"\xe0\x01\x00")


def _half_packet(client):
    client.send(b"\xe0")
    client.close()


ENDS = [_close, _reset, _half_close, _garbage, _bad_topic, _second_connect, _bad_disconnect, _long_disconnect,
        _half_packet]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__[1:])
def test_will_at_every_end_but_disconnect(connect, topic, end):
    """[MQTT-3.1.2-8] [MQTT-3.1.2-10] [MQTT-3.14.1-1] Published once."""
    sub = connect()
    sub.subscribe(topic, qos=2)
    client = connect(will=Will(topic, "will", qos=1))
    end(client)
    sub.expect_publish(topic, "will", qos=1, retain=False)
    sub.nothing()


@pytest.mark.parametrize("clean", [True, False])
def test_will_at_takeover(connect, topic, cid, clean):
    """[MQTT-3.1.2-8] [MQTT-3.1.2-10] The old connection ended without DISCONNECT; its Will is
    used up, that of the new one is not."""
    sub = connect()
    sub.subscribe(topic)
    connect(cid, clean=clean, will=Will(topic, "old"))
    new = connect(cid, clean=clean, will=Will(topic, "new"))
    sub.expect_publish(topic, "old")
    new.disconnect()
    sub.nothing()


def test_disconnect_removes_the_will(connect, topic, cid):
    """[MQTT-3.14.4-3] [MQTT-3.1.2-10] Neither now nor when the client comes and goes again."""
    sub = connect()
    sub.subscribe(topic)
    connect(cid, clean=False, will=Will(topic, "will")).disconnect()
    sub.nothing()
    connect(cid, clean=False).close()
    connect(will=Will(topic, "marker")).close()
    sub.expect_publish(topic, "marker")
    sub.nothing()


def test_no_will_no_message(new_broker, connect):
    """[MQTT-3.1.2-12] Nothing at all, not even the Will of an earlier client of that id."""
    broker = new_broker()
    sub = connect(broker=broker)
    sub.subscribe("#")
    connect("x", broker=broker, clean=False, will=Will("will", "first")).close()
    sub.expect_publish("will", "first")
    connect("x", broker=broker, clean=False).close()
    connect("y", broker=broker, will=Will("will", "marker")).close()
    sub.expect_publish("will", "marker")


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("retain", [False, True])
def test_will_qos_and_retain(connect, topic, qos, retain):
    """[MQTT-3.1.2-9] [MQTT-3.1.2-16] [MQTT-3.1.2-17] To subscribers it is a live message; it
    is stored if Will Retain says so."""
    sub = connect()
    sub.subscribe(topic, qos=2)
    connect(will=Will(topic, "will", qos, retain)).close()
    sub.expect_publish(topic, "will", qos=qos, retain=False)
    late = connect()
    late.subscribe(topic, qos=2)
    if retain:
        late.expect_publish(topic, "will", qos=qos, retain=True)
    late.nothing()


def test_empty_will_message(connect, topic):
    """[MQTT-3.1.2-9] [MQTT-3.3.1-11] Of zero length: legal; with Will Retain it clears the topic."""
    sub = connect()
    sub.publish(topic, "retained", qos=1, retain=True)
    sub.subscribe(topic)
    sub.expect_publish(topic, "retained", retain=True)
    connect(will=Will(topic, b"", retain=True)).close()
    sub.expect_publish(topic, b"", retain=False)
    late = connect()
    late.subscribe(topic)
    late.nothing()


def test_will_reaches_sessions_that_are_away(connect, topic, cid):
    """[MQTT-3.1.2-8] [MQTT-4.5.0-1]"""
    sub = connect(cid, clean=False)
    sub.subscribe(topic, qos=1)
    sub.disconnect()
    watch = connect()
    watch.subscribe(topic)
    connect(will=Will(topic, "will", qos=1)).close()
    watch.expect_publish(topic, "will")
    connect(cid, clean=False).expect_publish(topic, "will", qos=1)


def test_will_of_the_client_itself_waits_in_its_session(connect, topic, cid):
    """[MQTT-3.1.2-8] [MQTT-4.5.0-1] A lasting session may subscribe to its own Will Topic."""
    client, watch = connect(cid, clean=False, will=Will(topic, "own", qos=1)), connect()
    client.subscribe(topic, qos=1)
    watch.subscribe(topic)
    client.close()
    watch.expect_publish(topic, "own")
    connect(cid, clean=False).expect_publish(topic, "own", qos=1)


# 3.3 PUBLISH

@pytest.mark.parametrize("flags", [6, 7, 14, 15])
def test_qos_3(connect, topic, flags):
    """[MQTT-3.3.1-4]"""
    violation(connect, packet(PUBLISH, flags, string(topic) + u16(1) + b"x"))


@pytest.mark.parametrize("flags", [8, 9])
def test_dup_with_qos_0(connect, topic, flags):
    """[MQTT-3.3.1-2]"""
    violation(connect, packet(PUBLISH, flags, string(topic) + b"x"))


@pytest.mark.parametrize("name", ["#", "+", "a/#", "a/+/b", "+/a", "a#", "a+b", "#/a"])
def test_wildcards_in_a_topic_name(connect, name):
    """[MQTT-3.3.2-2] [MQTT-4.7.1-1]"""
    violation(connect, publish(V311, name, "x"))


def test_empty_topic_name(connect):
    """[MQTT-4.7.3-1]"""
    violation(connect, publish(V311, "", "x"))


@pytest.mark.parametrize("qos", [1, 2])
def test_dup_is_not_passed_on(connect, topic, qos):
    """[MQTT-3.3.1-3] [MQTT-4.3.2-1] [MQTT-4.3.3-1]"""
    sub, pub = connect(), connect()
    sub.subscribe(topic, qos=2)
    pub.publish(topic, "x", qos=qos, dup=True)
    sub.expect_publish(topic, "x", qos=qos, dup=False)


@pytest.mark.parametrize("subscribed", [0, 1, 2])
@pytest.mark.parametrize("published", [0, 1, 2])
def test_delivery_qos_is_the_lower_one(connect, topic, published, subscribed):
    """[MQTT-3.8.4-6] [MQTT-3.3.4-1] [MQTT-4.3.1-1] [MQTT-4.3.2-1] [MQTT-4.3.3-1]
    Each step of the publisher has its answer; the subscriber has the lower QoS, one copy."""
    sub, pub = connect(), connect()
    sub.subscribe(topic, qos=subscribed)
    pub.send(publish(V311, topic, "x", published, pid=10 if published else None))
    if published == 1:
        pub.expect(PUBACK, pid=10)
    elif published == 2:
        pub.expect(PUBREC, pid=10)
        pub.ack(PUBREL, 10)
        pub.expect(PUBCOMP, pid=10)
    pub.nothing()
    sub.expect_publish(topic, "x", qos=min(published, subscribed), retain=False)
    sub.nothing()


def test_qos_1_messages_are_never_duplicates(connect, topic):
    """[MQTT-4.3.2-2] After PUBACK the same id, with or without DUP, is a new message."""
    sub, pub = connect(), connect()
    sub.subscribe(topic, qos=1)
    for dup in (False, True, True, False):
        pub.publish(topic, "x", qos=1, pid=3, dup=dup)
    for _ in range(4):
        sub.expect_publish(topic, "x", qos=1, dup=False)
    sub.nothing()


def test_qos_2_is_delivered_once(connect, topic):
    """[MQTT-4.3.3-2] [MQTT-3.3.1-3] Each copy has its PUBREC, each PUBREL its PUBCOMP; the
    message is delivered once. After PUBCOMP the id is new."""
    sub, pub = connect(), connect()
    sub.subscribe(topic, qos=2)
    for text in ("first", "second"):
        for dup in (False, True, False, True):
            pub.send(publish(V311, topic, text, 2, dup=dup, pid=8))
            pub.expect(PUBREC, pid=8)
        pub.pubrel(8)
        sub.expect_publish(topic, text, qos=2, dup=False)
        pub.pubrel(8)
    sub.nothing()
    pub.nothing()


def test_qos_2_is_delivered_once_over_a_resumed_session(connect, topic, cid):
    """[MQTT-4.3.3-2] [MQTT-4.1.0-1] The id stays taken until PUBREL, however long that takes."""
    sub, pub = connect(), connect(cid, clean=False)
    sub.subscribe(topic, qos=2)
    pub.send(publish(V311, topic, "x", 2, pid=8))
    pub.expect(PUBREC, pid=8)
    for _ in range(2):
        pub.close()
        pub = connect(cid, clean=False)
        pub.send(publish(V311, topic, "x", 2, dup=True, pid=8))
        pub.expect(PUBREC, pid=8)
    pub.close()
    pub = connect(cid, clean=False)
    pub.pubrel(8)
    sub.expect_publish(topic, "x", qos=2)
    sub.nothing()
    pub.publish(topic, "new", qos=2, pid=8)
    sub.expect_publish(topic, "new", qos=2)


def test_many_qos_2_ids_open_at_once(connect, topic):
    """[MQTT-4.3.3-2] [MQTT-4.6.0-3] PUBRECs come in the order of the PUBLISHes; PUBRELs may
    come in any."""
    sub, pub = connect(), connect()
    sub.subscribe(topic, qos=0)
    pids = [7, 1, 65535, 300, 2]
    pub.send(*(publish(V311, topic, str(pid), 2, pid=pid) for pid in pids))
    for pid in pids:
        pub.expect(PUBREC, pid=pid)
    for pid in sorted(pids):
        pub.pubrel(pid)
    got = {int(sub.expect_publish(topic).payload) for _ in pids}
    assert got == set(pids)
    sub.nothing()


def test_acks_out_of_the_blue(connect, topic):
    """[MQTT-4.3.3-2] PUBREL for an unknown id is answered with PUBCOMP, PUBREC with PUBREL or
    nothing; PUBACK and PUBCOMP are ignored. The connection may end instead."""
    client = connect()
    client.send(ack(V311, PUBREL, 999), pingreq())
    client.expect(PUBCOMP, pid=999)
    client.expect(PINGRESP)
    for type in (PUBACK, PUBCOMP):
        client.send(ack(V311, type, 999))
    client.nothing()
    client.send(ack(V311, PUBREC, 999), pingreq())
    try:
        answers = [client.receive()]
        if answers[0].type == PUBREL:
            assert answers[0].pid == 999
            client.expect(PINGRESP)
    except Closed:
        pass


def test_unauthorised_publish_is_acknowledged_and_dropped(guarded, connect):
    """[MQTT-3.3.5-2] Or the connection ends; there is no error ack in 3.1.1."""
    alice = connect(broker=guarded, username="alice", password="secret")
    alice.subscribe("#")
    bob = connect(broker=guarded, username="bob", password="b")
    try:
        bob.publish("forbidden", "0")
        bob.publish("forbidden", "1", qos=1)
        bob.publish("forbidden", "2", qos=2)
        bob.publish("forbidden", "r", qos=1, retain=True)
        bob.publish("bob/ok", "fine", qos=1)
    except Closed:
        pass
    else:
        alice.expect_publish("bob/ok", "fine")
    alice.nothing()
    late = connect(broker=guarded, username="alice", password="secret")
    late.subscribe("forbidden")
    late.nothing()


def test_unauthorised_topics_are_not_delivered(guarded, connect):
    """[MQTT-3.8.4-5] A filter without permission is granted on paper or refused with 0x80."""
    bob = connect(broker=guarded, username="bob", password="b")
    suback = bob.subscribe("#", "secret", "bob/a", check=False)
    assert suback.reasons[0] in (0, 0x80) and suback.reasons[1] in (0, 0x80) and suback.reasons[2] == 0
    alice = connect(broker=guarded, username="alice", password="secret")
    alice.publish("secret", "no", qos=1)
    alice.publish("bob/a", "yes", qos=1)
    bob.expect_publish("bob/a", "yes")


def test_message_to_nobody_is_acknowledged(connect, topic):
    """[MQTT-3.3.4-1] The answer depends on the QoS alone."""
    client = connect()
    client.publish(topic, "x", qos=1, pid=1)
    client.publish(topic, "x", qos=2, pid=2)
    client.publish(topic, "x", qos=0)
    client.nothing()


@pytest.mark.parametrize("payload", [b"", b"\0", bytes(range(256)), b"\xff" * 70000],
                         ids=["empty", "zero", "all bytes", "70000"])
def test_any_payload_passes_unchanged(new_broker, connect, payload):
    """3.3.3: the payload is the application's business."""
    client = connect(broker=new_broker("max_packet_size 100000"))
    client.subscribe("t", qos=2)
    for qos in (0, 1, 2):
        client.publish("t", payload, qos=qos)
        client.expect_publish("t", payload, qos=qos)


# 3.3.1.3 RETAIN

@pytest.mark.parametrize("stored", [0, 1, 2])
@pytest.mark.parametrize("subscribed", [0, 1, 2])
def test_retained_message_for_a_new_subscription(connect, topic, stored, subscribed):
    """[MQTT-3.3.1-5] [MQTT-3.3.1-6] [MQTT-3.3.1-8] [MQTT-3.8.4-6] With RETAIN 1, at the lower
    QoS; it stays for the next subscriber."""
    pub = connect()
    pub.publish(topic, "old", qos=2, retain=True)
    pub.publish(topic, "kept", qos=stored, retain=True)
    pub.ping()
    for _ in range(2):
        sub = connect()
        sub.subscribe(topic, qos=subscribed)
        sub.expect_publish(topic, "kept", qos=min(stored, subscribed), retain=True)
        sub.nothing()


def test_live_messages_have_retain_0(connect, topic):
    """[MQTT-3.3.1-9] Whatever the publisher set."""
    sub, pub = connect(), connect()
    sub.subscribe(topic, qos=2)
    for qos in (0, 1, 2):
        pub.publish(topic, "x", qos=qos, retain=True)
        sub.expect_publish(topic, "x", qos=qos, retain=False)


def test_retained_messages_waiting_for_an_absent_client_are_live_ones(connect, topic, cid):
    """[MQTT-3.3.1-9] The subscription existed when the message came."""
    sub, pub = connect(cid, clean=False), connect()
    sub.subscribe(topic, qos=1)
    sub.disconnect()
    pub.publish(topic, "x", qos=1, retain=True)
    sub = connect(cid, clean=False)
    sub.expect_publish(topic, "x", qos=1, retain=False)
    sub.nothing()


def test_retained_qos_0_replaces_the_older_one(connect, topic):
    """[MQTT-3.3.1-7] The older message is gone; the new one should be kept."""
    client = connect()
    client.publish(topic, "older", qos=2, retain=True)
    client.publish(topic, "newer", qos=0, retain=True)
    client.subscribe(topic, qos=2)
    client.expect_publish(topic, "newer", qos=0, retain=True)
    client.nothing()


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_empty_retained_message_clears_the_topic(connect, topic, qos):
    """[MQTT-3.3.1-10] [MQTT-3.3.1-11] It is delivered like any other, and not stored."""
    sub, pub = connect(), connect()
    pub.publish(topic, "kept", qos=1, retain=True)
    sub.subscribe(topic, qos=2)
    sub.expect_publish(topic, "kept", retain=True)
    pub.publish(topic, b"", qos=qos, retain=True)
    sub.expect_publish(topic, b"", qos=qos, retain=False)
    late = connect()
    late.subscribe(topic)
    late.nothing()
    pub.publish(topic, b"", qos=qos, retain=True)
    sub.expect_publish(topic, b"", retain=False)


def test_ordinary_messages_leave_the_retained_one_alone(connect, topic):
    """[MQTT-3.3.1-12]"""
    client = connect()
    client.publish(topic, "kept", qos=1, retain=True)
    client.publish(topic, "live", qos=1)
    client.publish(topic, b"", qos=1)
    client.publish(topic + "/other", "live", qos=1)
    client.subscribe(topic + "/#")
    client.expect_publish(topic, "kept", retain=True)
    client.nothing()


def test_retained_messages_of_a_wildcard_subscription(connect, topic):
    """[MQTT-3.3.1-6] [MQTT-3.3.2-3] One for each matching topic, nothing else."""
    client = connect()
    for name in ("", "/a", "/a/b", "/b", "/b/c", "/", "x"):
        client.publish(topic + name, topic + name, qos=1, retain=True)
    for filter, names in [("/#", {"", "/a", "/a/b", "/b", "/b/c", "/"}), ("/+", {"/a", "/b", "/"}),
                          ("/+/+", {"/a/b", "/b/c"}), ("/+/b", {"/a/b"}), ("/a/#", {"/a", "/a/b"})]:
        client.subscribe(topic + filter)
        got = [client.expect_publish(retain=True) for _ in names]
        assert sorted(p.topic for p in got) == sorted(topic + name for name in names)
        assert all(p.topic == p.payload.decode() for p in got)
        client.nothing()


def test_overlapping_filters_each_bring_their_retained_messages(connect, topic):
    """[MQTT-3.3.1-6] [MQTT-3.8.4-4] Several filters act like several SUBSCRIBEs."""
    client = connect()
    client.publish(topic, "kept", qos=1, retain=True)
    client.subscribe((topic, 0), (topic + "/#", 1))
    assert {client.expect_publish(topic, "kept", retain=True).qos for _ in range(2)} == {0, 1}
    client.nothing()


def test_many_retained_messages(connect, topic):
    """[MQTT-3.3.1-6] More than fit into the window of unacknowledged messages."""
    client = connect()
    names = {f"{topic}/{i}" for i in range(100)}
    for name in names:
        client.publish(name, name, qos=1, retain=True)
    client.subscribe(topic + "/+", qos=1)
    assert {client.expect_publish(qos=1, retain=True).topic for _ in names} == names
    client.nothing()


# 3.8 SUBSCRIBE

@pytest.mark.parametrize("options", [3, 4, 8, 0x10, 0x20, 0x40, 0x80, 0x81, 0xff])
def test_requested_qos_byte(connect, topic, options):
    """[MQTT-3.8.3-4] No SUBACK."""
    violation(connect, subscribe(V311, 1, [(topic, options)]))
    violation(connect, subscribe(V311, 1, [(topic, 0), (topic, options)]))


def test_subscribe_without_filter(connect):
    """[MQTT-3.8.3-3]"""
    violation(connect, subscribe(V311, 1, []))


INVALID_FILTERS = ["", "a#", "#a", "#/a", "a/#/b", "a/b#", "##", "a/##", "a+", "+a", "a/+b", "a/b+/c", "++", "+#",
                   "#+", "a/+#"]


@pytest.mark.parametrize("filter", INVALID_FILTERS)
def test_invalid_filters(connect, filter):
    """[MQTT-4.7.1-2] [MQTT-4.7.1-3] [MQTT-4.7.3-1] [MQTT-4.8.0-1] In SUBSCRIBE, and in
    UNSUBSCRIBE as well."""
    violation(connect, subscribe(V311, 1, [(filter, 0)]))
    violation(connect, unsubscribe(V311, 1, [filter]))


def test_an_invalid_filter_spoils_the_whole_packet(connect, topic):
    """[MQTT-4.8.0-1] Closed without SUBACK, however good the other filters."""
    violation(connect, subscribe(V311, 1, [(topic, 0), ("a/#/b", 0), ("b", 0)]))


def test_suback(connect, topic):
    """[MQTT-3.8.4-1] [MQTT-3.8.4-2] [MQTT-3.8.4-5] [MQTT-3.9.3-1] [MQTT-3.9.3-2]
    [MQTT-2.3.1-7] One code per filter, in their order."""
    client = connect()
    wanted = [i * 7 % 3 for i in range(50)]
    client.send(subscribe(V311, 0xabcd, [(f"{topic}/{i}", qos) for i, qos in enumerate(wanted)]))
    suback = client.expect(SUBACK, pid=0xabcd)
    assert len(suback.reasons) == 50
    assert all(granted == 0x80 or granted <= qos for granted, qos in zip(suback.reasons, wanted))
    assert suback.reasons == wanted     # nothing here gives a reason to refuse or to lower


def test_several_filters_in_one_packet(connect, topic):
    """[MQTT-3.8.4-4] They act like several SUBSCRIBEs, also with the same filter twice."""
    client = connect()
    assert client.subscribe((topic + "/a", 0), (topic + "/b", 1), (topic + "/a", 2)).reasons == [0, 1, 2]
    for name, qos in (("a", 2), ("b", 1)):
        client.publish(f"{topic}/{name}", name, qos=2)
        client.expect_publish(f"{topic}/{name}", name, qos=qos)
    client.nothing()


def test_wildcard_filters_are_granted(connect, topic):
    """[MQTT-3.8.3-2] This server supports wildcards; without it would have to answer 0x80."""
    client = connect()
    assert client.subscribe(topic + "/#", topic + "/+/x", "+/+/" + topic, "/" + topic + "/+").reasons == [0] * 4


def test_same_filter_again(connect, topic):
    """[MQTT-3.8.4-3] The new QoS replaces the old one, retained messages come again."""
    client = connect()
    client.publish(topic, "kept", qos=2, retain=True)
    for qos in (0, 2, 1):
        client.subscribe(topic, qos=qos)
        client.expect_publish(topic, "kept", qos=qos, retain=True)
        client.nothing()
        client.publish(topic, "live", qos=2)
        client.expect_publish(topic, "live", qos=qos, retain=False)
        client.nothing()


def test_same_filter_again_loses_no_message(connect, topic):
    """[MQTT-3.8.4-3] Messages flow while the subscription is replaced again and again."""
    sub, pub = connect(), connect()
    sub.subscribe(topic, qos=1)
    for i in range(50):
        pub.send(publish(V311, topic, str(i), 1, pid=i + 1))
        sub.send(subscribe(V311, i + 1, [(topic, 1)]))
    got = []
    while len(got) < 50:
        p = sub.receive()
        if p.type == PUBLISH:
            got.append(int(p.payload))
            sub.ack(PUBACK, p.pid)
    assert got == list(range(50))


def test_same_filter_again_keeps_what_waits(new_broker, connect):
    """[MQTT-3.8.4-3] A lower QoS does not touch messages already accepted for the client."""
    broker = new_broker("max_inflight_messages 2")
    sub, pub = connect(broker=broker), connect(broker=broker)
    sub.subscribe("t", qos=1)
    for i in range(5):
        pub.publish("t", str(i), qos=1)
    first, second = (sub.expect_publish("t", flow=False) for _ in range(2))
    sub.subscribe("t", qos=0)
    for p in (first, second):
        sub.ack(PUBACK, p.pid)
    for i in (2, 3, 4):
        sub.expect_publish("t", str(i))
    pub.publish("t", "after", qos=1)
    sub.expect_publish("t", "after", qos=0)


def test_overlapping_subscriptions(connect, topic):
    """[MQTT-3.3.5-1] One copy at the highest QoS granted, or one per subscription."""
    client, pub = connect(), connect()
    filters = [(topic + "/#", 0), (topic + "/+", 2), (topic + "/a", 1)]
    client.subscribe(*filters)
    pub.publish(topic + "/a", "x", qos=2)
    pub.publish(topic + "/marker", "y", qos=0)
    got = []
    while True:
        p = client.expect_publish()
        if p.payload == b"y":
            break
        got.append(p.qos)
    assert got == [2] or sorted(got) == [0, 1, 2]


def test_every_matching_client_gets_the_message(connect, topic, cid):
    """[MQTT-4.5.0-1] Connected or away, by whatever filter."""
    pub = connect()
    subs = []
    for i, filter in enumerate([topic, topic + "/#", "+", topic]):
        sub = connect(f"{cid}-{i}", clean=False)
        sub.subscribe(filter, qos=1)
        subs.append(sub)
    subs[3].disconnect()
    pub.publish(topic, "x", qos=1)
    subs[3] = connect(f"{cid}-3", clean=False)
    for sub in subs:
        while sub.expect_publish().topic != topic:    # + sees the other tests too
            pass


# 3.10 UNSUBSCRIBE

def test_unsubscribe_without_filter(connect):
    """[MQTT-3.10.3-2]"""
    violation(connect, unsubscribe(V311, 1, []))


def test_unsubscribe_of_the_unknown(connect, topic):
    """[MQTT-3.10.4-4] [MQTT-3.10.4-5] [MQTT-2.3.1-7]"""
    client = connect()
    client.send(unsubscribe(V311, 0x7001, [topic, topic + "/+", "no/such"]))
    assert client.expect(UNSUBACK).raw == b"\xb0\x02\x70\x01"


def test_unsubscribe_compares_characters(connect, topic):
    """[MQTT-3.10.4-1] [MQTT-3.10.4-2] Wildcards match nothing but themselves."""
    client = connect()
    filters = [topic + "/#", topic + "/+", topic + "/a"]
    for victim in filters:
        client.subscribe(*filters)
        client.unsubscribe(victim, topic + "/A", topic + "/a/", topic, "#", "+", "+/a", topic + "/+/#")
        client.publish(topic + "/a", "x", qos=1)
        client.publish(topic + "/b/c", "deep", qos=1)
        got = [p.topic[len(topic):] for p in iter_publishes(client)]
        assert "/a" in got
        assert ("/b/c" in got) == (victim != filters[0])
    client.unsubscribe(*filters)
    client.publish(topic + "/a", "x", qos=1)
    client.nothing()


def iter_publishes(client):
    """Everything sent to the client so far, all of it PUBLISH, acknowledged. Two PINGREQs, as in
    Client.nothing()."""
    for _ in range(2):
        client.send(pingreq())
        while True:
            p = client.receive()
            if p.type == PINGRESP:
                break
            assert p.type == PUBLISH, p
            if p.qos == 1:
                client.ack(PUBACK, p.pid)
            yield p


def test_unsubscribe_several(connect, topic):
    """[MQTT-3.10.4-6] [MQTT-3.10.4-2] One UNSUBACK for all, each filter handled."""
    client = connect()
    client.subscribe(topic + "/a", topic + "/b", topic + "/c")
    client.send(unsubscribe(V311, 9, [topic + "/a", topic + "/x", topic + "/c"]), pingreq())
    client.expect(UNSUBACK, pid=9)
    client.expect(PINGRESP)
    for name in "abc":
        client.publish(f"{topic}/{name}", name, qos=1)
    client.expect_publish(topic + "/b", "b")
    client.nothing()


def test_unsubscribe_finishes_what_has_begun(connect, topic):
    """[MQTT-3.10.4-3] QoS 1 and 2 deliveries under way are completed, after a reconnect too."""
    sub, pub = connect(clean=False), connect()
    sub.subscribe(topic, qos=2)
    for i, qos in enumerate((1, 2, 2, 1)):
        pub.publish(topic, str(i), qos=qos)
    flows = [sub.expect_publish(topic, str(i), flow=False) for i in range(4)]
    sub.ack(PUBREC, flows[1].pid)
    sub.expect(PUBREL, pid=flows[1].pid)
    sub.unsubscribe(topic)
    pub.publish(topic, "none of this", qos=1)
    sub.ack(PUBREC, flows[2].pid)
    sub.expect(PUBREL, pid=flows[2].pid)
    sub.ack(PUBCOMP, flows[2].pid)
    sub.ack(PUBCOMP, flows[1].pid)
    sub.ack(PUBACK, flows[0].pid)
    sub.nothing()
    sub.close()
    sub = connect(sub.id, clean=False)
    sub.expect_publish(topic, "3", qos=1, dup=True, pid=flows[3].pid)
    sub.nothing()


def test_unsubscribe_while_away_from_home(connect, topic, cid):
    """[MQTT-3.10.4-2] An unsubscribe lasts as long as the session."""
    sub = connect(cid, clean=False)
    sub.subscribe(topic, qos=1)
    sub.unsubscribe(topic)
    sub.disconnect()
    connect().publish(topic, "x", qos=1)
    sub = connect(cid, clean=False)
    assert sub.connack.session_present
    sub.nothing()


# 3.12 PINGREQ, 3.14 DISCONNECT

def test_ping(connect):
    """[MQTT-3.12.4-1] One answer each."""
    client = connect()
    client.send(b"\xc0\0" * 50)
    for _ in range(50):
        assert client.expect(PINGRESP).raw == b"\xd0\0"
    client.nothing()


def test_nothing_after_disconnect_is_processed(connect, topic):
    """[MQTT-3.14.4-2] [MQTT-3.14.4-3]"""
    sub = connect()
    sub.subscribe(topic)
    client = connect(will=Will(topic, "will"))
    client.send(disconnect(), publish(V311, topic, "late"), pingreq())
    client.expect_closed()
    sub.nothing()


def test_what_precedes_disconnect_is_processed(connect, topic):
    """3.14: a client may hang up right behind its last message."""
    sub = connect()
    sub.subscribe(topic)
    for i in range(20):
        client = connect()
        client.send(publish(V311, topic, str(i)), disconnect())
        client.close()
        sub.expect_publish(topic, str(i))


# 4.3 Quality of service, 4.4 redelivery, 4.6 order

def test_qos_0_is_sent_once(connect, topic, cid):
    """[MQTT-4.3.1-1] [MQTT-3.3.1-2] Never again, whatever the session."""
    sub = connect(cid, clean=False)
    sub.subscribe(topic, qos=2)
    connect().publish(topic, "x", qos=0)
    assert sub.expect_publish(topic, "x", qos=0).raw[0] == 0x30
    sub.close()
    connect(cid, clean=False).nothing()


def test_unacknowledged_messages_are_sent_again(connect, topic, cid):
    """[MQTT-4.4.0-1] [MQTT-3.3.1-1] [MQTT-2.3.1-4] [MQTT-4.6.0-1] [MQTT-4.3.2-1]
    Same ids, DUP set, in their order, as often as it takes; before anything new."""
    sub, pub = connect(cid, clean=False), connect()
    sub.subscribe(topic, qos=2)
    for i in range(6):
        pub.publish(topic, str(i), qos=1 + i % 2)
    pids = [sub.expect_publish(topic, str(i), qos=1 + i % 2, flow=False).pid for i in range(6)]
    for _ in range(3):
        sub.close()
        sub = connect(cid, clean=False)
        for i in range(6):
            sub.expect_publish(topic, str(i), qos=1 + i % 2, dup=True, pid=pids[i], flow=False)
        sub.nothing()
    sub.disconnect()
    pub.publish(topic, "new", qos=1)
    sub = connect(cid, clean=False)
    for i in range(6):
        sub.expect_publish(topic, str(i), dup=True, pid=pids[i])
    assert sub.expect_publish(topic, "new", dup=False).pid
    sub.nothing()
    sub.close()
    connect(cid, clean=False).nothing()


def test_each_stage_of_qos_2_resumes_where_it_was(connect, topic, cid):
    """[MQTT-4.3.3-1] [MQTT-4.4.0-1] [MQTT-4.6.0-4] [MQTT-2.3.1-6] After PUBREC the PUBREL is
    repeated, never the PUBLISH; after PUBCOMP nothing is."""
    sub, pub = connect(cid, clean=False), connect()
    sub.subscribe(topic, qos=2)
    for name in ("done", "rel 1", "rel 2", "sent"):
        pub.publish(topic, name, qos=2)
    pids = [sub.expect_publish(topic, name, flow=False).pid for name in ("done", "rel 1", "rel 2", "sent")]
    for pid in pids[:3]:
        sub.ack(PUBREC, pid)
        sub.expect(PUBREL, pid=pid)
    sub.ack(PUBCOMP, pids[0])
    sub.nothing()
    for _ in range(2):
        sub.close()
        sub = connect(cid, clean=False)
        again = [sub.receive() for _ in range(3)]
        assert [p.pid for p in again if p.type == PUBREL] == pids[1:3]
        sent, = [p for p in again if p.type == PUBLISH]
        assert (sent.payload, sent.pid, sent.qos, sent.dup) == (b"sent", pids[3], 2, True)
        sub.nothing()
    for pid in pids[1:3]:
        sub.ack(PUBCOMP, pid)
    sub.ack(PUBREC, pids[3])
    sub.expect(PUBREL, pid=pids[3])
    sub.ack(PUBREC, pids[3])     # a repetition has the same answer
    sub.expect(PUBREL, pid=pids[3])
    sub.ack(PUBCOMP, pids[3])
    sub.nothing()
    sub.close()
    connect(cid, clean=False).nothing()


@pytest.mark.parametrize("qos, wrong", [(1, PUBREC), (1, PUBCOMP), (2, PUBACK), (2, PUBCOMP)])
def test_the_wrong_ack_settles_nothing(connect, topic, cid, qos, wrong):
    """[MQTT-4.3.2-1] [MQTT-4.3.3-1] A message stays unacknowledged until its own kind of ack
    comes. The connection may end."""
    sub, pub = connect(cid, clean=False), connect()
    sub.subscribe(topic, qos=qos)
    pub.publish(topic, "x", qos=qos)
    pid = sub.expect_publish(topic, "x", qos=qos, flow=False).pid
    sub.ack(wrong, pid)
    try:
        sub.ping()
    except Closed:
        pass
    sub.close()
    sub = connect(cid, clean=False)
    sub.expect_publish(topic, "x", qos=qos, dup=True, pid=pid)


def test_acks_come_in_order(connect, topic):
    """[MQTT-4.6.0-2] [MQTT-4.6.0-3] [MQTT-2.3.1-6] PUBACKs and PUBRECs in the order of the
    PUBLISHes."""
    client = connect()
    pids = [9, 3, 5, 1, 65535, 2, 100, 99]
    client.send(*(publish(V311, topic, "x", 1 + i % 2, pid=pid) for i, pid in enumerate(pids)))
    got = [client.receive() for _ in pids]
    assert [p.pid for p in got if p.type == PUBACK] == pids[0::2]
    assert [p.pid for p in got if p.type == PUBREC] == pids[1::2]


def test_pubrels_come_in_the_order_of_the_pubrecs(connect, topic):
    """[MQTT-4.6.0-4] [MQTT-4.6.0-6]"""
    sub, pub = connect(), connect()
    sub.subscribe(topic, qos=2)
    for i in range(8):
        pub.publish(topic, str(i), qos=2)
    pids = [sub.expect_publish(topic, str(i), flow=False).pid for i in range(8)]
    sub.send(*(ack(V311, PUBREC, pid) for pid in pids))
    for pid in pids:
        sub.expect(PUBREL, pid=pid)


@pytest.mark.parametrize("subscribed", [0, 1, 2])
def test_messages_stay_in_order(connect, topic, subscribed):
    """[MQTT-4.6.0-5] [MQTT-4.6.0-6] For one publisher, topic and QoS."""
    sub, pub = connect(), connect()
    sub.subscribe(topic + "/+", qos=subscribed)
    for i in range(150):
        pub.publish(f"{topic}/{i // 3 % 2}", str(i), qos=i % 3)
    pub.ping()
    got = {}
    for _ in range(150):
        p = sub.expect_publish()
        got.setdefault((p.topic, int(p.payload) % 3), []).append(int(p.payload))
    assert len(got) == 6
    for numbers in got.values():
        assert numbers == sorted(numbers) and len(numbers) == 25


def test_order_in_a_session_that_was_away(connect, topic, cid):
    """[MQTT-4.6.0-6] [MQTT-3.1.2-5] More messages than the window of unacknowledged ones."""
    sub, pub = connect(cid, clean=False), connect()
    sub.subscribe(topic, qos=2)
    sub.disconnect()
    for i in range(100):
        pub.publish(topic, str(i), qos=1 + i // 50)
    sub = connect(cid, clean=False)
    for i in range(100):
        sub.expect_publish(topic, str(i), qos=1 + i // 50, dup=False)
    sub.nothing()


# 4.7 Topic names and filters

MATCHING = [
    # filter, names that match, names that do not
    ("#", "a /a a/b a/ / //".split(), "$own/x $x $".split()),
    ("+", "a é".split(), "a/b /a a/ / $x".split()),
    ("/+", "/a / /$x".split(), "a a/b //".split()),
    ("+/+", "a/b /a a/ /".split(), "a a/b/c //".split()),
    ("/#", "/ /a //".split(), "a a/b".split()),
    ("+/#", "a a/b /a / a/b/c".split(), "$x $x/y".split()),
    ("sport/#", "sport sport/ sport/tennis sport/tennis/player1".split(), "sports sportt/x asport/x Sport".split()),
    ("sport/+", "sport/ sport/a sport/$x".split(), "sport sport/a/b sport/a/ sport//".split()),
    ("sport/+/player1", "sport/tennis/player1 sport//player1".split(), "sport/player1 sport/a/b/player1".split()),
    ("sport/+/#", "sport/ sport/a sport/a/b".split(), "sport sports/a".split()),
    ("+/tennis/#", "sport/tennis sport/tennis/x /tennis".split(), "tennis sport/x/tennis".split()),
    ("+/x", "a/x /x".split(), "$own/x x a/x/ a/b/x".split()),
    ("a/b", ["a/b"], "a/B A/b a/b/ /a/b a//b a".split() + ["a/b ", " a/b"]),
    ("/", ["/"], "a // /a a/".split()),
    ("//", ["//"], "/ /// a//".split()),
    ("a//+", ["a//b", "a//"], "a/ a/b/c a//b/c".split()),
    ("accounts payable", ["accounts payable"], ["accounts  payable", "Accounts payable", "accounts"]),
    ("$a/+", ["$a/b"], ["$a", "$b/b", "a/b"]),
    ("$a/#", ["$a", "$a/b", "$a/b/c"], ["$b", "a/b"]),
    ("\xe9", ["\xe9"], ["e\u0301", "e", "\xc9"]),
]


@pytest.mark.parametrize("filter, match, differ", MATCHING, ids=[row[0] for row in MATCHING])
def test_matching(connect, filter, match, differ):
    """[MQTT-4.7.3-4] [MQTT-3.3.2-3] [MQTT-4.7.1-2] [MQTT-4.7.1-3] [MQTT-4.7.2-1]
    Live and retained."""
    live, pub = connect(), connect()
    live.subscribe(filter)
    for name in match + differ:
        pub.publish(name, b"match:" + filter.encode() + name.encode(), qos=1, retain=True)
    expected = {name for name in match}
    wanted = lambda p: p.payload.startswith(b"match:" + filter.encode())    # noqa: E731
    assert {p.topic for p in iter_publishes(live) if wanted(p)} == expected
    late = connect()
    late.subscribe(filter)
    assert {p.topic for p in iter_publishes(late) if wanted(p)} == expected
    for name in match + differ:
        pub.publish(name, b"", qos=1, retain=True)


def test_leading_wildcards_do_not_match_dollar_topics(connect, topic):
    """[MQTT-4.7.2-1] Live and retained."""
    pub, sub = connect(), connect()
    pub.publish("$own/" + topic, "kept", qos=1, retain=True)
    sub.subscribe("#", "+/" + topic, "+/#", "+/+")
    got = [p.topic for p in iter_publishes(sub)]
    assert not [name for name in got if name.startswith("$")]
    pub.publish("$own/" + topic, "live", qos=1)
    assert not [p for p in iter_publishes(sub) if p.topic.startswith("$")]
    sub.subscribe("$own/#")
    sub.expect_publish("$own/" + topic, "kept", retain=True)
    pub.publish("$own/" + topic, b"", qos=1, retain=True)


def test_clients_cannot_write_sys_topics(connect):
    """4.7.2: servers should prevent clients from using $SYS for their own purposes."""
    sub, pub = connect(), connect()
    sub.subscribe("$SYS/forged/#", qos=1)
    try:
        pub.publish("$SYS/forged/x", "x", qos=1, retain=True)
    except Closed:
        pass
    sub.nothing()


def test_longest_topics(new_broker, connect):
    """[MQTT-4.7.3-3] 65535 bytes, of one level and of as many as fit."""
    client = connect(broker=new_broker("max_packet_size 200000"))
    name = "x" * 65535
    client.subscribe(name)
    client.publish(name, "long")
    client.expect_publish(name, "long")
    deep = "/" * 65535      # the number of levels may be limited: then the connection ends
    try:
        client.subscribe(deep)
        client.publish(deep, "deep")
        client.expect_publish(deep, "deep")
        client.subscribe("+/" * 32767 + "#")
        client.publish("a/" * 32767 + "b", "wild")
        client.expect_publish("a/" * 32767 + "b", "wild")
    except Closed:
        pass


# 4.8 Errors

def test_an_error_of_one_client_is_no_concern_of_others(connect, topic):
    """[MQTT-4.8.0-1] The connection of the violation is closed, that one alone."""
    other = connect()
    other.subscribe(topic)
    for raw in BROKEN.values():
        violation(connect, raw)
    connect().publish(topic, "still here")
    other.expect_publish(topic, "still here")


# Limits, most of them configured

def test_window_of_unacknowledged_messages(new_broker, connect):
    """[MQTT-4.3.2-1] [MQTT-4.3.3-1] max_inflight_messages: PUBACK and PUBCOMP make room, PUBREC
    does not."""
    broker = new_broker("max_inflight_messages 3")
    sub, pub = connect(broker=broker), connect(broker=broker)
    sub.subscribe("t", qos=2)
    for i in range(9):
        pub.publish("t", str(i), qos=2 if i in (0, 3) else 1)
    first = [sub.expect_publish("t", str(i), flow=False) for i in range(3)]
    sub.nothing()
    sub.ack(PUBREC, first[0].pid)
    sub.expect(PUBREL, pid=first[0].pid)
    sub.nothing()
    sub.ack(PUBCOMP, first[0].pid)
    sub.expect_publish("t", "3", qos=2, flow=False)
    sub.nothing()
    sub.ack(PUBACK, first[2].pid)
    sub.expect_publish("t", "4", flow=False)
    sub.nothing()
    sub.ack(PUBACK, first[1].pid)
    for i in (5, 6, 7, 8):
        sub.expect_publish("t", str(i))
    sub.nothing()


def test_window_of_one_keeps_strict_order(new_broker, connect):
    """[MQTT-4.6.0-6] 4.6: with one message in flight no message is seen again after a later one."""
    broker = new_broker("max_inflight_messages 1")
    sub, pub = connect("s", broker=broker, clean=False), connect(broker=broker)
    sub.subscribe("t", qos=1)
    for i in range(4):
        pub.publish("t", str(i), qos=1)
    for i in range(4):
        sub.expect_publish("t", str(i), flow=False)
        sub.close()
        sub = connect("s", broker=broker, clean=False)
        sub.expect_publish("t", str(i), dup=True)
    sub.nothing()


def test_a_full_queue_drops_the_newest(new_broker, connect):
    """[MQTT-3.1.2-5] max_queued_messages, for a client that is away. Publishers are answered
    all the same; there is room again once the queue is read."""
    broker = new_broker("max_queued_messages 5", "max_inflight_messages 1")
    sub, pub = connect("s", broker=broker, clean=False), connect(broker=broker)
    sub.subscribe("t", qos=1)
    for _ in range(2):
        sub.disconnect()
        for i in range(10):
            pub.publish("t", str(i), qos=1)
        sub = connect("s", broker=broker, clean=False)
        got = [p.payload for p in acknowledged(sub)]
        assert got == [b"%d" % i for i in range(len(got))]
        assert len(got) in (5, 6)


def acknowledged(sub):
    """All messages for sub, acknowledged, until there are no more."""
    found = []
    while True:
        some = list(iter_publishes(sub))
        if not some:
            return found
        found += some


def test_a_full_queue_of_a_connected_client(new_broker, connect):
    """max_queued_messages counts beyond the window; the window is kept, the newest dropped."""
    broker = new_broker("max_queued_messages 5", "max_inflight_messages 2", "sys_interval 1")
    sub, pub = connect(broker=broker), connect(broker=broker)
    sub.subscribe("t", qos=1)
    for i in range(20):
        pub.publish("t", str(i), qos=1)
    got = [sub.expect_publish("t", str(i), flow=False) for i in range(2)]
    sub.nothing()
    for p in got:
        sub.ack(PUBACK, p.pid)
    rest = [p.payload for p in acknowledged(sub)]
    assert rest == [b"%d" % (i + 2) for i in range(len(rest))]
    assert len(rest) in (3, 4, 5)
    pub.publish("t", "again", qos=1)
    sub.expect_publish("t", "again")


def test_a_slow_reader_holds_up_nobody(new_broker, connect):
    """A subscriber that does not read: the others get everything at once, its own QoS 0
    messages are dropped and counted, its QoS 1 messages are not lost."""
    broker = new_broker("sys_interval 1", "max_packet_size 100000")
    slow = connect(broker=broker, timeout=20)
    fast, pub, watch = (connect(broker=broker, timeout=20) for _ in range(3))
    slow.subscribe("zero", "one", qos=1)
    fast.subscribe("zero")
    number = "$SYS/broker/publish/messages/dropped"
    watch.subscribe(number)
    count, size = 3000, 10000
    for i in range(count):
        pub.publish("zero", b"%06d" % i + bytes(size))
        p = fast.expect_publish("zero")
        assert int(p.payload[:6]) == i
    pub.publish("one", "kept", qos=1)
    while int(watch.expect_publish(number).payload) == 0:
        pass
    pub.ping()
    last, got = -1, 0
    while True:
        p = slow.expect_publish()
        if p.topic == "one":
            break
        assert last < int(p.payload[:6]) and len(p.payload) == size + 6
        last, got = int(p.payload[:6]), got + 1
    assert got < count
    slow.nothing()


def test_slow_reader_with_many_acks(connect, topic):
    """A client that sends without reading: its own answers may hold it up, nobody else."""
    greedy, other = connect(receive_buffer=4096, timeout=1), connect()
    try:
        for _ in range(200):
            greedy.send(pingreq() * 5000)
    except socket.timeout:
        pass    # the server stopped reading, as it may
    other.nothing()
    greedy.close(reset=True)
    other.nothing()


def test_max_qos(new_broker, connect):
    """max_qos 1: subscriptions get at most QoS 1 in effect, a PUBLISH above it ends the connection."""
    broker = new_broker("max_qos 1")
    sub, pub = connect(broker=broker), connect(broker=broker)
    assert sub.subscribe("t", qos=2, check=False).reasons[0] in (1, 2)
    pub.publish("t", "x", qos=1)
    sub.expect_publish("t", "x", qos=1)
    pub.send(publish(V311, "t", "y", 2, pid=1))
    pub.expect_closed()
    sub.nothing()


def test_message_size_limit(new_broker, connect):
    """message_size_limit: a larger payload is acknowledged and goes nowhere."""
    broker = new_broker("message_size_limit 10")
    sub, pub = connect(broker=broker), connect(broker=broker)
    sub.subscribe("t", qos=2)
    for qos in (0, 1, 2):
        pub.publish("t", "12345678901", qos=qos)
        pub.publish("t", "1234567890", qos=qos)
        sub.expect_publish("t", "1234567890", qos=qos)
    sub.nothing()


def test_retain_available(new_broker, connect):
    """retain_available false: a retained PUBLISH ends the connection."""
    broker = new_broker("retain_available false")
    sub, pub = connect(broker=broker), connect(broker=broker)
    sub.subscribe("t")
    pub.publish("t", "x", qos=1)
    sub.expect_publish("t", "x")
    pub.send(publish(V311, "t", "x", 1, True, pid=1))
    pub.expect_closed()
    sub.nothing()


def test_max_connections(new_broker, connect, dial):
    """[MQTT-3.2.2-6] max_connections: one more is closed without a word, room is reused at once."""
    broker = new_broker("max_connections 2")
    one, two = connect(broker=broker), connect(broker=broker)
    for _ in range(3):
        refused(dial, connect_packet(client_id="more"), broker=broker)
        one.disconnect()
        one = connect(broker=broker)
    two.nothing()


def test_many_clients_and_messages(connect, topic):
    """[MQTT-4.5.0-1] [MQTT-4.6.0-6] 50 clients talk to each other, all see the same."""
    clients = [connect() for _ in range(50)]
    for client in clients:
        client.subscribe(topic, qos=1)
    for i, client in enumerate(clients):
        client.publish(topic, str(i), qos=1)
    for client in clients:
        assert [int(client.expect_publish(topic, qos=1).payload) for _ in clients] == list(range(50))
        client.nothing()
