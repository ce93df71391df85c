"""The two services against independent references: scikit-learn, float64, and loops that nobody could get wrong."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from altlas_lib.workloads import inference, segmentation

TEXTS = [
    "Return the sum of all values. The values must be finite numbers.",
    "Return the <b>product</b> of all values; see https://example.org/x for the rest.",
    "Open a file and return its lines. Raises OSError when the file is missing!",
    "ﬁle names\u200b are normalised\x00 to  NFKC.",
]


class TestSegmentation:
    def test_vectors_are_those_of_scikit_learn(self):
        documents = [segmentation.tokenise(text) for text in TEXTS * 3]
        vectors = segmentation.vectorise(documents)
        reference = TfidfVectorizer(analyzer=lambda tokens: tokens).fit(documents)
        terms = sorted({term for document in documents for term in document})
        total = {term: sum(document.count(term) for document in documents) for term in terms}
        ours = sorted(terms, key=lambda term: (-total[term], term))
        theirs = reference.transform(documents).toarray()[:, [reference.vocabulary_[term] for term in ours]]
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, theirs, atol=1e-6)

    def test_only_the_most_frequent_terms_are_kept(self):
        vectors = segmentation.vectorise([["rare"], ["often", "often"], ["often", "some"], ["some"]], max_terms=2)
        assert vectors.shape == (4, 2)
        assert not vectors[0].any()
        assert vectors[1].tolist() == [1, 0]  # columns by falling frequency, ties by the alphabet

    def test_similarity_agrees_with_float64(self):
        vectors = np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32)
        vectors[7] = 0
        exact = vectors.astype(np.float64)
        lengths = np.sqrt((exact**2).sum(axis=1))
        lengths[7] = 1
        similarity = segmentation.cosine_similarity(vectors)
        np.testing.assert_allclose(similarity, (exact @ exact.T) / np.outer(lengths, lengths), atol=1e-6)
        assert not similarity[7].any()

    def test_pairs_are_all_above_the_threshold_and_no_other(self):
        similarity = np.random.default_rng(1).uniform(size=(15, 15)).astype(np.float32)
        expected = [(i, j) for i in range(15) for j in range(i + 1, 15) if similarity[i, j] >= 0.5]
        pairs = segmentation.similar_pairs(similarity, 0.5)
        assert sorted((pair.first, pair.second) for pair in pairs) == expected
        assert [pair.score for pair in pairs] == sorted((similarity[i, j] for i, j in expected), reverse=True)

    def test_the_pairs_found_without_the_matrix_are_the_same(self):
        texts = segmentation.load_input(n_texts=150)
        pairs, others = segmentation.run(texts, threshold=0.5), segmentation.run_without_matrix(texts, threshold=0.5)
        assert len(pairs) > 20
        assert segmentation.same_pairs(pairs, others, threshold=0.5)
        assert {pair[:2] for pair in pairs} == {pair[:2] for pair in others}

    def test_other_pairs_and_other_scores_are_not_the_same(self):
        pairs = [segmentation.Pair(0, 1, 0.9), segmentation.Pair(2, 5, 0.8000001)]
        assert segmentation.same_pairs(pairs, pairs[::-1])
        assert segmentation.same_pairs(pairs, pairs[:1])  # rounding decides whether the second reaches 0.8
        assert not segmentation.same_pairs(pairs, pairs[1:])
        assert not segmentation.same_pairs(pairs, [*pairs, segmentation.Pair(1, 2, 0.85)])
        assert not segmentation.same_pairs(pairs, [pairs[0]._replace(score=0.9001), pairs[1]])
        assert segmentation.same_pairs([], [])
        assert not segmentation.same_pairs([], pairs)

    def test_clean(self):
        assert segmentation.clean(TEXTS[1]) == "Return the product of all values; see for the rest."
        assert segmentation.clean(TEXTS[3]) == "file names are normalised to NFKC."

    @given(st.text(alphabet="ab .!?\n", max_size=200), st.integers(1, 12))
    def test_split_keeps_every_word_and_the_limit(self, text, max_words):
        segments = segmentation.split(text, max_words=max_words)
        assert " ".join(segments).split() == text.split()
        longest_sentence = max((len(part.split()) for part in segmentation._SENTENCE_END.split(text)), default=0)
        assert all(0 < len(segment.split()) <= max(max_words, longest_sentence) for segment in segments)

    def test_the_service_finds_a_planted_copy_and_repeats_itself(self):
        texts = [*TEXTS, TEXTS[2].upper()]
        first, *_ = pairs = segmentation.run(texts)
        assert (first.first, first.second) == (2, 4)
        assert first.score == pytest.approx(1, abs=1e-6)
        assert segmentation.run(texts) == pairs

    @pytest.mark.parametrize("texts", [[], [""], ["the of"] * 3, ["\x00\u200b"], ["<p>"], ["one"]])
    def test_nothing_to_compare_gives_no_pairs(self, texts):
        assert segmentation.run(texts) == []

    @given(st.lists(st.text(max_size=80), max_size=6))
    def test_any_text_is_served(self, texts):
        assert all(0.8 <= pair.score <= 1 + 1e-5 for pair in segmentation.run(texts))


class TestInference:
    def test_probabilities_agree_with_float64(self):
        features, layers = inference.preprocess(TEXTS), inference.load_model()
        x = features.astype(np.float64)
        for weights, bias in layers[:-1]:
            x = np.maximum(x @ weights.astype(np.float64) + bias, 0)
        logits = x @ layers[-1][0].astype(np.float64) + layers[-1][1]
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        probabilities = inference.predict(features, layers)
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)
        assert len(np.unique(probabilities.argmax(axis=1))) > 1  # the answer depends on the text

    def test_features_count_words(self):
        one, two, none = inference.preprocess(["red", "Red RED blue", "  "])
        assert np.count_nonzero(one) == 1
        assert np.count_nonzero(two) == 2
        assert two[one.argmax()] == pytest.approx(np.log(3) / np.hypot(np.log(3), np.log(2)))
        assert not none.any()

    def test_an_answer_holds_the_best_labels_in_order(self):
        probabilities = np.full((1, 16), 0.02, dtype=np.float32)
        probabilities[0, [9, 3, 5]] = 0.4, 0.2, 0.14
        answer = json.loads(inference.postprocess(7, probabilities))
        assert answer["id"] == 7
        assert answer["answers"] == [
            [{"label": "topic-09", "score": 0.4}, {"label": "topic-03", "score": 0.2}, {"label": "topic-05", "score": 0.14}]
        ]

    def test_requests_are_answered_in_order_and_the_same_twice(self):
        requests = inference.load_input("builtin", n_requests=3, texts_per_request=2)
        answers = inference.run(requests)
        assert [json.loads(answer)["id"] for answer in answers] == [0, 1, 2]
        assert all(len(json.loads(answer)["answers"]) == 2 for answer in answers)
        assert inference.run(requests) == answers

    @pytest.mark.parametrize(
        "request_body",
        ["", "{", "[]", "1", '{"id": 1}', '{"id": 1, "texts": []}', '{"id": 1, "texts": [2]}', '{"id": "x", "texts": ["a"]}'],
    )
    def test_a_bad_request_is_named(self, request_body):
        with pytest.raises(ValueError, match=r"request .*expected"):
            inference.run([request_body])

    def test_a_lone_surrogate_is_served(self):
        assert inference.run(['{"id": 1, "texts": ["\\ud800 x"]}'])


class TestInput:
    def test_a_users_own_file(self, tmp_path):
        (tmp_path / "own.csv").write_text("n,body\n1,first text\n2,second text\n3,third text\n")
        assert segmentation.load_input(str(tmp_path / "own.csv"), "body", n_texts=2) == ["first text", "second text"]
        requests = inference.load_input(str(tmp_path / "own.csv"), "body", n_requests=2, texts_per_request=2)
        assert json.loads(requests[1])["texts"] == ["third text", "first text"]  # too few texts: they repeat
