"""Persistence through the real broker: what lasts is there after a kill, a stop and a snapshot.

Each test builds a state, ends the broker in one of three ways (`again`) and asks the next one.
What the disk does to a broker is in test_persist_disk.py, kills under load are in test_crash.py.
"""

import hashlib
import os
import re
import time

import pytest

import disk
import wire
from durable import (CONFIG, eventually, join, journal_of, kill, lasting, received,  # noqa: F401
                     snapshot, stop, store, tricks)
from v5 import let_pass, options
from wire import (V31, V311, V5, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, Will, wait_for)

HOUR = 3600
YEAR = 365 * 24 * HOUR


def kill_after_snapshot(broker):
    snapshot(broker)
    kill(broker)


@pytest.fixture(params=[kill, stop, kill_after_snapshot], ids=lambda f: f.__name__)
def again(request):
    """again(broker): it ends, and another begins. Nothing of the journal may be without sense."""
    def end(broker):
        request.param(broker)
        assert "made no sense" not in broker.log() and "damaged" not in broker.log(), broker.log()
    return end


def wait_for_record(broker, text, n=1):
    wait_for(lambda: store(journal_of(broker)).stdout.count(text) >= n, f"'{text}' in the journal")


def contents(folder):
    """A checksum per file."""
    return {name: hashlib.md5(open(os.path.join(folder, name), "rb").read()).hexdigest()
            for name in sorted(os.listdir(folder))}


# ---- sessions and subscriptions ----

@pytest.mark.parametrize("version", [V31, V311, V5])
def test_session_and_queue(lasting, join, again, version):
    """A session, its subscription, and messages that came while its client was away."""
    broker = lasting()
    a = join(broker, "a", version)
    a.subscribe(("t/#", 2))
    a.disconnect()
    sender = join(broker, "sender")
    for i in range(20):
        sender.publish("t/x", f"{i}", qos=1 + i % 2)
    again(broker)
    join(broker, "sender", present=True).publish("t/y", "after", qos=1)
    a = join(broker, "a", version, present=True)
    wanted = [("t/x", f"{i}") for i in range(20)] + [("t/y", "after")]
    assert eventually(a, wanted) == wanted
    a.disconnect()
    again(broker)
    a = join(broker, "a", version, present=True)
    assert received(a) in ([], wanted[-1:])     # that its PUBACK came may be forgotten


def test_connected_sessions_last_too(lasting, join, again):
    broker = lasting()
    a = join(broker, "a", properties={"session_expiry_interval": 60})
    a.subscribe(("t", 1))
    b = join(broker, "b", V311)
    b.subscribe(("t", 1))
    again(broker)
    for name, version in ("a", V5), ("b", V311):
        c = join(broker, name, version, present=True)
        c.publish("t", name, qos=1)
        assert eventually(c, [("t", name)])[-1] == ("t", name)


def test_subscription_options(lasting, connect, join, again):
    broker = lasting()
    a = join(broker, "a")
    a.subscribe(("own", options(1, no_local=True)), ("kept", options(1, as_published=True)),
                ("plain/x", options(1)), ("low", options(0)), properties={"subscription_identifier": 268435455})
    a.subscribe(("plain/+", options(2)), properties={"subscription_identifier": 7})
    a.subscribe(("low", options(1)))
    b = connect(broker=broker)
    again(broker)
    a = join(broker, "a", present=True)
    b = connect(broker=broker)
    a.publish("own", "mine", qos=1)
    b.publish("own", "other", qos=1)
    b.publish("kept", "kept", qos=1, retain=True)
    b.publish("plain/x", "plain", qos=1, retain=True)
    b.publish("low", "low", qos=2)
    got = {}
    while len(got) < 4:
        p = a.expect_publish()
        got[p.payload.decode()] = (p.qos, p.retain, sorted(p.props("subscription_identifier")))
    assert got == {"other": (1, False, [268435455]), "kept": (1, True, [268435455]),
                   "plain": (1, False, [7, 268435455]), "low": (1, False, [])}
    assert received(a) == []


def test_shared_subscription(lasting, connect, join, again):
    broker = lasting()
    for name in "ab":
        join(broker, name).subscribe(("$share/group/t", 1))
    again(broker)
    members = [join(broker, name, present=True) for name in "ab"]
    sender = connect(broker=broker)
    for i in range(10):
        sender.publish("t", f"{i}", qos=1)
    found = []
    while len(found) < 10:
        found += [payload for m in members for _, payload in received(m)]
    assert sorted(found) == sorted(map(str, range(10)))


def test_unsubscribed_stays_so(lasting, connect, join, again):
    broker = lasting()
    a = join(broker, "a")
    a.subscribe(("t", 1), ("u", 1), ("$share/g/s", 1))
    a.unsubscribe("t", "$share/g/s")
    again(broker)
    sender = connect(broker=broker)
    for topic in "tsu":
        sender.publish(topic, "x", qos=1)
    a = join(broker, "a", present=True)
    assert eventually(a, [("u", "x")]) == [("u", "x")]


@pytest.mark.parametrize("version", [V311, V5])
def test_clean_start_discards(lasting, connect, join, again, version):
    broker = lasting()
    a = join(broker, "a", version)
    a.subscribe(("t", 1))
    a.disconnect()
    connect(broker=broker).publish("t", "x", qos=1)
    connect("a", broker=broker, version=version).disconnect()
    again(broker)
    a = join(broker, "a", version, present=False)
    assert received(a) == []


def test_disconnect_changes_the_expiry(lasting, join, again):
    broker = lasting()
    join(broker, "ends").disconnect(0, {"session_expiry_interval": 0})
    join(broker, "stays", properties={"session_expiry_interval": 5}).disconnect(
        0, {"session_expiry_interval": 100000})
    again(broker)
    broker.kill()
    broker.env = disk.clock_off(HOUR)
    broker.start()
    join(broker, "ends", present=False)
    join(broker, "stays", present=True)


def test_takeover(lasting, connect, join, again):
    broker = lasting()
    first = join(broker, "a", V311)
    first.subscribe(("t", 1))
    second = join(broker, "a", V5, present=True)
    first.expect_closed()
    second.subscribe(("u", 1))
    again(broker)
    a = join(broker, "a", V311, present=True)
    sender = connect(broker=broker)
    sender.publish("t", "x", qos=1)
    sender.publish("u", "y", qos=1)
    assert eventually(a, [("t", "x"), ("u", "y")]) == [("t", "x"), ("u", "y")]


def test_rights_of_who_is_away(lasting, connect, join, again):
    """The user of a session decides what is kept for it, also when he has not come back since."""
    broker = lasting("password_file {dir}/passwords", "acl_file {dir}/rules", start=False)
    broker.config = broker.config.replace("allow_anonymous true", "allow_anonymous false")
    with open(broker.path("passwords"), "w") as f:
        f.write(wire.password_line("bob", "b") + wire.password_line("root", "r"))
    with open(broker.path("rules"), "w") as f:
        f.write("user bob\ntopic read open/#\nuser root\ntopic #\n")
    for name in "passwords", "rules":
        os.chmod(broker.path(name), 0o644)
    broker.start()
    join(broker, "a", username="bob", password="b").subscribe(("#", 1))
    again(broker)
    sender = connect(broker=broker, username="root", password="r")
    sender.publish("secret/x", "x", qos=1)
    sender.publish("open/y", "y", qos=1)
    a = join(broker, "a", present=True, username="bob", password="b")
    assert eventually(a, [("open/y", "y")]) == [("open/y", "y")]


def test_many_restarts(lasting, join, again):
    """State upon state: each life adds to it and takes from it."""
    broker = lasting()
    join(broker, "a").subscribe(("t/#", 2))
    wanted = []
    for i in range(8):
        sender = join(broker, "sender", V311)
        sender.publish(f"t/{i}", "x", qos=1 + i % 2)
        sender.publish("r", f"{i}", qos=1, retain=True)
        wanted.append((f"t/{i}", "x"))
        again(broker)
        if i == 4:
            a = join(broker, "a", present=True)
            assert eventually(a, wanted) == wanted
            wanted = []
    a = join(broker, "a", present=True)
    assert eventually(a, wanted) == wanted
    a.subscribe("r")
    a.expect_publish("r", "7", retain=True)


# ---- exchanges that the end has interrupted: messages to the client ----

def test_publish_without_puback(lasting, join, again, request):
    """It comes again. That it does so with DUP and under the same number holds where the record of
    that, which nobody waits for, has reached the disk."""
    broker = lasting()
    a = join(broker, "a", V311)
    a.subscribe(("t", 1))
    join(broker, "sender").publish("t", "x", qos=1)
    pid = a.expect_publish("t", "x", qos=1, flow=False).pid
    how = request.node.callspec.params["again"]
    again(broker)
    a = join(broker, "a", V311, present=True)
    p = a.expect(PUBLISH, topic="t", payload=b"x", qos=1)
    assert (p.dup and p.pid == pid) or how is not stop
    a.ack(PUBACK, p.pid)
    assert received(a) == []


def test_publish_without_pubrec(lasting, join, again):
    """[MQTT-4.4.0-1] The same number, DUP, and before the messages that came later."""
    broker = lasting()
    a = join(broker, "a", V311)
    a.subscribe(("t", 2))
    sender = join(broker, "sender")
    sender.publish("t", "0", qos=2)
    a.expect_publish("t", "0", qos=2)
    sender.publish("t", "1", qos=2)
    pid = a.expect_publish("t", "1", qos=2, flow=False).pid
    sender.publish("t", "2", qos=2)
    second = a.expect_publish("t", "2", qos=2, flow=False).pid
    again(broker)
    a = join(broker, "a", V311, present=True)
    a.expect_publish("t", "1", qos=2, dup=True, pid=pid, flow=False)
    a.expect_publish("t", "2", qos=2, dup=True, pid=second, flow=False)
    for n in pid, second:
        a.ack(PUBREC, n)
        a.expect(PUBREL, pid=n)
        a.ack(PUBCOMP, n)
    assert received(a) == []


def test_pubrel_without_pubcomp(lasting, join, again):
    """After PUBREC the message is never sent again, only PUBREL."""
    broker = lasting()
    a = join(broker, "a", V311)
    a.subscribe(("t", 2))
    join(broker, "sender").publish("t", "x", qos=2)
    pid = a.expect_publish("t", "x", qos=2, flow=False).pid
    a.ack(PUBREC, pid)
    a.expect(PUBREL, pid=pid)
    for _ in range(2):
        again(broker)
        a = join(broker, "a", V311, present=True)
        a.expect(PUBREL, pid=pid)
    # The number stays taken until PUBCOMP.
    join(broker, "sender").publish("t", "y", qos=2)
    p = a.expect_publish("t", "y", qos=2, flow=False)
    assert p.pid != pid
    a.ack(PUBCOMP, pid)
    a.ack(PUBREC, p.pid)
    a.expect(PUBREL, pid=p.pid)
    a.ack(PUBCOMP, p.pid)
    assert received(a) == []


def test_exchange_that_was_over(lasting, join, again):
    """At most PUBREL comes again; the message does not."""
    broker = lasting()
    a = join(broker, "a", V311)
    a.subscribe(("t", 2))
    sender = join(broker, "sender")
    sender.publish("t", "x", qos=2)
    a.expect_publish("t", "x", qos=2)
    a.ping()
    again(broker)
    a = join(broker, "a", V311, present=True)
    assert received(a) == []


def test_refused_by_the_receiver(lasting, join, again):
    """[MQTT5-4.3.3-4] PUBREC of 0x80 and more ends the exchange for good."""
    broker = lasting()
    a = join(broker, "a")
    a.subscribe(("t", 2))
    sender = join(broker, "sender")
    sender.publish("t", "x", qos=2)
    pid = a.expect_publish("t", "x", qos=2, flow=False).pid
    a.ack(PUBREC, pid, 0x80)
    a.ping()
    sender.publish("t", "y", qos=2)     # the record of the refusal is on the disk with this one
    a.expect_publish("t", "y", qos=2)
    again(broker)
    assert received(join(broker, "a", present=True)) == []


# ---- messages from the client ----

@pytest.mark.parametrize("version", [V311, V5])
def test_pubrec_was_sent(lasting, join, again, version):
    """The repeat is acknowledged, but not handed on again. [MQTT-4.3.3-2]"""
    broker = lasting()
    a = join(broker, "a")
    a.subscribe(("t", 2))
    sender = join(broker, "sender", version)
    sender.publish("t", "x", qos=2, pid=5, flow=False)
    sender.await_packet(PUBREC, 5)
    again(broker)
    sender = join(broker, "sender", version, present=True)
    sender.publish("t", "x", qos=2, pid=5, dup=True, flow=False)
    sender.expect(PUBREC, pid=5)
    sender.pubrel(5)
    sender.publish("t", "y", qos=2, pid=5)
    a = join(broker, "a", present=True)
    assert eventually(a, [("t", "x"), ("t", "y")]) == [("t", "x"), ("t", "y")]


def test_pubrel_first(lasting, join, again):
    broker = lasting()
    a = join(broker, "a")
    a.subscribe(("t", 2))
    sender = join(broker, "sender")
    sender.publish("t", "x", qos=2, pid=5, flow=False)
    sender.await_packet(PUBREC, 5)
    again(broker)
    sender = join(broker, "sender", present=True)
    assert sender.pubrel(5).reason == 0
    assert eventually(join(broker, "a", present=True), [("t", "x")]) == [("t", "x")]


def test_pubcomp_was_sent(lasting, join, again):
    """The number is free: what comes under it is another message."""
    broker = lasting()
    a = join(broker, "a")
    a.subscribe(("t", 2))
    sender = join(broker, "sender")
    sender.publish("t", "x", qos=2, pid=5)
    again(broker)
    sender = join(broker, "sender", present=True)
    sender.publish("t", "y", qos=2, pid=5)
    a = join(broker, "a", present=True)
    assert eventually(a, [("t", "x"), ("t", "y")]) == [("t", "x"), ("t", "y")]


def test_order_per_topic(lasting, join, again):
    """[MQTT-4.6.0-6] Some delivered, some in flight, some queued: in their order in the end."""
    broker = lasting("max_inflight_messages 5")
    a = join(broker, "a", V311)
    a.subscribe(("t/#", 2))
    sender = join(broker, "sender")
    for i in range(60):
        sender.publish(f"t/{i % 3}", f"{i}", qos=1 + i % 3 % 2)
    for _ in range(5):
        a.expect_publish(flow=False)
    again(broker)
    a = join(broker, "a", V311, present=True)
    found = eventually(a, [(f"t/{i % 3}", f"{i}") for i in range(60)])
    for k in range(3):
        numbers = [int(p) for t, p in found if t == f"t/{k}"]
        assert numbers == list(range(k, 60, 3))


def test_properties_of_messages(lasting, join, again):
    broker = lasting()
    props = [("payload_format_indicator", 1), ("content_type", "text/plain"), ("response_topic", "back"),
             ("correlation_data", b"\x00\x01"), ("user_property", ("k", "v")), ("user_property", ("k", "w"))]
    a = join(broker, "a")
    a.subscribe(("q", 1))
    a.disconnect()
    sender = join(broker, "sender")
    sender.publish("q", "x", qos=1, properties=props)
    sender.publish("r", "y", qos=1, retain=True, properties=props)
    again(broker)
    a = join(broker, "a", present=True)
    assert sorted(map(str, a.expect_publish("q", "x").properties)) == sorted(map(str, props))
    a.subscribe("r")
    p = a.expect_publish("r", "y", retain=True)
    assert sorted(map(str, p.properties)) == sorted(map(str, props))


# ---- retained messages ----

@pytest.mark.parametrize("qos", [1, 2])
def test_retained(lasting, connect, again, qos):
    broker = lasting()
    sender = connect(broker=broker)
    for topic, values in ("a", "12"), ("b", "1"), ("c", "1"), ("d", ""):
        for value in values:
            sender.publish("r/" + topic, value, qos=qos, retain=True)
    sender.publish("r/c", "", qos=qos, retain=True)
    sender.publish("r/d", "", qos=qos, retain=True)
    again(broker)
    looker = connect(broker=broker)
    looker.subscribe(("r/#", 2))
    found = {looker.expect_publish(qos=qos, retain=True).topic: 0 for _ in range(2)}
    assert set(found) == {"r/a", "r/b"}
    looker.nothing()
    looker.unsubscribe("r/#")
    looker.subscribe("r/a")
    looker.expect_publish("r/a", "2", retain=True)


def test_retained_of_qos_0_is_there_after_a_stop(lasting, connect):
    broker = lasting()
    connect(broker=broker).publish("r", "x", retain=True)
    looker = connect(broker=broker)
    looker.subscribe("r")
    looker.expect_publish("r", "x")
    broker.restart()
    looker = connect(broker=broker)
    looker.subscribe("r")
    looker.expect_publish("r", "x", retain=True)


def syncs_after(d, act):
    """The syncs that follow until the disk is quiet: the last one is awaited by a QoS 1 message."""
    before = d.syncs()
    act()
    wait_for(lambda: d.syncs() > before, "sync")


def test_autosave_bounds_what_nobody_waits_for(lasting, connect, tricks):
    """autosave_interval: a retained message of QoS 0 is on the disk that many seconds later."""
    d = tricks()
    broker = lasting("autosave_interval 1", env=d.env)
    sender = connect(broker=broker)
    syncs_after(d, lambda: sender.publish("r", "x", retain=True))
    wait_for_record(broker, "topic 'r'")
    kill(broker)
    looker = connect(broker=broker)
    looker.subscribe("r")
    looker.expect_publish("r", "x", retain=True)


def test_autosave_on_changes(lasting, connect, tricks):
    d = tricks()
    broker = lasting("autosave_interval 3", "autosave_on_changes true", env=d.env)
    sender = connect(broker=broker)
    syncs_after(d, lambda: [sender.publish(f"r/{i}", "x", retain=True) for i in range(6)])
    wait_for_record(broker, "topic 'r/2'")


# ---- what waits for a moment: wills, expiries, the clock ----

def restart_at(broker, again, seconds):
    """Ends, and begins again when the clock says another time."""
    broker.env = disk.clock_off(seconds)
    again(broker)


def test_delayed_will_comes(lasting, join, again):
    """Its delay ends while no broker runs."""
    broker = lasting()
    a = join(broker, "a")
    a.subscribe(("will/#", 2))
    a.disconnect()
    b = join(broker, "b", will=Will("will/b", "gone", 2, properties={"will_delay_interval": 1000}))
    b.close()
    wait_for_record(broker, "will session")
    restart_at(broker, again, 2000)
    a = join(broker, "a", present=True)
    a.expect_publish("will/b", "gone", qos=2)
    a.nothing()
    # It came once.
    again(broker)
    assert received(join(broker, "a", present=True)) == []


def test_delayed_will_waits_on(lasting, join, again):
    """Whoever comes back in time, after a restart as well, takes it back. [MQTT5-3.1.3-9]"""
    broker = lasting()
    a = join(broker, "a")
    a.subscribe(("will/#", 1))
    for name in "bc":
        client = join(broker, name, will=Will(f"will/{name}", "gone", 1, properties={"will_delay_interval": 1000}))
        client.close()
    wait_for_record(broker, "will session", 2)
    again(broker)
    b = join(broker, "b", present=True)
    a = join(broker, "a", present=True)
    a.nothing()
    b.ping()
    restart_at(broker, again, 2000)
    a = join(broker, "a", present=True)
    a.expect_publish("will/c", "gone", qos=1)
    a.nothing()


def test_will_with_the_end_of_its_session(lasting, join, again):
    """[MQTT5-3.1.2-8] The session ends first, while no broker runs."""
    broker = lasting()
    a = join(broker, "a")
    a.subscribe(("will/#", 1))
    b = join(broker, "b", properties={"session_expiry_interval": 500},
             will=Will("will/b", "gone", 1, properties={"will_delay_interval": 5000}))
    b.close()
    wait_for_record(broker, "will session")
    restart_at(broker, again, 1000)
    a = join(broker, "a", present=True)
    a.expect_publish("will/b", "gone", qos=1)
    join(broker, "b", present=False)


def test_message_expiry(lasting, join, again):
    """[MQTT5-3.3.2-5], [MQTT5-3.3.2-6] The time without a broker counts."""
    broker = lasting()
    a = join(broker, "a")
    a.subscribe(("t", 1))
    a.disconnect()
    sender = join(broker, "sender")
    for text, seconds in ("short", 60), ("long", 100 * HOUR), ("forever", None):
        props = {"message_expiry_interval": seconds} if seconds else None
        sender.publish("t", text, qos=1, properties=props)
        sender.publish(f"r/{text}", text, qos=1, retain=True, properties=props)
    restart_at(broker, again, HOUR)
    a = join(broker, "a", present=True)
    left = a.expect_publish("t", "long").prop("message_expiry_interval")
    assert 98 * HOUR < left <= 99 * HOUR
    assert a.expect_publish("t", "forever").prop("message_expiry_interval") is None
    a.nothing()
    a.subscribe("r/#")
    found = {}
    for _ in range(2):
        p = a.expect_publish()
        found[p.topic] = p.prop("message_expiry_interval")
    assert 98 * HOUR < found["r/long"] <= 99 * HOUR and found["r/forever"] is None
    a.nothing()


def test_session_expiry(lasting, join, again, request):
    """The time without a broker counts for those who were away, and for those whom it has sent away
    when it ended; those whom a kill has cut off have all of theirs."""
    killed = request.node.callspec.params["again"] is not stop
    broker = lasting("persistent_client_expiration 2d")
    for name, seconds in ("short", 600), ("long", 100 * HOUR), ("forever", 0xFFFFFFFF):
        join(broker, name, properties={"session_expiry_interval": seconds}).disconnect()
    join(broker, "old", V311).disconnect()
    connected = join(broker, "connected", properties={"session_expiry_interval": 600})
    # That they have left is written with the next record that somebody waits for.
    connected.subscribe(("t", 1))
    restart_at(broker, again, HOUR)
    for name, present in ("short", False), ("long", True), ("connected", killed):
        join(broker, name, present=present).disconnect()
    join(broker, "forever", present=True).disconnect()
    join(broker, "old", V311, present=True).disconnect()
    join(broker, "last")
    # The option sets a limit to those as well that wish for none.
    restart_at(broker, again, 3 * 24 * HOUR)
    join(broker, "forever", present=False)
    join(broker, "old", V311, present=False)


@pytest.mark.parametrize("years", [-30, -3, 3, 30], ids=lambda y: f"{y:+d}y")
def test_a_clock_that_jumps(lasting, connect, join, again, years):
    """What has no end lasts; what has one ends early or late, and the broker works."""
    broker = lasting()
    a = join(broker, "a")
    a.subscribe(("t", 1))
    a.disconnect()
    join(broker, "short", properties={"session_expiry_interval": HOUR}).disconnect()
    sender = join(broker, "sender")
    sender.publish("t", "queued", qos=1)
    sender.publish("t", "expires", qos=1, properties={"message_expiry_interval": HOUR})
    sender.publish("r", "kept", qos=1, retain=True)
    restart_at(broker, again, years * YEAR)
    a = join(broker, "a", present=True)
    wanted = [("t", "queued")] + [("t", "expires")] * (years < 0)
    assert eventually(a, wanted) == wanted
    join(broker, "short", present=years < 0).disconnect()
    a.subscribe("r")
    a.expect_publish("r", "kept", retain=True)
    a.publish("t", "new", qos=1)
    a.expect_publish("t", "new")
    # And back.
    a.disconnect()
    connect(broker=broker).publish("t", "later", qos=1, properties={"message_expiry_interval": HOUR})
    restart_at(broker, again, 0)
    a = join(broker, "a", present=True)
    found = eventually(a, [])
    assert found == [("t", "later")] or (years < 0 and found == [])


# ---- what is not written ----

def busy(connect, broker, topic):
    """Traffic of all kinds between clients that leave nothing."""
    a, b = connect(broker=broker, version=V5), connect(broker=broker)
    a.subscribe((topic, 2), ("other", 1))
    a.unsubscribe("other")
    for qos in 0, 1, 2:
        b.publish(topic, "x", qos=qos)
        a.expect_publish(topic, "x", qos=qos)
    c = connect(broker=broker, version=V5, will=Will("will", "x"), properties={"session_expiry_interval": 0})
    c.close()
    b.publish("unheard", "x", qos=2)
    b.disconnect()


def untouched(broker, d, act):
    """Nothing is written while act runs: files, syncs, and bytes that the helper has written."""
    def state():
        children = open(f"/proc/{broker.pid}/task/{broker.pid}/children").read().split()
        written = [re.findall(r"(?:wchar|write_bytes): \d+", open(f"/proc/{n}/io").read()) for n in children]
        return d.syncs(), contents(journal_of(broker)), children, written
    before = state()
    act()
    assert state() == before


@pytest.fixture
def quiet(lasting, connect, join, tricks):
    """quiet(*lines): (broker, disk), when the first records are written and nothing is left to do."""
    def create(*lines):
        d = tricks()
        broker = lasting("autosave_interval 1", *lines, env=d.env)
        a = join(broker, "first")
        a.subscribe(("lasting", 1))
        a.publish("lasting", "x", qos=1)
        a.expect_publish("lasting", "x")
        # What is lazy goes within a second; the log has no word of that.
        wait_for_record(broker, "done")
        last = [d.syncs(), time.monotonic()]

        def settled():
            if d.syncs() != last[0]:
                last[:] = d.syncs(), time.monotonic()
            return time.monotonic() - last[1] > 1.2
        wait_for(settled, "rest")
        return broker, d
    return create


def test_clean_sessions_write_nothing(quiet, connect):
    broker, d = quiet("sys_interval 0")
    untouched(broker, d, lambda: (busy(connect, broker, "a"), let_pass(time.monotonic(), 1.5),
                                  busy(connect, broker, "b")))


def test_idle_and_sys_write_nothing(quiet, connect):
    """$SYS goes on, and lasting sessions get it, without a word in the journal."""
    broker, d = quiet("sys_interval 1")
    looker = connect(broker=broker)

    def idle():
        looker.subscribe("$SYS/broker/uptime")
        seen = set()
        while len(seen) < 4:
            seen.add(looker.expect_publish().payload)
    untouched(broker, d, idle)
    assert "$SYS" not in store(journal_of(broker)).stdout


def test_sys_for_lasting_sessions(lasting, join):
    broker = lasting("sys_interval 1")
    a = join(broker, "a")
    a.subscribe(("$SYS/broker/uptime", 2))
    a.expect_publish()
    a.expect_publish()
    a.disconnect()
    broker.stop()
    text = store(journal_of(broker)).stdout
    assert "subscribe" in text and "topic '$SYS" not in text
    broker.start()


def test_no_persistence_no_files(new_broker, connect):
    broker = new_broker(config=wire.DEFAULT_CONFIG)
    connect("a", broker, clean=False).subscribe(("t", 1))
    connect(broker=broker).publish("t", "x", qos=1, retain=True)
    broker.stop()
    assert sorted(os.listdir(broker.dir)) == ["midge.conf"]
    broker.start()


# ---- snapshots ----

def journal_size(broker):
    folder = journal_of(broker)
    return sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder))


def test_snapshots_come_by_themselves(lasting, connect, join):
    """Ever new values for the same topics do not let the journal grow, and queues that stand while
    that happens are kept, in order."""
    broker = lasting("max_queued_messages 0")
    a = join(broker, "a", V311)
    a.subscribe(("q/#", 2))
    p = []
    sender = join(broker, "sender")
    sender.publish("q/1", "first", qos=2)
    p.append(a.expect_publish("q/1", "first", flow=False))
    sender.publish("q/3", "in", qos=2, pid=77, flow=False)
    sender.await_packet(PUBREC, 77)
    a.expect_publish("q/3", "in", flow=False)
    a.close()
    block = "x" * 60000
    after = broker.mark()
    for i in range(450):
        sender.publish(f"r/{i % 5}", f"{i} {block}", qos=1, retain=True)
        if i % 10 == 0:
            sender.publish("q/2", f"{i}", qos=1 + i % 20 // 10)
    broker.wait_log("new snapshot", after=after)
    assert journal_size(broker) < 30e6
    kill(broker)
    sender = join(broker, "sender", present=True)
    sender.publish("q/3", "in", qos=2, pid=77, dup=True, flow=False)
    sender.await_packet(PUBREC, 77)
    sender.pubrel(77)
    a = join(broker, "a", V311, present=True)
    a.expect_publish("q/1", "first", qos=2, dup=True, pid=p[0].pid)
    wanted = [("q/2", f"{i}") for i in range(0, 450, 10)]
    found = eventually(a, wanted)
    assert [m for m in found if m[0] == "q/2"] == wanted
    assert [m for m in found if m[0] != "q/2"] == [("q/3", "in")]
    looker = connect(broker=broker)
    looker.subscribe("r/#")
    values = sorted(int(looker.expect_publish().payload.split()[0]) for _ in range(5))
    assert values == [445, 446, 447, 448, 449]


# ---- midge store ----

@pytest.fixture
def written(lasting, join):
    """A journal of a broker that has ended: (broker, the path of its newest file)."""
    broker = lasting()
    a = join(broker, "a")
    a.subscribe(("t", 2))
    join(broker, "b").publish("t", "x", qos=2)
    a.expect_publish("t", "x", flow=False)
    broker.kill()
    folder = journal_of(broker)
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if ".journal-" in name and store(path).stdout.count("\n") > 3:
            yield broker, path
            break
    else:
        raise AssertionError(f"no journal in {os.listdir(folder)}")
    broker.start()


def test_store_prints_a_journal(written):
    broker, path = written
    for what in path, journal_of(broker):
        done = store(what)
        assert done.returncode == 0 and not done.stderr, done
        for line in (r"^session 1 .*'a' never expires$", r"^subscribe session 1 qos 2 id 0 't'$",
                     r"^message \d+ qos 2 topic 't' payload of 1 bytes$", r"^queue session 1 delivery \d+ message",
                     r"^sent session 1 delivery \d+ packet 1$", r"^got session 2 packet \d+$",
                     r"^let-go session 2 packet \d+$", r"^\d+ records, \d+ bytes in \d files\.$"):
            assert re.search(line, done.stdout, re.M), f"{line} in {done.stdout}"


def test_store_tells_damage(written, tmp_path):
    _, path = written
    data = open(path, "rb").read()
    copy = tmp_path / os.path.basename(path)
    used = len(data.rstrip(b"\0"))
    for broken in (data[:used - 20] + b"\xff" + data[used - 19:], data[:used - 3]):
        copy.write_bytes(broken)
        done = store(str(copy))
        assert done.returncode == 1 and "Damaged: " in done.stdout, done
        assert re.search(r"^session 1 ", done.stdout, re.M)


def test_store_of_what_is_no_journal(tmp_path):
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "empty").write_text("")
    (tmp_path / "folder").mkdir()
    for name in "text", "empty", "folder", "missing":
        done = store(str(tmp_path / name))
        assert done.returncode == 3 and done.stderr.startswith("Error: ") and not done.stdout, (name, done)
    assert store().returncode == 3
    assert store("--help").returncode == 0


def test_damaged_journal_at_the_start(lasting, join):
    """The broker starts with what comes before, says so, and keeps the rest aside."""
    broker = lasting()
    a = join(broker, "a")
    a.subscribe(("t", 1))
    sender = join(broker, "b")
    for i in range(20):
        sender.publish("t", f"m{i}", qos=1)
    broker.kill()
    folder = journal_of(broker)
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        data = open(path, "rb").read()
        at = data.find(b"m10")
        if at > 0:
            with open(path, "r+b") as f:
                f.seek(at)
                f.write(b"M")
    broker.start()
    assert re.search("damaged", broker.log()), broker.log()
    assert any("damaged-" in name for name in os.listdir(folder))
    a = join(broker, "a", present=True)
    wanted = [("t", f"m{i}") for i in range(10)]
    assert eventually(a, wanted) == wanted


def test_journal_that_may_not_be_read(lasting, join):
    """Of another user, say: the start is refused, and with the rights in order nothing is missing."""
    broker = lasting()
    join(broker, "a").subscribe(("t", 1))
    for i in range(3):          # each start has a file of its own
        join(broker, "b").publish("t", f"m{i}", qos=1)
        kill(broker)
    broker.stop()
    folder = journal_of(broker)
    files = sorted(name for name in os.listdir(folder) if re.fullmatch("midge.(journal|snapshot)-[0-9a-f]{8}", name))
    assert len(files) > 2
    for name in files:
        os.chmod(os.path.join(folder, name), 0)
        code, _, log = broker.run()
        assert code == 1 and re.search(f"Error: Unable to read .*{name}: Permission denied. Check the perm", log), log
        os.chmod(os.path.join(folder, name), 0o600)
    for name in "spare-000000ff", "journal-new", "snapshot-new":    # which hold no state
        with open(os.path.join(folder, "midge." + name), "w") as f:
            os.chmod(f.fileno(), 0)
    broker.start()
    wanted = [("t", f"m{i}") for i in range(3)]
    assert eventually(join(broker, "a", present=True), wanted) == wanted


def test_one_journal_one_broker(lasting, new_broker):
    broker = lasting()
    other = new_broker(start=False, config=CONFIG.replace("{dir}", broker.dir))
    code, _, log = other.run()
    assert code != 0 and re.search(rf"Error: .*in use by process {broker.pid}", log), log
