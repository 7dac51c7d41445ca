"""What every command needs: the workspace, the shell, and the screen."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdplab.errors import BuildsAsRoot, NotAChoice, NotBuiltYet, NoTree
from xdplab.process import Shell
from xdplab.view import View
from xdplab.workspace import RunRecord, Workspace

if TYPE_CHECKING:
    from xdplab.boot import Kernel
    from xdplab.build import Build
    from xdplab.probes import Machine
    from xdplab.runner import Job
    from xdplab.testbed import Testbed
    from xdplab.toolchain import Toolchain
    from xdplab.tree import Tree


@dataclass(frozen=True, slots=True)
class Lab:
    """The settings of one command."""

    workspace: Workspace
    shell: Shell
    view: View
    kernel: str  # the default of setup
    ip: str
    gcc: str | None  # the compilers of who names none; None: the machine's own
    clang: str | None
    kernels: str  # the defaults of matrix
    modes: str
    as_root: bool  # whether a tree's make may be run by root
    sandbox: bool  # whether it is shut in

    @classmethod
    def of(cls, config: Any) -> Lab:
        """Read Invoke's configuration: invoke.yaml, INVOKE_* and --dry."""
        view = View()
        return cls(
            Workspace.at(config.get("workspace")),
            Shell(view.echo, dry=bool(config.run.dry)),
            view,
            str(config.kernel),
            str(config.ip),
            config.get("gcc"),
            config.get("clang"),
            str(config.matrix.kernels),
            str(config.matrix.modes),
            bool(config.as_root),
            bool(config.sandbox),
        )

    def shut_in(self, sandbox: bool) -> Lab:
        """The same, with make shut in if that is wanted here, whatever the settings say."""
        return replace(self, sandbox=self.sandbox or sandbox)

    def toolchain(self, gcc: str | None = None, clang: str | None = None) -> Toolchain:
        """The compilers that --gcc and --clang name, or else those of the settings.

        Whoever is going to build comes by here.  Raises BuildsAsRoot, as no tree's make is
        run by root who wasn't told to, and what Toolchain.find raises; if make is to be
        shut in, what sandbox.require raises.
        """
        from xdplab.toolchain import Toolchain

        if os.geteuid() == 0 and not (self.as_root or self.shell.dry):
            raise BuildsAsRoot
        tools = Toolchain.find(
            self.gcc if gcc is None else gcc,
            self.clang if clang is None else clang,
            memory=self.workspace.compilers,
        )
        if not self.sandbox:
            return tools
        from xdplab import sandbox

        sandbox.require(self.shell)
        return replace(tools, sandboxed=True)

    def tree(self, kernel: str | None, path: str | None) -> Tree:
        """The tree that --kernel or --tree names, or else the current one, to be written to.

        Raises what Tree.require_ready raises.
        """
        tree = self._find(kernel, path)
        tree.require_ready()
        return tree

    def _find(self, kernel: str | None, path: str | None) -> Tree:
        from xdplab.trees import find

        return find(self.workspace, kernel, Path(path) if path is not None else None)

    def machine(self, kernel: str | None, path: str | None, dev: str) -> Machine:
        """This machine, for the tree that is meant; for none, if none is named nor set up."""
        from xdplab.probes import Machine

        try:
            tree = self._find(kernel, path)
        except NoTree:
            if kernel is not None or path is not None:
                raise
            tree = None
        return Machine(self.workspace, self.shell, tree, self.gcc, self.clang, dev)

    def bed(
        self, on: str, build: Build, job: Job, record: RunRecord, boot: str | None, *,
        tried: bool = False,
    ) -> Testbed:  # fmt: skip
        """The testbed that --on names; for a build and a job, where it is a virtual machine.

        `tried`: the build's packet cases will be run in it.  Raises NotAChoice, what the
        testbed misses, BadCases, and what boot.choice.find raises.
        """
        from xdplab import testbed
        from xdplab.testbed.vm import Vm

        if on != Vm.name:
            if boot is not None:
                raise NotAChoice("--on", on, [f"{Vm.name}, as there is a --boot"])
            return testbed.named(on, self.workspace)
        kernel = self.bootable(boot, build)
        frames: list[bytes] = []
        if tried and not self.shell.dry:
            from xdplab import cases

            frames = cases.frames(build, job.ip)
        vm = Vm(kernel, build, job.dev, record.path.parent, self.workspace, self.view.say, frames)
        return testbed.ready(vm)

    def bootable(self, spec: str | None, build: Build) -> Kernel:
        """The kernel that is meant, or else the tree's own, or the newest of its series."""
        from xdplab.boot import Kernel, built, choice
        from xdplab.version import KernelVersion

        own = built.of(build.tree_key, self.workspace)
        if spec is None and own:
            return own
        spec = KernelVersion.parse(build.facts["version"]).series if spec is None else spec
        with self.view.stage("kernel") as stage:
            kernel = choice.find(spec, self.workspace, self.shell, stage.report, self.view.say)
        # a dry run fetches none
        return kernel or Kernel(spec, None, self.workspace.kernels / spec / "vmlinux", None, None)

    def built(
        self, sample: str, kernel: str | None, path: str | None, ip: str | None = None
    ) -> Build:
        """The sample's build for that tree; raises NotBuiltYet, TakesNoAddress if `ip` is given."""
        from xdplab.build import Build, cases_of
        from xdplab.runner import check_takes_address
        from xdplab.sample import Sample

        pair, tree = Sample.find(sample), self._find(kernel, path)
        build = Build.load(self.workspace.build(tree.key, pair.name))
        if not build or build.facts["sources"][0] != str(pair.kern):  # another pair of the name
            given = {"--kernel": kernel, "--tree": path, "--sample": sample}
            options = [f"{name}={value}" for name, value in given.items() if value is not None]
            raise NotBuiltYet(pair.name, str(tree.version), options)
        if build.older_than(pair):
            self.view.say(f"{pair.name} was edited since it was built; invoke build makes it anew")
        if ip is not None:
            check_takes_address(build)
        # cases need no compiler: they are as they are now
        return replace(build, facts=build.facts | {"cases": cases_of(pair)})
