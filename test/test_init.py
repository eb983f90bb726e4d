"""The scripts of cross/init, run by the shells and tools of the systems that they are for."""

import os
import re
import shutil
import stat
import subprocess

import pytest

from machine import machine  # noqa: F401
from wire import ROOT, Client, free_port, wait_for

INIT = os.path.join(ROOT, "cross", "init")

USER = "midge:x:8883:8883::/var/lib/midge:/bin/false\n"
LOG = "log_dest file /var/log/midge/midge.log\n"


def script(name):
    with open(os.path.join(INIT, name)) as f:
        return f.read()


@pytest.fixture(params=["busybox", "debian"])
def service(request, machine):  # noqa: F811
    """A machine with midge, its user, a configuration and the init script; service(action) runs it."""
    if request.param == "debian":
        machine.add("/bin/dash", "bin/sh")
        machine.add("/sbin/start-stop-daemon", "bin/start-stop-daemon")
    machine.add_midge("usr/sbin/midge")
    machine.write("etc/passwd", machine.read("etc/passwd") + USER)
    machine.port = free_port()
    machine.write("etc/midge/midge.conf", f"listener {machine.port} 127.0.0.1\nallow_anonymous true\n" + LOG)
    machine.write("etc/init.d/midge", script("midge.init"), 0o755)
    machine.boot()

    def act(action, code=0):
        got, output = machine.run(f"/etc/init.d/midge {action}")
        assert got == code, output
        return output
    act.machine = machine
    act.pid = lambda: int(machine.read("run/midge.pid"))
    return act


def serves(service):
    client = Client(("127.0.0.1", service.machine.port))
    try:
        client.connect("probe")
    finally:
        client.close()


def refuses(service):
    with pytest.raises(ConnectionRefusedError):
        Client(("127.0.0.1", service.machine.port))


def test_start_and_stop(service):
    assert re.search("does not run", service("status", 3))
    assert re.search("midge started", service("start"))
    serves(service)
    assert re.search(rf"runs \(process {service.pid()}\)", service("status"))
    assert re.search("midge stopped", service("stop"))
    refuses(service)
    service("status", 3)
    service("stop")


def test_own_user_and_directories(service):
    """It runs as midge, in directories that are midge's and nobody else's."""
    service("start")
    code, output = service.machine.run(f"cat /proc/{service.pid()}/status")
    assert re.search(r"^Uid:\s8883\s8883\s8883\s8883$", output, re.M)
    assert re.search(r"^Gid:\s8883\s8883\s8883\s8883$", output, re.M)
    for place in ("var/lib/midge", "var/log/midge"):
        state = os.stat(service.machine.path(place))
        assert (state.st_uid, stat.S_IMODE(state.st_mode)) == (8883, 0o750)


def test_start_twice(service):
    service("start")
    pid = service.pid()
    assert re.search(f"runs already .process {pid}.", service("start"))
    assert service.pid() == pid
    serves(service)


@pytest.mark.parametrize("action", ["restart", "force-reload", "try-restart"])
def test_restart(service, action):
    service("start")
    pid = service.pid()
    service(action)
    assert service.pid() != pid
    serves(service)


def test_restart_of_what_is_stopped(service):
    """restart starts, try-restart does not."""
    service("try-restart")
    refuses(service)
    service("restart")
    serves(service)


def test_reload(service):
    """The same process gets SIGHUP; it opens its log anew."""
    service("reload", 7)
    service("start")
    pid = service.pid()
    log = service.machine.path("var/log/midge/midge.log")
    os.rename(log, log + ".1")
    service("reload")
    wait_for(lambda: os.path.exists(log), "new log")
    assert service.pid() == pid
    serves(service)


def test_after_a_crash(service):
    """A process that was killed leaves its number behind; that neither counts as running nor hinders a start."""
    service("start")
    service.machine.run(f"kill -9 {service.pid()}; while [ -e /proc/{service.pid()} ]; do :; done")
    assert re.search("ended without being stopped", service("status", 1))
    service("start")
    serves(service)
    service("status")


def test_number_of_somebody_else(service):
    """After a power cut the number may be that of another process, which must not be stopped."""
    service.machine.write("run/midge.pid", "1\n")
    service("status", 1)
    service("stop")
    service.machine.write("run/midge.pid", "1\n")
    service("start")
    assert service.pid() != 1
    serves(service)


def test_replaced_program(service):
    """After an update stop and restart still find the process of the old file."""
    service("start")
    old = service.pid()
    path = service.machine.path("usr/sbin/midge")
    shutil.copy(path, path + ".new")
    os.rename(path + ".new", path)
    service("status")
    service("restart")
    assert service.pid() != old
    serves(service)


@pytest.mark.parametrize("config", ["no_such_option 1\n", "listener {busy} 127.0.0.1\n"], ids=["option", "port"])
def test_what_ends_at_once(service, config):
    """A wrong configuration or a port that is taken is told, with the command that says more."""
    service("start")
    busy = service.machine.port
    service.machine.run("mv /run/midge.pid /run/other.pid")
    service.machine.write("etc/midge/midge.conf", config.replace("{busy}", str(busy)))
    output = service("start", 1)
    assert re.search("it ended at once; /usr/sbin/midge check -c /etc/midge/midge.conf tells why", output)
    service("status", 3)


@pytest.mark.parametrize("remove, code, sentence", [
    ("/usr/sbin/midge", 5, "/usr/sbin/midge is not there"),
    ("/etc/midge/midge.conf", 6, "/etc/midge/midge.conf is not there"),
    ("/etc/passwd", 6, "there is no user midge; make one:")])
def test_what_is_missing(service, remove, code, sentence):
    service.machine.run(f"rm {remove}")
    assert sentence in service("start", code)


def test_wrong_use(service):
    assert "usage: /etc/init.d/midge start|stop|" in service("stat", 2)
    service("", 2)


def test_not_root(service):
    service("start")
    for action in ("start", "stop", "reload"):
        done = subprocess.run(["chroot", "--userspec=65534:65534", service.machine.root, "/etc/init.d/midge", action],
                              capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (4, f"midge: only root may {action} it\n")
    serves(service)


# OpenRC and procd: their functions replaced by some that tell how they were called.

def calls(machine, name, stubs, call):  # noqa: F811
    machine.write("etc/init.d/midge", script(name), 0o755)
    machine.write("etc/passwd", machine.read("etc/passwd") + USER)
    machine.boot()
    code, output = machine.run(f"{stubs}\n. /etc/init.d/midge\n{call}")
    assert code == 0, output
    return output.splitlines()


def test_procd(machine):  # noqa: F811
    """A respawned instance of user midge, reloaded with SIGHUP, whose output goes to the log."""
    names = "open_instance", "set_param", "close_instance"
    stubs = "\n".join(f'procd_{n}() {{ echo {n} "$@"; }}' for n in names)
    got = calls(machine, "midge.procd", stubs, "start_service; echo $USE_PROCD")
    assert (got[0], got[-2], got[-1]) == ("open_instance", "close_instance", "1")
    for line in ("command /usr/sbin/midge -c /etc/midge/midge.conf", "user midge", "respawn 3600 2 0",
                 "reload_signal HUP", "stdout 1", "stderr 1"):
        assert "set_param " + line in got
    for place in ("var/lib/midge", "var/log/midge"):
        state = os.stat(machine.path(place))
        assert (state.st_uid, stat.S_IMODE(state.st_mode)) == (8883, 0o750)


def test_openrc(machine):  # noqa: F811
    """supervise-daemon keeps it running as midge; reload is SIGHUP."""
    names = "need", "use", "after", "checkpath", "ebegin", "eend"
    stubs = "\n".join(f'{n}() {{ echo {n} "$@"; }}' for n in names)
    machine.write("bin/supervise-daemon", '#!/bin/sh\necho supervise-daemon "$@"\n', 0o755)
    got = calls(machine, "midge.openrc", stubs,
                "depend; start_pre; reload; echo $supervisor $command $command_args $command_user $respawn_max")
    for line in ("need net", "checkpath -d -m 0750 -o midge:midge /var/lib/midge /var/log/midge",
                 "supervise-daemon midge --signal HUP", "eend 0",
                 "supervise-daemon /usr/sbin/midge -c /etc/midge/midge.conf midge:midge 0"):
        assert line in got


# All of them

def test_systemd(tmp_path):
    """systemd finds no fault with the unit."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here")
    unit = tmp_path / "midge.service"
    unit.write_text(script("midge.service").replace("/usr/sbin/midge", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("Restart=on-failure", "Restart=perhaps"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    assert "perhaps" in done.stderr


SCRIPTS = ["make-certs", "sources", "check", "deploy", "setup", "manpages", "deb", "kernels", "init/midge.init",
           "init/midge.openrc", "init/midge.procd", "debian/postinst", "debian/prerm", "debian/postrm"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_bashisms(name):
    """shellcheck has no complaint for plain sh; dash and BusyBox's ash read it."""
    path = os.path.join(ROOT, "cross", name)
    if shutil.which("shellcheck"):
        # OpenRC and procd read variables that the script itself does not
        done = subprocess.run(["shellcheck", "-s", "sh", "-e", "SC2034", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    for shell in (["dash"], ["busybox", "ash"]):
        if shutil.which(shell[0]):
            done = subprocess.run([*shell, "-n", path], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


def test_all_scripts_are_checked():
    """What begins like a shell script is in the list above."""
    found = []
    for folder, _, files in os.walk(os.path.join(ROOT, "cross")):
        for name in files:
            with open(os.path.join(folder, name), errors="replace") as f:
                if re.match(r"#!.*(/sh|openrc-run)\b", f.readline()):
                    found.append(os.path.relpath(os.path.join(folder, name), os.path.join(ROOT, "cross")))
    assert sorted(found) == sorted(SCRIPTS)


def test_example_configuration(new_broker, connect):
    """The example is taken as it is, for this machine alone."""
    with open(os.path.join(ROOT, "cross", "midge.conf")) as f:
        config = f.read()
    broker = new_broker(config="log_dest stderr\n" + config, args=["-p", "{port}"])
    broker.wait_log("local only mode")
    connect(broker=broker)
