"""Texts as vectors whose cosine says how much two texts have in common."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..results import DataSource
from .checks import BadRows, DataError, existing_file, load_array


@dataclass(frozen=True, eq=False)
class Embedding:
    """Vectors of texts.

    Attributes:
        vectors: (n, d) float32, row i of text i; from `embed` of length 1, or all 0 where a text has no word to go by.
        method: how they were made, for people to read.
        source: of vectors that were loaded; None where they were made from texts, which have a source of their own.
    """

    vectors: np.ndarray
    method: str
    source: DataSource | None = None

    @property
    def n_zero_rows(self) -> int:
        """How many texts are similar to nothing."""
        return int(np.count_nonzero(~self.vectors.any(axis=1)))


def embed(texts: list[str], *, method: str | Path = "svd", n_dimensions: int = 384, seed: int = 0) -> Embedding:
    """Vectors of length 1 for texts, so that their dot product is their cosine similarity.

    Args:
        texts: n texts.
        method: TF-IDF weights with sub-linear term frequency (1 + ln tf) of words (two or more letters or digits), brought
            down to `n_dimensions` in one of two ways; or a model:

            - `"svd"`: truncated SVD (latent semantic analysis). What it drops is what tells texts apart, so it *inflates*
              similarity: of 3,000 docstrings 138 pairs reach 0.9 in plain TF-IDF, 741 after a reduction to 384 dimensions,
              1,780 after one to 128. No pair above 0.9 is lost. Sensible as meaning ("same topic"), not as near-duplicates.
            - `"hashing"`: feature hashing (Weinberger et al. 2009): each word goes to one dimension, with a random sign.
              Words that collide add noise in both directions and no bias before the rows are scaled to length 1: 139 pairs
              reach 0.9 (384 dimensions), and the noise of a pair's similarity has a standard deviation of about
              1 / sqrt(n_dimensions), 0.051 there. Fast, and the nearer one to plain TF-IDF.
            - the path of a folder with a sentence-transformers model, where that package is installed. Nothing is downloaded.
            - the path of a `.npy` matrix, taken as it is by `load_embedding`: row i is of text i.
        n_dimensions: d. `"svd"` returns fewer where there are fewer texts or words than that (then nothing is lost); a model
            and a matrix have their own number.
        seed: of the randomised SVD; the other methods have nothing random.

    Raises:
        DataError: no texts, not one word in them, `n_dimensions` less than 1, an unknown method, a folder without a model, or
            a matrix with another number of rows than there are texts.
        ImportError: a model folder is given and sentence-transformers is not installed.
    """
    if isinstance(texts, str) or not len(texts):
        raise DataError(f"texts is {texts!r}: expected a list of one text or more")
    if n_dimensions < 1:
        raise DataError(f"n_dimensions={n_dimensions!r}: expected at least 1")
    if Path(method).suffix == ".npy":
        return _matching(load_embedding(method), texts)
    if method not in ("svd", "hashing"):
        return _embed_by_model(texts, Path(method))

    from sklearn.feature_extraction import FeatureHasher
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize
    from sklearn.utils.extmath import randomized_svd

    vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32)
    try:
        tfidf = vectorizer.fit_transform(texts)
    except ValueError as error:  # an empty vocabulary
        raise DataError(f"none of the {len(texts)} texts has a word (two or more letters or digits): {error}") from None
    if method == "svd":
        _, _, directions = randomized_svd(tfidf, min(n_dimensions, *tfidf.shape), random_state=seed)
        vectors = tfidf @ directions.T  # of a text without a word exactly 0, which the left singular vectors are not
        vectors[np.linalg.norm(vectors, axis=1) < 1e-5] = 0  # all in dropped directions: what is left is rounding error
    else:
        # Weights first, then signs: HashingVectorizer would sign the counts, and the logarithm of a negative count is none.
        hasher = FeatureHasher(n_dimensions, input_type="string", dtype=np.float32)
        vectors = (tfidf @ hasher.transform([word] for word in vectorizer.get_feature_names_out())).toarray()
    return Embedding(normalize(vectors), f"TF-IDF, {method}")


def _matching(embedding: Embedding, texts: list[str]) -> Embedding:
    if len(embedding.vectors) != len(texts):
        raise DataError(
            f"{embedding.source.name!r} has {len(embedding.vectors):,} rows for {len(texts):,} texts: expected one per text; "
            "give all texts that the matrix was made from, and leave none out"
        )
    return embedding


def _embed_by_model(texts: list[str], folder: Path) -> Embedding:
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise DataError(
            f"method={str(folder)!r}: expected 'svd', 'hashing', a .npy matrix or a folder with a sentence-transformers model "
            "(modules.json or config.json in it); models are not downloaded"
        )
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ImportError(
            f"method={str(folder)!r} is a sentence-transformers model folder and needs that package: "
            "pip install sentence-transformers, or use method='svd' or 'hashing'"
        ) from None
    try:  # weights in safetensors only: the older .bin files are pickles
        model = SentenceTransformer(str(folder), local_files_only=True, model_kwargs={"use_safetensors": True})
    except (OSError, ValueError) as error:
        raise DataError(f"{str(folder)!r} is no complete model folder with safetensors weights: {error}") from None
    vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    return Embedding(np.ascontiguousarray(vectors, np.float32), f"sentence-transformers, {folder.name}")


def load_embedding(path: str | Path) -> Embedding:
    """The vectors in a `.npy` file, as they are, as float32; row i is of text i, so no row can be left out.

    Raises:
        DataError: no such file, no matrix of numbers, no row or column, or a value that is not finite in float32.
    """
    path = existing_file(path, (".npy",))
    matrix = load_array(path, n_axes=2)
    if not matrix.size:
        raise DataError(f"{path.name!r} has shape {matrix.shape}: expected at least one row and one column")
    with np.errstate(over="ignore"):
        vectors = matrix.astype(np.float32, order="C")
    remedy = "correct them; none can be left out, row i is of text i"
    bad = BadRows(repr(path.name), "finite float32 vector", "raise", remedy)
    for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1)):
        column = int(np.argmin(np.isfinite(vectors[row])))
        bad.add(int(row) + 1, float(matrix[row, column]), f"in column {column + 1}")
    bad.settle(len(vectors) - bad.count)
    sha256 = hashlib.sha256(vectors.astype("<f4").tobytes()).hexdigest()
    return Embedding(vectors, f"given, {path.name}", DataSource(name=path.name, n_rows=len(vectors), sha256=sha256))
