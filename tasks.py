"""The tutorial's table of contents: `invoke --list`, then `invoke --help NAME`.

A command imports what it needs when it is run: the list, each help and each TAB come at once.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.parser.context import ParserContext
from invoke.program import Program
from invoke.tasks import Task, task

from xdplab import TUTORIAL
from xdplab.errors import ClaimsFailed, LabError, NotSolved
from xdplab.options import choice, number, one_of, whole_number, words

if TYPE_CHECKING:
    from xdplab import completion as completing
    from xdplab.lab import Lab

TREE = {"kernel": "use the tree of this version", "tree": "use the tree at this path"}
SAMPLE = {"sample": "a pair's name, or the path of one of its two files"}
COMPILERS = {"gcc": "the compiler of the user half", "clang": "the compiler of the kernel half"}
SANDBOX = {"sandbox": "run make without a network, and let it write to its own places only"}
MEND = {"mend": "set right what can be of a damaged tree, until invoke patch --revert"}
WHERE = {"on": "host: this machine's own interfaces; netns: a private network namespace;"
         " vm: a virtual machine"}  # fmt: skip
YES = {"yes": "also natively where an ssh session or the default route comes through"}
FORCE = {"force": "also if it cuts an ssh session or the default gateway"}
BOOT = {"boot": "what the vm boots: 6.1, 6.1-cloud, 6.12.117, a release, the path of an image;"
        " else the tree's own kernel, or one of its series"}  # fmt: skip
LANG = {"lang": "en or fr; else the locale's"}
HELPS: dict[str, dict[str, str]] = {}  # by command and option; Invoke empties its own


def step(**helps: str) -> Callable[[Callable[..., int | None]], Any]:
    """A command whose foreseeable faults end in one clear error and its exit code.

    One that runs another may return that one's.
    """

    def decorate(body: Callable[..., int | None]) -> Any:
        @functools.wraps(body)
        def wrapped(c: Context, *args: Any, **options: Any) -> None:
            from xdplab.lab import Lab
            from xdplab.process import take_ends_like_ctrl_c

            take_ends_like_ctrl_c()
            try:
                code = body(Lab.of(c.config), *args, **options)
            except KeyboardInterrupt:
                raise Exit("interrupted: the same command goes on from here", 130) from None
            except (LabError, OSError) as error:
                from xdplab.view import error_text

                fault = LabError.of(error)
                raise Exit(error_text(fault), fault.exit_code) from error
            if code:
                raise Exit(code=code)

        HELPS[body.__name__] = helps
        return task(wrapped, name=body.__name__.removeprefix("filter_"), help=helps)

    return decorate


@step(
    **TREE,
    **WHERE,
    **BOOT,
    ip="the IPv4 address whose packets are dropped",
    **LANG,
    from_="go on from the step of this number",
    step="take the step of this number only",
    list="show the steps, and which are done",
    restart="forget how far you were, and what you chose",
    yes="take all steps without a question",
)
def tutorial(
    lab: Lab,
    lang: str | None = None,
    kernel: str | None = None,
    tree: str | None = None,
    on: str | None = None,
    boot: str | None = None,
    ip: str | None = None,
    from_: str | None = None,
    step: str | None = None,
    list: bool = False,
    restart: bool = False,
    yes: bool = False,
) -> None:
    """All thirteen steps, explained, run and checked; it goes on where you left it."""
    from xdplab import language, lessons, tutorial

    first, last = tutorial.span(from_, step)
    lesson = lab.view.lesson(lessons.Texts.of(language.choose(lang)))
    progress = tutorial.Progress(lab.workspace)
    if restart and not lab.shell.dry:
        progress.forget()
    given = {"kernel": kernel, "tree": tree, "on": on, "boot": boot, "ip": ip}
    choices = progress.choices(given, lab.kernel, lab.ip)
    session = tutorial.Session(choices, lab.workspace, lab.shell, lab.toolchain, lesson.hear)
    if list:
        lesson.steps(tutorial.done(session, progress))
    elif lab.shell.dry:
        lesson.show_all(choices.words)
    elif yes:
        tutorial.rehearse(session, lesson, first or 1, last)
    else:
        tutorial.lead(session, progress, lesson, first, last)


@step(
    kernel="a version: v6.1, 5.10, v7.2-rc3",
    source="auto, git, distro (the distribution's linux-source package) or tarball",
    tree="use this kernel tree of yours, where it is",
    remote="the git repository, or the tarball, to get it from",
    **MEND,
    **SANDBOX,
)
def setup(
    lab: Lab,
    kernel: str | None = None,
    source: str = "auto",
    tree: str | None = None,
    remote: str | None = None,
    mend: bool = False,
    sandbox: bool = False,
) -> None:
    """Steps 1 to 3: get a kernel tree, configure it, make the headers that a build needs."""
    from xdplab import setup

    wanted = setup.Wanted.of(
        kernel,
        lab.kernel,
        choice("--source", source, setup.Source),
        Path(tree) if tree is not None else None,
        remote,
    )
    tools = lab.shut_in(sandbox).toolchain()
    with lab.view.stage("setup") as stage:
        found = setup.obtain(
            wanted, lab.workspace, tools, lab.shell, stage.report, stage.line, lab.view.say,
            mend=mend,
        )  # fmt: skip
    lab.view.tree(found)


@step(
    **TREE,
    dev="the interface that is looked at",
    fix="install what is missing, mount what isn't mounted, then look again",
    json="a JSON object, on standard output",
)
def doctor(
    lab: Lab,
    kernel: str | None = None,
    tree: str | None = None,
    dev: str = "lo",
    fix: bool = False,
    json: bool = False,
) -> None:
    """Look at this machine: tools, kernel, rights, an interface; a cure for all that isn't well."""
    from xdplab import doctor

    machine = lab.machine(kernel, tree, dev)
    findings = list(doctor.examine(machine))
    if fix and doctor.fix(findings, lab.shell, lambda line: lab.view.say(line.text)):
        findings = list(doctor.examine(machine))
    lab.view.checkup(machine, findings, json=json)
    doctor.require_fit(findings)


@step(
    remote="the git repository whose tags are listed, instead of kernel.org's",
    json="a JSON object, on standard output",
    offline="ask nobody: what is here, and the distribution's suites as they were last",
)
def kernels(lab: Lab, remote: str | None = None, json: bool = False, offline: bool = False) -> None:
    """What can be had: trees by version and source for setup, and kernels that boot."""
    from xdplab import kernels

    with lab.view.stage("kernels") as stage:
        found = kernels.take(lab.workspace, lab.shell, stage.report, remote, offline=offline)
    lab.view.kernels(found, json=json)


@step(**TREE, **SAMPLE, show="only show it, as a unified diff", revert="take everything back")
def patch(
    lab: Lab,
    kernel: str | None = None,
    tree: str | None = None,
    sample: str = TUTORIAL,
    show: bool = False,
    revert: bool = False,
) -> None:
    """Step 5: put the sample into samples/bpf/Makefile, in the tree's own words."""
    from xdplab import lifecycle, patching
    from xdplab.sample import Sample

    target = lab.tree(kernel, tree)
    if revert:
        with lab.workspace.locked(target, dry=lab.shell.dry):
            reverted = lifecycle.revert(target, dry=lab.shell.dry)
        lab.view.done(reverted, nothing=f"{target.path} has no change of ours")
        return
    pair = Sample.find(sample)
    with lab.workspace.locked(target, dry=show or lab.shell.dry):
        changes = patching.plan(target, pair.name)
        patching.apply(target, changes, dry=show or lab.shell.dry)
    lab.view.changes(target, changes)


@step(
    **TREE,
    **SAMPLE,
    **COMPILERS,
    **MEND,
    **SANDBOX,
    all_samples="build every sample of the tree, the post's way",
    trace="let the kernel half log each packet, for run --trace and log: forty times slower",
)
def build(
    lab: Lab,
    kernel: str | None = None,
    tree: str | None = None,
    sample: str = TUTORIAL,
    gcc: str | None = None,
    clang: str | None = None,
    mend: bool = False,
    all_samples: bool = False,
    trace: bool = False,
    sandbox: bool = False,
) -> None:
    """Step 4 to 7: patch the tree, and build the one pair by the tree's own rules."""
    from xdplab import build as building
    from xdplab.sample import Sample

    target, pair = lab.tree(kernel, tree), Sample.find(sample)
    tools = lab.shut_in(sandbox).toolchain(gcc, clang)
    with lab.view.stage(f"building {pair.name}", pair) as stage:
        result = building.build(
            target, pair, tools, lab.workspace, lab.shell, stage.line, lab.view.say,
            mend=mend, trace=trace,
        )  # fmt: skip
    lab.view.built(result, dry=lab.shell.dry)
    if all_samples:
        from xdplab import making

        with lab.view.stage("building all samples") as stage:
            others = making.build_all_samples(target, tools, lab.workspace, lab.shell, stage.line)
        lab.view.all_built(others)


@step(**TREE, **SAMPLE, **COMPILERS)
def editor(
    lab: Lab,
    kernel: str | None = None,
    tree: str | None = None,
    sample: str = TUTORIAL,
    gcc: str | None = None,
    clang: str | None = None,
) -> None:
    """Step 6: write compile_commands.json beside the pair, so that clangd finds every header."""
    from xdplab import editor
    from xdplab.sample import Sample

    target, pair, tools = lab.tree(kernel, tree), Sample.find(sample), lab.toolchain(gcc, clang)
    with lab.view.stage(f"asking kbuild about {pair.name}", pair) as stage:
        written = editor.write(
            target, pair, tools, lab.workspace, lab.shell, stage.line, lab.view.say
        )
    lab.view.commands(written, target)


@step(
    dir="the directory for its files; else a new one of its name, in the current directory",
    kind="drop, count, pass or redirect: what the program does with a packet, to begin with",
)
def new(lab: Lab, name: str, dir: str | None = None, kind: str = "drop") -> None:
    """Begin a pair of your own, with its packet cases: a small program that works already."""
    from xdplab import skeleton

    what = choice("--kind", kind, skeleton.Kind)
    place = Path(dir) if dir is not None else None
    lab.view.made(skeleton.make(name, place, what, dry=lab.shell.dry), dry=lab.shell.dry)


@step(
    **TREE,
    **MEND,
    **SANDBOX,
    gcc="the compiler",
    config="a file of kernel options of your own, on top of those of the virtual machine",
)
def kernel(
    lab: Lab,
    kernel: str | None = None,
    tree: str | None = None,
    gcc: str | None = None,
    config: str | None = None,
    mend: bool = False,
    sandbox: bool = False,
) -> None:
    """Build the tree's own kernel, small and made for the virtual machine."""
    from xdplab.boot import built

    target, tools = lab.tree(kernel, tree), lab.shut_in(sandbox).toolchain(gcc)
    with lab.view.stage("building a kernel") as stage:
        result = built.build(
            target, tools, lab.workspace, lab.shell, stage.report, stage.line, lab.view.say,
            own=Path(config) if config is not None else None, mend=mend,
        )  # fmt: skip
    lab.view.kernel(result)


@step(
    **TREE,
    **SAMPLE,
    **WHERE,
    **BOOT,
    **YES,
    **FORCE,
    ip="the IPv4 address whose packets are dropped",
    dev="the interface",
    mode="auto (native where it can be had, else skb), native, skb or hw",
    interval="seconds between two readings",
    rounds="how many readings, 0 for no end",
    duration="stop after so many seconds",
    plain="a sentence a reading and nothing drawn, as in a pipe: for screen readers",
    raw="the binary's own output, line for line, as in the post",
    json="a JSON object a reading, on standard output",
    csv="a line of CSV a reading, on standard output",
    prometheus="serve the counters to Prometheus: a port of 127.0.0.1, or a file",
    trace="show what the kernel half logs too; it must be built with --trace",
)
def run(
    lab: Lab,
    ip: str | None = None,
    dev: str = "lo",
    mode: str = "auto",
    on: str = "host",
    boot: str | None = None,
    interval: str = "2",
    rounds: str = "1000",
    duration: str | None = None,
    plain: bool = False,
    raw: bool = False,
    json: bool = False,
    csv: bool = False,
    prometheus: str | None = None,
    trace: bool = False,
    yes: bool = False,
    force: bool = False,
    kernel: str | None = None,
    tree: str | None = None,
    sample: str = TUTORIAL,
) -> None:
    """Step 8, 12 and 13: run the filter, and watch its counters, and log, until Ctrl-C."""
    from xdplab import exporting, lifecycle, lifelines, lockout, runner, tracing

    asked = runner.Job(
        lab.ip if ip is None else ip,
        dev,
        mode,
        number("--interval", interval),
        whole_number("--rounds", rounds),
    )
    seconds = None if duration is None else number("--duration", duration)
    job = lockout.limited(asked, seconds)
    form = one_of(plain=plain, raw=raw, json=json, csv=csv)
    exporter = exporting.target(prometheus)
    build, record = lab.built(sample, kernel, tree, ip), lab.workspace.new_run()
    if trace:
        lifecycle.require_log(build.facts, lab.workspace)
        lab.view.say(tracing.COST)
    bed = lab.bed(on, build, job, record, boot)
    if on == "host":
        consent = lockout.Consent(yes or lab.shell.dry, force, bool(duration), "--duration 60")
        dropped = job.ip if build.takes("i") else None
        lockout.require(
            lifelines.here(), [dev], mode, consent, lab.view.say, lab.view.confirm, ip=dropped
        )
    if lab.shell.dry:
        bed.show(build, job.options(build), lab.shell)
        return
    with (
        exporting.exported(exporter, lab.view.say) as export,
        bed.open(lab.shell, packets=False) as bench,
        runner.started(build, job, bench, record, trace=trace) as session,
    ):
        export(session)
        lab.view.follow(session, seconds, form)
    lab.view.say(f"detached: nothing of it is left on {dev}")


@step(
    run="a run's name or directory, or a file that run --json or --csv wrote; else the newest",
    png="make a picture of this name instead",
)
def plot(lab: Lab, run: str | None = None, png: str | None = None) -> None:
    """Step 12: draw the rates of a run, in the terminal or as a picture."""
    from xdplab import plotting

    path = plotting.find(run, lab.workspace)
    readings, title = plotting.read(path), plotting.title(path)
    if png is None:
        lab.view.plot(readings, title)
    elif not lab.shell.dry:
        plotting.to_png(readings, title, Path(png))
        lab.view.pictured(Path(png), readings)


@step(
    **TREE,
    **SAMPLE,
    **WHERE,
    **BOOT,
    **YES,
    ip="the IPv4 address whose packets must die",
    dev="the interface; a vm has lo and eth0",
    mode="auto, native, skb or hw",
)
def verify(
    lab: Lab,
    ip: str | None = None,
    on: str = "netns",
    boot: str | None = None,
    dev: str = "lo",
    mode: str = "auto",
    yes: bool = False,
    kernel: str | None = None,
    tree: str | None = None,
    sample: str = TUTORIAL,
) -> None:
    """Step 8 to 12 at once: prove that three packets die, are counted, and nothing is left."""
    from xdplab import lifelines, lockout, runner, verify

    job = runner.Job(lab.ip if ip is None else ip, dev, mode)
    build, record = lab.built(sample, kernel, tree, ip), lab.workspace.new_run()
    bed = lab.bed(on, build, job, record, boot, tried=True)
    if on == "host":
        consent = lockout.Consent(yes or lab.shell.dry)
        lockout.require(lifelines.here(), [dev], mode, consent, lab.view.say, lab.view.confirm)
    if lab.shell.dry:
        bed.show(build, job.options(build), lab.shell)
        return
    with bed.open(lab.shell, packets=True) as bench:
        failed = lab.view.checks(verify.verify(build, job, bench, record, lab.view.reading))
    if failed:
        raise ClaimsFailed([check.claim for check in failed], record.log)


@step(
    **TREE,
    **SAMPLE,
    **WHERE,
    **BOOT,
    ip="the IPv4 address that $ip stands for in the cases",
    wire="send the frames through a cable in a namespace, and see which arrive",
    json="a JSON object, on standard output",
)
def cases(
    lab: Lab,
    ip: str | None = None,
    on: str = "netns",
    boot: str | None = None,
    wire: bool = False,
    json: bool = False,
    kernel: str | None = None,
    tree: str | None = None,
    sample: str = TUTORIAL,
) -> None:
    """Run the sample's packet cases through its program, and tell which meet another verdict."""
    from xdplab import cases, runner
    from xdplab.testbed.netns import wired

    job = cases.job(lab.ip if ip is None else ip, on, wire=wire)
    build, record = lab.built(sample, kernel, tree), lab.workspace.new_run()
    known = cases.required(build, job.ip)
    bed = lab.bed(on, build, job, record, boot, tried=True)
    if lab.shell.dry:
        bed.show(build, job.options(build), lab.shell)
        return
    if wire:
        lab.view.say(cases.ON_WIRE)
        with (
            wired(lab.shell, lab.workspace) as cable,
            runner.started(build, job, cable, record) as run,
        ):
            met = cases.send(known, cable)
    else:
        with (
            bed.open(lab.shell, packets=False) as bench,
            runner.started(build, job, bench, record) as run,
        ):
            met = cases.run(known, bench, run.program.program)
    wrong = lab.view.cases(met, known.file, run.place, wire=wire, json=json)
    if wrong:
        raise ClaimsFailed([f"case {one.case.name}" for one in wrong], record.log)


@step(
    **WHERE,
    ip="the source address, IPv4 or IPv6",
    to="the destination: else 127.0.0.1, or the card of a vm",
    count="how many, 0 for no end; else 1, and with --duration or --fast no end",
    dev="send frames into this interface, and wait for no answers",
    proto="icmp, udp or tcp",
    size="bytes of a frame, with its Ethernet header",
    vlan="an 802.1Q tag's ID, or an outer and an inner one with a comma between",
    pcap="send the Ethernet frames of this capture",
    rate="frames a second; else 100, and with --fast as many as can be",
    duration="stop after so many seconds",
    fast="the fastest way there is into that interface",
)
def send(
    lab: Lab,
    ip: str | None = None,
    to: str | None = None,
    count: str | None = None,
    on: str = "host",
    dev: str | None = None,
    proto: str | None = None,
    size: str | None = None,
    vlan: str | None = None,
    pcap: str | None = None,
    rate: str | None = None,
    duration: str | None = None,
    fast: bool = False,
) -> None:
    """Step 11: send ICMP packets that must die, or any traffic into an interface."""
    from xdplab import lifecycle, runner, sending

    source = lab.ip if ip is None else ip
    order = sending.order(
        on, source, to, dev=dev, proto=proto, size=size, vlan=vlan, pcap=pcap, rate=rate,
        count=count, duration=duration, fast=fast, named=ip is not None,
    )  # fmt: skip
    if order and lab.shell.dry:
        lab.view.say("frames would be sent")
        return
    if order:
        with sending.opened(on, dev, lab.workspace, lab.shell, fast=fast) as (sender, into):
            frames, news = sending.begin(sender, into, order, lab.view.say)
            lab.view.traffic(order, frames, into, news)
        return
    runner.check_address(source)
    runner.check_address("127.0.0.1" if to is None else to)
    packets = 1 if count is None else whole_number("--count", count)
    if lab.shell.dry:
        lab.view.say(f"{packets} from {source} to {to or 'the usual target'} would be sent")
        return
    with lifecycle.sender_in(on, lab.workspace, lab.shell) as (ping, usual):
        target = usual if to is None else to
        lab.view.pinged(source, target, ping(source, target, packets))


@step(
    hosts="how many, 1 to 64; else 2",
    vlan="an 802.1Q interface on each cable too",
    ipv6="IPv6 addresses too",
    in_="be in this one: box, host1, host2",
    command="run this there, and end with its exit code; else your shell is opened",
    join="be in this one of the lab that another terminal has made",
)
def lab(
    lab: Lab,
    hosts: str | None = None,
    vlan: bool = False,
    ipv6: bool = False,
    in_: str | None = None,
    command: str | None = None,
    join: str | None = None,
) -> int | None:
    """A box and hosts around it, in network namespaces of their own, to try things in."""
    from xdplab import testbed
    from xdplab import visit as visits
    from xdplab.network import Network

    errand, beside = visits.Errand.of(command), command is not None
    if join is not None:
        one_of(join=True, hosts=hosts is not None, vlan=vlan, ipv6=ipv6, **{"in": in_ is not None})
        visit = visits.joined(join, lab.workspace, lab.view.say)
        lab.view.network(visit.network, join, beside=beside)
        return visit.run(errand, lab.shell)
    number = 2 if hosts is None else whole_number("--hosts", hosts)
    network, node = Network(number, vlan=vlan, ipv6=ipv6), visits.USUAL if in_ is None else in_
    visits.require_node("--in", node, network)
    testbed.named("netns", lab.workspace)
    lab.view.network(network, node, beside=beside)
    with visits.made(network, node, lab.workspace, lab.shell) as visit:
        return visit.run(errand, lab.shell)


@step(
    all="look into every other network namespace too",
    json="a JSON object, on standard output",
)
def status(lab: Lab, all: bool = False, json: bool = False) -> None:
    """Step 9: the XDP programs of this machine: whose they are, what they did, their maps."""
    from xdplab import census

    seen = census.take(lab.workspace, lab.shell, lab.view.say, everywhere=all)
    lab.view.programs(seen, json=json)


@step(file="a log; else standard input, to its end (Ctrl-D)")
def explain(lab: Lab, file: str | None = None) -> None:
    """What messages of make, clang, libbpf, the verifier or the kernel mean, and what to do."""
    from xdplab import explain

    found = explain.explain(explain.read(file))
    lab.view.explanations(found)
    explain.require_known(found)


@step(**WHERE, dev="the interface, on the host")
def detach(lab: Lab, dev: str = "lo", on: str = "host") -> None:
    """Step 10: end our filter from another terminal, or remove what one left behind."""
    from xdplab import lifecycle, testbed

    if on in lifecycle.PRIVATE:
        done = lifecycle.end_private(on, lab.workspace, lab.shell)
    else:
        testbed.named(on, lab.workspace)
        done = lifecycle.detach(dev, lab.workspace, lab.shell)
    lab.view.done(done, nothing=f"no XDP program is on {dev}")


@step(**LANG)
def exercises(lab: Lab, lang: str | None = None) -> None:
    """What to do after step 13: exercises that extend the pair, and which are solved."""
    from xdplab import exercises, language

    known = exercises.every(language.choose(lang))
    lab.view.exercises([(one, exercises.solved(one, lab.workspace)) for one in known])


@step(
    **TREE,
    **LANG,
    check="build your pair, and send frames through it",
    hint="show hints too",
)
def exercise(
    lab: Lab,
    name: str,
    check: bool = False,
    hint: bool = False,
    lang: str | None = None,
    kernel: str | None = None,
    tree: str | None = None,
) -> None:
    """One exercise: what is asked, files to begin with, and with --check what is still wrong."""
    from xdplab import build as building
    from xdplab import exercises, language, testbed
    from xdplab.testbed.netns import wired

    asked = exercises.named(name, language.choose(lang))
    if not check:
        exercises.begin(asked, lab.shell)
        lab.view.assignment(asked, hints=hint)
        return
    pair, target, tools = asked.pair(), lab.tree(kernel, tree), lab.toolchain()
    bed, digest = testbed.named("netns", lab.workspace), asked.digest()
    with lab.view.stage(f"building {pair.name}", pair) as stage:
        result = building.build(
            target, pair, tools, lab.workspace, lab.shell, stage.line, lab.view.say
        )
    if lab.shell.dry:
        for job in exercises.jobs(asked):
            bed.show(result, job.options(result), lab.shell)
        return
    with wired(lab.shell, lab.workspace) as bench:
        found = exercises.check(asked, result, bench, lab.workspace.new_run())
        wrong = lab.view.checks(found)
    if wrong:
        raise NotSolved(asked.name, len(wrong), pair.kern)
    exercises.remember(asked, digest, lab.workspace)
    lab.view.say(asked.words["labels"]["solved"])


@step(
    **WHERE,
    all_="also what other programs log; without a run too, but in a vm",
    duration="stop after so many seconds",
)
def log(lab: Lab, on: str = "host", all_: bool = False, duration: str | None = None) -> None:
    """Step 13: follow what the kernel half of a run logs, from another terminal, until Ctrl-C."""
    from xdplab import lifecycle, tracing

    seconds = None if duration is None else number("--duration", duration)
    lab.view.say(tracing.COST)
    lab.view.log(
        lifecycle.log(on, lab.workspace, lab.shell, lab.view.say, seconds, everything=all_)
    )


RULES = (
    "addresses and prefixes with commas between; a file of them, one a line; - for standard input"
)
RULE_MODE = {"mode": "the side of a packet that rules are for: src, dst, or src,dst for either"}


@step(
    **TREE,
    **YES,
    **FORCE,
    dev="the interface, or several with commas between",
    policy="allow: drop what a rule covers; deny: drop all else",
    mode="auto (native where it can be had, else skb), native or skb",
    rules=f"from the beginning: {RULES}",
    max_rules="room for so many rules",
    stay="leave it in place, until invoke filter.unload",
    for_="undo it by itself after a time: 60s, 5m",
    interval="seconds between two readings",
    json="a JSON object a reading, on standard output",
)
def filter_load(
    lab: Lab,
    dev: str,
    policy: str = "allow",
    mode: str = "auto",
    rules: str | None = None,
    max_rules: str | None = None,
    stay: bool = False,
    for_: str | None = None,
    interval: str = "2",
    json: bool = False,
    yes: bool = False,
    force: bool = False,
    kernel: str | None = None,
    tree: str | None = None,
) -> None:
    """Load the packet filter of samples/xdp_filter, and watch its counters until Ctrl-C."""
    from xdplab import filtering, lifelines, lockout, testbed
    from xdplab import rules as ruling

    given = ruling.read(rules, "src")
    build, record = lab.built(filtering.SAMPLE, kernel, tree), lab.workspace.new_run()
    lines = lifelines.here()
    new = filtering.Filter(build.program, lab.shell).check(given, lines)
    wanted = filtering.Wanted.of(dev, policy, mode, max_rules, for_, new, stay=stay)
    seconds = filtering.pause(interval)
    with testbed.named("host", lab.workspace).open(lab.shell, packets=False) as bench:
        filtering.check(wanted, new, lines, bench, force=force, tell=lab.view.say)
    consent = lockout.Consent(yes or lab.shell.dry, force, bool(for_), "--for 60s")
    lockout.require(lines, wanted.devs, mode, consent, lab.view.say, lab.view.confirm)
    if lab.shell.dry:
        filtering.show(build, wanted, lab.shell)
        return
    with filtering.loaded(build, wanted, given, lab.shell, record) as it:
        lab.view.filtering(it, seconds, json=json)
    lab.view.say(filtering.STAYS if stay else filtering.GONE)


@step(**RULE_MODE, **FORCE, rules=RULES)
def filter_add(lab: Lab, rules: str, mode: str = "src", force: bool = False) -> None:
    """Give the packet filter more rules while it runs: all of them, or none."""
    from xdplab import filtering
    from xdplab import rules as ruling

    given = ruling.read(rules, mode)
    it = filtering.Filter.find(lab.workspace, lab.shell)
    lab.view.say(f"added: {it.add(given, force=force, tell=lab.view.say):,}")


@step(**RULE_MODE, **FORCE, rules=RULES)
def filter_remove(lab: Lab, rules: str, mode: str = "src", force: bool = False) -> None:
    """Take rules from the packet filter while it runs: all of them, or none."""
    from xdplab import filtering
    from xdplab import rules as ruling

    given = ruling.read(rules, mode)
    it = filtering.Filter.find(lab.workspace, lab.shell)
    lab.view.say(f"removed: {it.remove(given, force=force, tell=lab.view.say):,}")


@step(json="a JSON object, on standard output")
def filter_list(lab: Lab, json: bool = False) -> None:
    """The packet filter's rules, as a file of rules has them, and what each of them covered."""
    from xdplab import filtering

    lab.view.rules(filtering.Filter.find(lab.workspace, lab.shell).counted(), json=json)


@step(
    watch="until the filter ends, or Ctrl-C",
    interval="seconds between two readings",
    json="a JSON object a reading, on standard output",
)
def filter_stats(lab: Lab, watch: bool = False, interval: str = "2", json: bool = False) -> None:
    """What the packet filter does, where, and what became of packets."""
    from xdplab import filtering

    seconds = filtering.pause(interval)
    it = filtering.Filter.find(lab.workspace, lab.shell)
    lab.view.filter(filtering.watch(it, seconds) if watch else [it.stats()], json=json)


@step()
def filter_unload(lab: Lab) -> None:
    """End the packet filter, whoever loaded it: nothing of it is left."""
    from xdplab import filtering

    filtering.Filter.find(lab.workspace, lab.shell).unload()
    lab.view.say(filtering.GONE)


@step(trees="remove fetched trees, kernels and downloads too (never a tree of your own)")
def clean(lab: Lab, trees: bool = False) -> None:
    """Take back every change: samples and patches out of all trees, builds and runs away."""
    from xdplab import lifecycle

    lab.view.done(lifecycle.clean(lab.workspace, lab.shell, trees=trees), nothing="all is clean")


@step(
    **SAMPLE,
    kernels="versions of trees that are set up, with commas between",
    trees="paths of trees, with commas between; neither: all that are set up",
    compilers="such as gcc-13,clang-16: each with the other kind's usual one",
    record="add what is found to docs/proofs.json, what was read to xdplab/sources/read.txt,"
    " and write docs/kernels.md anew",
)
def survey(
    lab: Lab,
    kernels: str | None = None,
    trees: str | None = None,
    compilers: str | None = None,
    sample: str = TUTORIAL,
    record: bool = False,
) -> None:
    """Build and verify in every tree that is set up, with each compiler; leave them as found."""
    from xdplab import eras, survey
    from xdplab.sample import Sample

    chosen = survey.trees(words(kernels), words(trees), lab.workspace)
    toolchains = [lab.toolchain(**named) for named in survey.trials(words(compilers))]
    pair = Sample.find(sample)
    with lab.view.stage("survey") as stage:
        found = survey.survey(
            chosen, toolchains, pair, lab.workspace, lab.shell, stage.line, learn=record
        )
        proofs = lab.view.proofs(survey.recording(found) if record else found)
    if record:
        lab.view.done(eras.write_page(dry=lab.shell.dry), nothing="docs/kernels.md is as it was")
    survey.require_passed(proofs)


@step(
    **SAMPLE,
    kernels="what to boot, with commas between: versions, releases, paths of images",
    compilers="such as clang-14,clang-19: each with the other kind's usual one",
    modes="generic, native, or both with a comma between",
    dev="the guest's interface: eth0 or lo",
    only_failed="only the cells that did not pass in the last matrix of the sample",
    report="put the report there, and not into the workspace",
    cluster="prove the cells on the Dask cluster whose scheduler is at this address",
)
def matrix(
    lab: Lab,
    kernels: str | None = None,
    compilers: str | None = None,
    modes: str | None = None,
    sample: str = TUTORIAL,
    dev: str = "eth0",
    only_failed: bool = False,
    report: str | None = None,
    cluster: str | None = None,
) -> None:
    """Prove the sample on a row of kernels, each in a virtual machine, side by side: one table."""
    from xdplab import cluster as clusters
    from xdplab import matrix as matrices
    from xdplab import report as reporting

    plan = matrices.Plan.of(
        sample,
        words(lab.kernels if kernels is None else kernels),
        words(compilers),
        words(lab.modes if modes is None else modes),
        lab.ip,
        dev,
    )
    if lab.shell.dry:
        matrices.show(plan, lab.workspace, lab.shell)
        return
    places = [lab.workspace.new_matrix(), *([Path(report)] if report is not None else [])]
    taken = reporting.passed_before(plan, lab.workspace) if only_failed else []
    with clusters.machines(cluster, lab.workspace, lab.shell, lab.view.say) as machines:
        means = matrices.Means.of(lab.workspace, lab.shell, lab.toolchain, machines, lab.view.say)
        with lab.view.board(plan, places[-1]) as board:
            found = matrices.run(plan, means, places[0], taken, board.at)
            results = board.follow(
                reporting.recording(found, plan, machines.host, places, board.found)
            )
    matrices.require_passed(results)


@step(
    only="of setup, build, packet, path, matrix and start those, with commas between; else all",
    rounds="how many readings of each way; else as many as each comparison needs",
    json="a JSON object, on standard output",
    record="put what is found into docs/performance.json, and write docs/performance.md anew",
)
def bench(
    lab: Lab,
    only: str | None = None,
    rounds: str | None = None,
    json: bool = False,
    record: bool = False,
) -> None:
    """Measure each stage against its floor and its peers, side by side: the ratio first."""
    from xdplab.bench import Stage, stages
    from xdplab.bench import record as recording
    from xdplab.bench.measure import Means

    wanted = stages.named(words(only))
    each = stages.rounds(rounds)
    if lab.shell.dry:
        lab.view.say(f"would measure: {', '.join(wanted)}")
        return
    directory = lab.workspace.new_bench()
    tree = functools.partial(lab.tree, None, None)
    shell = replace(lab.shell, echo=stages.once(lab.view.echo))
    means = Means(lab.workspace, shell, lab.toolchain, tree, lab.view.say)
    if busy := stages.disturbed():
        lab.view.say(busy)
    with lab.view.stage("bench") as stage:
        records = stages.run(wanted, each, means, directory, stage.report)
        found = lab.view.bench(records, directory, json=json)
    if record:
        lab.view.done(recording.keep(found, list(Stage)), nothing="")
    stages.require_measured(found)


@step(
    minutes="how long",
    only="of exit, guest, halfway, together, frames, parser and endurance those, with commas"
    " between; else all in turn",
    seed="begin with the chances of this number: that of a finding brings it about again",
    json="a JSON object, on standard output",
)
def torture(
    lab: Lab,
    minutes: str = "10",
    only: str | None = None,
    seed: str | None = None,
    json: bool = False,
) -> None:
    """Try to break the harness's promises, by chance: kills, full disks, two at once."""
    from xdplab.bench.measure import Means
    from xdplab.torture import session

    names, seconds, first = session.named(words(only)), session.seconds(minutes), session.seed(seed)
    lab.view.say(f"seed {first}")
    if lab.shell.dry:
        lab.view.say(f"would try: {', '.join(names)}")
        return
    directory = lab.workspace.new_torture()
    tree, quiet = functools.partial(lab.tree, None, None), replace(lab.shell, echo=lambda _: None)
    means = Means(lab.workspace, quiet, lab.toolchain, tree, lab.view.say)
    with lab.view.stage("torture") as stage:
        tried = session.run(names, first, means, directory, stage.report, seconds=seconds)
        record = lab.view.torture(tried, directory, json=json)
    session.require_unbroken(record)


@step(pictures="make the pictures anew too, in a real terminal, on the current tree")
def docs(lab: Lab, pictures: bool = False) -> None:
    """Write docs/kernels.md and docs/performance.md anew, from what was recorded."""
    from xdplab import eras
    from xdplab.bench import record as recording
    from xdplab.workspace import PROJECT

    for name, write in {"kernels": eras.write_page, "performance": recording.write_page}.items():
        lab.view.done(write(dry=lab.shell.dry), nothing=f"docs/{name}.md is as it was")
    if pictures:
        made = lab.shell.run([sys.executable, "scripts/picture"], cwd=PROJECT)
        lab.view.done([line.text for line in made.lines], nothing="no picture was made")


@step(dir="the directory that they are put into")
def dist(lab: Lab, dir: str = "dist") -> None:
    """Pack the last commit: a source archive, and a wheel of the library; the same bytes always."""
    from xdplab import supply

    lab.view.packed(supply.dist(Path(dir), lab.shell))


@step(output="the file to write")
def sbom(lab: Lab, output: str = "sbom.json") -> None:
    """Write a software bill of materials of what .venv is made of: CycloneDX, as JSON."""
    from xdplab import supply

    supply.sbom(Path(output), lab.workspace, lab.shell)
    if not lab.shell.dry:
        lab.view.packed([Path(output)])


@step()
def audit(lab: Lab) -> None:
    """Ask pip-audit what is known against the dependencies, at the versions that are locked."""
    from xdplab import supply

    asked = supply.audit(lab.workspace, lab.shell)
    if asked:
        lab.view.say(f"nothing is known against any of {asked} packages")


@step(shell="bash, zsh or fish", line="what is typed so far")  # noqa: S604  # no process
def completion(lab: Lab, shell: str, line: str | None = None) -> None:
    """Have TAB complete commands, options and values: source <(invoke completion bash)."""
    from xdplab import completion as completing

    kind = choice("SHELL", shell, completing.Shell)
    if line is None:
        lab.view.text(completing.script(kind))
        return
    known = [_command(one, ns[one.name].__doc__) for one in ns.to_contexts()]
    program = _command(ParserContext("", args=[*Program().core_args(), *Program().task_args()]))
    found = completing.candidates(line, program, known, lab.workspace)
    lab.view.text("".join(f"{one.word}\t{one.help}".strip() + "\n" for one in found))


def _command(context: ParserContext, doc: str | None = "") -> completing.Command:
    """What may follow a command, as Invoke has it from the function's parameters."""
    from xdplab import completion as completing

    name = str(context.name)
    helps = HELPS.get(name.replace(".", "_"), {})
    options = {
        argument: completing.Option(
            argument.name,
            tuple(sorted(context.names_for(flag))),
            argument.takes_value,
            argument.help or helps.get(argument.name, ""),
            str(argument.default or ""),
        )
        for flag, argument in context.flags.items()
    }
    positional = tuple(options[argument] for argument in context.positional_args)
    return completing.Command(name, doc or "", tuple(options.values()), positional)


# commands with a dot: filter.load
FILTER = (filter_load, filter_add, filter_remove, filter_list, filter_stats, filter_unload)
ns = Collection(
    *(one for one in globals().values() if isinstance(one, Task) and one not in FILTER),
    Collection("filter", *FILTER),
)
