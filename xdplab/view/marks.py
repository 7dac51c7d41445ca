"""How outcomes are marked: the views' words and colours for them."""

from __future__ import annotations

from xdplab.verify import Outcome

MARKS = {
    Outcome.PASSED: ("ok  ", "green"),
    Outcome.FAILED: ("FAIL", "bold red"),
    Outcome.ERROR: ("ERR ", "bold magenta"),
    Outcome.SKIPPED: ("skip", "yellow"),
}
