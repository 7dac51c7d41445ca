"""The guided tutorial on the screen: panels on a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from xdplab.errors import LabError
from xdplab.lessons import Texts
from xdplab.tutorial import FILTER, STEPS, Answer, Step
from xdplab.verify import Outcome
from xdplab.view.marks import MARKS

_WIDTH = 80  # columns at most: longer lines are hard to read
_COMMAND = r"`[^`]+`"
_FILTER = FILTER.partition(" {")[0]


class Lesson:
    """A teacher (see xdplab.tutorial) in one language."""

    def __init__(self, console: Console, texts: Texts) -> None:
        self._console = console
        self._texts = texts
        self._plain = not console.is_terminal or console.no_color

    def show(self, step: Step, words: Mapping[str, str]) -> None:
        """The step's number and title, what and why, and the commands of then and now."""
        title = f"{step.number}/{len(STEPS)}  {self._texts.of_step(step.key, 'title', **words)}"
        said = [self._texts.of_step(step.key, key, **words) for key in ("what", "why")]
        commands = [template.format_map(words) for template in step.commands]
        lines = [f"$ {step.post}   # 2019", *map(self._prompted, commands)]
        inside = _WIDTH if self._plain else min(_WIDTH, self._console.width) - 4
        body = "\n\n".join([*(_filled(text, inside) for text in said), "\n".join(lines)])
        self._console.print()
        if self._plain:
            self._console.print(Text(f"== {title}\n\n{body}"))
        else:
            panel = Panel(_styled(body), title=Text(title, "bold"), width=inside + 4)
            self._console.print(panel, soft_wrap=False)

    def show_all(self, words: Mapping[str, str]) -> None:
        """Every step."""
        for step in STEPS:
            self.show(step, words)

    def _prompted(self, command: str) -> str:
        apart = f"   # {self._texts.word('apart')}" if command.startswith(_FILTER) else ""
        return f"$ {command}{apart}"

    def ask(self, answers: tuple[Answer, ...]) -> Answer:
        """Ask until it is one of them; the end of the input is QUIT."""
        ends = Answer.QUIT not in answers
        prompt = self._texts.word("keys_at_the_end" if ends else "keys")
        while True:
            try:
                given = self._console.input(Text(f"{prompt} > ", "bold")).strip().lower()
            except EOFError:
                self._console.print()
                return Answer.QUIT
            if given in answers:
                return Answer(given)

    def command(self, command: str) -> None:
        """The command as in a terminal."""
        self._console.print(Text(self._prompted(command), "dim"))

    def passed(self, step: Step, words: Mapping[str, object]) -> None:
        """What was found, and what to look at."""
        self._judge(Outcome.PASSED, self._texts.of_step(step.key, "done", **words))
        self._paragraph(self._texts.of_step(step.key, "look", **words))

    def failed(self, step: Step, words: Mapping[str, object]) -> None:
        """What should be and isn't, and what was found instead."""
        self._judge(Outcome.FAILED, self._texts.of_step(step.key, "failed", **words))
        if words["found"]:
            self._console.print(Text(textwrap.indent(str(words["found"]), "     ")))

    def fault(self, error: LabError) -> None:
        """An error in its own words."""
        self._console.print(Text(f"{error.message}\n{error.cure}"))

    def say(self, key: str, **facts: object) -> None:
        """A sentence in a paragraph of its own."""
        self._paragraph(self._texts.word(key, **facts))

    def hear(self, line: str) -> None:
        """A line in the filter's terminal."""
        self._console.print(Text(f"  | {line}", "dim"))

    def steps(self, marks: Mapping[int, bool]) -> None:
        """All steps, and which of them are done."""
        for step in STEPS:
            mark, style = MARKS[Outcome.PASSED] if marks[step.number] else ("    ", "")
            title = self._texts.of_step(step.key, "title")
            self._console.print(Text(mark, style), Text(f"{step.number:2}  {title}"))

    def _judge(self, outcome: Outcome, text: str) -> None:
        mark, style = MARKS[outcome]
        body = textwrap.indent(_filled(text, self._width - 5), "     ").removeprefix("     ")
        self._console.print(Text(mark, style), _styled(body))

    def _paragraph(self, text: str) -> None:
        self._console.print(_styled(_filled(text, self._width)))

    @property
    def _width(self) -> int:
        return min(_WIDTH, self._console.width)


def _filled(text: str, width: int) -> str:
    """Paragraphs broken to a width: not at French spaces, nor in commands."""
    whole = re.sub(_COMMAND, lambda found: found[0].replace(" ", "\0"), text.strip("\n"))
    wrapper = textwrap.TextWrapper(width, break_on_hyphens=False, break_long_words=False)
    return "\n\n".join(map(wrapper.fill, re.split(r"\n{2,}", whole))).replace("\0", " ")


def _styled(body: str) -> Text:
    """Text with its commands in colour."""
    text = Text(body)
    text.highlight_regex(_COMMAND, "cyan")
    text.highlight_regex(r"(?m)^\$ .*", "bold cyan")
    return text
