"""The page as files: nothing from elsewhere, nothing inline, no markup from data, names that exist.

What it does in a browser is for scripts/test_dashboard.
"""

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from tandem.messages.operations import (
    ClassVerdict,
    LiveView,
    NodeView,
    RequestRecord,
    Series,
    Snapshot,
)

STATIC = Path(__file__).resolve().parents[3] / "coordinator/dashboard/static"
SCRIPTS = sorted(STATIC.glob("*.js"))
SHEETS = sorted(STATIC.glob("*.css"))
MAX_LINES = 400
MAX_BYTES = 200_000  # the page with all that it loads: a slow link shows it within a second
# Ways by which a value could become markup or code.
FORBIDDEN = (
    "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function",
    "setAttribute(\"style\"", "srcdoc", "javascript:",
)  # fmt: skip
IMPORT = re.compile(r"^import \{([^}]*)\} from \"\./([a-z]+\.js)\";", re.MULTILINE)
EXPORT = re.compile(r"^export (?:async )?(?:function|class|const) (\w+)", re.MULTILINE)


class Page(HTMLParser):
    """Tags with their attributes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text_in_scripts = ""
        self._tag = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self._tag in ("script", "style"):
            self.text_in_scripts += data.strip()


@pytest.fixture(scope="module")
def page() -> Page:
    parsed = Page()
    parsed.feed((STATIC / "index.html").read_text())
    return parsed


def test_nothing_is_inline_and_nothing_comes_from_elsewhere(page: Page) -> None:
    """As the content security policy (default-src 'self') asks."""
    assert page.text_in_scripts == ""
    for tag, attributes in page.tags:
        assert tag != "style", "style sheets are files"
        for name, value in attributes.items():
            assert name != "style" and not name.startswith("on"), f"{tag} {name}={value}"
            if name in ("src", "href") and not str(value).startswith("#"):
                assert str(value).startswith("/static/"), f"{tag} loads {value}"
                assert (STATIC / str(value).removeprefix("/static/")).is_file(), value
    for file in [*SCRIPTS, *SHEETS]:
        urls = set(re.findall(r"https?://[^\s\"')]+", file.read_text()))
        assert urls <= {"http://www.w3.org/2000/svg"}, f"{file.name} names {urls}"


def test_values_never_become_markup_or_code() -> None:
    found = [
        f"{script.name}: {word}"
        for script in SCRIPTS
        for word in FORBIDDEN
        if word in script.read_text()
    ]
    assert found == []


def test_modules_import_what_there_is_and_all_are_used() -> None:
    exports = {script.name: set(EXPORT.findall(script.read_text())) for script in SCRIPTS}
    used = {"app.js"}
    for script in SCRIPTS:
        text = script.read_text()
        imports = IMPORT.findall(text)
        assert len(imports) == len(re.findall(r"^import ", text, re.MULTILINE)), script.name
        for names, target in imports:
            wanted = {name.strip() for name in names.split(",") if name.strip()}
            assert wanted <= exports[target], f"{script.name}: {wanted - exports[target]}"
            for name in wanted:
                uses = re.findall(rf"\b{name}\b", text.replace(f'from "./{target}"', ""))
                assert len(uses) > 1, f"{script.name} imports {name} and does not use it"
            used.add(target)
    assert used == {script.name for script in SCRIPTS}


def test_ids_are_unique_and_those_that_scripts_ask_for_exist(page: Page) -> None:
    ids = [str(attributes["id"]) for _, attributes in page.tags if "id" in attributes]
    assert [name for name, num in Counter(ids).items() if num > 1] == []
    for script in SCRIPTS:
        asked = set(re.findall(r"byId\(\"([\w-]+)\"\)", script.read_text()))
        assert asked <= set(ids), f"{script.name}: {asked - set(ids)}"
    for _, attributes in page.tags:
        for name in ("aria-labelledby", "for"):
            assert attributes.get(name) in {None, *ids}, attributes


def test_icons_and_colours_that_are_named_are_defined(page: Page) -> None:
    icons = {str(a["id"]).removeprefix("i-") for tag, a in page.tags if tag == "symbol"}
    text = "".join(script.read_text() for script in SCRIPTS)
    named = set(re.findall(r"\bicon: \"(\w+)\"|\bicon\(\"(\w+)\"", text))
    assert {one or other for one, other in named} <= icons
    sheets = "".join(sheet.read_text() for sheet in SHEETS)
    tones = set(re.findall(r"\"(tone-\w+)\"", text))
    assert {
        tone for tone in tones if f".{tone} " not in sheets and f".{tone}," not in sheets
    } == set()
    defined = set(re.findall(r"(--[\w-]+):", sheets))
    assert set(re.findall(r"var\((--[\w-]+)", sheets)) <= defined


def test_inputs_have_labels(page: Page) -> None:
    labelled = {attributes.get("for") for tag, attributes in page.tags if tag == "label"}
    for tag, attributes in page.tags:
        is_checkbox = attributes.get("type") == "checkbox"  # it is inside of its label
        if tag == "input" and not is_checkbox:
            assert attributes["id"] in labelled, attributes
        if tag == "button" and attributes.get("class") == "tool":
            assert attributes.get("aria-label"), attributes


@pytest.mark.parametrize(
    ("script", "variable", "view"),
    [
        ("nodes.js", "n", NodeView),
        ("memory.js", "node", NodeView),
        ("verdicts.js", "view", ClassVerdict),
        ("verdicts.js", "snapshot", Snapshot),
        ("app.js", "snapshot", Snapshot),
        ("record.js", "record", RequestRecord),
    ],
)
def test_fields_that_are_read_exist(script: str, variable: str, view: type[msgspec.Struct]) -> None:
    text = (STATIC / script).read_text()
    beside = {"windowName", "map", "parts", "tag"}
    read = set(re.findall(rf"\b{variable}\.([a-z]\w*)\b(?!\()", text)) - beside
    known = set(view.__struct_fields__)
    assert read, f"{script} reads nothing of {variable}"
    assert read <= known, f"{script}: {view.__name__} has no {read - known}"


def test_columns_of_requests_exist() -> None:
    text = (STATIC / "requests.js").read_text()
    read = set(re.findall(r"\br\.([a-z]\w*)\b", text))
    assert read <= set(LiveView.__struct_fields__) | set(RequestRecord.__struct_fields__)


def test_charts_draw_series_that_there_are() -> None:
    names = set(re.findall(r"\b[a-z]\w*\b", str(Series.__doc__)))
    for script in ("balance.js", "latency.js", "memory.js", "flow.js"):
        rows = re.findall(r"key: \"(\w+)\",\s*label", (STATIC / script).read_text())
        assert rows, script
        assert set(rows) <= names, f"{script}: {set(rows) - names}"
    stages = re.findall(r"key: \"(\w+)\",\s*label", (STATIC / "words.js").read_text())
    assert {f"{stage}_p50_ms" for stage in stages} <= names


def test_files_stay_small() -> None:
    long = {f.name: len(f.read_text().splitlines()) for f in [*SCRIPTS, *SHEETS]}
    assert {name: num for name, num in long.items() if num > MAX_LINES} == {}
    assert sum(file.stat().st_size for file in STATIC.iterdir()) < MAX_BYTES
    for script in SCRIPTS:
        assert script.read_text().startswith("/**"), f"{script.name} says what it is for"
