"""`lib.partitions`: labels that cut no file, look at nothing else, and are assigned evenly."""

import itertools
import random
import re

import numpy as np
import pytest
from scipy import stats

from dfm_jax.data import Corpus, Document, split_documents
from experiments.lib.partitions import (
    Partition,
    at_random,
    by_assigned_files,
    by_clusters,
    by_domain,
    by_file,
    by_likelihood,
)

pytestmark = pytest.mark.slow  # whole runs and large samples

SPLITS = ("train", "validation", "test")
FALSE_ALARM = 1e-4  # of each chi-square test, were the hash drawn anew; it is not


def _corpus(domain, rows):
    """One document per (name, work, text)."""
    documents = tuple(Document(name=name, work=work, text=text) for name, work, text in rows)
    return Corpus(domain=domain, documents=documents)


def _plays(domain, num_works, num_scenes):
    rows = itertools.product(range(num_works), range(num_scenes))
    return _corpus(
        domain, [(f"play {w} {s}", f"play {w}", f"{domain} act{w} scene{s}") for w, s in rows]
    )


VERSE, CODE, NEWS = _plays("verse", 3, 4), _plays("code", 5, 1), _plays("news", 2, 3)
CORPORA = (VERSE, CODE, NEWS)


def _documents(corpora):
    return [(corpus.domain, document) for corpus in corpora for document in corpus.documents]


def _part_by_name(corpora, partition):
    """(domain, name) → part."""
    names = [(domain, document.name) for domain, document in _documents(corpora)]
    return dict(zip(names, partition.part_of.tolist(), strict=True))


def _part_by_work(corpora, partition):
    """(domain, work) → the set of parts that its documents are in."""
    parts = {}
    for (domain, document), part in zip(_documents(corpora), partition.part_of, strict=True):
        parts.setdefault((domain, document.work), set()).add(int(part))
    return parts


def _uniform_p_value(part_of, num_parts):
    return stats.chisquare(np.bincount(part_of, minlength=num_parts)).pvalue


# ── what every partition is ─────────────────────────────────────────────────────────────────────

MAKERS = {
    "domain": (by_domain, 3),
    "file": (by_file, 3 + 5 + 2),
    "assigned files": (lambda corpora: by_assigned_files(corpora, 4, seed=0), 4),
    "random": (lambda corpora: at_random(corpora, 4, seed=0), 4),
    "one": (lambda corpora: at_random(corpora, 1, seed=0), 1),
    "more parts than documents": (lambda corpora: at_random(corpora, 99, seed=0), 99),
    "cluster": (lambda corpora: by_clusters(corpora, 4, fitted_on=20, seed=0), 4),
}
NAMES = {"assigned files": "file", "one": "random", "more parts than documents": "random"}


@pytest.mark.parametrize("maker", MAKERS)
def test_every_document_has_a_part_and_every_part_a_label(maker):
    make, num_parts = MAKERS[maker]
    partition = make(CORPORA)
    assert isinstance(partition, Partition)
    assert partition.name == NAMES.get(maker, maker)
    assert partition.num_parts == len(partition.labels) == num_parts
    assert len(set(partition.labels)) == num_parts
    assert all(isinstance(label, str) for label in partition.labels)
    assert partition.part_of.shape == (len(_documents(CORPORA)),)
    assert np.issubdtype(partition.part_of.dtype, np.integer)
    assert partition.part_of.min() >= 0
    assert partition.part_of.max() < num_parts


@pytest.mark.parametrize("maker", MAKERS)
def test_the_same_documents_give_the_same_parts(maker):
    make, _ = MAKERS[maker]
    first, second = make(CORPORA), make(list(CORPORA))
    np.testing.assert_array_equal(first.part_of, second.part_of)
    assert first.labels == second.labels


# ── by domain, by file ──────────────────────────────────────────────────────────────────────────


def test_a_domain_is_a_part():
    partition = by_domain(CORPORA)
    assert partition.labels == ("verse", "code", "news")
    assert partition.part_of.tolist() == [0] * 12 + [1] * 5 + [2] * 6


def test_a_domain_that_comes_in_every_split_is_one_part():
    corpora = [_plays(d, w, 2) for w in (3, 1, 2) for d in ("verse", "code")]
    partition = by_domain(corpora)
    assert partition.labels == ("verse", "code")
    assert partition.part_of.tolist() == [0] * 6 + [1] * 6 + [0] * 2 + [1] * 2 + [0] * 4 + [1] * 4


def test_a_domain_without_documents_is_no_part():
    partition = by_domain([_corpus("empty", []), CODE, VERSE])
    assert partition.labels == ("code", "verse")


def test_a_file_is_a_part():
    partition = by_file([VERSE, NEWS])
    works = ("verse/play 0", "verse/play 1", "verse/play 2", "news/play 0", "news/play 1")
    assert partition.labels == works  # a work of the same name in another domain is another
    assert partition.part_of.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 3 + [4] * 3


def test_a_file_whose_documents_come_apart_is_one_part():
    first, second = _corpus("d", [("1", "a", ""), ("2", "b", "")]), _corpus("d", [("3", "a", "")])
    assert by_file([first, second]).part_of.tolist() == [0, 1, 0]


# ── assigned, and at random ───────────────────────────────────────────────────────────────────────

DRAWS = {"files": by_assigned_files, "documents": at_random}


@pytest.mark.parametrize("num_parts", [2, 3, 7])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_no_file_is_cut_through(num_parts, seed):
    corpora = [_plays("verse", 60, 5), _plays("code", 60, 3)]
    parts = _part_by_work(corpora, by_assigned_files(corpora, num_parts, seed=seed))
    assert {len(found) for found in parts.values()} == {1}
    assert set().union(*parts.values()) == set(range(num_parts))
    cut = _part_by_work(corpora, at_random(corpora, num_parts, seed=seed))
    assert max(len(found) for found in cut.values()) > 1  # a draw for each document does cut


@pytest.mark.parametrize("draw", DRAWS)
def test_a_part_does_not_depend_on_the_other_documents(draw):
    alone = _part_by_name([VERSE], DRAWS[draw]([VERSE], 5, seed=3))
    rows = [(d.name, d.work, d.text) for d in VERSE.documents]
    more = [(f"new {i}", "new", "") for i in range(9)]
    for corpora in (
        [CODE, VERSE, NEWS],
        [_corpus("verse", rows[::-1])],
        [_corpus("verse", more + rows[:5]), CODE, _corpus("verse", rows[5:])],
        [_corpus("verse", [(name, work, "another text") for name, work, _ in rows])],
    ):
        found = _part_by_name(corpora, DRAWS[draw](corpora, 5, seed=3))
        assert {key: found[key] for key in alone} == alone


def test_a_file_does_not_depend_on_the_names_of_its_documents():
    rows = [(d.name, d.work, d.text) for d in VERSE.documents]
    renamed = [_corpus("verse", [(f"another {name}", work, text) for name, work, text in rows])]
    assigned, again = (
        by_assigned_files(corpora, 5, seed=0).part_of for corpora in ([VERSE], renamed)
    )
    np.testing.assert_array_equal(assigned, again)
    drawn, again = (at_random(corpora, 5, seed=0).part_of for corpora in ([VERSE], renamed))
    assert (drawn != again).any()


@pytest.mark.parametrize("draw", DRAWS)
def test_another_seed_or_domain_deals_anew(draw):
    draws = {
        (domain, seed): DRAWS[draw]([_plays(domain, 300, 1)], 4, seed=seed).part_of
        for domain, seed in itertools.product(("verse", "code"), (0, 1, -1))
    }
    for first, second in itertools.combinations(draws.values(), 2):
        table = np.histogram2d(first, second, bins=(4, 4))[0]
        assert stats.chi2_contingency(table).pvalue > FALSE_ALARM  # pyright: ignore


def test_the_draw_is_the_same_on_every_machine():
    names = ["Genesis 1", "naïve", "a/b.txt", *"cdefgh"]
    corpora = [_corpus("kjv", [(name, name, "") for name in names])]
    # 7, since 256 is 1 modulo 5: the order of the hash's bytes would not matter
    assert at_random(corpora, 7, seed=0).part_of.tolist() == [4, 2, 3, 5, 2, 3, 0, 1, 1]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("num_parts", [2, 3, 5, 16])
@pytest.mark.parametrize("draw", DRAWS)
def test_parts_are_equally_likely(draw, num_parts, seed):
    corpora = [_plays("verse", 2000, 1), _plays("code", 2000, 1)]
    part_of = DRAWS[draw](corpora, num_parts, seed=seed).part_of
    assert _uniform_p_value(part_of, num_parts) > FALSE_ALARM


def test_uneven_parts_are_told_from_even_ones():
    """The falsifier of the test above: 40 files of 100 scenes are no 4,000 draws."""
    corpora = [_plays("verse", 40, 100)]
    assert _uniform_p_value(by_assigned_files(corpora, 5, seed=0).part_of, 5) < 1e-9
    assert _uniform_p_value(at_random(corpora, 5, seed=0).part_of, 5) > FALSE_ALARM


def test_the_part_says_nothing_about_the_split():
    """Both are drawn by hashes of seed, domain and name: they must not be the same hash."""
    corpora = [_plays("verse", 4000, 1)]
    split = split_documents(corpora, seed=0, validation=0.25, test=0.25, max_overlap=0.5)
    assert split.removed == ()
    split_of = {d.name: s for s in SPLITS for c in getattr(split, s) for d in c.documents}
    splits = [SPLITS.index(split_of[document.name]) for _, document in _documents(corpora)]
    for num_parts in (2, 5):
        part_of = at_random(corpora, num_parts, seed=0).part_of
        table = np.histogram2d(splits, part_of, bins=(3, num_parts))[0]
        assert stats.chi2_contingency(table).pvalue > FALSE_ALARM  # pyright: ignore


# ── by clusters ─────────────────────────────────────────────────────────────────────────────────

WORDS = {
    "sea": "anchor harbour keel mast rudder sail tide wave",
    "farm": "barley cattle furrow harvest meadow orchard plough stable",
    "probs": "appeal clause court judge jury plaintiff statute verdict",
}


def _themed(seed, theme, num_words=40):
    return " ".join(random.Random(f"{seed} {theme}").choices(WORDS[theme].split(), k=num_words))


@pytest.fixture
def themes():
    """The theme of each of 60 documents, in no order."""
    return random.Random(0).choices(list(WORDS), k=60)


@pytest.fixture
def themed(themes):
    """A function: these documents as corpora, some with another text."""

    def corpora(edits=()):
        texts = [_themed(i, theme) for i, theme in enumerate(themes)]
        for i, text in dict(edits).items():
            texts[i] = text
        rows = [(f"{i}", f"{i}", text) for i, text in enumerate(texts)]
        return [_corpus("a", rows[:25]), _corpus("b", rows[25:])]

    return corpora


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("fitted_on", [20, 40, 60])
def test_clusters_are_the_themes(themed, themes, fitted_on, seed):
    part_of = by_clusters(themed(), 3, fitted_on=fitted_on, seed=seed).part_of
    pairs = set(zip(themes, part_of.tolist(), strict=True))
    assert len(pairs) == 3  # a part for each theme, a theme for each part
    assert {part for _, part in pairs} == {0, 1, 2}


def test_every_cluster_holds_a_document_it_was_fitted_on(themed):
    part_of = by_clusters(themed(), 8, fitted_on=40, seed=0).part_of
    assert set(part_of[:40].tolist()) == set(range(8))


def test_later_documents_do_not_move_the_others(themed):
    before = by_clusters(themed(), 5, fitted_on=40, seed=0).part_of
    flood = {i: "quite other words of which none came before " * i for i in range(41, 60)}
    for edits in ({50: "court statute"}, flood, dict.fromkeys(range(40, 59), "")):
        after = by_clusters(themed(edits), 5, fitted_on=40, seed=0).part_of
        kept = [i for i in range(60) if i not in edits]
        np.testing.assert_array_equal(after[kept], before[kept])
    shorter = themed()
    shorter[1] = _corpus("b", [(d.name, d.work, d.text) for d in shorter[1].documents[:20]])
    after = by_clusters(shorter, 5, fitted_on=40, seed=0).part_of
    np.testing.assert_array_equal(after, before[:45])


@pytest.mark.parametrize("num_parts", [3, 5, 8])
def test_how_rare_a_word_is_comes_from_what_was_fitted_on(num_parts):
    """Texts without a theme, whose clusters hang on the weights of their words."""
    words = " ".join(WORDS.values()).split()
    rng = random.Random(1)
    texts = [" ".join(rng.choices(words, k=12)) for _ in range(60)]
    flooded = texts[:40] + [" ".join(words[:12])] * 20
    before, after = (
        by_clusters(
            [_corpus("a", [(f"{i}", f"{i}", text) for i, text in enumerate(of)])],
            num_parts,
            fitted_on=40,
            seed=0,
        ).part_of
        for of in (texts, flooded)
    )
    np.testing.assert_array_equal(after[:40], before[:40])


def test_earlier_documents_do_move_the_others(themed):
    """The falsifier of the test above: what is fitted on decides."""
    before = by_clusters(themed(), 5, fitted_on=40, seed=0).part_of
    edits = {i: f"quite other words {i}" for i in range(20)}
    after = by_clusters(themed(edits), 5, fitted_on=40, seed=0).part_of
    same_before, same_after = (x[20:, None] == x[None, 20:] for x in (before, after))
    assert (same_before != same_after).any()  # whatever the parts are called


def test_a_later_document_goes_where_its_own_words_are(themed, themes):
    edits = {i: _themed("new", theme, 5) for i, theme in zip((41, 47, 59), WORDS, strict=True)}
    part_of = by_clusters(themed(edits), 3, fitted_on=40, seed=0).part_of
    for i, theme in zip(edits, WORDS, strict=True):
        assert part_of[i] == part_of[themes.index(theme)]


def test_the_length_of_a_document_does_not_matter(themed, themes):
    edits = {i: _themed(i, themes[i], 2000 if i % 2 else 12) for i in range(60)}
    part_of = by_clusters(themed(edits), 3, fitted_on=60, seed=0).part_of
    assert len(set(zip(themes, part_of.tolist(), strict=True))) == 3


def test_clusters_of_another_seed_are_others(themed):
    found = {
        tuple(by_clusters(themed(), 8, fitted_on=60, seed=seed).part_of.tolist())
        for seed in range(4)
    }
    assert len(found) > 1


# ── by the likelihood of a prefix ───────────────────────────────────────────────────────────────

PREFIX = 120


@pytest.fixture
def even():
    """A function: 60 documents of one length, the themes in turn, some with another text."""

    def corpora(edits=()):
        texts = [_themed(i, list(WORDS)[i % 3], 60)[:250] for i in range(60)]
        for i, text in dict(edits).items():
            texts[i] = text
        rows = [(f"{i}", f"{i}", text) for i, text in enumerate(texts)]
        return [_corpus("a", rows[:25]), _corpus("b", rows[25:])]

    return corpora


def _likeliest(corpora, seed=0, fitted_on=45):
    return by_likelihood(corpora, 3, fitted_on=fitted_on, prefix=PREFIX, seed=seed)


@pytest.mark.slow
def test_themes_are_told_apart_by_the_likelihood_of_a_prefix(even):
    partition = _likeliest(even())
    pairs = {(i % 3, part) for i, part in enumerate(partition.part_of.tolist())}
    assert len(pairs) == 3  # those that were only labeled, too
    assert partition.num_parts == 3
    assert partition.search["converged"]
    assert len(partition.search["nats_per_document"]) == partition.search["passes"]
    sizes = np.array([len(d.text.encode()) for _, d in _documents(even())][:45])
    loads = np.bincount(partition.part_of[:45], sizes)
    assert partition.search["loads"] == loads.tolist()
    assert loads.max() - sizes.sum() / 3 <= sizes.max()
    again = _likeliest(even())
    np.testing.assert_array_equal(partition.part_of, again.part_of)


@pytest.mark.slow
@pytest.mark.statement("B9")
def test_of_a_later_document_the_prefix_alone_decides(even):
    texts = [d.text for _, d in _documents(even())]
    before = _likeliest(even())
    other = {i: texts[i][:PREFIX] + _themed("new", list(WORDS)[(i + 1) % 3]) for i in range(45, 60)}
    np.testing.assert_array_equal(before.part_of, _likeliest(even(other)).part_of)
    moved = {i: texts[i - 1][:PREFIX] + texts[i][PREFIX:] for i in range(45, 60)}
    after = _likeliest(even(moved))
    assert (before.part_of[45:] != after.part_of[45:]).all()  # the falsifier
    np.testing.assert_array_equal(before.part_of[:45], after.part_of[:45])


@pytest.mark.slow
def test_the_models_of_the_parts_label_a_later_document_as_the_partition_does(even):
    partition = _likeliest(even())
    for i, (_, document) in enumerate(_documents(even())[45:], start=45):
        scores = partition.models.of_bytes([document.text.encode()[:PREFIX]]).sum(0)
        assert scores.argmax() == partition.part_of[i]


# ── what is refused ─────────────────────────────────────────────────────────────────────────────

REFUSED = {
    "no part": (
        lambda: at_random(CORPORA, 0, seed=0),
        "`num_parts` must be at least 1; got num_parts = 0.",
    ),
    "no part for files": (
        lambda: by_assigned_files(CORPORA, -1, seed=0),
        "`num_parts` must be at least 1; got num_parts = -1.",
    ),
    "no cluster": (
        lambda: by_clusters(CORPORA, 0, fitted_on=9, seed=0),
        "`num_parts` must lie in [1, 9]; got num_parts = 0.",
    ),
    "more clusters than documents to fit": (
        lambda: by_clusters(CORPORA, 10, fitted_on=9, seed=0),
        "`num_parts` must lie in [1, 9]; got num_parts = 10.",
    ),
    "no cluster by likelihood": (
        lambda: by_likelihood(CORPORA, 0, fitted_on=9, prefix=9, seed=0),
        "`num_parts` must lie in [1, 9]; got num_parts = 0.",
    ),
    "no prefix": (
        lambda: by_likelihood(CORPORA, 2, fitted_on=9, prefix=0, seed=0),
        "`prefix` must be at least 1; got prefix = 0.",
    ),
    "more documents than there are": (
        lambda: by_likelihood(CORPORA, 2, fitted_on=24, prefix=9, seed=0),
        "`fitted_on` must lie in [1, 23]; got fitted_on = 24.",
    ),
    "nothing to fit": (
        lambda: by_clusters(CORPORA, 1, fitted_on=0, seed=0),
        "`fitted_on` must lie in [2, 23]; got fitted_on = 0.",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals_name_argument_rule_and_value(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


def test_as_many_clusters_as_documents_are_taken():
    distinct = [_corpus("a", [(w, w, w) for w in WORDS["sea"].split()])]
    part_of = by_clusters(distinct, 8, fitted_on=8, seed=0).part_of
    assert sorted(part_of.tolist()) == list(range(8))


def test_files_are_dealt_by_another_draw_than_documents():
    """Where every file is one document: a random part that said its file would be no control."""
    files = [_corpus("code", [(str(i), str(i), "") for i in range(700)])]
    assigned, drawn = by_assigned_files(files, 7, seed=0), at_random(files, 7, seed=0)
    # 100 agreements expected; 5 standard deviations
    assert (
        abs(np.sum(assigned.part_of == drawn.part_of) - 100) < 5 * (700 * (1 / 7) * (6 / 7)) ** 0.5
    )


def test_files_of_different_domains_are_different_files():
    corpora = [_corpus("a", [("1", "b/c", "")]), _corpus("a/b", [("1", "c", "")])]
    assert by_file(corpora).num_parts == 2
