"""Running and verifying the pair: real programs, in network namespaces of the tests' own.

The `host` of these tests is a namespace too: this machine's own interfaces are
never touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import (
    KERNELS,
    NOBODY,
    PATIENCE,
    PRIVATE,
    Background,
    Invoke,
    assert_refused,
    copy_checkout,
    copy_pair,
    wait_until,
)

pytestmark = [pytest.mark.tree, pytest.mark.root]

IP = "127.0.0.9"
HELD = re.compile(r"^ok {3}", re.MULTILINE)
FAILED = re.compile(r"^FAIL (.*?): ", re.MULTILINE)


@dataclass(frozen=True)
class Namespace:
    """A network namespace that ends, with all that is in it, when the test does."""

    holder: int

    @property
    def enter(self) -> tuple[str, ...]:
        """The command that runs another in it."""
        return ("nsenter", f"--net=/proc/{self.holder}/ns/net")

    def run(self, *argv: str | Path) -> str:
        done = subprocess.run([*self.enter, *argv], capture_output=True, text=True, check=True)
        return done.stdout

    def programs(self, dev: str = "lo") -> list[int]:
        """The ids of the XDP programs on an interface, as ip(8) sees them."""
        (link,) = json.loads(self.run("ip", "-json", "link", "show", "dev", dev))
        return [link["xdp"]["prog"]["id"]] if "xdp" in link else []

    def processes(self) -> list[int]:
        """Every process in it, but for the one that holds it."""
        here = Path(f"/proc/{self.holder}/ns/net").readlink()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "ns/net").readlink() == here:
                    found.append(int(process.name))
        return [pid for pid in found if pid != self.holder]

    def pid_of(self, name: str) -> int:
        """The process in it that runs the program of that name, before any child of its."""
        found = [p for p in self.processes() if Path(f"/proc/{p}/exe").readlink().name == name]
        return min(found, key=lambda pid: Path(f"/proc/{pid}").stat().st_ctime)


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    with subprocess.Popen([*PRIVATE, "sleep", "infinity"]) as holder:
        ours = Path("/proc/self/ns/net").readlink()
        try:
            wait_until(lambda: Path(f"/proc/{holder.pid}/ns/net").readlink() != ours)
            private = Namespace(holder.pid)
            private.run("ip", "link", "set", "dev", "lo", "up")
            yield private
        finally:
            for pid in Namespace(holder.pid).processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            holder.kill()


@pytest.fixture
def host() -> Iterator[Namespace]:
    with namespace() as private:
        yield private


@contextlib.contextmanager
def running(lab: Invoke, host: Namespace, *options: str) -> Iterator[Background]:
    """`invoke run` in the namespace, attached and counting."""
    command = ["run", f"--ip={IP}", "--interval=0.1", *options]
    with lab.start(*command, under=host.enter) as background:
        background.wait_for("round 0") if "--json" not in options else background.wait_for("{")
        yield background


# ---- verify


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_tutorials_claim_holds(labs: Callable[[str], Invoke], kernel: str) -> None:
    outcome = labs(kernel)("verify", "--on=netns")
    assert outcome.code == 0, outcome.out + outcome.err
    assert len(HELD.findall(outcome.out)) == 8
    assert not FAILED.findall(outcome.out)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_claim_holds_on_the_host(
    labs: Callable[[str], Invoke], host: Namespace, kernel: str
) -> None:
    outcome = labs(kernel)("verify", "--on=host", f"--ip={IP}", under=host.enter)
    assert outcome.code == 0, outcome.out + outcome.err
    assert len(HELD.findall(outcome.out)) == 7  # it is not seen without the filter
    assert host.programs() == []


def test_only_the_binary_is_root(
    program: Path, nobody: Path, with_sudo: tuple[str | Path, ...], tmp_path: Path
) -> None:
    invoke = Invoke(nobody / "workspace", cwd=nobody / "checkout")
    closed = tmp_path / "root" / "bin"  # as root's own PATH may have it
    closed.mkdir(parents=True)
    closed.parent.chmod(0o700)
    env = {"HOME": str(nobody), "PATH": f"{closed}:{os.environ['PATH']}"}
    assert invoke("build", "--tree", nobody / "linux", env=env, under=NOBODY).code == 0
    (build,) = invoke.workspace.glob("builds/*/xdp_ip_filter")
    for made in build.glob("xdp_ip_filter*"):  # a small tree's are no real ones
        made.write_bytes((program.parent / made.name).read_bytes())
    outcome = invoke("verify", "--tree", nobody / "linux", env=env, under=with_sudo)
    assert outcome.code == 0, outcome.out + outcome.err
    assert len(HELD.findall(outcome.out)) == 8
    borrowed = [command for command in outcome.commands() if "sudo -n " in command]
    assert any("xdp_ip_filter -i" in command for command in borrowed)
    for command in borrowed:
        assert "python" not in command or "setpriv --reuid=65534 " in command


@pytest.mark.parametrize(
    ("right", "wrong", "claim"),
    [
        ("return XDP_DROP;", "return XDP_PASS;", "with it, 3 packets from 192.168.1.78 die"),
        ("*counter += 1;", "*counter += 2;", "the counters' total is 3"),
        (
            "if (iph->saddr != *ip)",
            "if (0)",
            "3 packets from another address, 127.0.0.2, are answered",
        ),
    ],
)
def test_verify_can_fail(lab: Invoke, tmp_path: Path, right: str, wrong: str, claim: str) -> None:
    kern, _ = copy_pair(tmp_path / "pair")
    assert right in kern.read_text()
    kern.write_text(kern.read_text().replace(right, wrong))
    mine = Invoke(tmp_path / "workspace")
    tree = (lab.workspace / "current").read_text().strip()
    assert mine("build", "--tree", tree, "--sample", kern).code == 0
    outcome = mine("verify", "--tree", tree, "--sample", kern)
    assert_refused(outcome, 1, claim, "output.log")
    assert claim in FAILED.findall(outcome.out)


# ---- run: what it prints


def test_json_readings(lab: Invoke) -> None:
    outcome = lab("run", "--on=netns", "--json", "--interval=0.1", "--rounds=3")
    assert outcome.code == 0, outcome.err
    readings = [json.loads(line) for line in outcome.out.splitlines()]
    assert [reading["round"] for reading in readings] == [0, 1, 2]
    for reading in readings:
        assert reading.keys() == {"schema", "at", "round", "per_cpu", "total", "rates", "rate"}
        assert reading["schema"] == 1
        assert reading["total"] == sum(reading["per_cpu"].values()) == 0
    assert [reading["rate"] for reading in readings] == [None, 0, 0]
    assert [reading["at"] for reading in readings] == sorted(r["at"] for r in readings)


def possible_cpus() -> int:
    ranges = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")
    return sum(int(part.split("-")[-1]) - int(part.split("-")[0]) + 1 for part in ranges)


def test_raw_output_is_the_posts(lab: Invoke) -> None:
    number = int.from_bytes(bytes([192, 168, 1, 78]), sys.byteorder)
    expected = [f"the ip to filter is 192.168.1.78/{number}"]
    for count in range(2):
        cpus = [f"cpu {cpu}, value = 0" for cpu in range(possible_cpus())]
        expected += [str(count), *cpus, "", ""]
    outcome = lab("run", "--on=netns", "--raw", "--interval=0.1", "--rounds=2")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines() == [*expected, "end"]


def test_the_mode_is_told_with_its_reason(lab: Invoke) -> None:
    outcome = lab("run", "--on=netns", "--rounds=1", "--interval=0.1", "--ip=127.0.0.1")
    assert "no native XDP on lo (Operation not supported): generic instead" in outcome.err
    assert "mode skb" in outcome.err
    assert "warning: this cuts all IPv4 traffic" in outcome.err


def test_duration_ends_an_endless_run(lab: Invoke) -> None:
    options = ["--rounds=0", "--interval=0.1", "--duration=0.5"]
    outcome = lab("run", "--on=netns", *options)
    assert outcome.code == 0, outcome.err
    assert "round 1" in outcome.out
    assert "detached: nothing of it is left on lo" in outcome.err


# ---- run: its end


def test_ctrl_c_detaches(lab: Invoke, host: Namespace) -> None:
    with running(lab, host) as background:
        assert len(host.programs()) == 1
        outcome = background.interrupt()
    assert outcome.code == 0, outcome.err
    assert outcome.err.splitlines()[-1] == "detached: nothing of it is left on lo"
    assert host.programs() == []
    assert host.processes() == []


@pytest.mark.parametrize("victims", ["harness", "binary", "both"])
def test_kill_9_leaves_nothing_behind(lab: Invoke, host: Namespace, victims: str) -> None:
    with running(lab, host) as background:
        binary = host.pid_of("xdp_ip_filter")
        if victims != "binary":
            background.process.kill()
        if victims != "harness":
            os.kill(binary, signal.SIGKILL)
        outcome = background.wait()
        wait_until(lambda: not host.processes())
    assert host.programs() == []
    if victims == "binary":
        assert_refused(outcome, 1, "was killed by signal 9")
    assert ": lo:" not in lab("status", under=host.enter).out


def test_a_terminal_that_is_closed_detaches(lab: Invoke, host: Namespace) -> None:
    with running(lab, host) as background:
        background.process.send_signal(signal.SIGHUP)
        background.wait()
        wait_until(lambda: not host.processes())
    assert host.programs() == []


# ---- kernels before v5.9, that have no bpf_link for XDP


@pytest.fixture(scope="module")
def old(labs: Callable[[str], Invoke], tmp_path_factory: pytest.TempPathFactory) -> Invoke:
    """The pair as such a kernel would have it run."""
    return without_links(labs, tmp_path_factory.mktemp("old"))


def without_links(labs: Callable[[str], Invoke], place: Path) -> Invoke:
    """A checkout whose pair gets EINVAL when it asks for a bpf_link, and the pair built."""
    checkout = copy_checkout(place / "checkout")
    asked, header = "xdp_link_create(ifindex, prog_fd, mode)", checkout / "xdp_attach.h"
    assert asked in header.read_text()
    header.write_text(header.read_text().replace(asked, "-EINVAL"))
    invoke = Invoke(checkout.with_name("workspace"), cwd=checkout)
    tree = (labs(KERNELS[0]).workspace / "current").read_text().strip()
    assert invoke("setup", "--tree", tree).code == 0
    assert invoke("build").code == 0
    return invoke


def test_the_claim_holds_without_a_bpf_link(old: Invoke) -> None:
    assert old("verify").code == 0


def test_ctrl_c_detaches_without_a_bpf_link(old: Invoke, host: Namespace) -> None:
    with running(old, host) as background:
        background.process.send_signal(signal.SIGINT)
        assert background.wait().code == 0
    assert (host.programs(), host.processes()) == ([], [])


def test_kill_9_leaves_nothing_behind_without_a_bpf_link(old: Invoke, host: Namespace) -> None:
    with running(old, host) as background:
        os.killpg(host.pid_of("xdp_ip_filter"), signal.SIGKILL)
        background.wait()
        wait_until(lambda: not host.processes())
    assert host.programs() == []


def test_it_is_watched_from_before_it_attaches(
    labs: Callable[[str], Invoke], host: Namespace, tmp_path: Path
) -> None:
    """Killed with its whole process group as soon as its program is on the interface."""
    checkout = copy_checkout(tmp_path / "checkout")
    attached, header = "mode | XDP_FLAGS_UPDATE_IF_NOEXIST);", checkout / "xdp_attach.h"
    text = header.read_text().replace("xdp_link_create(ifindex, prog_fd, mode)", "-EINVAL")
    assert attached in text
    killed = f'{attached}\n\t\tif (!err && puts("on it") > 0)\n\t\t\tkill(0, SIGKILL);'
    header.write_text(text.replace(attached, killed))
    invoke = Invoke(tmp_path / "workspace", cwd=checkout)
    tree = (labs(KERNELS[0]).workspace / "current").read_text().strip()
    assert invoke("build", "--tree", tree).code == 0
    (program,) = invoke.workspace.glob("builds/*/xdp_ip_filter/xdp_ip_filter")
    with subprocess.Popen(
        [*host.enter, program, "-i", IP], cwd=program.parent, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout
        assert "on it\n" in process.stdout  # it was attached
        assert process.wait() == -signal.SIGKILL
    wait_until(lambda: not host.processes())
    assert host.programs() == []


def test_what_was_left_behind_is_told_and_removed(old: Invoke, host: Namespace) -> None:
    with running(old, host) as background:
        background.process.send_signal(signal.SIGSTOP)  # or it would note the end
        binary = host.pid_of("xdp_ip_filter")
        watchdog = next(pid for pid in host.processes() if os.getsid(pid) == pid != os.getsid(0))
        for process in (watchdog, binary, background.process.pid):
            os.kill(process, signal.SIGKILL)
        background.wait()
    (left,) = host.programs()
    status = old("status", under=host.enter)
    assert f"prog/xdp id {left}: ours" in status.out
    assert "left behind by a process that is gone" in status.out
    assert_refused(old("run", f"--ip={IP}", under=host.enter), 2, f"id {left}", "invoke detach")
    assert old("detach", under=host.enter).code == 0
    assert host.programs() == []


# ---- two on one interface


def test_a_second_run_is_refused_and_the_first_unharmed(lab: Invoke, host: Namespace) -> None:
    with running(lab, host) as background:
        (attached,) = host.programs()
        for command in (["run", f"--ip={IP}"], ["verify", "--on=host", f"--ip={IP}"]):
            outcome = lab(*command, under=host.enter)
            who = f"by process {host.pid_of('xdp_ip_filter')} (filters {IP}), since 20"
            assert_refused(outcome, 2, "lo", f"id {attached}", who, "invoke detach")
        assert host.programs() == [attached]
        assert background.process.poll() is None
        assert background.interrupt().code == 0


def test_a_run_that_comes_second_while_it_starts_is_told_who_was_first(
    lab: Invoke, host: Namespace, tmp_path: Path
) -> None:
    """Both have looked, and seen nothing: the one's program is delayed until the other's is on."""
    (program,) = lab.workspace.glob("builds/*/xdp_ip_filter/xdp_ip_filter")
    late, go = program.with_name("late"), tmp_path / "go"
    program.rename(late)
    try:
        program.write_text(f"#!/bin/sh\nwhile [ ! -e {go} ]; do sleep 0.05; done\nexec {late} $@\n")
        program.chmod(0o755)
        with lab.start("run", f"--ip={IP}", under=host.enter) as second:
            second.wait_for("xdp_ip_filter -i")
            with subprocess.Popen(
                [*host.enter, late, "-i", IP], cwd=late.parent, stdout=subprocess.DEVNULL
            ) as first:
                wait_until(host.programs)
                go.touch()
                (attached,) = host.programs()
                assert_refused(second.wait(), 2, f"id {attached}", "invoke detach")
                first.terminate()
    finally:
        late.replace(program)


def test_somebody_elses_program_is_left_alone(lab: Invoke, host: Namespace, program: Path) -> None:
    with subprocess.Popen(
        [*host.enter, program, "-i", IP, "-n", "0"], cwd=program.parent, stdout=subprocess.DEVNULL
    ) as theirs:
        wait_until(host.programs)
        (attached,) = host.programs()
        assert_refused(lab("run", under=host.enter), 2, f"id {attached}")
        assert_refused(
            lab("detach", under=host.enter), 2, f"id {attached}", "not attached by this harness"
        )
        status = lab("status", under=host.enter)
        assert f"prog/xdp id {attached}: not attached by this harness" in status.out
        assert host.programs() == [attached]
        assert theirs.poll() is None
        theirs.terminate()


# ---- seen and ended from another terminal


def test_status_shows_what_runs(lab: Invoke, host: Namespace) -> None:
    with running(lab, host):
        (attached,) = host.programs()
        outcome = lab("status", under=host.enter)
        line = rf"1: lo: skb: prog/xdp id {attached}: ours, tag [0-9a-f]{{16}}, filters {IP} "
        assert re.match(line, outcome.out), outcome.out
    outcome = lab("status", under=host.enter)
    assert outcome.code == 0
    assert ": lo:" not in outcome.out
    assert "no XDP program is on any interface that was looked at" in outcome.err


def test_detach_ends_it_from_another_terminal(lab: Invoke, host: Namespace) -> None:
    with running(lab, host) as background:
        (attached,) = host.programs()
        outcome = lab("detach", under=host.enter)
        assert outcome.code == 0, outcome.err
        assert f"program {attached} is off lo" in outcome.err
        assert background.wait().code == 0
    assert host.programs() == []
    again = lab("detach", under=host.enter)
    assert again.code == 0
    assert "no XDP program is on lo" in again.err


def test_packets_sent_into_a_private_namespace_are_counted(lab: Invoke) -> None:
    assert_refused(lab("send", "--on=netns"), 2, "no filter runs", "invoke run --on netns")
    with lab.start("run", "--on=netns", "--json", "--interval=0.1") as background:
        background.wait_for("{")
        assert "in the network namespace of process" in lab("status").out
        sent = lab("send", "--on=netns", "--count=4")
        assert sent.code == 0, sent.err
        assert sent.out.endswith("0 got past XDP, 0 answered\n")
        background.wait_for('"total": 4')
        other = lab("send", "--on=netns", "--ip=127.0.0.2")
        assert other.out.endswith("1 got past XDP, 1 answered\n")
        outcome = background.interrupt()
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out.splitlines()[-1])["total"] == 4


# ---- modes


@pytest.mark.parametrize("mode", ["native", "hw"])
def test_a_mode_that_lo_has_not_got(lab: Invoke, mode: str) -> None:
    outcome = lab("run", "--on=netns", f"--mode={mode}")
    assert_refused(outcome, 2, f"lo has no {mode} XDP", "--mode auto")


@pytest.fixture
def veth(host: Namespace) -> Iterator[Namespace]:
    """The other end of a cable: 10.9.9.1 on veth0 in `host`, 10.9.9.2 on veth1 out here."""
    with namespace() as peer:
        host.run("ip", "link", "add", "veth0", "type", "veth", "peer", "veth1")
        host.run("ip", "link", "set", "dev", "veth1", "netns", str(peer.holder))
        for end, dev, address in ((host, "veth0", "10.9.9.1"), (peer, "veth1", "10.9.9.2")):
            end.run("ip", "address", "add", f"{address}/24", "dev", dev)
            end.run("ip", "link", "set", "dev", dev, "up")
        yield peer


SEND = (
    "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
    "[s.sendto(b'x', ('10.9.9.1', 9)) for _ in range(5)]"
)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mode", ["native", "skb", "auto"])
def test_every_mode_of_a_veth_drops_and_counts(
    labs: Callable[[str], Invoke], host: Namespace, veth: Namespace, mode: str, kernel: str
) -> None:
    options = ["--dev=veth0", "--ip=10.9.9.2", f"--mode={mode}", "--json", "--interval=0.1"]
    with labs(kernel).start("run", *options, under=host.enter) as background:
        background.wait_for("{")
        status = labs(kernel)("status", under=host.enter).out
        assert f"veth0: {'native' if mode == 'auto' else mode}: prog/xdp" in status
        veth.run(sys.executable, "-c", SEND)
        background.wait_for('"total": 5')
        assert background.interrupt().code == 0
    assert host.programs("veth0") == []


# ---- the binary by itself


def binary(program: Path, host: Namespace, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*host.enter, program, *options],
        cwd=program.parent, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


def test_the_binary_explains_itself(program: Path, host: Namespace) -> None:
    done = binary(program, host, "-h")
    assert (done.returncode, done.stderr) == (0, "")
    for option in ("-i ADDRESS", "-d DEV", "-m MODE", "-t SECONDS", "-n ROUNDS", "-e", "-h"):
        assert f"\n  {option} " in done.stdout


@pytest.mark.parametrize(
    "options",
    [
        *(["-i", given] for given in ("", "300.1.1.1", "::1", "name", " 1.2.3.4", "1.2.3")),
        *(["-d", given] for given in ("", "nope0")),
        *(["-m", given] for given in ("", "auto", "native,skb")),
        *(["-t", given] for given in ("", "two", "-1", "nan", "inf", "1x")),
        *(["-n", given] for given in ("", "ten", "-1", "1.5", "1e10")),
        *(["-x"], ["-i"], ["word"]),
    ],
    ids=" ".join,
)
def test_the_binary_refuses_bad_options(program: Path, host: Namespace, options: list[str]) -> None:
    done = binary(program, host, *options)
    assert done.returncode == 2
    assert done.stderr
    assert done.stdout == ""


def test_the_binary_counts_its_rounds(program: Path, host: Namespace) -> None:
    done = binary(program, host, "-i", IP, "-t", "0.01", "-n", "5")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^\d+$", done.stdout, re.MULTILINE) == list("01234")
    assert done.stdout.endswith("\n\n\nend\n")
    assert host.programs() == []


def test_the_binary_warns_of_its_default_address(program: Path, host: Namespace) -> None:
    done = binary(program, host, "-t", "0.01", "-n", "1")
    assert done.returncode == 0, done.stderr
    number = int.from_bytes(bytes([127, 0, 0, 1]), sys.byteorder)
    assert done.stdout.startswith(f"the ip to filter is 127.0.0.1/{number}\n")
    assert "warning: this cuts all IPv4 traffic" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_binary_ends_on_a_signal(
    program: Path, host: Namespace, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [*host.enter, program, "-i", IP], cwd=program.parent, stdout=subprocess.PIPE, text=True
    ) as process:
        wait_until(host.programs)
        process.send_signal(number)
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert out.endswith("\nstopping\n")
    assert host.programs() == []


def test_the_binary_without_its_object(program: Path, host: Namespace, tmp_path: Path) -> None:
    done = subprocess.run(
        [*host.enter, program, "-i", IP], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "can't open xdp_ip_filter_kern.o" in done.stderr
