"""midge check and --test-config: all that is wrong or doubtful at once, each with what mends it."""

import os
import re
import socket

import pytest

from wire import password_line, wait_for

BASE = "listener {port} 127.0.0.1\nallow_anonymous true\n"
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def check(new_broker):
    """check(config, prepare=): the exit code and what was said, of midge check and in front of it
    whatever prepare(broker) makes in its folder."""
    def create(config, prepare=None):
        broker = new_broker(config=None, args=["check", "-c", "{dir}/midge.conf"], start=False)
        broker.conf = broker.path("midge.conf")
        with open(broker.conf, "w") as f:
            f.write(broker._fill(config))
        if prepare:
            prepare(broker)
        code, out, err = broker.run()
        assert err == "", err
        create.broker = broker
        return code, out
    return create


def test_nothing_to_complain_about(check):
    code, out = check(BASE + "log_dest file {dir}/log\npid_file {dir}/pid\n")
    assert code == 0
    assert out.splitlines()[-1] == "All is well."
    assert re.search(r"^Port \d+: everybody may connect, from this machine only", out)
    # Nothing was started or made.
    assert os.listdir(check.broker.dir) == ["midge.conf"]


def test_without_a_file(new_broker):
    code, out, _ = new_broker(config=None, args=["check", "-p", "{port}"], start=False).run()
    assert code == 0 and "All is well." in out


def test_everything_at_once(check):
    """All faults, in the order of their lines, and then what lies outside the file."""
    code, out = check(BASE + "lisener 1\nmax_qos 7\nhttp_dir x\npersistent_client_expiration 1\nconnection x\n"
                      "address y\nmount_point a/#\nlog_dest file {dir}/none/such/log\n")
    assert code == 3
    at = -1
    for text in ("did you mean listener?", "midge.conf:3.", "max_qos value '7'", "midge.conf:4.",
                 "http_dir has no effect", "persistent_client_expiration value", "connection cannot be used",
                 "mount_point value", "midge.conf:9.", "The folder of log_dest file", "install -d -o"):
        assert out.find(text) > at, f"no {text!r} behind {out[:at]}\n---\n{out[at:]}"
        at = out.find(text)
    assert "address" not in out
    assert out.splitlines()[-1] == "Errors: 5, warnings: 2. The broker would not start."


def test_faults_of_what_belongs_together(check):
    """Options that need others are told too, once each, and what comes behind them."""
    code, out = check("per_listener_settings true\nplugin_load rules mosquitto_acl_file.so\nlistener {port}\n"
                      "nonsense 1\ncafile /x\n")
    assert code == 3
    assert out.count("needs a line plugin_opt_acl_file") == 1
    for text in ("midge.conf:3.", "nonsense", "plugin_use rules", "certfile and keyfile are missing", "may connect"):
        assert text in out, out


def taken(broker):
    s = socket.create_server(("127.0.0.1", broker.ports["port"]))
    broker.holder = s


@pytest.mark.parametrize("config, prepare, code, text", [
    (BASE + "http_dir x\n", None, 1, r"Warning: http_dir .*midge\.conf:3\.$"),
    (BASE + "nonsense x\n", None, 3, r"Error: Unknown .*nonsense"),
    (BASE, taken, 3, r"Port \d+ is held by .*python.* \(process \d+"),
    (BASE + "listener {port}\n", None, 3, r"Two listeners want the port"),
    ("listener 0 {dir}/s\nlistener 0 {dir}/s\nallow_anonymous true\n", None, 3, r"Two listeners want the socket"),
    ("listener 0 {dir}/midge.conf\nallow_anonymous true\n", None, 3, r"is there and no socket; 'rm "),
    ("listener 0 {dir}/none/s\nallow_anonymous true\n", None, 3, r"folder of the socket .* 'install -d -o "),
    ("listener {port}\n", None, 1, r"nobody may connect"),
    (BASE + "mount_point school\n", None, 1, r"does not end in '/': the topic a becomes schoola"),
    (BASE + "memory_limit 1000000\n", None, 1, r"'max_packet_size 125000' leaves room"),
    (BASE + "max_queued_messages 0\nmemory_limit 0\n", None, 1, r"Nothing limits what waits"),
    (BASE + "max_connections 2000000000\n", None, 1, r"'LimitNOFILE=2000000100'"),
    (BASE + "persistence true\npersistence_location {dir}/none\n", None, 1, r"'install -d -o \w+ .*/none' makes it"),
    (BASE + "persistence true\npersistence_location {dir}/midge.conf\n", None, 3, r"midge.conf is not a folder"),
    (BASE + "log_dest file {dir}\n", None, 1, r"is a folder; it must be a file"),
    (BASE + "log_dest file {dir}/none/a/log\n", None, 1, r"'install -d -o \w+ .*/none/a' makes it"),
], ids=["ignored", "unknown", "port-taken", "port-twice", "socket-twice", "no-socket", "socket-folder", "nobody",
        "mount-point", "packets", "queues", "descriptors", "store-missing", "store-file", "log-folder", "log-nowhere"])
def test_each(check, config, prepare, code, text):
    got, out = check(config, prepare)
    if prepare is taken:
        check.broker.holder.close()
    assert re.search(text, out, re.M), out
    assert got == code
    assert out.splitlines()[-1].endswith("The broker would start." if code == 1 else "The broker would not start.")


def secret(name):
    def prepare(broker):
        with open(broker.path(name), "w") as f:
            os.fchmod(f.fileno(), 0o600)
    return prepare


@root
@pytest.mark.parametrize("lines, prepare, text", [
    ("user nobody\n", lambda b: os.chmod(b.conf, 0o600),
     r"cannot be read by user nobody \(owner root, group root, mode 0600\), so SIGHUP would fail\. 'chgrp nobody "),
    ("user nobody\npassword_file {dir}/users\nper_listener_settings false\n", secret("users"),
     r"/users cannot be read by user nobody \(owner root, group root, mode 0600\), so SIGHUP would fail"),
    ("user nobody\nacl_file {dir}/rules\n", secret("rules"), r"/rules cannot be read by user nobody "),
    ("user nobody\nlog_dest file {dir}/log\n", lambda b: open(b.path("log"), "w").close(),
     r"log_dest file \S+ cannot be written by user nobody \(owner root, .*'chown nobody "),
    ("user nobody\npersistence true\npersistence_location {dir}\n", lambda b: os.chmod(b.dir, 0o755),
     r"Error: User nobody cannot write in persistence_location \S+ \(owner root, .*'chown nobody "),
    ("user nobody\nlog_dest file {dir}/log\n", lambda b: os.chmod(b.dir, 0o755),
     r"log_dest file \S+ cannot be made by user nobody in "),
], ids=["config", "passwords", "rules", "log", "store", "folder"])
def test_files_after_the_rights_are_given_up(check, lines, prepare, text):
    code, out = check(BASE + lines, prepare)
    assert code == (3 if "Error" in text else 1)
    assert re.search(text, out), out


@root
def test_user_that_is_not_there(check):
    code, out = check(BASE + "user no-such-user\n")
    assert code == 3
    assert "useradd --system no-such-user" in out


def test_beside_the_running_broker(new_broker):
    """It is told, and no fault."""
    running = new_broker()
    other = new_broker(config=None, args=["check", "-c", running.conf], start=False)
    code, out, _ = other.run()
    assert re.search(rf"^Port {running.port} is held by midge \(process {running.pid}\b", out)
    assert code == 0, out


def test_unix_socket_of_the_running_broker_stays(new_broker, connect):
    running = new_broker(config="listener 0 {dir}/sock\nallow_anonymous true\n")
    code, _, _ = new_broker(config=None, args=["check", "-c", running.conf], start=False).run()
    assert code == 0
    connect(address=running.path("sock")).ping()


def test_bad_command_line(new_broker):
    code, out, _ = new_broker(config=None, args=["check", "--nonsense"], start=False).run()
    assert code == 3 and "--nonsense" in out
    code, out, _ = new_broker(config=None, args=["check", "-h"], start=False).run()
    assert code == 0 and "Usage" in out


# --test-config

def test_test_config_of_a_doubtful_file(new_broker):
    """Good enough to start with."""
    code, out, err = new_broker("http_dir x", args=["--test-config"], start=False).run()
    assert code == 0 and out == "Configuration file is OK.\n"
    assert "http_dir" in err


@pytest.mark.parametrize("lines", [["nonsense x"], ["max_qos 7", "nonsense x"]])
def test_test_config_of_a_bad_file(new_broker, lines):
    code, out, err = new_broker(*lines, args=["--test-config"], start=False).run()
    assert code == 3 and out == ""
    assert err.count("Error found at") == len(lines)


def test_test_config_opens_nothing(new_broker, connect):
    """Not even the log file, and the port is free afterwards."""
    broker = new_broker("log_dest file {dir}/log", "pid_file {dir}/pid", start=False)
    broker.args = ["--test-config"]
    assert broker.run()[0] == 0
    assert os.listdir(broker.dir) == ["midge.conf"]
    broker.args = []
    broker.spawn()
    wait_for(lambda: os.path.exists(broker.path("pid")), "start")


def test_rules_that_never_count(check):
    """Rules for somebody who cannot log in under that name."""
    def prepare(broker):
        for name, text in ("users", password_line("bob", "b")), ("rules", "topic read a\nuser alice\ntopic read b\n"
                                                                          "user bob\ntopic read c\n"):
            with open(broker.path(name), "w") as f:
                f.write(text)
            os.chmod(broker.path(name), 0o644)
    got, out = check("listener {port} 127.0.0.1\nallow_anonymous false\nuser root\npassword_file {dir}/users\n"
                     "acl_file {dir}/rules\n", prepare)
    assert got == 1
    assert re.search(r"topic lines above the first user of \S+/rules are for clients without a user name", out), out
    assert re.search(r"rules of user alice in \S+ can never count: .*'midge passwd \S+/users alice' adds it\.", out), out
    assert "user bob" not in out
