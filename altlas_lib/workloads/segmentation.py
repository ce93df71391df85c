"""Segmentation service: texts -> cleaned -> segments -> tokens -> TF-IDF vectors -> all-pairs similarity -> similar pairs."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .. import data

_MARKUP = re.compile(r"<[^<>]{1,200}>|https?://\S+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\ufeff]")
_SPACES = re.compile(r"\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+")
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_FUNCTION_WORDS = "a an and are as at be by for from if in is it its not of on or that the this to was with you"
_STOP_WORDS = frozenset(_FUNCTION_WORDS.split())


class Pair(NamedTuple):
    """Two segments, by their position, and the cosine of the angle between their vectors."""

    first: int
    second: int
    score: float


def load_input(texts: str = "builtin", text_column: str | None = None, on_bad: str = "raise", n_texts: int = 1000) -> list[str]:
    """Up to `n_texts` texts of `altlas_lib.data.load_texts`: the built-in corpus, or a file."""
    return data.load_texts(texts, column=text_column, limit=n_texts, on_bad=on_bad).texts


def run(texts: Sequence[str], *, threshold: float = 0.8) -> list[Pair]:
    """Pairs of segments of `texts` with a cosine similarity of at least `threshold`, most similar first."""
    segments = [segment for text in texts for segment in split(clean(text))]
    vectors = vectorise([tokenise(segment) for segment in segments])
    return similar_pairs(cosine_similarity(vectors), threshold)


def run_without_matrix(texts: Sequence[str], *, threshold: float = 0.8) -> list[Pair]:
    """The pairs of `run`, found without the n x n matrix: a cheaper algorithm on the same CPU."""
    from ..similarity import pairs_above  # the alternative's, not the service's

    segments = [segment for text in texts for segment in split(clean(text))]
    pairs = pairs_above(vectorise([tokenise(segment) for segment in segments]), threshold)
    return list(map(Pair, pairs.first.tolist(), pairs.second.tolist(), pairs.scores.tolist()))


def same_pairs(pairs: Sequence[Pair], others: Sequence[Pair], *, threshold: float = 0.8, tolerance: float = 1e-5) -> bool:
    """Whether two answers agree: the same pairs with the same scores, but for pairs within `tolerance` of the threshold.

    The order does not count: rounding decides between pairs of equal texts.
    """
    scores, other_scores = ({(pair.first, pair.second): pair.score for pair in answer} for answer in (pairs, others))
    return all(
        abs(scores.get(pair, threshold) - other_scores.get(pair, threshold)) <= tolerance
        for pair in scores.keys() | other_scores.keys()
    )


def clean(text: str) -> str:
    """Normal form NFKC, without tags, addresses and control characters, single spaces."""
    text = _MARKUP.sub(" ", unicodedata.normalize("NFKC", text))
    return _SPACES.sub(" ", _CONTROL.sub("", text)).strip()


def split(text: str, *, max_words: int = 40) -> list[str]:
    """Whole sentences joined to segments of at most `max_words` words; a longer sentence is a segment of its own."""
    segments: list[str] = []
    words: list[str] = []
    for sentence in _SENTENCE_END.split(text):
        more = sentence.split()
        if words and len(words) + len(more) > max_words:
            segments.append(" ".join(words))
            words = []
        words += more
    return [*segments, " ".join(words)] if words else segments


def tokenise(segment: str) -> list[str]:
    """Lower-case words without the most frequent English function words."""
    return [word for word in _WORD.findall(segment.casefold()) if word not in _STOP_WORDS]


def vectorise(documents: Sequence[Sequence[str]], *, max_terms: int = 2048) -> np.ndarray:
    """TF-IDF of tokenised documents over their `max_terms` most frequent terms.

    Term count x (ln((1 + n) / (1 + document frequency)) + 1), rows scaled to unit length: scikit-learn's defaults.

    Returns:
        float32 of shape `(len(documents), n_terms)`; the row of a document without any of the terms is zero.
    """
    counts = [Counter(tokens) for tokens in documents]
    total, document_frequency = Counter(), Counter()
    for count in counts:
        total.update(count)
        document_frequency.update(count.keys())
    terms = sorted(total, key=lambda term: (-total[term], term))[:max_terms]
    columns = {term: column for column, term in enumerate(terms)}
    frequency = np.array([document_frequency[term] for term in terms], dtype=np.float64)
    idf = np.log((1 + len(counts)) / (1 + frequency)) + 1

    vectors = np.zeros((len(counts), len(terms)), dtype=np.float32)
    for row, count in enumerate(counts):
        for term, n in count.items():
            column = columns.get(term)
            if column is not None:
                vectors[row, column] = n * idf[column]
    return vectors / _lengths(vectors)[:, None]


def _lengths(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1)
    return np.where(lengths == 0, 1, lengths)  # a zero row stays zero, and similar to nothing


def cosine_similarity(vectors: np.ndarray) -> np.ndarray:
    """Cosine similarity of all pairs of rows: `(n, d)` -> the full `(n, n)`, float32, as the service computes it."""
    unit = vectors / _lengths(vectors)[:, None]
    # The copy avoids the symmetric product, which crashes from about 30,000 rows in numpy 2.4's OpenBLAS.
    return unit @ unit.T.copy()


def similar_pairs(similarity: np.ndarray, threshold: float) -> list[Pair]:
    """Pairs above the diagonal of `similarity` `(n, n)` that reach `threshold`, by falling score, then by position."""
    first, second = np.nonzero(np.triu(similarity >= threshold, k=1))
    pairs = map(Pair, first.tolist(), second.tolist(), similarity[first, second].tolist())
    return sorted(pairs, key=lambda pair: (-pair.score, pair.first, pair.second))
