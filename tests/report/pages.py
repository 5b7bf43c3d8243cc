"""A parsed report: tags, attributes, images and text in reading order."""

import base64
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

from dpcgan_fast.evaluate import evaluate
from dpcgan_fast.report.page import render
from tests.evaluate.tables import patients, schema_of

PRIVACY: dict[str, Any] = {
    "epsilon": 3.0,
    "delta": 1e-5,
    "epsilon_rdp": 2.99,
    "epsilon_pld": 2.74,
    "unit": "one row",
    "accountant": "PLD",
    "private": True,
    "notes": ["Bounds in the schema are public."],
    "mechanisms": [
        {"mechanism": "label_histogram", "event": "gaussian", "sample_rate": 1.0, "noise_multiplier": 8.0, "steps": 1,
         "max_grad_norm": 1.0, "delta": 0, "description": "Units in each class"},
        {"mechanism": "critic", "event": "poisson_gaussian", "sample_rate": 0.01, "noise_multiplier": 1.25,
         "steps": 100, "max_grad_norm": 1.0, "delta": 0, "description": None},
        {"mechanism": "critic", "event": "poisson_gaussian", "sample_rate": 0.01, "noise_multiplier": 1.25,
         "steps": 1150, "max_grad_norm": 1.0, "delta": 0, "description": None},
    ],
}  # fmt: skip
TRAIN, TEST, SYNTHETIC = patients(400, 1), patients(300, 2), patients(350, 3)
CARD = "# Privacy card\n\nThe card's own words.\n"


class Page(HTMLParser):
    """tags: set of tag names; attributes: set of (tag, name); images: (source, alt); text: visible text in order."""

    def __init__(self, html: str):
        super().__init__()
        self.html = html
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.images: list[tuple[str, str]] = []
        self.sources: list[str] = []
        self._words: list[str] = []
        self._hidden = False
        self.feed(html)
        self.text = " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {(tag, name) for name, _ in attrs}
        values = dict(attrs)
        if tag == "img":
            self.images.append((values.get("src") or "", values.get("alt") or ""))
        self.sources += [values[name] or "" for name in ("src", "srcset") if name in values]
        self._hidden = tag in ("style", "title")

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._words.append(data)

    def drawings(self) -> Iterator[ElementTree.Element]:
        """Every image, parsed."""
        for source in self.sources:
            kind, _, content = source.partition(",")
            assert kind == "data:image/svg+xml;base64"
            yield ElementTree.fromstring(base64.b64decode(content))


def page(
    synthetic=SYNTHETIC, test=TEST, schema=None, train: Any = TRAIN, privacy: Any = None, card: str = CARD
) -> Page:
    """The parsed report on a synthetic table."""
    schema = schema or schema_of()
    statement = {**PRIVACY, **(privacy or {})}
    metrics = evaluate(synthetic, test, schema, train=train, privacy=statement)
    return Page(render(metrics, synthetic, test, schema, statement, card))
