"""Reports: what a matrix found as JSON, as JUnit XML, and as a page that needs nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Generator, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import PATIENCE, PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st
from junitparser import JUnitXml, TestSuite

from xdplab.cell import Cell, Result
from xdplab.files import write_json
from xdplab.matrix import Plan
from xdplab.report import (
    JSON,
    JUNIT,
    PAGE,
    Report,
    excerpt,
    logs_of,
    of_json,
    passed_before,
    printable,
    recording,
    to_html,
    to_json,
    to_junit,
    write,
)
from xdplab.verify import Check, Outcome
from xdplab.workspace import Workspace

PLAN = Plan.of(
    "xdp_ip_filter", ["5.10", "6.1"], ["", "clang-19"], ["generic", "native"], "192.0.2.7", "eth0"
)
REASONS = {
    Outcome.PASSED: "",
    Outcome.FAILED: "packets pass: sent 3, answered 0",
    Outcome.ERROR: "the kernel panicked: Kernel panic - not syncing",
    Outcome.SKIPPED: "the distribution has no v5.10",
}


def result(cell: Cell, outcome: Outcome, logs: dict[str, str] | None = None) -> Result:
    return Result(
        cell,
        outcome,
        REASONS[outcome],
        said=("a line", "another"),
        release=f"{cell.kernel}.0-9-amd64",
        tree="6.1.192",
        compilers={"gcc": "gcc 12.2.0", "clang": "clang 14.0.6"},
        checks=(Check("it does", True, "so it is"), Check("packets pass", False, "answered 0")),
        seconds={"build": 9.25, "boot": 2.5, "prove": 3.0},
        logs=logs or {},
        commands=("qemu-system-x86_64 -M pc",),
        again=("invoke build --tree=/tree", "invoke verify --boot=6.1"),
    )


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """Of eight cells seven, with all outcomes, and logs that have everything in them."""
    log = tmp_path / "kernel.log"
    log.write_bytes(b"\x1b[31mred\x1b[0m \0 \xff\xfe <script>alert(1)</script> & ]]>\n" * 20)
    logs = {"kernel.log": str(log), "output.log": str(tmp_path / "gone.log")}
    outcomes = [*Outcome, *list(Outcome)[:3]]
    results = (result(*one, logs) for one in zip(PLAN.cells, outcomes, strict=False))
    host = {"Linux": "6.1.0", "QEMU": "7.2, emulation"}
    return Report(PLAN, 1795351027.0, 14.25, host, tuple(results))


# ---- JSON


def test_what_is_written_as_json_is_read_again(report: Report) -> None:
    assert of_json(json.loads(json.dumps(to_json(report)))) == report


def test_the_json_is_as_described(report: Report) -> None:
    """Every name is in docs/readings.md, and of its tables none is missing."""
    text = (PROJECT / "docs/readings.md").read_text()
    section = text.partition("# matrix.json")[2].partition("\n# ")[0]
    whole, of_cell = section.split("A cell:")
    written = to_json(report)

    def described(part: str) -> set[str]:
        rows = re.findall(r"^\| (`.*?) \|", part, re.MULTILINE)
        return {name for row in rows for name in re.findall(r"`(\w+)`", row)}

    assert described(whole) == set(written)
    assert [described(of_cell)] * 7 == [set(cell) for cell in written["cells"]]
    assert written["schema"] == 1
    assert written["totals"] == {"passed": 2, "failed": 2, "error": 2, "skipped": 1}


# ---- JUnit

# what Jenkins, GitLab and GitHub's readers take: attributes and children, in this order
ELEMENTS: dict[str, tuple[set[str], list[str]]] = {
    "testsuites": ({"name", "tests", "failures", "errors", "skipped", "time"}, ["testsuite"]),
    "testsuite": (
        {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"},
        ["testcase"],
    ),
    "testcase": (
        {"name", "classname", "time"}, ["skipped", "error", "failure", "system-out"]
    ),
    "failure": ({"message", "type"}, []),
    "error": ({"message", "type"}, []),
    "skipped": ({"message", "type"}, []),
    "system-out": (set(), []),
}  # fmt: skip


def assert_junit(xml: str) -> ElementTree.Element:
    root = ElementTree.fromstring(xml)  # noqa: S314  # it is our own
    assert root.tag == "testsuites"
    for element in root.iter():
        attributes, children = ELEMENTS[element.tag]
        assert set(element.attrib) <= attributes
        order = [children.index(child.tag) for child in element]
        assert order == sorted(order)
        assert not element.attrib.keys() & {"time"} or float(element.attrib["time"]) >= 0
    for suites in (root, *root):
        cases = list(suites.iter("testcase"))
        for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped",) * 2):
            count = sum(case.find(tag) is not None for case in cases)
            assert int(suites.attrib[attribute]) == count
        assert int(suites.attrib["tests"]) == len(cases)
    return root


def test_ci_systems_can_read_it(report: Report) -> None:
    root = assert_junit(to_junit(report))
    assert [suite.attrib["name"] for suite in root] == [
        "xdp_ip_filter on 5.10",
        "xdp_ip_filter on 6.1",
    ]
    cases = {
        f"{case.attrib['classname']} {case.attrib['name']}": [child.tag for child in case]
        for case in root.iter("testcase")
    }
    assert cases == {
        "xdp_ip_filter.5.10 generic": ["system-out"],
        "xdp_ip_filter.5.10 native": ["failure", "system-out"],
        "xdp_ip_filter.5.10 generic, clang-19": ["error", "system-out"],
        "xdp_ip_filter.5.10 native, clang-19": ["skipped", "system-out"],
        "xdp_ip_filter.6.1 generic": ["system-out"],
        "xdp_ip_filter.6.1 native": ["failure", "system-out"],
        "xdp_ip_filter.6.1 generic, clang-19": ["error", "system-out"],
    }
    failure = root.find(".//failure")
    assert failure is not None
    assert failure.attrib["message"] == REASONS[Outcome.FAILED]
    assert failure.text
    assert failure.text.endswith("a line\nanother\ninvoke build --tree=/tree\n"
                                 "invoke verify --boot=6.1")  # fmt: skip
    said = root.findtext(".//system-out") or ""
    assert said.startswith("== kernel.log\n")
    assert r"\x1b[31mred\x1b[0m \x00 \xff\xfe <script>alert(1)</script> & ]]>" in said


def test_another_reader_agrees(report: Report, tmp_path: Path) -> None:
    write(report, tmp_path)
    xml = JUnitXml.fromfile(str(tmp_path / JUNIT))
    assert (xml.tests, xml.failures, xml.errors, xml.skipped) == (7, 2, 2, 1)
    assert all(isinstance(suite, TestSuite) for suite in xml)
    assert xml.time == pytest.approx(7 * 5.5)


# ---- the page

VOID = {"meta", "br", "hr", "img", "input", "link", "source", "wbr", "base", "area", "col"}


class Page(HTMLParser):
    """Reads a page strictly: what is opened is closed, in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {attrs}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.tags if name == tag)


FORBIDDEN = {"script", "link", "img", "iframe", "object", "embed", "base", "form", "video", "audio"}


def assert_self_contained(page: Page, text: str) -> None:
    assert {tag for tag, _ in page.tags} & FORBIDDEN == set()
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    assert "@import" not in text
    assert "url(" not in text


def test_the_page_is_whole_and_needs_nothing_else(report: Report) -> None:
    text = to_html(report)
    page = Page(text)
    assert_self_contained(page, text)
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    links = [str(attributes["href"]) for attributes in page.of("a")]
    assert len(links) == 7
    assert {link[1:] for link in links} == set(identifiers)
    (html,) = page.of("html")
    assert html["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in page.of("meta"))


def test_the_table_has_heads_for_those_who_hear_it(report: Report) -> None:
    page = Page(to_html(report))
    scopes = [attributes.get("scope") for attributes in page.of("th")]
    assert scopes == ["colgroup"] * 2 + ["col"] * 5 + ["row"] * 2
    assert [attributes["class"] for attributes in page.of("td") if "class" in attributes] == [
        *("passed", "failed", "error", "skipped"),
        *("passed", "failed", "error", "none"),
    ]
    (caption,) = page.of("caption")
    assert caption


def test_no_cell_is_told_by_its_colour_alone(report: Report) -> None:
    table = re.search(r"<tbody>.*</tbody>", to_html(report), re.DOTALL)
    assert table
    words = Page(table[0]).words
    for sign, word in (("✓", "passed"), ("✗", "failed"), ("!", "error"), ("»", "skipped")):
        assert words.count(sign) == sum(word in text for text in words) > 0
    assert words.count("not run") == 1


def test_reasons_words_and_logs_are_in_it(report: Report) -> None:
    said = "".join(Page(to_html(report)).words)
    for reason in REASONS.values():
        assert reason in said
    for text in (
        *("1 not run: interrupted", "a line\nanother", "invoke verify --boot=6.1", "gcc 12.2.0"),
        *(r"\x1b[31mred\x1b[0m \x00 \xff\xfe <script>alert(1)</script>", "7.2, emulation"),
    ):
        assert text in said


def relative_luminance(colour: str) -> float:
    """As WCAG 2 has it."""
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_colours_have_contrast(report: Report) -> None:
    schemes = re.findall(r":root \{(.*?)\}", to_html(report), re.DOTALL)
    assert len(schemes) == 2  # bright and dark
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", scheme))
        grounds = [*(str(outcome) for outcome in Outcome), "none"]
        pairs = [(f"{ground}-ink", ground) for ground in grounds]
        pairs += [(ink, paper) for ink in ("ink", "soft", "link") for paper in ("paper", "card")]
        for ink, paper in [*pairs, ("ink", "code")]:
            light, dark = sorted(
                (relative_luminance(colours[name]) for name in (ink, paper)), reverse=True
            )
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, paper)


@settings(deadline=None, max_examples=50)  # the first loads the template
@given(st.text(min_size=1), st.text(), st.text())
def test_whatever_is_said_stays_text(kernel: str, said: str, claim: str) -> None:
    nasty = Plan(f"x{said}", said, (kernel,), ("",), ("generic",), "192.0.2.7", claim)
    (cell,) = nasty.cells
    one = replace(
        result(cell, Outcome.FAILED), reason=said, said=(said, claim), release=claim,
        checks=(Check(claim, False, said),), again=(claim,), taken_from=said,
    )  # fmt: skip
    found = Report(nasty, 0.0, 0.0, {said: claim}, (one,))
    text = to_html(found)
    page = Page(text)
    assert_self_contained(page, text)
    plain = Page(to_html(replace(found, results=(replace(result(cell, Outcome.FAILED)),))))
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags} | {"ul", "li", "h3"}
    assert_junit(to_junit(found))
    assert of_json(json.loads(json.dumps(to_json(found)))) == found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(
    report: Report, tmp_path: Path, scheme: str
) -> None:
    browser = shutil.which("chromium")
    if not browser:
        pytest.skip("chromium is not installed")
    # the page, framed as wide as a phone, beside a script that measures it
    framed = to_html(report).replace("&", "&amp;").replace('"', "&quot;")
    (tmp_path / "frame.html").write_text(
        f'<!DOCTYPE html><iframe id="phone" width="360" height="640" srcdoc="{framed}"></iframe>'
        "<script>onload = () => {"
        "const page = document.getElementById('phone').contentDocument;"
        "document.title = [page.documentElement.scrollWidth,"
        " page.querySelector('table').scrollWidth,"
        " getComputedStyle(page.body).backgroundColor].join(' ') }</script>"
    )
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
    ]
    shown = subprocess.run(
        [browser, *options, f"file://{tmp_path / 'frame.html'}"],
        capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    found = re.search(r"<title>(\d+) (\d+) rgb\((\d+),", shown.stdout)
    assert found, shown.stdout[-2000:]
    page, table, red = map(int, found.groups())
    assert 0 < page <= 360
    assert 0 < table <= 360
    assert (red < 128) == (scheme == "dark")


# ---- what was printed


@given(st.text())
def test_what_is_printable_stays_as_it_is(text: str) -> None:
    shown = printable(text)
    assert printable(shown) == shown
    ElementTree.fromstring(f"<a>{re.sub('[<&]', '', shown)}</a>")  # noqa: S314  # it is our own


def test_what_is_not_is_spelt() -> None:
    assert printable("a\tb\r\nc\x1b[0m\0\ud800\x85é") == "a\tb\nc\\x1b[0m\\x00\\ud800\x85é"


@given(st.text(), st.integers(8, 50))
def test_a_long_text_is_cut_in_the_middle_and_says_so(text: str, most: int) -> None:
    shown = excerpt(text, most)
    if len(text) <= most:
        assert shown == text
        return
    head, tail = text[: most // 4], text[-(most - most // 4) :]
    assert shown == f"{head}\n[... {len(text) - most} characters are left out here ...]\n{tail}"


def test_a_log_that_is_gone_is_left_out(report: Report) -> None:
    assert [name for name, _ in logs_of(report.results[0])] == ["kernel.log"]


def test_a_big_log_is_cut_in_the_page_and_more_so_in_junit(report: Report, tmp_path: Path) -> None:
    big = tmp_path / "big.log"
    big.write_text("the begin\n" + "x" * 10**6 + "\nthe end\n")
    one = replace(report.results[0], logs={"big.log": str(big)})
    cut = replace(report, results=(one,))
    for text, most in ((to_html(cut), 80_000), (to_junit(cut), 10_000)):
        assert len(text) < most
        for words in ("the begin", "the end", "characters are left out here"):
            assert words in text


# ---- kept


def results_of(report: Report) -> Generator[Result]:
    yield from report.results


def test_each_result_is_on_record_as_soon_as_it_is_there(report: Report, tmp_path: Path) -> None:
    place = tmp_path / "a"
    passing = recording(results_of(report), report.plan, report.host, [place], [])
    for count, _ in enumerate(passing, start=1):
        assert len(json.loads((place / JSON).read_text())["cells"]) == count
        assert not (place / PAGE).exists()
    assert {path.name for path in place.iterdir()} == {JSON, JUNIT, PAGE}


def test_interrupted_it_reports_what_there_is(report: Report, tmp_path: Path) -> None:
    def interrupted() -> Generator[Result]:
        yield report.results[0]
        raise KeyboardInterrupt

    places = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(KeyboardInterrupt):
        list(recording(interrupted(), report.plan, report.host, places, []))
    for place in places:
        assert "7 not run: interrupted" in (place / PAGE).read_text()
        assert len(json.loads((place / JSON).read_text())["cells"]) == 1


def test_what_is_shown_is_on_record_wherever_it_is_interrupted(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    presses = iter([KeyboardInterrupt])

    def pressed(*file: Any) -> None:
        for key in presses:
            raise key
        write_json(*file)

    found: list[Result] = []
    passing = recording(results_of(report), report.plan, report.host, [tmp_path], found)
    next(passing)
    monkeypatch.setattr("xdplab.report.write_json", pressed)
    with pytest.raises(KeyboardInterrupt):
        next(passing)
    assert len(found) == len(json.loads((tmp_path / JSON).read_text())["cells"]) == 2


def test_of_nothing_there_is_no_report(report: Report, tmp_path: Path) -> None:
    def refused() -> Generator[Result]:
        yield from ()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(recording(refused(), report.plan, report.host, [tmp_path / "a"], []))
    assert not (tmp_path / "a").exists()


def test_the_last_matrix_of_the_same_sample_counts(report: Report, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert passed_before(PLAN, workspace) == []
    older, newer, other = (tmp_path / "matrix" / name for name in ("1", "2", "3"))
    write(report, older)
    write(replace(report, results=report.results[:1]), newer)
    write(replace(report, plan=replace(PLAN, sample="other")), other)
    assert [one.taken_from for one in passed_before(PLAN, workspace)] == ["2"]
