"""A comparison in words, tables and pictures, made of its numbers; the page holds all it shows."""

import re
from html.parser import HTMLParser

import browser
import pytest

from dfm_jax.comparison.page import comparison_page
from dfm_jax.comparison.pictures import Scale, short, ticks
from dfm_jax.comparison.report import gate_table, verdict_sentences


def made_up(verdict: str = "better", mean: float = -0.03, *, warning: str | None = None) -> dict:
    """A comparison as compare_run returns it, of two experts on text that HTML must not read."""
    reason = "neither 0 nor a difference of the margin is rejected"
    gates = []
    for gate in ("static", "fixed share", "Bayes"):
        for top in ("top-1", "top-2", "full"):
            gates.append((gate, top))
    terms = {"own": mean - 0.01, "cost": 0.01, "gate": 0.0, "truncation": 0.0}
    ends = [mean, mean - 0.01, mean + 0.01]
    group = {"nll": 1.0, "minus": ends}
    rows = [
        {
            "gate": gate,
            "top": top,
            "nll": 2.0 + mean,
            "evaluations": 2.0,
            "terms": terms,
            "minus": {"dense": ends, "bayes": [0.0, 0.0, 0.0]},
            "verdict": {
                **dict(zip(("mean", "low", "high"), ends, strict=True)),
                **{"level": 0.95, "margin": 0.01, "verdict": verdict, "reason": reason},
            },
            "groups": {"expert": {"expert_000": group, "<b>": group}},
        }
        for gate, top in [*gates, ("hard after 16", "top-1"), ("oracle", "top-1")]
    ]
    cost = {"step": 10, "tokens": 100, "flops": 1e9}
    return {
        "run": "a <run> & b",
        "experts": ["expert_000", "expert_001"],
        "unit": "byte",
        "documents": 12,
        "tokens": 300,
        "size": 300,
        "options": {"margin": 0.01, "level": 0.95},
        "dense": 2.0,
        "gates": rows,
        "residuals": {"sum": 1e-13, "b1": 1e-13},
        "training": {
            "members": [cost | {"name": name} for name in ("dense", "expert_000", "expert_001")],
            "dense": cost,
            "experts": cost,
            "ratios": {"tokens": 1.0, "flops": None},
            "warning": warning,
        },
        "curves": [
            {
                "name": name,
                "tokens_per_step": 10,
                "loss": [[5, 3.0]],
                "validation": [[5, 3.0], [10, 2.5]],
            }
            for name in ("dense", "expert_000", "expert_001")
        ],
        "texts": [
            {
                "expert": "expert_000",
                "pieces": ["<script>", "x\x00", "\n", "é"],
                "weights": [[0.5, 0.5], [0.9, 0.1], [0.99, 0.01], [1.0, 0.0]],
                "nats": {"dense": 9.0, "ensemble": 8.0},
            }
        ],
        "versions": {"jax": "1"},
    }


SAID = {
    "better": (-0.03, "is better than the dense model: it needs 0.0300 nats per byte less"),
    "worse": (0.03, "is worse than the dense model: it needs 0.0300 nats per byte more"),
    "equivalent": (0.001, "are equivalent within 0.01 nats per byte on 12 held-out documents"),
    "undecided": (0.001, "It is undecided whether the ensemble or the dense model is better"),
}


@pytest.mark.parametrize(("verdict", "case"), SAID.items(), ids=SAID)
def test_the_verdict_in_words(verdict, case):
    mean, words = case
    said = verdict_sentences(made_up(verdict, mean))
    assert words in said[0]
    assert "95 % interval" in said[0]
    assert "another seed" in said[1]
    assert len(said) == 2
    assert verdict_sentences(made_up(warning="Not equal."))[2] == "Not equal."


def test_gates_are_sorted_and_two_experts_have_no_top_2():
    table = gate_table(made_up())
    losses = [float(row[1]) for row in table[1:]]
    assert losses == sorted(losses)
    assert "dense model" in [row[0] for row in table]
    assert not any("top-2" in row[0] for row in table)


def test_the_level_is_shown_as_it_is():
    found = made_up()
    found["options"]["level"] = 0.975
    assert gate_table(found)[0][3] == "97.5 % interval"


class _Checked(HTMLParser):
    """Every element that is opened is closed, in order; what it refers to."""

    void = ("meta", "rect", "line", "circle", "polyline", "polygon")

    def __init__(self) -> None:
        super().__init__()
        self.open, self.tags, self.attributes, self.data = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.data.append(data)


def test_the_page_is_whole_and_needs_no_network():
    found = made_up(warning="The cost differs.")
    page = comparison_page(found)
    parser = _Checked()
    parser.feed(page)
    assert parser.open == []
    assert parser.tags.count("svg") == 4  # gates, account, losses, one text
    assert not {"script", "link", "img", "iframe"} & set(parser.tags)
    assert not {"src", "href"} & {name for name, _ in parser.attributes}
    assert "http" not in page
    assert "url(" not in page
    assert ("name", "viewport") in parser.attributes
    views = [value for name, value in parser.attributes if name == "viewbox"]
    assert len(views) == 4
    assert all(view.startswith("0 0 360 ") for view in views)
    text = "".join(parser.data)
    assert verdict_sentences(found)[0] in text
    assert "The cost differs." in text
    assert "<script>x·\né" in text  # as letters, not as an element
    assert "a <run> & b" in text
    for row in gate_table(found)[1:]:
        assert row[0] in text


# A phone and a screen; pictures are at most 34 times the 16 pixels of a letter wide.
@pytest.mark.slow
@pytest.mark.parametrize(("width", "wide"), [(360, 360 - 2 * 16), (1200, 34 * 16)])
def test_a_browser_shows_the_verdict_and_the_figures(width, wide, tmp_path):
    if browser.program() is None:
        pytest.skip(f"no browser is here: one of {', '.join(browser.NAMES)}")
    found = made_up(warning="The cost differs.")
    seen = browser.laid_out(comparison_page(found), width, tmp_path)
    assert seen["window"] == width
    assert seen["width"] <= width  # only tables are scrolled sideways, each in its own box
    assert seen["needs"] == []
    verdict = seen["verdict"]
    assert verdict["text"] == verdict_sentences(found)[0]
    assert verdict["height"] > 0
    assert len(seen["pictures"]) == 4
    for one in seen["pictures"]:
        assert 0 <= one["left"] < one["right"] <= width
        assert wide - 20 < one["width"] <= wide  # 20: a scroll bar takes 15
    for letters in seen["letters"]:
        assert letters["height"] >= 9
        assert any(
            one["left"] <= letters["left"] and letters["right"] <= one["right"] + 0.5
            for one in seen["pictures"]
        ), letters
    for words in ("The cost differs.", "Each gate", "What the training cost"):
        assert words in seen["words"]


def test_the_places_in_the_pictures():
    """The dots of the gates stand where their differences say; terms begin where others end."""
    found = made_up("worse", 0.05)
    page = comparison_page(found)
    dots = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', page)]
    assert len(set(dots)) == 1  # all gates were given the same difference
    zero = float(re.search(r'<line x1="([\d.]+)"[^>]*class="axis"', page)[1])
    assert dots[0] > zero
    assert page.count("<polyline") == 3
    other = comparison_page(made_up("better", -0.05))
    zero = float(re.search(r'<line x1="([\d.]+)"[^>]*class="axis"', other)[1])
    assert float(re.search(r'<circle cx="([\d.]+)"', other)[1]) < zero


def test_a_comparison_of_one_document_has_no_intervals():
    found = made_up("undecided", 0.1)
    for row in found["gates"]:
        row["minus"]["dense"] = [0.1, None, None]
        row["verdict"] |= {"low": None, "high": None, "reason": "one document shows no spread"}
        row["groups"]["expert"]["<b>"] = {"nll": 1.0, "minus": [0.1, None, None]}
    found |= {"texts": [], "curves": []}
    page = comparison_page(found)
    assert "no interval" in page
    assert "one document shows no spread" in verdict_sentences(found)[0]
    assert page.count("<svg") == 2


def test_ticks_are_round_and_inside():
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(1.7, 5.2) == pytest.approx([2, 3, 4, 5])
    assert ticks(3.0, 3.0) == [3.0]
    assert [short(x) for x in (0, 1500, 2.5e6, -0.01)] == ["0", "1.5k", "2.5M", "−0.01"]
    assert Scale(0, 10, 100, 200)(2.5) == 125
    assert Scale(3, 3, 0, 9)(3) == 0
