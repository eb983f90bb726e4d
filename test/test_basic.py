"""Command line, configuration, listeners, log and $SYS."""

import os
import re
import signal
import socket
import stat

import pytest

from wire import CONNACK, PINGRESP, PUBACK, V5, V31, V311, Client, Closed, Will, connect as connect_packet, \
    disconnect, free_port, has_ipv6, pingreq, publish, wait_for

NAME = "(midge|mosquitto)"


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def answers(address):
    """A broker accepts a client at this address."""
    try:
        client = Client(address)
    except OSError:
        return False
    try:
        client.connect("probe")
        client.disconnect()
        return True
    finally:
        client.close()


def write(broker, name, text):
    with open(broker.path(name), "w") as f:
        f.write(text)


# Command line

@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(new_broker, flag):
    code, out, err = new_broker(config=None, args=[flag], start=False).run()
    assert code == 0
    for option in ("-c", "-h", "-p", "-v"):
        assert re.search(rf"(^|\s){option}\b", out + err), out + err


def test_version(new_broker):
    code, out, err = new_broker(config=None, args=["--version"], start=False).run()
    assert code == 0
    assert re.match(NAME + r" version \d\S*", out)


@pytest.mark.parametrize("args", [["--no-such-flag"], ["-x"], ["-p"], ["-p", "x"], ["-p", "70000"], ["-p", "0x"],
                                  ["-c"], ["surplus"]], ids=" ".join)
def test_bad_flags(new_broker, args):
    code, out, err = new_broker(config=None, args=args, start=False).run()
    assert code == 3
    assert err or out


def test_missing_config_file(new_broker):
    code, _, err = new_broker(config=None, args=["-c", "{dir}/no-such-file"], start=False).run()
    assert code == 3
    assert "no-such-file" in err


def test_config_file_by_its_long_name(new_broker):
    broker = new_broker(config=None, args=["--config-file", "{dir}/other.conf"], start=False)
    broker.ports["port"] = free_port()
    write(broker, "other.conf", f"listener {broker.port} 127.0.0.1\nallow_anonymous true\n")
    broker.start()
    assert answers(broker.address)


def test_local_only_mode(new_broker):
    """Without a config file: this machine only, anonymous clients welcome."""
    broker = new_broker(config=None, args=["-p", "{port}"])
    broker.wait_log(r"^\d+: Using default config\.$")
    broker.wait_log("Starting in local only mode. Connections will only be possible from clients running on this machine.")
    broker.wait_log("Create a configuration file which defines a listener to allow remote access.")
    assert answers(broker.address)
    assert not answers(("127.0.0.2", broker.port))
    if has_ipv6():
        assert answers(("::1", broker.port))


def test_local_only_mode_with_a_config_file_that_names_no_listener(new_broker):
    broker = new_broker(config="max_inflight_messages 5\n", args=["-p", "{port}"])
    broker.wait_log("Starting in local only mode")
    assert answers(broker.address)
    assert not answers(("127.0.0.2", broker.port))


def test_several_ports_by_flag(new_broker):
    broker = new_broker(config=None, args=["-p", "{port}", "--port", "{port2}"])
    assert answers(broker.address)
    assert answers(("127.0.0.1", broker.ports["port2"]))


def test_a_configured_listener_overrides_the_port_flag(new_broker):
    broker = new_broker(args=["-p", "{port2}"])
    assert answers(broker.address)
    assert not answers(("127.0.0.1", broker.ports["port2"]))


def needs_flag(new_broker, flag):
    """Skips the test while the usage text does not know the flag."""
    _, out, err = new_broker(config=None, args=["-h"], start=False).run()
    if not re.search(rf"(^|\s){flag}\b", out + err):
        pytest.skip(f"{flag} is not supported yet")


def test_test_config(new_broker):
    needs_flag(new_broker, "--test-config")
    code, out, err = new_broker(args=["--test-config"], start=False).run()
    assert code == 0
    assert "Configuration file is OK." in out + err
    code, out, err = new_broker("nonsense 1", args=["--test-config"], start=False).run()
    assert code != 0
    assert "nonsense" in out + err


def test_daemon(new_broker):
    """-d: the command returns, a child goes on and writes the pid file."""
    needs_flag(new_broker, "-d")
    broker = new_broker("pid_file {dir}/pid", args=["-d"], start=False)
    code, _, _ = broker.run()
    assert code == 0
    pid = int(wait_for(lambda: os.path.exists(broker.path("pid")) and open(broker.path("pid")).read(), "pid file"))
    try:
        wait_for(lambda: answers(broker.address), "daemon")
        assert os.getsid(pid) != os.getsid(0)
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: ended(pid), "end of the daemon")
    assert not os.path.exists(broker.path("pid"))


def ended(pid):
    """The process has gone, or nobody has asked for its exit code yet."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


# Configuration file

def test_grammar(new_broker, connect):
    """Comments, blanks, line ends and words behind a boolean."""
    config = ("# comment\n\n   \n#listener 1\n  listener   {port}   127.0.0.1  \r\nallow_anonymous true # note\r\n"
              "max_keepalive 100\nmax_keepalive 200\nretain_available false\nretain_available true\n"
              "#" + "x" * 100000 + "\nmax_inflight_messages 7")
    broker = new_broker(config=config)
    client = connect(broker=broker, version=V5)
    assert client.connack.prop("receive_maximum") == 7
    assert client.connack.prop("retain_available", 1) == 1


def test_tab_separates_like_a_space(new_broker):
    broker = new_broker(config="listener\t{port}\t127.0.0.1\nallow_anonymous\ttrue\n")
    assert answers(broker.address)


@pytest.mark.parametrize("line, known", [("allow_anonymus true", "allow_anonymous"), ("listner 1883", "listener"),
                                         ("max_inflight_message 5", "max_inflight_messages")])
def test_unknown_option(new_broker, line, known):
    """Exit code 3; says where, and what was meant."""
    broker = new_broker(config="listener {port} 127.0.0.1\n\n" + line + "\n", start=False)
    code, _, err = broker.run()
    assert code == 3
    assert "Unknown configuration variable" in err
    assert line.split()[0] in err
    assert f"{broker.conf}:3" in err
    assert re.search(rf"did you mean ['\"]?{known}\b", err)


BAD_LINES = [
    "listener", "listener abc", "listener 70000", "listener -1", "listener 0", "allow_anonymous", "allow_anonymous maybe",
    "allow_anonymous yes", "max_qos 3", "max_qos -1", "max_packet_size 10", "max_packet_size ten",
    "max_inflight_messages 70000", "max_inflight_messages -1", "max_inflight_messages 10abc", "max_inflight_messages",
    "max_queued_messages x", "max_keepalive 70000", "log_type nonsense", "log_dest nowhere", "log_dest file",
    "socket_domain ipv5", "sys_interval -1", "sys_interval x", "persistent_client_expiration 5x",
    "persistence maybe", "message_size_limit -1",
]


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_values(new_broker, line):
    """Exit code 3, naming file and line, option or value."""
    broker = new_broker(line, start=False)
    code, _, err = broker.run()
    assert code == 3, err
    assert f"{broker.conf}:3" in err
    assert any(word in err for word in line.split())


@pytest.mark.parametrize("first, second", [("password_file {dir}/a", "password_file {dir}/b"),
                                           ("acl_file {dir}/a", "acl_file {dir}/b"),
                                           ("persistence_location {dir}/", "persistence_location {dir}/b/"),
                                           ("log_dest file {dir}/a", "log_dest file {dir}/b")],
                         ids=lambda line: line.split()[0])
def test_a_string_given_twice(new_broker, first, second):
    broker = new_broker(first, second, start=False)
    for name in "ab":
        write(broker, name, "")
    code, _, err = broker.run()
    broker.skip_if_missing()
    assert code == 3
    assert f"{broker.conf}:4" in err


@pytest.mark.parametrize("line", ["auth_plugin /no/such.so", "plugin /no/such.so", "crlfile {dir}/x",
                                  "tls_version tlsv1.3", "connection bridge", "psk_file {dir}/x", "protocol mqttsn",
                                  "certfile {dir}/only-this"])
def test_options_that_are_refused(new_broker, line):
    """What restricts access or promises delivery is never ignored in silence."""
    code, _, err = new_broker(line, start=False).run()
    assert code != 0
    assert line.split()[0] in err


@pytest.mark.parametrize("line", ["retry_interval 20", "websockets_log_level 0", "allow_duplicate_messages true"])
def test_options_that_are_ignored(new_broker, line):
    """One warning with file and line."""
    broker = new_broker(line)
    where = re.escape(f"{broker.conf}:3")
    broker.wait_log(where)
    assert answers(broker.address)
    assert len([text for text in broker.log().splitlines() if line.split()[0] in text]) == 1


def test_include_dir(new_broker, connect):
    """Files *.conf in order, upper case before lower case; the log names them."""
    broker = new_broker("include_dir {dir}/conf.d", start=False)
    os.mkdir(broker.path("conf.d"))
    for name, value in [("b.conf", 3), ("B.conf", 2), ("a.conf", 1), ("z.txt", 9)]:
        write(broker, "conf.d/" + name, f"max_inflight_messages {value}\n")
    broker.start()
    assert connect(broker=broker, version=V5).connack.prop("receive_maximum") == 3
    names = [m.group(1) for m in map(re.compile(r"Loading config file \S*/(\S+\.conf)").search, broker.lines) if m]
    assert names == ["a.conf", "B.conf", "b.conf"]


def test_include_dir_that_is_missing(new_broker):
    broker = new_broker("include_dir {dir}/none", start=False)
    code, _, err = broker.run()
    assert code == 3
    assert f"{broker.conf}:3" in err


def test_error_in_an_included_file(new_broker):
    broker = new_broker("include_dir {dir}/conf.d", start=False)
    os.mkdir(broker.path("conf.d"))
    write(broker, "conf.d/x.conf", "# fine\nnonsense 1\n")
    code, _, err = broker.run()
    assert code == 3
    assert "x.conf:2" in err


# Listeners

def test_address_in_use(new_broker):
    """Exit code 1; the message names who holds the port: this process."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        broker = new_broker(start=False)
        broker.ports["port"] = holder.getsockname()[1]
        code, _, err = broker.run()
    assert code == 1
    assert "ddress already in use" in err
    assert str(broker.ports["port"]) in err
    assert re.search(rf"\b{os.getpid()}\b", err)
    with open("/proc/self/comm") as f:
        assert f.read().strip() in err


def test_one_listener_in_use_is_enough_to_fail(new_broker):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        broker = new_broker("listener {port2} 127.0.0.1", start=False)
        broker.ports["port2"] = holder.getsockname()[1]
        code, _, err = broker.run()
    assert code == 1
    assert "ddress already in use" in err


def test_several_listeners(new_broker, connect):
    broker = new_broker("listener {port2} 127.0.0.1", "listener {port3} 127.0.0.2")
    clients = [connect(address=address) for address in
               (broker.address, ("127.0.0.1", broker.ports["port2"]), ("127.0.0.2", broker.ports["port3"]))]
    for client in clients:
        client.subscribe("t")
    clients[0].publish("t", "x")
    for client in clients:
        client.expect_publish("t", "x")
    for name in ("port", "port2", "port3"):
        broker.wait_log(rf"Opening ipv4 listen socket on port {broker.ports[name]}\.")


@needs_ipv6
def test_ipv6_listener(new_broker):
    broker = new_broker(config="listener {port} ::1\nallow_anonymous true\n")
    broker.wait_log(rf"Opening ipv6 listen socket on port {broker.port}\.")
    assert answers(("::1", broker.port))
    assert not answers(broker.address)


@needs_ipv6
def test_listener_on_all_addresses(new_broker):
    broker = new_broker(config="listener {port}\nallow_anonymous true\n")
    assert answers(broker.address) and answers(("127.0.0.2", broker.port)) and answers(("::1", broker.port))


@needs_ipv6
@pytest.mark.parametrize("domain", ["ipv4", "ipv6"])
def test_socket_domain(new_broker, domain):
    broker = new_broker(config=f"listener {{port}}\nsocket_domain {domain}\nallow_anonymous true\n")
    assert answers(broker.address) == (domain == "ipv4")
    assert answers(("::1", broker.port)) == (domain == "ipv6")


def test_listener_by_host_name(new_broker):
    broker = new_broker(config="listener {port} localhost\nallow_anonymous true\n")
    assert answers(broker.address)
    assert not answers(("127.0.0.2", broker.port))


def test_port_and_bind_address(new_broker):
    """The default listener, configured the old way."""
    broker = new_broker(config="port {port}\nbind_address 127.0.0.1\nallow_anonymous true\n")
    assert answers(broker.address)
    assert not answers(("127.0.0.2", broker.port))


def test_unix_socket(new_broker, connect):
    """listener 0 PATH; the socket goes when the broker does, and is replaced if left over."""
    broker = new_broker("listener 0 {dir}/socket")
    path = broker.path("socket")
    local, remote = connect(address=path), connect(broker=broker)
    local.subscribe("t", qos=1)
    remote.publish("t", "x", qos=1)
    local.expect_publish("t", "x")
    broker.wait_log("Opening unix listen socket on path " + re.escape(path))
    broker.kill()
    broker.start()
    assert answers(path)
    broker.stop()
    assert not os.path.exists(path)


# Who is let in

@pytest.mark.parametrize("config", ["listener {port} 127.0.0.1\n", "listener {port} 127.0.0.1\nallow_anonymous false\n",
                                    "port {port}\n"], ids=["default", "explicit", "port"])
@pytest.mark.parametrize("version, reason", [(V31, 5), (V311, 5), (V5, 0x87)], ids=["3.1", "3.1.1", "5"])
def test_anonymous_clients_are_refused(new_broker, dial, config, version, reason):
    """The default once a listener is configured. [MQTT-3.2.2-4] [MQTT-3.2.2-5]"""
    client = dial(new_broker(config=config), version=version)
    assert not client.connect("x", reason=reason).session_present
    client.expect_closed()


def test_anonymous_false_in_local_only_mode(new_broker, dial):
    """Honoured even there."""
    client = dial(new_broker(config="allow_anonymous false\n", args=["-p", "{port}"]))
    client.connect("x", reason=5)
    client.expect_closed()


def test_missing_password_file(new_broker):
    broker = new_broker("password_file {dir}/none", start=False)
    code, _, err = broker.run()
    broker.skip_if_missing()
    assert code == 13
    assert "none" in err


def test_missing_acl_file(new_broker):
    broker = new_broker("acl_file {dir}/none", start=False)
    code, _, err = broker.run()
    broker.skip_if_missing()
    assert code == 13
    assert "none" in err


# Log

def test_log_of_start_and_stop(new_broker):
    broker = new_broker()
    for text in (NAME + r" version \S+ starting", r"Config loaded from " + re.escape(broker.conf) + r"\.",
                 rf"Opening ipv4 listen socket on port {broker.port}\.", NAME + r" version \S+ running"):
        broker.wait_log(r"^\d+: " + text + "$")
    broker.stop()
    assert re.search(r"^\d+: " + NAME + r" version \S+ terminating$", broker.log(), re.M)


def in_order(log, patterns):
    """Each pattern matches the text of a line after the line of the one before."""
    lines = iter(log.splitlines())
    for pattern in patterns:
        assert any(re.fullmatch(r"\d+: " + pattern, line) for line in lines), f"{pattern} not in its place in\n{log}"


def test_log_of_connections(new_broker, connect):
    """-v: connect with and without Will, user name, session; the ways to leave."""
    broker = new_broker(args=["-v"])
    one = connect("one", broker=broker, keepalive=60)
    one.send(pingreq())
    one.expect(PINGRESP)
    one.disconnect()
    two = connect("two", broker=broker, clean=False, keepalive=7, username="admin", will=Will("w/t", "abc", 1, True))
    again = connect("two", broker=broker, clean=False)
    two.expect_closed()
    port = again.sock.getsockname()[1]
    again.close()
    wait_for(lambda: re.search(r"Client two (closed|\[\S+\] disconnected|disconnected)[^\n]*\Z", broker.log()), "end")
    address = r"127\.0\.0\.1:\d+"
    in_order(broker.log(), [
        rf"New connection from {address} on port {broker.port}\.",
        rf"New client connected from {address} as one \(p[24], c1, k60\)\.", r"No will message specified\.",
        r"Sending CONNACK to one \(0, 0\)", r"Received PINGREQ from one", r"Sending PINGRESP to one",
        r"Received DISCONNECT from one", r"Client one .*"])
    in_order(broker.log(), [
        rf"New client connected from {address} as two \(p[24], c0, k7, u'admin'\)\.",
        r"Will message specified \(3 bytes\) \(r1, q1\)\.", r"\tw/t", r"Sending CONNACK to two \(0, 0\)",
        rf"New connection from 127\.0\.0\.1:{port} on port {broker.port}\.",
        r"Client two already connected, closing old connection\.",
        rf"New client connected from 127\.0\.0\.1:{port} as two \(p[24], c0, k60\)\.",
        r"Sending CONNACK to two \(1, 0\)", r"Client two .*"])


def test_log_of_refusals(new_broker, dial):
    broker = new_broker(config="listener {port} 127.0.0.1\n", args=["-v"])
    client = dial(broker)
    client.connect("x", reason=5)
    client.expect_closed()
    broker.wait_log(r"Sending CONNACK to 127\.0\.0\.1(:\d+)? \(0, 5\)")
    broker.wait_log(r"Client .*disconnected.*not authorised")
    client = dial(broker)
    client.send(b"\x30\x00")
    client.expect_closed()
    broker.wait_log(r"Client .*disconnected.*protocol error")


def test_log_of_messages(new_broker, connect):
    """-v: each packet of the three flows, the shared subscription left out."""
    broker = new_broker(args=["-v"])
    sub, pub = connect("sub", broker=broker), connect("pub", broker=broker)
    sub.subscribe(("a/+", 2), ("b", 1), pid=9)
    pub.publish("a/x", "hello", qos=0)
    sub.expect_publish("a/x")
    pub.publish("a/x", "hello", qos=1, pid=7, retain=True)
    one = sub.expect_publish("a/x")
    pub.publish("a/x", "hello", qos=2, pid=8)
    two = sub.expect_publish("a/x")
    sub.unsubscribe("b")
    sub.ping()
    m1, m2 = one.pid, two.pid
    broker.stop()
    log = broker.log()
    in_order(log, [r"Received SUBSCRIBE from sub", r"\ta/\+ \(QoS 2\)", r"sub 2 a/\+", r"\tb \(QoS 1\)", r"sub 1 b",
                   r"Sending SUBACK to sub"])
    in_order(log, [r"Received PUBLISH from pub \(d0, q0, r0, m0, 'a/x', \.\.\. \(5 bytes\)\)",
                   r"Sending PUBLISH to sub \(d0, q0, r0, m0, 'a/x', \.\.\. \(5 bytes\)\)"])
    in_order(log, [r"Received PUBLISH from pub \(d0, q1, r1, m7, 'a/x', \.\.\. \(5 bytes\)\)",
                   r"Sending PUBACK to pub \(m7, rc0\)"])
    in_order(log, [rf"Sending PUBLISH to sub \(d0, q1, r0, m{m1}, 'a/x', \.\.\. \(5 bytes\)\)",
                   rf"Received PUBACK from sub \(Mid: {m1}, RC:0\)"])
    in_order(log, [r"Received PUBLISH from pub \(d0, q2, r0, m8, 'a/x', \.\.\. \(5 bytes\)\)",
                   r"Sending PUBREC to pub \(m8, rc0\)", r"Received PUBREL from pub \(Mid: 8\)",
                   r"Sending PUBCOMP to pub \(m8\)"])
    in_order(log, [rf"Sending PUBLISH to sub \(d0, q2, r0, m{m2}, 'a/x', \.\.\. \(5 bytes\)\)",
                   rf"Received PUBREC from sub \(Mid: {m2}\)", rf"Sending PUBREL to sub \(m{m2}\)",
                   rf"Received PUBCOMP from sub \(Mid: {m2}, RC:0\)",
                   r"Received UNSUBSCRIBE from sub", r"\tb", r"sub b", r"Sending UNSUBACK to sub"])


def test_log_is_one_line_per_event(new_broker, connect):
    """Line ends and control characters of a client cannot forge lines."""
    broker = new_broker(args=["-v"])
    try:
        client = connect("x\n1: forged", broker=broker, username="y\n2: forged")
        client.subscribe("t\n3: forged")
        client.publish("t\n4: forged")
        client.ping()
    except (Closed, AssertionError):
        pass
    assert answers(broker.address)
    broker.stop()
    assert not re.search(r"^\d: forged", broker.log(), re.M)


def test_default_log_types(new_broker, connect):
    """error, warning, notice, information; not debug, not subscriptions."""
    broker = new_broker()
    client = connect("one", broker=broker)
    client.subscribe("t")
    client.publish("t", "x")
    client.disconnect()
    broker.wait_log(r"New client connected from \S+ as one")
    broker.wait_log(r"Client one .*")
    assert not re.search("SUBSCRIBE|PUBLISH|CONNACK|one 0 t", broker.log())


@pytest.mark.parametrize("type, shown, hidden", [
    ("notice", "New client connected", "running"), ("information", "running", "New client connected"),
    ("debug", "Received SUBSCRIBE", "New client connected"), ("subscribe", r"one 0 t", "Received SUBSCRIBE"),
    ("unsubscribe", r"one t", "one 0 t"), ("all", "Received SUBSCRIBE", None)])
def test_log_type(new_broker, connect, type, shown, hidden):
    broker = new_broker(f"log_type {type}", start=False).spawn()
    wait_for(lambda: answers(broker.address), "listener")
    client = connect("one", broker=broker)
    client.subscribe("t")
    client.unsubscribe("t")
    client.disconnect()
    broker.wait_log(shown)
    broker.stop()
    assert hidden is None or not re.search(hidden, broker.log())


def test_log_dest_file(new_broker):
    """Everything goes there, mode 0600; nothing to stderr."""
    broker = new_broker("log_dest file {dir}/log", start=False).spawn()
    path = broker.path("log")
    wait_for(lambda: os.path.exists(path) and re.search(NAME + r" version \S+ running", open(path).read()), "log file")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert answers(broker.address)
    broker.stop()
    with open(path) as f:
        text = f.read()
    assert all(re.match(r"\d+: ", line) for line in text.splitlines())
    assert re.search(r"^\d+: New client connected from \S+ as probe", text, re.M)
    assert "terminating" in text
    assert "New client" not in broker.log()


def test_log_dest_stdout_and_none(new_broker):
    broker = new_broker("log_dest stdout", start=False).spawn()
    wait_for(lambda: answers(broker.address), "listener")
    broker.stop()
    assert "running" in broker.output() and "running" not in broker.log()
    broker = new_broker("log_dest none", start=False).spawn()
    wait_for(lambda: answers(broker.address), "listener")
    broker.stop()
    assert "running" not in broker.log()


def test_several_log_destinations(new_broker):
    broker = new_broker("log_dest stderr", "log_dest file {dir}/log")
    wait_for(lambda: "running" in open(broker.path("log")).read(), "log file")


def test_log_dest_topic(new_broker, connect):
    """Notices under $SYS/broker/log/N, not retained."""
    broker = new_broker("log_dest topic", "log_dest stderr")
    sub = connect(broker=broker)
    sub.subscribe("$SYS/broker/log/N")
    connect("somebody", broker=broker).disconnect()
    while True:
        p = sub.expect_publish("$SYS/broker/log/N", retain=False)
        if re.search(rb"New client connected from \S+ as somebody", p.payload):
            break


def test_log_timestamps(new_broker):
    broker = new_broker("log_timestamp false")
    broker.wait_log("^" + NAME + r" version \S+ running$")
    broker = new_broker("log_timestamp_format %Y-%m-%dT%H:%M:%S")
    broker.wait_log(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d: " + NAME + r" version \S+ running$")


def test_connection_messages_false(new_broker, connect):
    broker = new_broker("connection_messages false")
    connect("quiet", broker=broker).disconnect()
    broker.stop()
    assert "quiet" not in broker.log()


# $SYS

INTEGER = rb"\d+"
LOAD = rb"\d+\.\d\d"

SYS = {
    "version": rb"(midge|mosquitto) version \S+", "uptime": rb"\d+ seconds",
    "clients/total": INTEGER, "clients/connected": INTEGER, "clients/active": INTEGER,
    "clients/disconnected": INTEGER, "clients/inactive": INTEGER, "clients/expired": INTEGER, "clients/maximum": INTEGER,
    "messages/received": INTEGER, "messages/sent": INTEGER, "messages/stored": INTEGER,
    "store/messages/count": INTEGER, "store/messages/bytes": INTEGER, "retained messages/count": INTEGER,
    "subscriptions/count": INTEGER, "shared_subscriptions/count": INTEGER,
    "publish/messages/received": INTEGER, "publish/messages/sent": INTEGER, "publish/messages/dropped": INTEGER,
    "publish/bytes/received": INTEGER, "publish/bytes/sent": INTEGER,
    "bytes/received": INTEGER, "bytes/sent": INTEGER, "heap/current": INTEGER, "heap/maximum": INTEGER,
}
SYS.update((f"load/{what}/{span}min", LOAD)
           for what in ("messages/received", "messages/sent", "publish/received", "publish/sent", "publish/dropped",
                        "bytes/received", "bytes/sent", "sockets", "connections") for span in (1, 5, 15))


def sys_values(client, names):
    """The next value of each of these topics below $SYS/broker/."""
    values = {}
    while set(names) - set(values):
        p = client.expect_publish()
        values[p.topic.removeprefix("$SYS/broker/")] = p.payload
    return values


def test_sys_names_and_formats(new_broker, connect):
    """All of them appear, retained, as decimal text."""
    broker = new_broker("sys_interval 1")
    client = connect(broker=broker)
    client.subscribe("$SYS/#")
    client.publish("t", "x", qos=1)
    values = {}
    try:
        while set(SYS) - set(values):
            p = client.expect_publish()
            values[p.topic.removeprefix("$SYS/broker/")] = p.payload
    except AssertionError:
        pass
    missing = sorted(set(SYS) - set(values))
    assert not missing
    for name, form in SYS.items():
        assert re.fullmatch(form, values[name]), f"{name}: {values[name]}"
    late = connect(broker=broker)
    late.subscribe(*("$SYS/broker/" + name for name in SYS), qos=2)
    got = {late.expect_publish(retain=True, qos=2).topic.removeprefix("$SYS/broker/") for _ in SYS}
    assert got == set(SYS)


def test_sys_values(new_broker, connect):
    """The numbers mean what they say."""
    broker = new_broker("sys_interval 1")
    watch = connect(broker=broker)
    away = connect("away", broker=broker, clean=False)
    away.subscribe("a", "b", "c")
    away.disconnect()
    pub = connect(broker=broker)
    pub.publish("r", "12345", qos=1, retain=True)
    for i in range(20):
        pub.publish("none", "12345")
    pub.ping()
    watch.subscribe("$SYS/broker/clients/+", "$SYS/broker/subscriptions/count", "$SYS/broker/publish/+/received",
                    "$SYS/broker/messages/received")
    wanted = {"clients/connected": 2, "clients/active": 2, "clients/disconnected": 1, "clients/inactive": 1,
              "clients/total": 3, "subscriptions/count": 7,
              "publish/messages/received": 21, "publish/bytes/received": 105}
    values = {}

    def right():
        """clients/maximum: those connected at once, or with those away."""
        return all(values.get(name) == n for name, n in wanted.items()) and values.get("clients/maximum") in (2, 3)

    while not right():
        try:
            p = watch.expect_publish()
        except AssertionError:
            assert right(), f"{values}, not {wanted}"
        values[p.topic.removeprefix("$SYS/broker/")] = int(p.payload)
    before = values["messages/received"]
    for _ in range(50):
        pub.ping()
    while values["messages/received"] < before + 50:
        p = watch.expect_publish()
        values[p.topic.removeprefix("$SYS/broker/")] = int(p.payload)
    assert values["messages/received"] < before + 60


def test_sys_loads(new_broker, connect):
    """What came within a moment is its number in the average of a minute, a fifth of it in that of five; and it fades."""
    broker = new_broker("sys_interval 1")
    watch = connect(broker=broker)
    pub = connect(broker=broker)
    for _ in range(1000):
        pub.publish("none", "x")
    pub.ping()
    watch.subscribe("$SYS/broker/load/publish/received/+")
    seen = {1: [0], 5: [0], 15: [0]}
    while len(seen[15]) < 6:
        p = watch.expect_publish()
        seen[int(re.search(r"(\d+)min$", p.topic)[1])].append(float(p.payload))
    for minutes, expected in (1, 990), (5, 200), (15, 67):
        values = seen[minutes]
        assert 0.93 * expected < max(values) < 1.02 * expected, values
        assert values[-1] < max(values), values
    assert max(seen[1]) - seen[1][-1] > 10 * (max(seen[5]) - seen[5][-1]), seen


def test_sys_is_published_when_it_changes(new_broker, connect):
    """At each interval, only what has another value."""
    broker = new_broker("sys_interval 1")
    client = connect(broker=broker)
    client.subscribe("$SYS/broker/uptime", "$SYS/broker/subscriptions/count", "$SYS/broker/version")
    seen = []
    while sum(p.topic == "$SYS/broker/uptime" for p in seen) < 4:
        seen.append(client.expect_publish())
    for name in ("uptime", "subscriptions/count"):
        values = [p.payload for p in seen if p.topic == "$SYS/broker/" + name]
        assert len(values) == len(set(values)) or values[0] == values[1]   # once retained, once live
    assert sum(p.topic == "$SYS/broker/version" for p in seen) == 1


def test_sys_interval_0(new_broker, connect):
    """Nothing is counted in public; the version may be told."""
    broker = new_broker("sys_interval 0")
    client = connect(broker=broker)
    client.subscribe("$SYS/#")
    client.send(pingreq())
    p = client.receive()
    if p.type != PINGRESP:
        assert p.topic == "$SYS/broker/version"
        client.expect(PINGRESP)
    client.nothing()


# The end

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_signals_that_end_it(new_broker, connect, number):
    """Exit code 0, clients are disconnected."""
    broker = new_broker()
    client, other = connect(broker=broker), connect(broker=broker, clean=False)
    client.subscribe("t")
    broker.signal(number)
    assert broker.wait() == 0
    client.expect_closed()
    other.expect_closed()
    assert "terminating" in broker.log()


def test_pid_file(new_broker):
    """The decimal pid, removed at the end."""
    broker = new_broker("pid_file {dir}/pid")
    broker.skip_if_missing()
    with open(broker.path("pid")) as f:
        assert f.read().strip() == str(broker.pid)
    broker.stop()
    assert not os.path.exists(broker.path("pid"))


def test_the_end_with_a_peer_that_does_not_read(new_broker, connect):
    """Nobody can hold up the end."""
    broker = new_broker()
    slow, pub = connect(broker=broker), connect(broker=broker)
    slow.subscribe("t")
    for _ in range(1000):
        pub.publish("t", bytes(10000))
    pub.ping()
    broker.stop()


def test_restart_on_the_same_port(new_broker):
    """Connections of the former process do not keep the port."""
    broker = new_broker()
    for _ in range(3):
        assert answers(broker.address)
        broker.stop()
        broker.start()
    assert answers(broker.address)


def test_sigpipe_and_vanished_peers(new_broker, dial):
    """Answers to clients that are gone do no harm."""
    broker = new_broker()
    for i in range(50):
        client = dial(broker)
        client.send(connect_packet(V311, f"x{i}"), publish(V311, "t", "x", 1, pid=1), pingreq() * 20, disconnect())
        client.close(reset=True)
    client = dial(broker)
    client.send(connect_packet(V311, "last"), publish(V311, "t", "x", 1, pid=1))
    client.expect(CONNACK, reason=0)
    client.expect(PUBACK, pid=1)
