"""Nobody locks himself out: what an interface carries is told, and native mode waits.

In networks made for it: a cable whose near end has the default route, and an ssh session
that SSH_CONNECTION tells of.
"""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from conftest import PROJECT, Invoke, Outcome, assert_refused, holder, wait_until

from xdplab.lockout import limited
from xdplab.runner import Job

pytestmark = pytest.mark.root

GATEWAY, CLIENT = "192.0.2.1", "203.0.113.5"
SSH = {"SSH_CONNECTION": f"{CLIENT} 4000 192.0.2.2 22"}
NOBODYS = {"SSH_CONNECTION": ""}
CABLE = """
    ip link set lo up
    ip link add v0 type veth peer name v1
    ip link set v0 up; ip link set v1 up
    ip address add 192.0.2.2/24 dev v0
    mount -t bpf bpf /sys/fs/bpf
"""
ROUTE = f"ip route add default via {GATEWAY}"


class Place:
    """A network namespace, in which commands are run."""

    def __init__(self, invoke: Invoke, process: int) -> None:
        self.invoke = invoke
        self.under = ("nsenter", f"--target={process}", "--net", "--mount", f"--wd={PROJECT}")

    def __call__(self, *options: str, dev: str = "v0", ssh: bool = False) -> Outcome:
        """`invoke run` for one reading, if it isn't refused."""
        env = SSH if ssh else NOBODYS
        return self.invoke("run", "--rounds=1", f"--dev={dev}", *options, under=self.under, env=env)

    def attached(self) -> bool:
        shown = subprocess.run([*self.under, "ip", "link"], capture_output=True, check=True)
        return b"xdp" in shown.stdout


@contextlib.contextmanager
def place(invoke: Invoke, *more: str) -> Iterator[Place]:
    with holder("\n".join([CABLE, *more])) as process:
        yield Place(invoke, process)


@pytest.fixture
def routed(lab: Invoke) -> Iterator[Place]:
    with place(lab, ROUTE) as made:
        yield made


WARNING = f"warning: v0 carries the default gateway, {GATEWAY}"


# ---- who is told, and who has to agree


@pytest.mark.tree
@pytest.mark.parametrize(("mode", "consent"), [("native", "--yes"), ("auto", "--duration=60")])
def test_a_native_run_on_the_default_route_waits_for_consent(
    routed: Place, mode: str, consent: str
) -> None:
    refused = routed(f"--mode={mode}")
    assert_refused(refused, 2, "a native program may take its link down", "--yes", "--duration")
    assert WARNING in refused.err
    assert not routed.attached()
    agreed = routed(f"--mode={mode}", consent)
    assert agreed.code == 0, agreed.err
    assert WARNING in agreed.err
    assert "mode native" in agreed.err


@pytest.mark.tree
def test_a_generic_run_leaves_the_driver_alone_and_is_only_warned_of(routed: Place) -> None:
    outcome = routed("--mode=skb")
    assert outcome.code == 0, outcome.err
    assert WARNING in outcome.err


@pytest.mark.tree
def test_the_session_that_it_is_typed_in(lab: Invoke) -> None:
    with place(lab, f"ip route add {CLIENT} via {GATEWAY}") as there:
        refused = there("--mode=native", ssh=True)
        assert_refused(refused, 2, f"v0 carries this ssh session, from {CLIENT}", "--yes")
        alone = there("--mode=native")
        assert alone.code == 0, alone.err
        assert "warning: v0 carries" not in alone.err


@pytest.mark.tree
def test_a_default_route_without_a_gateway(lab: Invoke) -> None:
    with place(lab, "ip route add default dev v0") as there:
        assert_refused(there("--mode=native"), 2, "v0 carries the default route")


@pytest.mark.tree
def test_an_interface_that_carries_nobody_is_free(routed: Place) -> None:
    lo = routed(dev="lo")
    far_end = routed("--mode=native", dev="v1")
    for outcome in (lo, far_end):
        assert outcome.code == 0, outcome.err
        assert "carries" not in outcome.err


@pytest.mark.tree
def test_a_dry_run_warns_and_asks_nobody(routed: Place) -> None:
    outcome = routed.invoke("--dry", "run", "--dev=v0", under=routed.under, env=NOBODYS)
    assert outcome.code == 0, outcome.err
    assert WARNING in outcome.err


@pytest.mark.tree
def test_a_proof_on_the_host_waits_too(routed: Place) -> None:
    command = ("verify", "--on=host", "--dev=v0", "--mode=native")
    refused = routed.invoke(*command, under=routed.under, env=NOBODYS)
    assert_refused(refused, 2, "v0 carries the default gateway", "--yes")
    assert not routed.attached()


@pytest.mark.tree
def test_the_packet_filter_waits_too(routed: Place) -> None:
    invoke, under = routed.invoke, routed.under
    assert invoke("build", "--sample=xdp_filter").code == 0
    load = ("filter.load", "v0", "--rules=198.51.100.1")

    def loaded(*options: str) -> Outcome:
        return invoke(*load, "--stay", *options, under=under, env=NOBODYS)

    assert_refused(loaded(), 2, "v0 carries the default gateway", "--yes", "--for 60s")
    assert not routed.attached()
    for consent in ("--for=60s", "--mode=skb"):
        outcome = loaded(consent)
        assert outcome.code == 0, outcome.err
        assert WARNING in outcome.err
        assert invoke("filter.unload", under=under).code == 0


# ---- the address itself


@pytest.mark.tree
@pytest.mark.parametrize(
    ("ip", "who"),
    [(CLIENT, f"this ssh session, from {CLIENT}"), (GATEWAY, f"the default gateway, {GATEWAY}")],
)
def test_who_is_at_the_other_end_is_dropped_by_force_alone(
    routed: Place, ip: str, who: str
) -> None:
    assert_refused(routed(f"--ip={ip}", "--yes", ssh=True), 2, f"this would cut {who}")
    assert not routed.attached()
    forced = routed(f"--ip={ip}", "--yes", "--force", ssh=True)
    assert forced.code == 0, forced.err
    assert f"cut, as --force says: {who}" in forced.err
    elsewhere = routed(f"--ip={ip}", dev="lo", ssh=True)
    assert elsewhere.code == 0, elsewhere.err


# ---- the question, and the limit


@pytest.mark.tree
@pytest.mark.parametrize(("answer", "code"), [("yes", 0), ("n", 2), ("", 2)])
def test_at_a_terminal_it_is_a_question(routed: Place, answer: str, code: int) -> None:
    terminal, end = pty.openpty()
    argv = [*routed.under, sys.executable, "-m", "invoke", "run", "--dev=v0", "--rounds=1"]
    environment = os.environ | NOBODYS | {"INVOKE_WORKSPACE": str(routed.invoke.workspace)}
    with subprocess.Popen(
        argv, stdin=end, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        os.close(end)
        os.write(terminal, f"{answer}\n".encode())  # it waits there until it is asked for
        _, err = process.communicate()
    os.close(terminal)
    assert b"go on? (y/N)" in err
    assert process.returncode == code, err.decode()


@pytest.mark.tree
def test_the_limit_holds_though_the_harness_hangs(routed: Place) -> None:
    """As it does in a terminal that nobody reads any more: the session is cut."""
    command = ["run", "--dev=v0", "--rounds=0", "--interval=0.1", "--duration=3", "--plain"]
    with routed.invoke.start(*command, under=routed.under, env=NOBODYS) as background:
        background.wait_for("round 0")
        background.process.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: not routed.attached())
        finally:
            background.process.send_signal(signal.SIGCONT)
        assert background.wait().code == 0


@pytest.mark.parametrize(
    ("rounds", "seconds", "expected"),
    [(1000, None, 1000), (0, None, 0), (1000, 10.0, 6), (0, 10.0, 6), (3, 10.0, 3), (0, 0.0, 1)],
)
def test_a_limited_job_ends_by_itself(rounds: int, seconds: float | None, expected: int) -> None:
    assert limited(Job("127.0.0.1", interval=2.0, rounds=rounds), seconds).rounds == expected
