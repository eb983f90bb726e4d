"""The process as a service: its user, pid file, background, signals, and words with the service manager."""

import os
import pwd
import re
import signal
import socket

import pytest

from wire import V311, V5, command, wait_for

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def ids(broker, field):
    with open(f"/proc/{broker.pid}/status") as f:
        return next(line.split()[1:] for line in f if line.startswith(field + ":"))


def write(broker, config):
    """A new configuration for a running broker."""
    with open(broker.conf, "w") as f:
        f.write(broker._fill(config))


BASE = "listener {port} 127.0.0.1\nallow_anonymous true\n"


# The user

@root
@pytest.mark.parametrize("line, name", [("user nobody", "nobody"), ("user daemon", "daemon")])
def test_user(new_broker, connect, line, name):
    """All three ids change, there is no way back, and everything works."""
    broker = new_broker(line)
    pw = pwd.getpwnam(name)
    assert ids(broker, "Uid") == [str(pw.pw_uid)] * 4
    assert ids(broker, "Gid") == [str(pw.pw_gid)] * 4
    assert "0" not in ids(broker, "Groups")
    assert int(ids(broker, "CapEff")[0], 16) == 0
    connect(broker=broker).ping()


@root
def test_user_without_the_option(new_broker):
    """mosquitto, or nobody with a warning."""
    broker = new_broker()
    try:
        uid = pwd.getpwnam("mosquitto").pw_uid
    except KeyError:
        uid = pwd.getpwnam("nobody").pw_uid
        broker.wait_log("no user mosquitto; midge runs as nobody")
    assert ids(broker, "Uid") == [str(uid)] * 4


@root
def test_user_root(new_broker):
    broker = new_broker("user root")
    assert ids(broker, "Uid") == ["0"] * 4
    broker.wait_log("Warning: midge runs as root all the time")


@root
def test_user_that_is_not_there(new_broker):
    code, _, err = new_broker("user no-such-user", start=False).run()
    assert code == 1
    assert "no user 'no-such-user'" in err and "useradd" in err


@root
def test_ids_of_the_environment(new_broker):
    broker = new_broker("user nobody", env={"PUID": "4321", "PGID": "4322"})
    assert ids(broker, "Uid") == ["4321"] * 4
    assert ids(broker, "Gid") == ["4322"] * 4
    code, _, err = new_broker(env={"PUID": "joe"}, start=False).run()
    assert code == 1 and "PUID is 'joe'" in err


@root
def test_privileged_port(new_broker, connect):
    """Bound before the rights are given up."""
    port = next((p for p in range(1023, 600, -1) if can_bind(p)), None)
    broker = new_broker(config=f"listener {port} 127.0.0.1\nallow_anonymous true\nuser nobody\n")
    connect(address=("127.0.0.1", port)).ping()
    assert ids(broker, "Uid")[0] != "0"


def can_bind(port):
    with socket.socket() as s:
        try:
            s.bind(("127.0.0.1", port))
            return True
        except OSError:
            return False


@root
def test_what_is_made_belongs_to_the_user(new_broker):
    """So that it can be written, opened anew and removed after the rights are given up."""
    broker = new_broker("user nobody", "pid_file {dir}/run/pid", "log_dest file {dir}/log/log", "log_dest stderr")
    uid = pwd.getpwnam("nobody").pw_uid
    for name in ("run", "run/pid", "log", "log/log"):
        assert os.stat(broker.path(name)).st_uid == uid
    os.rename(broker.path("log/log"), broker.path("log/log.old"))
    broker.signal(signal.SIGHUP)
    wait_for(lambda: os.path.exists(broker.path("log/log")), "a new log file")
    broker.stop()
    assert not os.path.exists(broker.path("run/pid"))


# The pid file

def test_pid_file_that_cannot_be_written(new_broker, connect):
    """A warning, and the broker goes on; what is there is left alone."""
    for name in ("folder", "link", "none/such/pid"):
        broker = new_broker("pid_file {dir}/" + name, start=False)
        os.mkdir(broker.path("folder"))
        with open(broker.path("target"), "w") as f:
            f.write("precious")
        os.symlink("target", broker.path("link"))
        broker.start()
        broker.wait_log("Warning: Unable to write pid file " + re.escape(broker.path(name)) + ": ")
        connect(broker=broker).ping()
        assert open(broker.path("target")).read() == "precious"


# The background

@pytest.mark.parametrize("line, code, text", [("nonsense 1", 3, "nonsense"), ("user no-such-user", 1, "no-such-user")])
def test_daemon_that_cannot_start(new_broker, line, code, text):
    """The command says so itself."""
    if code == 1 and os.geteuid() != 0:
        pytest.skip("needs root")
    got, _, err = new_broker(line, args=["-d"], start=False).run()
    assert got == code and text in err


def test_daemon_on_a_port_that_is_taken(new_broker):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        config = f"listener {s.getsockname()[1]} 127.0.0.1\nlog_dest stderr\npid_file {{dir}}/pid\n"
        broker = new_broker(config=config, args=["-d"], start=False)
        code, _, err = broker.run()
    assert code == 1
    assert "Address already in use" in err and "running" not in err
    assert not os.path.exists(broker.path("pid"))


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return [int(n) for n in f.read().split()]


@root
def test_the_whole_life_of_a_daemon(new_broker, connect):
    """Background, pid file, another user, a reload, a new log file and the end."""
    broker = new_broker("user nobody", "pid_file {dir}/run/pid", "log_dest file {dir}/log/log", "log_type all",
                        "persistence true", "persistence_location {dir}/lib", args=["-d"], start=False)
    code, out, err = broker.run()
    assert (code, out, err) == (0, "", "")
    with open(broker.path("run/pid")) as f:
        pid = int(f.read())
    try:
        connect("first", broker=broker).ping()      # ready when the command has returned
        with open(f"/proc/{pid}/status") as f:
            assert f"Uid:\t{pwd.getpwnam('nobody').pw_uid}\t" in f.read()
        for one in [pid, *children(pid)]:
            assert {os.readlink(f"/proc/{one}/fd/{fd}") for fd in range(3)} == {"/dev/null"}
        os.rename(broker.path("log/log"), broker.path("log/old"))
        write(broker, BASE + "allow_zero_length_clientid false\nlog_dest file {dir}/log/log\n")
        os.kill(pid, signal.SIGHUP)
        wait_for(lambda: os.path.exists(broker.path("log/log")), "a new log file")
        connect("", broker=broker, reason=2)
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not os.path.exists(broker.path("run/pid")), "the end")
    wait_for(lambda: "terminating" in open(broker.path("log/log")).read(), "last line")
    assert "as first" in open(broker.path("log/old")).read()


# The service manager

class Notify(socket.socket):
    """A datagram socket with room for an attribute."""


@pytest.fixture(params=["path", "abstract"])
def notify(request, tmp_path):
    s = Notify(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.settimeout(10)
    s.bind("\0midge-test-" + os.path.basename(tmp_path) + str(os.getpid())
           if request.param == "abstract" else f"/tmp/midge-notify-{os.getpid()}")
    name = s.getsockname()
    s.name = "@" + name[1:].decode() if isinstance(name, bytes) else name
    if request.param == "path":
        os.chmod(name, 0o777)
    yield s
    s.close()
    if request.param == "path":
        os.unlink(name)


def test_notify(new_broker, connect, notify):
    """READY when clients can come, RELOADING and READY around a reload, STOPPING at the end."""
    broker = new_broker(env={"NOTIFY_SOCKET": notify.name})
    assert notify.recv(1000) == b"READY=1"
    connect(broker=broker).ping()
    broker.signal(signal.SIGHUP)
    assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", notify.recv(1000))
    assert notify.recv(1000) == b"READY=1"
    broker.stop()
    assert notify.recv(1000) == b"STOPPING=1"


@pytest.mark.parametrize("name", ["", "/none/such", "nonsense", "@", "/" + "x" * 200])
def test_notify_without_a_manager(new_broker, connect, name):
    connect(broker=new_broker(env={"NOTIFY_SOCKET": name})).ping()


def test_watchdog(new_broker, notify):
    """An idle broker tells twice in the interval that it is alive."""
    new_broker("sys_interval 0", env={"NOTIFY_SOCKET": notify.name, "WATCHDOG_USEC": "200000"})
    assert notify.recv(1000) == b"READY=1"
    for _ in range(5):
        assert notify.recv(1000) == b"WATCHDOG=1"


def test_watchdog_of_somebody_else(new_broker, connect, notify):
    broker = new_broker("sys_interval 1", env={"NOTIFY_SOCKET": notify.name, "WATCHDOG_USEC": "1000",
                                               "WATCHDOG_PID": "1"})
    assert notify.recv(1000) == b"READY=1"
    connect(broker=broker).ping()
    broker.stop()
    assert notify.recv(1000) == b"STOPPING=1"


# SIGHUP

def hup(broker):
    mark = broker.mark()
    broker.signal(signal.SIGHUP)
    broker.wait_log(r"^\d+: Reloading config\.$", after=mark)
    return mark


@pytest.fixture
def reloaded(new_broker, connect):
    """reloaded(before, after): a broker whose option lines were changed, and a client that was there."""
    def create(before, after):
        broker = new_broker(config=BASE + before)
        there = connect(broker=broker, version=V5)
        write(broker, BASE + after)
        hup(broker)
        there.ping()
        return broker, there
    return create


def test_reload_of_limits(reloaded, connect, dial):
    """What a client may do changes at once, for those who are there too."""
    broker, there = reloaded("", "message_size_limit 10\nretain_available false\nmax_keepalive 20\n"
                                 "auto_id_prefix new-\nglobal_max_connections 2\n")
    assert there.publish("t", "x" * 11, qos=1).reason == 0x83
    again = connect("", broker=broker, version=V5)
    assert again.connack.prop("retain_available") == 0
    assert again.connack.prop("server_keep_alive") == 20
    assert again.connack.prop("assigned_client_identifier").startswith("new-")
    dial(broker).expect_closed()
    there.publish("t", "x", retain=True)
    there.expect_disconnect(0x9a)


def test_reload_of_queue_limits(new_broker, connect):
    broker = new_broker(config=BASE + "max_queued_messages 2\n")
    away, pub = connect("away", broker=broker, clean=False), connect(broker=broker)
    away.subscribe("t", qos=1)
    away.disconnect()
    write(broker, BASE + "max_queued_messages 4\n")
    hup(broker)
    for i in range(6):
        pub.publish("t", str(i), qos=1)
    away = connect("away", broker=broker, clean=False)
    for i in range(4):
        away.expect_publish("t", str(i))
    away.nothing()


def test_reload_of_allow_anonymous(new_broker, connect, dial):
    """Who is there without a name has to go, who comes is not let in."""
    broker = new_broker(config=BASE)
    there = connect(broker=broker, version=V5)
    write(broker, BASE + "allow_anonymous false\n")
    hup(broker)
    there.expect_disconnect(0x87)
    client = dial(broker, version=V311)
    client.connect("x", reason=5)
    client.expect_closed()


def test_reload_of_log_options(reloaded, connect):
    broker, there = reloaded("", "log_type all\nlog_dest stderr\nlog_dest file {dir}/log\n"
                                 "log_timestamp_format at %Y\n")
    there.publish("t", "x")
    there.ping()
    broker.wait_log(r"^at \d{4}: Received PUBLISH from " + there.id)
    assert "Received PUBLISH" in open(broker.path("log")).read()


def test_reload_of_sys_interval(new_broker, connect):
    broker = new_broker(config=BASE + "sys_interval 0\n")
    client = connect(broker=broker)
    client.subscribe("$SYS/broker/uptime")
    client.nothing()
    write(broker, BASE + "sys_interval 1\n")
    hup(broker)
    client.expect_publish("$SYS/broker/uptime")


def test_reload_of_memory_limit(reloaded):
    """What is there stays, more is refused."""
    broker, there = reloaded("", "memory_limit 2000000\n")
    reasons = [there.publish(f"t/{i}", bytes(100_000), qos=1, retain=True).reason for i in range(30)]
    assert reasons[0] == 0x10 and reasons[-1] == 0x97


@pytest.mark.parametrize("fault", ["nonsense 1\n", "max_qos 7\n", "listener\n", "sys_interval 1\nnonsense 2\n"])
def test_reload_of_a_broken_file(new_broker, connect, fault):
    """Nothing changes, not even what stands before the fault; it is told why."""
    broker = new_broker(config=BASE + "message_size_limit 10\n")
    there = connect(broker=broker, version=V5)
    write(broker, BASE + "message_size_limit 20\nconnection_messages false\n" + fault)
    mark = hup(broker)
    broker.wait_log(r"Error found at " + re.escape(broker.conf) + ":", after=mark)
    broker.wait_log("not reloaded; the running one stays as it is", after=mark)
    assert there.publish("t", "x" * 11, qos=1).reason == 0x83
    connect("new", broker=broker)
    broker.wait_log("as new", after=mark)
    write(broker, BASE + "message_size_limit 20\n")
    hup(broker)
    assert there.publish("t", "x" * 11, qos=1).reason == 0x10


def test_reload_without_the_file(new_broker, connect):
    broker = new_broker()
    os.unlink(broker.conf)
    mark = hup(broker)
    broker.wait_log("Unable to open config file " + re.escape(broker.conf), after=mark)
    broker.wait_log("not reloaded", after=mark)
    connect(broker=broker).ping()


def test_reload_of_what_needs_a_restart(new_broker, connect):
    """Each is told, none takes effect."""
    broker = new_broker(config=BASE + "max_connections 5\npid_file {dir}/pid\n")
    write(broker, BASE + "max_connections 0\npid_file {dir}/other\n")
    mark = hup(broker)
    for text in (f"listener at port {broker.port} take effect only when midge is started anew",
                 "The new pid_file takes effect only when midge is started anew"):
        broker.wait_log(text, after=mark)
    connect(broker=broker).ping()
    assert not os.path.exists(broker.path("other"))
    write(broker, BASE + "listener {port2} 127.0.0.1\n")
    mark = hup(broker)
    broker.wait_log("Error: Listeners cannot be added, removed or moved", after=mark)
    connect(broker=broker).ping()
    broker.stop()
    assert not os.path.exists(broker.path("pid"))


def test_reload_without_a_file(new_broker, connect):
    """Nothing but the log is opened anew."""
    broker = new_broker(config=None, args=["-p", "{port}"])
    hup(broker)
    connect(broker=broker).ping()
    assert "Error" not in broker.log()


# The other signals

@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGRTMIN], ids=["HUP", "RTMIN"])
def test_log_file_is_opened_anew(new_broker, connect, number):
    """As logrotate wants it."""
    if number == signal.SIGRTMIN and len(command()) > 1:
        pytest.skip("an emulator gives such signals other numbers")
    broker = new_broker("log_dest file {dir}/log", "log_dest stderr")
    os.rename(broker.path("log"), broker.path("log.old"))
    broker.signal(number)
    wait_for(lambda: os.path.exists(broker.path("log")), "a new log file")
    connect("later", broker=broker)
    wait_for(lambda: "later" in open(broker.path("log")).read(), "a line in it")
    assert "later" not in open(broker.path("log.old")).read()


def test_report(new_broker, connect):
    """SIGUSR2: clients, subscriptions and retained messages."""
    broker = new_broker("sys_interval 0")
    here, away = connect("here", broker=broker), connect("away", broker=broker, clean=False)
    here.subscribe("a/+", "$share/team/jobs")
    away.subscribe("b/#", qos=1)
    away.disconnect()
    here.publish("b/kept", "12345", qos=1, retain=True)
    broker.signal(signal.SIGUSR2)
    for text in (r"Report: 2 clients, 1 of them connected; 3 subscriptions\.",
                 r"Client here: connected from 127\.0\.0\.1:\d+, 0 messages waiting, 0 in flight\.",
                 r"here has a/\+ \(QoS 0\)", r"here has \$share/team/jobs \(QoS 0\)",
                 r"Client away: away, 1 messages waiting, 0 in flight\.", r"away has b/# \(QoS 1\)",
                 r"Report: 1 retained messages\.", r"Retained: b/kept \(5 bytes\)",
                 r"Report: \d+ bytes in use"):
        broker.wait_log(r"^\d+: " + text)


def test_report_is_bounded(new_broker, connect):
    """Of many only some are shown."""
    broker = new_broker("sys_interval 0", "log_type notice", "log_type information")
    pub = connect(broker=broker)
    pub.subscribe(*[f"s/{i}" for i in range(1500)])
    for i in range(2500):
        pub.publish(f"r/{i % 7}/{i}", "x", retain=True)
    pub.ping()
    broker.signal(signal.SIGUSR2)
    broker.wait_log(r"Report: \d+ bytes in use")
    assert broker.log().count(" has s/") == 1000
    assert "... and 500 more subscriptions." in broker.log()
    assert broker.log().count("Retained: r/") == 1000
    assert "... and 1500 more retained messages." in broker.log()


# Two devices with one client id

def test_two_devices_with_one_id(new_broker, connect):
    """From the fifth time in a minute on it is told, once, with both addresses."""
    broker = new_broker()
    other = connect("other", broker=broker)
    last = connect("same", broker=broker)
    addresses = [last.sock.getsockname()]
    for _ in range(4):
        last = connect("same", broker=broker)
        addresses.append(last.sock.getsockname())
    other.ping()
    assert "Two devices" not in broker.log()
    for _ in range(10):
        last = connect("same", broker=broker)
        addresses.append(last.sock.getsockname())
    line = broker.wait_log(r"Warning: Two devices seem to use the client id same: (\S+) and (\S+) have taken it")
    assert line.groups() == tuple(f"127.0.0.1:{port}" for _, port in addresses[4:6])
    last.ping()
    other.ping()
    assert broker.log().count("Two devices") == 1


def test_one_device_that_comes_back(new_broker, connect):
    """After a clean end nobody takes anything from anybody; many ids at a time are watched apart."""
    broker = new_broker()
    for _ in range(10):
        connect("calm", broker=broker).disconnect()
    for _ in range(4):
        for i in range(10):
            connect(f"id-{i}", broker=broker)
    connect("last", broker=broker).ping()
    assert "Two devices" not in broker.log()
