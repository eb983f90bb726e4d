"""Options of the configuration file that change what clients see: each does what the README says."""

import os
import re

import pytest

from wire import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, SUBACK, V31, V311, V5, Will, wait_for


def test_connect_timeout(new_broker, dial):
    """Who connects and says nothing, or not all of a CONNECT, is let go, with a line in the log."""
    broker = new_broker("connect_timeout 1", args=["-v"])
    silent, slow = dial(broker), dial(broker)
    slow.send(b"\x10")
    silent.expect_closed(timeout=5)
    slow.expect_closed(timeout=5)
    broker.wait_log("disconnected: exceeded timeout. Cause: no CONNECT within connect_timeout")


def test_max_queued_bytes(new_broker, connect):
    """Beyond the bytes that may wait for a client, new messages are dropped; small ones still fit."""
    broker = new_broker("max_queued_bytes 1000", "max_queued_messages 0")
    away, pub = connect("away", broker=broker, clean=False), connect(broker=broker)
    away.subscribe("t", qos=1)
    away.disconnect()
    for payload in (b"a" * 600, b"b" * 600, b"c" * 100):
        pub.publish("t", payload, qos=1)
    away = connect("away", broker=broker, clean=False)
    away.expect_publish("t", b"a" * 600)
    away.expect_publish("t", b"c" * 100)
    away.nothing()
    broker.wait_log("Outgoing messages are being dropped for client away")


def test_queue_qos0_messages(new_broker, connect):
    """QoS 0 messages wait for a client that is away, if the operator wants it."""
    broker = new_broker("queue_qos0_messages true")
    away, pub = connect("away", broker=broker, clean=False), connect(broker=broker)
    away.subscribe("t", qos=1)
    away.disconnect()
    pub.publish("t", "zero")
    pub.ping()
    away = connect("away", broker=broker, clean=False)
    away.expect_publish("t", "zero", qos=0)


def test_upgrade_outgoing_qos(new_broker, connect):
    """Messages come at the QoS of the subscription, even above their own."""
    broker = new_broker("upgrade_outgoing_qos true")
    sub, pub = connect(broker=broker), connect(broker=broker)
    sub.subscribe("t", qos=2)
    pub.publish("t", "x", qos=0)
    sub.expect_publish("t", "x", qos=2)


def test_auto_id_prefix(new_broker, connect):
    broker = new_broker("auto_id_prefix class-")
    client = connect("", broker=broker, version=V5)
    assert re.fullmatch(r"class-[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}",
                        client.connack.prop("assigned_client_identifier"))


def test_clientid_prefixes(new_broker, dial):
    """Only identifiers that begin so are let in; an assigned one is the broker's own business."""
    broker = new_broker("clientid_prefixes lab-")
    dial(broker).connect("lab-1")
    dial(broker).connect("")
    for version, reason in ((V311, 2), (V5, 0x85)):
        for refused in ("lab", "other"):
            client = dial(broker, version=version)
            client.connect(refused, reason=reason)
            client.expect_closed()


def test_max_topic_alias_broker(new_broker, connect):
    """0: the broker uses no alias, whatever the client offers."""
    broker = new_broker("max_topic_alias_broker 0")
    sub = connect(broker=broker, version=V5, properties={"topic_alias_maximum": 10})
    sub.subscribe("t")
    for _ in range(2):
        sub.publish("t", "x")
        assert sub.expect_publish("t", "x").properties == []


def test_memory_limit(new_broker, connect):
    """What would go beyond the limit is refused, everybody else goes on, and there is room again
    when something is given back."""
    broker = new_broker("memory_limit 3000000", "sys_interval 1")
    greedy = connect(broker=broker, version=V5)
    other = connect(broker=broker)
    other.subscribe("small")
    kept, reason = 0, 0
    while reason < 0x80 and kept < 100:
        reason = greedy.publish(f"large/{kept}", bytes(100_000), qos=1, retain=True).reason
        kept += reason < 0x80
    assert reason == 0x97 and 15 < kept < 30
    other.publish("small", "still here")
    other.expect_publish("small", "still here")
    greedy.publish("large/0", "", qos=1, retain=True)
    greedy.publish("large/1", "", qos=1, retain=True)
    assert greedy.publish("large/new", bytes(100_000), qos=1, retain=True).reason < 0x80
    for version in (V311, V5):
        again = connect(broker=broker, version=version)
        again.subscribe("large/new")
        again.expect_publish("large/new")


def test_memory_limit_closes_an_old_client(new_broker, connect):
    """Before 5.0 no acknowledgement can say no: the connection ends, so that the client tries again."""
    broker = new_broker("memory_limit 2000000")
    client = connect(broker=broker)
    with pytest.raises(AssertionError):
        for i in range(100):
            client.publish(f"large/{i}", bytes(100_000), qos=1, retain=True)
    client.expect_closed()
    broker.wait_log("disconnected: quota exceeded")
    connect(broker=broker).ping()


def test_set_tcp_nodelay_false(new_broker, connect):
    """The option is taken; messages come all the same."""
    broker = new_broker("set_tcp_nodelay false")
    sub = connect(broker=broker)
    sub.subscribe("t")
    sub.publish("t", "x")
    sub.expect_publish("t", "x")


def test_log_is_one_line_per_event(new_broker, dial):
    """No client can move a terminal or forge a line: controls are shown as bytes, in both forms."""
    broker = new_broker(args=["-v"])
    client = dial(broker)
    client.connect("evil\x1b[31m\n1: forged\u009b31m")
    line = broker.wait_log("New client connected .* as evil")
    text = line if isinstance(line, str) else line.string
    assert r"evil\x1b[31m\x0a1: forged\xc2\x9b31m" in text


def test_filters_beyond_the_limit(new_broker, connect):
    """A SUBSCRIBE with more filters than are looked at: what is beyond is refused, not forgotten."""
    broker = new_broker("log_type information")
    client = connect(broker=broker, version=V5, timeout=20)
    suback = client.subscribe(*[f"f/{i}" for i in range(10_003)], check=False)
    assert suback.type == SUBACK
    assert suback.reasons == [0] * 10_000 + [0x97] * 3
    client.publish("f/9999", "x")
    assert client.expect(PUBLISH).topic == "f/9999"


# Options of a listener

TWO = "allow_anonymous true\nlistener {port} 127.0.0.1\n"


def second(broker):
    return ("127.0.0.1", broker.ports["port2"])


@pytest.fixture
def mounted(new_broker):
    """{port} is ordinary, the clients of {port2} live below school/."""
    return new_broker(config=TWO + "listener {port2} 127.0.0.1\nmount_point school/\n")


@pytest.mark.parametrize("version", [V311, V5], ids=["3.1.1", "5"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_mount_point(mounted, connect, version, qos):
    """Clients see their topics without it, all others with it."""
    outside = connect(broker=mounted, version=version)
    inside = connect(address=second(mounted), version=version)
    outside.subscribe("#", qos=qos)
    inside.subscribe("a/#", qos=qos)
    inside.publish("a/b", "up", qos=qos)
    inside.expect_publish("a/b", "up", qos=qos)
    outside.expect_publish("school/a/b", "up", qos=qos)
    outside.publish("school/a", "down", qos=qos)
    inside.expect_publish("a", "down", qos=qos)
    outside.publish("a/b", "other", qos=qos)
    inside.nothing()
    inside.unsubscribe("a/#")
    outside.publish("school/a", "again", qos=qos)
    inside.nothing()


def test_mount_point_of_retained_messages_and_wills(mounted, connect, dial):
    outside = connect(broker=mounted)
    outside.subscribe("#")
    lost = dial(address=second(mounted))
    lost.connect("lost", will=Will("gone", "x", retain=True))
    lost.close()
    outside.expect_publish("school/gone", "x")
    inside = connect(address=second(mounted))
    inside.subscribe("gone")
    inside.expect_publish("gone", "x", retain=True)


def test_mount_point_of_shared_subscriptions(mounted, connect):
    outside, inside = connect(broker=mounted), connect(address=second(mounted), version=V5)
    inside.subscribe("$share/team/jobs")
    outside.publish("jobs", "no")
    outside.publish("school/jobs", "yes")
    inside.expect_publish("jobs", "yes")
    assert inside.unsubscribe("$share/team/jobs").reasons == [0]


def test_mount_point_and_long_topics(mounted, connect):
    """A topic that gets too long is refused, and everything goes on."""
    inside = connect(address=second(mounted), version=V5)
    assert inside.publish("x" * 65535, "x", qos=1).reason == 0x97
    assert inside.subscribe("x" * 65535, check=False).reasons[0] >= 0x80
    inside.subscribe("x" * 65528)
    inside.publish("x" * 65528, "x")
    inside.expect_publish("x" * 65528, "x")


def test_mount_point_and_long_wills(mounted, dial):
    """A will whose topic gets too long is refused with its CONNECT; before 5.0 a filter is with its SUBACK."""
    for version, reason in ((V311, 3), (V5, 0x97)):
        client = dial(address=second(mounted), version=version)
        assert client.connect("lost", will=Will("x" * 65535, "x"), reason=None).reason == reason
        client.expect_closed()
    inside = dial(address=second(mounted))
    inside.connect("old")
    assert inside.subscribe("x" * 65535, check=False).reasons == [0x80]
    inside.ping()


def test_max_keepalive_before_5(new_broker, dial):
    """A client that cannot be told another keep alive is refused, with a line that says why."""
    broker = new_broker("max_keepalive 60")
    for keepalive in (1, 60):
        dial(broker).connect(f"k{keepalive}", keepalive=keepalive)
    for keepalive in (0, 61):
        after = broker.mark()
        client = dial(broker)
        client.connect(f"k{keepalive}", keepalive=keepalive, reason=2)
        client.expect_closed()
        broker.wait_log("keep alive above max_keepalive", after=after)


def test_accept_protocol_versions(new_broker, dial):
    broker = new_broker("accept_protocol_versions 3,5")
    for version in (V31, V5):
        dial(broker, version=version).connect(f"v{version}")
    client = dial(broker)
    client.connect("v4", reason=1)
    client.expect_closed()
    broker.wait_log("accept_protocol_versions")


def test_use_username_as_clientid(new_broker, dial):
    broker = new_broker("use_username_as_clientid true", args=["-v"])
    dial(broker).connect("ignored", username="anna")
    broker.wait_log(r"New client connected from \S+ as anna ")
    for fields in ({}, {"username": ""}):
        client = dial(broker, version=V5)
        client.connect("id", reason=0x87, **fields)
        client.expect_closed()


def test_listener_auto_id_prefix(new_broker, connect):
    broker = new_broker(config=TWO + "auto_id_prefix all-\nlistener {port2} 127.0.0.1\n"
                        "listener_auto_id_prefix second-\n")
    for address, prefix in ((broker.address, "all-"), (second(broker), "second-")):
        client = connect("", address=address, version=V5)
        assert client.connack.prop("assigned_client_identifier").startswith(prefix)


def test_bind_interface(new_broker, connect):
    connect(broker=new_broker("bind_interface lo")).ping()
    code, _, err = new_broker("bind_interface nosuch0", start=False).run()
    assert code == 1
    assert "bind_interface" in err


# Limits for all

def test_global_max_connections(new_broker, connect, dial):
    """Whoever comes when all places are taken is turned away, and may come when one is free."""
    broker = new_broker("global_max_connections 2")
    first, other = connect(broker=broker), connect(broker=broker)
    dial(broker).expect_closed()
    broker.wait_log(r"Client connection from \S+ denied: global_max_connections exceeded\.$")
    first.disconnect()
    connect(broker=broker).ping()
    other.ping()


@pytest.mark.parametrize("version, reason", [(V311, 3), (V5, 0x97)], ids=["3.1.1", "5"])
def test_global_max_clients(new_broker, connect, dial, version, reason):
    """Sessions count, those of clients that are away too; their owners may always come back."""
    broker = new_broker("global_max_clients 2")
    away = connect("away", broker=broker, clean=False)
    away.disconnect()
    here = connect("here", broker=broker)
    for name in ("third", ""):
        client = dial(broker, version=version)
        client.connect(name, reason=reason)
        client.expect_closed()
    away = connect("away", broker=broker, clean=False)
    assert away.connack.session_present
    here.disconnect()
    connect("third", broker=broker).ping()


@pytest.mark.parametrize("qos", [1, 2])
def test_max_inflight_bytes(new_broker, connect, qos):
    """As long as so many bytes are unacknowledged, no more are sent; one message always may."""
    broker = new_broker("max_inflight_bytes 1000")
    sub, pub = connect(broker=broker), connect(broker=broker)
    sub.subscribe("t", qos=qos)
    for i in range(4):
        pub.publish("t", bytes([i]) * 600, qos=qos)
    first, other = sub.expect_publish("t", flow=False), sub.expect_publish("t", flow=False)
    sub.nothing()
    for p in (first, other):
        if qos == 1:
            sub.ack(PUBACK, p.pid)
        else:
            sub.ack(PUBREC, p.pid)
            sub.await_packet(PUBREL, p.pid)
            sub.ack(PUBCOMP, p.pid)
    assert {sub.expect_publish("t").payload[0] for _ in range(2)} == {2, 3}
    pub.publish("t", bytes(5000), qos=qos)
    sub.expect_publish("t", bytes(5000))


# What stands in files

def test_main_file_of_debian(new_broker, connect):
    """As it is shipped, with folders of this test."""
    broker = new_broker(config="""\
# Place your local configuration in {dir}/conf.d/
#
# A full description of the configuration file is at
# /usr/share/doc/mosquitto/examples/mosquitto.conf.example

pid_file {dir}/run/mosquitto.pid

persistence true
persistence_location {dir}/lib/

log_dest file {dir}/log/mosquitto.log

include_dir {dir}/conf.d
""", args=["-p", "{port}"], start=False)
    os.mkdir(broker.path("conf.d"))
    broker.spawn()
    wait_for(lambda: os.path.exists(broker.path("log/mosquitto.log")), "log file")
    wait_for(lambda: "running" in open(broker.path("log/mosquitto.log")).read(), "line in the log file")
    connect(broker=broker).ping()
    assert open(broker.path("run/mosquitto.pid")).read() == str(broker.pid)
    assert os.listdir(broker.path("lib"))


# Who may connect, in words

@pytest.mark.parametrize("config, text", [
    (None, "Port {port}: everybody may connect, from this machine only, without a password"),
    ("allow_anonymous false\n", "Port {port}: everybody with a user name may connect, from this machine only"),
    ("listener {port}\nallow_anonymous true\n", "Port {port}: everybody may connect, from every network"),
    ("listener {port} 127.0.0.1\n", "Port {port}: nobody may connect, from this machine only"),
    ("listener {port} 0.0.0.0\n", "Port {port}: nobody may connect, at the address 0.0.0.0"),
    ("listener {port}\nbind_interface lo\n", "Port {port}: nobody may connect, through the interface lo"),
    ("listener 0 {dir}/sock\nallow_anonymous true\n", "Socket {dir}/sock: everybody may connect, from programs"),
], ids=["local", "local-users", "open", "closed", "address", "interface", "unix"])
def test_who_may_connect(new_broker, config, text):
    """One line for each listener tells it, and what would change it."""
    broker = new_broker(config=config, args=[] if config and "listener" in config else ["-p", "{port}"])
    text = text.format(dir=broker.dir, port=broker.ports.get("port"))
    line = broker.wait_log("^[0-9]+: " + re.escape(text)).string
    assert re.search(r"listener 1883|password_file FILE", line)
    assert broker.log().count("may connect, ") == 1


def test_plugin_of_sqlite(new_broker, connect):
    """Mosquitto 2.1's lines for its database turn our journal on, with a warning each."""
    broker = new_broker("user root", "plugin /usr/lib/mosquitto_persist_sqlite.so", "plugin_opt_sync normal",
                        "persistence_location {dir}")
    broker.wait_log("Warning: midge keeps a journal of its own")
    broker.wait_log("Warning: plugin_opt_sync has no effect")
    connect(broker=broker).ping()
    assert os.path.exists(broker.path("midge.lock"))
