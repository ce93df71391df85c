"""Models of scikit-learn: clusters, a forest, one customer at a time, words of texts."""

import random

import numpy as np
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestNeighbors


def customer_segments_input(n: int = 60_000) -> np.ndarray:
    """Features of customers around 16 centres, float32[n, 24]."""
    rng = np.random.default_rng(1)
    centres = 4 * rng.standard_normal((16, 24), dtype=np.float32)
    return centres[rng.integers(0, 16, n)] + rng.standard_normal((n, 24), dtype=np.float32)


def customer_segments(customers: np.ndarray) -> np.ndarray:
    return KMeans(n_clusters=32, n_init=2, max_iter=40, random_state=0).fit_predict(customers)


def forest_fit_input(n: int = 8000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    features = rng.standard_normal((n, 20), dtype=np.float32)
    return features, (features[:, 0] * features[:, 1] + features[:, 2] > 0).astype(int)


def forest_fit(data: tuple[np.ndarray, np.ndarray]) -> RandomForestClassifier:
    features, labels = data
    return RandomForestClassifier(n_estimators=30, random_state=0).fit(features, labels)


def one_row_at_a_time_input(n: int = 2500) -> tuple[LogisticRegression, np.ndarray]:
    """A fitted model, and float64[n, 12]: the applications of a day, as they come in."""
    rng = np.random.default_rng(3)
    features = rng.standard_normal((2000, 12))
    return LogisticRegression().fit(features, features[:, 0] + features[:, 1] > 0), rng.standard_normal((n, 12))


def one_row_at_a_time(data: tuple[LogisticRegression, np.ndarray]) -> list[float]:
    model, applications = data
    return [risk(model, application) for application in applications]


def risk(model: LogisticRegression, application: np.ndarray) -> float:
    return float(model.predict_proba(application.reshape(1, -1))[0, 1])


def word_weights_input(n: int = 6000) -> list[str]:
    """Texts of 60 words."""
    rng = random.Random(4)
    words = [f"{rng.choice('abcdefgh')}{i:x}word" for i in range(5000)]
    return [" ".join(rng.choices(words, k=60)) for _ in range(n)]


def word_weights(texts: list[str]):
    return TfidfVectorizer(min_df=2, ngram_range=(1, 2)).fit_transform(texts)


def nearest_profiles_input(n: int = 3500) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((n, 48), dtype=np.float32)


def nearest_profiles(profiles: np.ndarray) -> np.ndarray:
    """The ten nearest of each, itself included."""
    return NearestNeighbors(n_neighbors=10, algorithm="brute", metric="manhattan").fit(profiles).kneighbors(profiles)[1]


def store_fits_input(n: int = 600) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weeks float64[52, 4] and sales float64[52] of n stores."""
    rng = np.random.default_rng(6)
    return [(weeks, weeks.sum(axis=1) + rng.standard_normal(52)) for weeks in rng.standard_normal((n, 52, 4))]


def store_fits(stores: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    return [trend(*store) for store in stores]


def trend(weeks: np.ndarray, sales: np.ndarray) -> np.ndarray:
    return Ridge(alpha=1.0).fit(weeks, sales).coef_
