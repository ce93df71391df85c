"""The table of `benchmarks.verdicts`, and every workload in small beside an answer that was found in another way."""

import ast
import asyncio
import cmath
import heapq
import importlib
import inspect
import io
import itertools
import json
import math
import re
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path
from statistics import NormalDist
from typing import get_args

import numpy as np
import pytest
import scipy.signal
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import ValidationError
from scipy import ndimage
from scipy.spatial.distance import cdist, pdist, squareform

from altlas_lib import profiling
from altlas_lib.results import Advice, Candidate, Quantity, WorkloadProfile
from benchmarks import verdict_workloads, verdicts
from benchmarks.verdicts import WORKLOADS, Workload, judge

NAMES = [workload.name for workload in WORKLOADS]
close = np.testing.assert_allclose

# Answers found in another way: name -> size, and a check of input and result ---------------------------------------------


def check_cosine_top_k(catalogues, found):
    for vectors, best in zip(catalogues, found, strict=True):
        distances = cdist(vectors, vectors, "cosine")
        np.fill_diagonal(distances, 9)
        assert [set(row) for row in best] == [set(row[:10]) for row in distances.argsort(axis=1)]


def check_near_duplicates(vectors, found):
    alike = squareform(pdist(vectors.astype(float), "cosine")) < 0.1
    assert found == [(i, j) for i, j in itertools.combinations(range(len(vectors)), 2) if alike[i, j]]
    assert (0, 1) in found


def check_nearest_depot(data, found):
    assert found.tolist() == cdist(*data).argmin(axis=1).tolist()


def check_best_sellers(scores, found):
    assert found == {region: heapq.nlargest(20, range(len(s)), key=s.__getitem__) for region, s in scores.items()}


def check_double_svd(ratings, found):
    """Eckart and Young: the error of the best approximation is what the smaller eigenvalues of the Gram matrix sum to."""
    smaller = np.linalg.eigvalsh(ratings.T @ ratings)[:-20]
    assert np.linalg.matrix_rank(found) == 20
    close(((ratings - found) ** 2).sum(), smaller.sum(), rtol=1e-6)


def check_power_iteration(matrix, found):
    values, vectors = np.linalg.eig(matrix.astype(float))
    close(found, np.abs(vectors[:, np.abs(values).argmax()]), rtol=1e-4)


def check_filter_bank(signals, found):
    """Parseval, by the matrix of the Fourier transform."""
    n = signals.shape[1]
    half = np.abs(signals @ np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n // 2)) / n)) ** 2 / n**2
    half[:, 1:] *= 2
    close(found, half.reshape(len(signals), 16, -1).sum(axis=2), rtol=1e-3)


def check_monte_carlo(option, found):
    """Above the price of the call on the geometric mean, which has a closed form (Kemna and Vorst 1990), by a few per cent."""
    spot, strike, rate, volatility, n = (option[key] for key in ("spot", "strike", "rate", "volatility", "n_steps"))
    times = np.arange(1, n + 1) / n
    deviation = volatility * math.sqrt(np.minimum(times[:, None], times).sum()) / n
    log_mean = math.log(spot) + (rate - volatility**2 / 2) * times.mean()
    d = (log_mean - math.log(strike)) / deviation
    cumulative = NormalDist().cdf
    geometric = math.exp(-rate) * (math.exp(log_mean + deviation**2 / 2) * cumulative(d + deviation) - strike * cumulative(d))
    assert 0.97 * geometric < found < 1.1 * geometric


def check_calibrated_frames(data, found):
    frames, dark, gain, _ = (each.astype(float) for each in data)
    close(found, np.where(frames > dark, (frames - dark) * gain, 0), atol=1e-6)
    assert (found == 0).any()


def check_particle_steps(gas, found):
    gone = found - (gas[0].astype(float) + 0.2 * gas[1])
    close(gone, np.round(gone), atol=1e-5)
    assert (found >= 0).all()
    assert (found <= 1).all()


def likeliest(rows, layers):
    """Row by row in float64; the softmax changes no order."""
    labels = []
    for row in rows.astype(float):
        for depth, (weights, bias) in enumerate(layers):
            row = np.array([math.fsum(row * column) for column in weights.T]) + bias
            row = row if depth == len(layers) - 1 else row.clip(0)
        labels.append(int(row.argmax()))
    return labels


def check_mlp_requests(data, found):
    assert found == [likeliest(rows, data[1]) for rows in data[0]]


def check_mlp_archive(data, found):
    assert found.tolist() == likeliest(*data)


def check_element_loop(plate, found):
    stencil = np.array([[0, 0.2, 0], [0.2, 0.2, 0.2], [0, 0.2, 0]])
    for _ in range(6):
        plate, old = ndimage.convolve(plate, stencil), plate
        for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
            plate[edge] = old[edge]
    close(found, plate)


def check_track_updates(tracks, found):
    """The same filter in its information form."""
    from benchmarks.verdict_workloads.numpy_loops import MOVE, SEE

    for (state, covariance, seen), (new_state, new_covariance) in zip(tracks, found, strict=True):
        information = np.linalg.inv(MOVE @ covariance @ MOVE.T + 0.01 * np.eye(4))
        expected = np.linalg.inv(information + 10 * SEE.T @ SEE)
        close(new_covariance, expected, atol=1e-9)
        close(new_state, expected @ (information @ MOVE @ state + 10 * SEE.T @ seen), atol=1e-9)


def check_group_summary(sales, found):
    groups = defaultdict(list)
    for store, article, amount, quantity in sales.itertuples(index=False):
        groups[store, article].append((amount, quantity))
    large = {key: rows for key, rows in groups.items() if len(rows) > 2}
    assert len(found) == len(large) > 0
    assert found["amount"].is_monotonic_decreasing
    for key, amount, mean, largest, n in found.itertuples():
        amounts, quantities = zip(*large[key], strict=True)
        close((amount, mean, largest, n), (sum(amounts), sum(amounts) / len(amounts), max(quantities), len(amounts)))


def check_row_rule(sales, found):
    amount = sales["price"] * sales["quantity"]
    expected = np.select([sales["member"] & (amount > 50), sales["quantity"] >= 5], [0.1 * amount, 0.05 * amount], 0)
    close(found.to_numpy(), expected)


def check_lazy_query(data, found):
    events, users = data
    country_of = dict(users.rows())
    groups = defaultdict(list)
    for user, kind, seconds in events.rows():
        if seconds > 5:
            groups[country_of[user], kind].append(seconds)
    assert [(country, kind, n) for country, kind, _, _, n in found.rows()] == sorted((*k, len(g)) for k, g in groups.items())
    for country, kind, total, mean, _ in found.rows():
        close((total, mean), (sum(groups[country, kind]), np.mean(groups[country, kind])))


def check_customer_segments(customers, found):
    """Lloyd's fixed point: everyone is in the cluster with the nearest mean."""
    means = np.stack([customers[found == label].mean(axis=0) for label in range(32)])
    assert found.tolist() == cdist(customers, means).argmin(axis=1).tolist()


def check_forest_fit(data, forest):
    features, labels = data
    votes = np.mean([tree.predict_proba(features)[:, 1] for tree in forest.estimators_], axis=0)
    assert len(forest.estimators_) == 30
    assert ((votes > 0.5) == labels).mean() > 0.95


def check_one_row_at_a_time(data, found):
    model, applications = data
    close(found, [1 / (1 + math.exp(-row @ model.coef_[0] - model.intercept_[0])) for row in applications])


def check_word_weights(texts, found):
    terms = [Counter(words + [" ".join(pair) for pair in itertools.pairwise(words)]) for words in map(str.split, texts)]
    n_texts = Counter(term for counts in terms for term in counts)
    for counts, row in zip(terms, found.toarray(), strict=True):
        weights = [
            n * (1 + math.log((1 + len(texts)) / (1 + n_texts[term]))) for term, n in counts.items() if n_texts[term] > 1
        ]
        close(sorted(row[row > 0]), sorted(np.array(weights) / math.hypot(*weights)))


def check_page_rank(graph, found):
    import networkx as nx

    links = nx.to_numpy_array(graph)
    matrix = np.eye(len(links)) - 0.85 * (links / links.sum(axis=1, keepdims=True)).T
    close([found[node] for node in graph], np.linalg.solve(matrix, np.full(len(links), 0.15 / len(links))), atol=1e-5)


def check_brokers(graph, found):
    """By all shortest paths; of 30 nodes, 30 samples are all."""
    import networkx as nx

    between = Counter()
    for a, b in itertools.combinations(graph, 2):
        paths = list(nx.all_shortest_paths(graph, a, b))
        for path in paths:
            between.update({node: 1 / len(paths) for node in path[1:-1]})
    close([between[node] for node in found], sorted(between.values(), reverse=True)[:10])


def check_critical_path(schedule, found):
    longest = {}
    for task in sorted(schedule):  # tasks follow earlier ones only
        longest[task] = max((longest[a] + schedule[a][task]["weight"] for a in schedule.predecessors(task)), default=0)
    assert sum(schedule[a][b]["weight"] for a, b in itertools.pairwise(found)) == max(longest.values())


def check_clean_scans(scans, found):
    taps = np.exp(-(np.arange(-8, 9) ** 2) / 8)
    for scan, cleaned in zip(scans, found, strict=True):
        windows = sliding_window_view(np.pad(scan, 2, mode="symmetric"), (5, 5))
        smooth = np.median(windows, axis=(2, 3))
        for _ in range(2):
            smooth = (sliding_window_view(np.pad(smooth, ((8, 8), (0, 0)), mode="symmetric"), 17, axis=0) @ taps / taps.sum()).T
        close(cleaned, smooth, rtol=1e-4)


def check_spectrograms(recordings, found):
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    padded = np.pad(recordings, ((0, 0), (512, 512))).astype(float)
    frames = sliding_window_view(padded, 1024, axis=1)[:, ::256] * window / window.sum()
    power = np.abs(frames @ np.exp(-2j * np.pi * np.outer(np.arange(1024), np.arange(513)) / 1024)) ** 2
    close(found, 10 * np.log10(power.mean(axis=1)), atol=0.01)


def check_sharpened(data, found):
    """By circulant matrices in place of transforms: what Wiener's filter says of two small images."""
    images, spread = data
    n = len(spread)
    shifts = [np.roll(spread, (i, j), axis=(0, 1)).ravel() for i in range(n) for j in range(n)]
    blur = np.array(shifts, float).T
    for image, variance in zip(images[:2], found[:2], strict=True):
        restored = np.linalg.solve(blur.T @ blur + 0.01 * np.eye(n * n), blur.T @ image.ravel())
        close(variance, restored.var(), rtol=1e-3)


def check_double_solve(data, weights):
    covariance, returns = data
    ratio = covariance @ weights / returns
    close(ratio, np.broadcast_to(ratio[0], ratio.shape))
    close(np.abs(weights).sum(axis=0), 1)
    assert (ratio > 0).all()


def grid_laplacian(n):
    grid = np.arange(n * n).reshape(n, n)
    matrix = 4.0 * np.eye(n * n)
    for a, b in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1])):
        matrix[a.ravel(), b.ravel()] = matrix[b.ravel(), a.ravel()] = -1
    return matrix


def check_sparse_factor(data, found):
    state, step = data[1], np.eye(64) + 0.5 * grid_laplacian(8)
    for _ in range(5):
        state = np.linalg.solve(step, state)
    close(found, state)


def check_conjugate_gradient(data, found):
    close(found, np.linalg.solve(grid_laplacian(10) + 0.001 * np.eye(100), data[1]), atol=1e-4)


def check_curve_fit(data, found):
    (a, b), (c, d) = sorted([found[:2].tolist(), found[2:4].tolist()], key=lambda pair: pair[1])
    close([a, b, c, d, found[4]], [3, 0.4, 1.5, 1.7, 0.2], rtol=0.02)


def check_orbit(comet, found):
    """By Kepler's equation: the orbit starts at its aphelion, on the positive x axis."""
    a = 1 / (2 - 1.2**2 / 4)
    e = 1 / a - 1
    mean = math.pi + 2 * math.pi * comet["years"] / a**1.5
    eccentric = mean
    for _ in range(100):
        eccentric -= (eccentric - e * math.sin(eccentric) - mean) / (1 - e * math.cos(eccentric))
    place = [-a * (math.cos(eccentric) - e), -a * math.sqrt(1 - e * e) * math.sin(eccentric)]
    close(found[:2], place, atol=1e-5)


def check_denoised_scan(scan, found):
    """Nothing nearby has a smaller total variation plus distance from the scan (Rudin, Osher and Fatemi 1992)."""

    def cost(image):
        rows, columns = np.diff(image, axis=0, append=image[-1:]), np.diff(image, axis=1, append=image[:, -1:])
        return np.hypot(rows, columns).sum() + ((scan - image) ** 2).sum() / (2 * 0.3)

    n = len(scan) // 4
    square = np.zeros_like(scan)
    square[n:-n, n:-n] = 0.05
    others = [1.03 * found, 0.97 * found, found + square, found - square, found + 0.02 * scan, scan, 20 * square]
    assert all(cost(found) < cost(other) for other in others)


def check_training_batch(files, found):
    from matplotlib.image import imread

    assert found.shape == (len(files), 224, 224, 3)
    for i, (file, image) in enumerate(zip(files, found, strict=True)):
        pixels = imread(io.BytesIO(file), format="jpg") / 255
        y, x = ((np.arange(256) + 0.5) * size / 256 for size in pixels.shape[:2])
        coarse = pixels[y.astype(int)][:, x.astype(int)][16:240, 16:240]
        assert np.abs(image - (coarse[:, ::-1] if i % 2 else coarse)).mean() < 0.02


def check_bodies(stars, found):
    place, mass = stars[:, :3].astype(float), stars[:, 3]
    apart = place - place[:, None]
    close(found, (apart * (mass / ((apart**2).sum(axis=2) + 1e-4) ** 1.5)[..., None]).sum(axis=1), rtol=1e-3, atol=1e-3)


def check_escape_times(size, found):
    n, n_steps = size
    expected = np.zeros((n, n), int)
    for i, j in np.ndindex(n, n):
        c, z = complex(-2 + 2.5 * j / n, -1.25 + 2.5 * i / n), 0j
        while expected[i, j] < n_steps and abs(z) <= 2:
            z, expected[i, j] = z * z + c, expected[i, j] + 1
        if abs(1 - cmath.sqrt(1 - 4 * c)) < 0.9:  # within the cardioid, where all stay
            assert found[i, j] == n_steps
    assert (found == expected).mean() > 0.97  # float32 and float64 part where it is chaotic


def check_volatility(returns, found):
    start = np.var(returns)
    variances, _ = scipy.signal.lfilter([1], [1, -0.9], 1e-6 + 0.08 * returns[:-1] ** 2, zi=[0.9 * start])
    variances = np.r_[start, variances]
    close(found, -0.5 * (np.log(variances) + returns**2 / variances).sum())


def check_image_classes(data, found):
    """Convolutions as sums over windows in float64."""
    model, images = data
    weights = [parameter.detach().double().numpy() for parameter in model.parameters()]
    for image, label in zip(images.double().numpy(), found, strict=True):
        for depth, (kernels, bias) in enumerate(zip(weights[0:6:2], weights[1:6:2], strict=True)):
            windows = sliding_window_view(np.pad(image, ((0, 0), (1, 1), (1, 1))), (3, 3), axis=(1, 2))
            image = np.maximum(np.tensordot(kernels, windows, axes=((1, 2, 3), (0, 3, 4))) + bias[:, None, None], 0)
            if depth < 2:
                image = image.reshape(len(image), image.shape[1] // 2, 2, -1, 2).max(axis=(2, 4))
        assert label == (weights[6] @ image.mean(axis=(1, 2)) + weights[7]).argmax()


def check_log_lines(lines, found):
    expected = Counter()
    for line in lines:
        entry = ast.literal_eval(line)
        expected[entry["user"]] += 0 if "8" in entry["tags"] else entry["ms"]
    assert +Counter(found) == +expected


def check_price_list(articles, found):
    cells = [re.findall(r"<td>(.*?)</td>", line) for line in re.split("<tr class", found)[1:]]
    stock = [str(article["stock"] or "sold out") for article in articles]
    expected = [[f"Article &lt;{i}&gt;", f"{i / 10:.2f}", each] for i, each in enumerate(stock)]
    assert cells == expected


def check_slow_pattern(lines, found):
    expected = Counter()
    for line in lines:
        words = dict(word.split("=") for word in line.split() if "=" in word)
        expected[words["user"]] += int(words["took"].removesuffix("ms"))
    assert found == expected


def check_tidy_queries(queries, found):
    for before, after in zip(queries, found, strict=True):
        assert re.sub(r"\s", "", after).lower() == re.sub(r"\s", "", before).lower()
        assert after.startswith("SELECT a.id,\n")


def check_order_totals(engine, found):
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "select customer, sum(amount) from orders join lines on orders.id = order_id group by customer"
        )
        assert found == dict(rows.all())


def check_waiting_service(requests, found):
    assert found == [len("".join(articles)) for articles in requests]


def check_closed_forms(formulas, found):
    """By differences, in exact arithmetic."""
    h = Fraction(1, 10**8)
    for formula, second in zip(formulas, found, strict=True):
        low, middle, high = (eval(str(formula), {"x": 3 + step}) for step in (-h, Fraction(0), h))
        assert abs(float((low - 2 * middle + high) / h**2 / eval(str(second), {"x": Fraction(3)})) - 1) < 1e-9


def check_service_settings(text, found):
    ports = re.findall(r"name: (.+)\n +port: (\d+)", text)
    assert found == {name: int(port) for name, port in ports}
    assert found


def check_manual_pages(text, found):
    assert found.count("<h2>") == text.count("## ") > 0
    assert found.count("<li>") == 3 * text.count("1. ")
    assert re.findall(r"<code>(.+?)</code>", found) == re.findall("`(.+?)`", text)


def check_similar_names(names, found):
    """Ratcliff and Obershelp's measure as they define it: the longest common part, then left and right of it."""

    def matched(a, b):
        parts = [(n, -i, -j) for i in range(len(a)) for j in range(len(b)) for n in [common(a[i:], b[j:])] if n]
        if not parts:
            return 0
        n, i, j = max(parts)
        return n + matched(a[:-i], b[:-j]) + matched(a[n - i :], b[n - j :])

    def common(a, b):
        return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

    pairs = itertools.combinations(range(len(names)), 2)
    assert found == [(i, j) for i, j in pairs if 2 * matched(names[i], names[j]) > 0.6 * (len(names[i]) + len(names[j]))]


def check_rolling_sensors(readings, found):
    values = readings.to_numpy()
    windows = sliding_window_view(values, 300, axis=0)
    far = np.abs(values[299:] - windows.mean(axis=2)) > 2 * windows.std(axis=2, ddof=1)
    assert np.abs(found.to_numpy() - far.sum(axis=0)).max() <= 1  # one on the edge
    assert found.sum()


def check_ticket_fields(tickets, found):
    assert found.to_dict() == Counter(text.split()[3].removeprefix("shop-") for text in tickets)


def check_scored_events(events, found):
    seconds = events["seconds"].to_numpy()
    close(found, np.sqrt(seconds.clip(0, 60)[seconds >= 5]).sum())


def check_nearest_profiles(profiles, found):
    nearest = cdist(profiles, profiles, "cityblock").argsort(axis=1)[:, :10]
    assert (np.sort(found) == np.sort(nearest)).mean() > 0.999


def check_store_fits(stores, found):
    for (weeks, sales), coefficients in zip(stores, found, strict=True):
        centred = weeks - weeks.mean(axis=0)
        close(coefficients, np.linalg.lstsq(
            np.vstack([centred, np.eye(4)]), np.concatenate([sales - sales.mean(), np.zeros(4)]))[0])  # fmt: skip


def check_heart_traces(traces, found):
    """Its gain, forwards and back, away from the ends: nothing of a slow drift, all of what lies within the band."""
    from benchmarks.verdict_workloads.scipy_filters import heart_traces

    time = np.arange(20_000) / 500
    for hertz, gain in ((0.05, 0), (10, 1), (120, 0)):
        wave = np.sin(2 * np.pi * hertz * time)
        close(heart_traces(wave[None])[0, 8000:12_000], gain * wave[8000:12_000], atol=0.01)
    assert found.shape == traces.shape
    close(heart_traces(2 * traces), 2 * found)


def check_heat_plate(plate, found):
    stencil = np.array([[0, 0.05, 0], [0.05, 0.8, 0.05], [0, 0.05, 0]])
    expected = plate.astype(float)
    for _ in range(200):
        inner = ndimage.convolve(expected, stencil)[1:-1, 1:-1]
        expected[1:-1, 1:-1] = inner
    close(found, expected, atol=1e-4)


def check_queue_waits(calls, found):
    """The reflection principle: a wait is the walk less its smallest value so far."""
    gaps, services = calls
    walk = np.cumsum(services - gaps)
    close(found, (walk - np.minimum.accumulate(np.minimum(walk, 0))).mean())


def check_median_frames(frames, found):
    middle = np.sort(frames, axis=0)[24:26].mean(axis=0)
    spread = np.sqrt(((frames - frames.mean(axis=0)) ** 2).mean(axis=0))
    kept = np.where(np.abs(frames - middle) <= 3 * spread, frames, middle)
    close(found, kept.mean(axis=0), atol=1e-5)


def check_running_totals(amounts, found):
    close(np.diff(found, prepend=0), amounts, atol=1e-6)


def check_attention(heads, found):
    for query, key, value, row in zip(*(head.astype(float) for head in heads), found, strict=True):
        for i in range(0, len(query), 7):
            weights = np.exp(key @ query[i] / 8)
            close(row[i], (weights[:, None] * value).sum(axis=0) / weights.sum(), atol=1e-4)


def check_row_scores(data, found):
    model, visitors = data
    (first, _, last), hidden = model, visitors.numpy()
    hidden = np.maximum(hidden @ first.weight.detach().numpy().T + first.bias.detach().numpy(), 0)
    close(found, (hidden @ last.weight.detach().numpy().T + last.bias.detach().numpy())[:, 0], atol=1e-5)


def check_communities(friends, found):
    """A partition, and one that is better than the groups that the graph was made of, or as good."""
    import networkx as nx

    assert sorted(itertools.chain.from_iterable(found)) == sorted(friends)
    made = [set(range(i, i + 30)) for i in range(0, len(friends), 30)]
    assert nx.community.modularity(friends, found) >= 0.99 * nx.community.modularity(friends, made)


SIZES = {
    "cosine_top_k": 40,
    "near_duplicates": 60,
    "nearest_depot": 50,
    "best_sellers": 500,
    "double_svd": 40,
    "power_iteration": 30,
    "filter_bank": 256,
    "monte_carlo": 20_000,
    "calibrated_frames": 2,
    "particle_steps": 100,
    "mlp_requests": 2,
    "mlp_archive": 20,
    "element_loop": 8,
    "track_updates": 5,
    "group_summary": 100_000,
    "row_rule": 200,
    "lazy_query": 5000,
    "customer_segments": 400,
    "forest_fit": 300,
    "one_row_at_a_time": 10,
    "word_weights": 60,
    "page_rank": 100,
    "brokers": 30,
    "critical_path": 60,
    "clean_scans": 30,
    "spectrograms": 4096,
    "sharpened": 12,
    "double_solve": 20,
    "sparse_factor": 8,
    "conjugate_gradient": 10,
    "curve_fit": 40,
    "orbit": 2,
    "denoised_scan": 60,
    "training_batch": 4,
    "bodies": 50,
    "escape_times": 40,
    "volatility": 500,
    "image_classes": 2,
    "log_lines": 500,
    "price_list": 20,
    "slow_pattern": 50,
    "tidy_queries": 4,
    "order_totals": 50,
    "waiting_service": 2,
    "closed_forms": 3,
    "service_settings": 5,
    "manual_pages": 4,
    "similar_names": 12,
    "rolling_sensors": 800,
    "ticket_fields": 300,
    "scored_events": 400,
    "nearest_profiles": 60,
    "store_fits": 4,
    "heart_traces": 2000,
    "heat_plate": 20,
    "queue_waits": 300,
    "median_frames": 12,
    "running_totals": 200,
    "attention": 20,
    "row_scores": 10,
    "communities": 120,
}


@pytest.mark.parametrize("workload", WORKLOADS, ids=NAMES)
def test_a_workload_gives_its_right_answer_each_time_it_runs_on_the_same_input(workload):
    if workload.version is None:
        pytest.skip(f"{workload.package} is not installed")
    module = importlib.import_module(f"benchmarks.verdict_workloads.{workload.module}")
    run, make = getattr(module, workload.name), getattr(module, f"{workload.name}_input")
    assert inspect.signature(make).parameters["n"].default > SIZES[workload.name]
    data = make(SIZES[workload.name])
    for _ in range(2):
        found = run(data)
        globals()[f"check_{workload.name}"](data, asyncio.run(found) if inspect.iscoroutine(found) else found)


# The table -------------------------------------------------------------------------------------------------------------


def test_the_table_is_well_formed():
    assert len(WORKLOADS) >= 24
    assert len(set(NAMES)) == len(NAMES)
    assert set(SIZES) == set(NAMES)
    assert all(workload.why.endswith(".") and len(workload.why) < 260 for workload in WORKLOADS)
    folder = Path(verdict_workloads.__file__).parent
    assert {workload.module for workload in WORKLOADS} == {file.stem for file in folder.glob("[a-z]*.py")}


def test_every_answer_is_expected_somewhere_and_a_third_stays_on_the_cpu():
    expected = [set(workload.expected) for workload in WORKLOADS]
    assert set.union(*expected) == set(get_args(Advice)) - {"unknown"}
    assert 0.25 < sum("leave it" in each for each in expected) / len(expected) < 0.45
    for workload in WORKLOADS:
        if {"leave it", "vectorise first", "batch first"} & set(workload.expected):
            assert "port it" in workload.dangerous, workload.name


@pytest.mark.parametrize(
    "change",
    [
        {"expected": ()},
        {"expected": ("unknown",)},
        {"expected": ("Port it",)},
        {"expected": ("leave it", "batch first", "port it")},
        {"expected": ("port it",), "dangerous": ("port it",)},
        {"answer": "leave it"},
    ],
)
def test_an_expectation_that_is_none_is_refused(change):
    with pytest.raises(ValidationError):
        Workload(**{"name": "a", "module": "b", "package": "numpy", "expected": ("leave it",), "why": "So."} | change)


# Judging ---------------------------------------------------------------------------------------------------------------

STAY = Workload(
    name="stay", module="m", package="Python", expected=("leave it", "change the call"), dangerous=("port it",), why="So."
)


def candidate(advice, share, function="f"):
    return Candidate(workload="w", function=function, share=share, largest_gain=2, advice=advice, reason="because")


@pytest.mark.parametrize(
    ("advice", "standing", "is_dangerous"),
    [
        ("leave it", "right", False),
        ("change the call", "right", False),
        ("unknown", "unknown", False),
        ("try the drop-in", "wrong", False),
        ("port it", "wrong", True),
    ],
)
def test_the_function_with_the_greatest_share_is_judged_wherever_it_stands(advice, standing, is_dangerous):
    others = [candidate("leave it", 0.2, "g"), candidate("port it", 0.1, "h")]
    for candidates in itertools.permutations([candidate(advice, 0.5), *others]):
        outcome = judge(STAY, candidates)
        assert (outcome.standing, outcome.is_dangerous, outcome.function) == (standing, is_dangerous, "f")


def test_no_candidate_is_an_unknown_answer():
    assert judge(STAY, []).standing == "unknown"


def profile_of(workload):
    return WorkloadProfile(workload=workload, target="t", total=Quantity.measured([0.5], "s", "a CPU"), functions=[], notes=[])


@pytest.fixture
def advised(monkeypatch):
    """All workloads get this advice, but for those whose profile fails; returns the targets and set-ups that were asked for."""
    asked = []

    def profile(target, *, setup, workload):
        asked.append((target, setup))
        if workload == "price_list":
            raise profiling.ProfilingError("no time")
        return profile_of(workload)

    monkeypatch.setattr(profiling, "profile", profile, raising=False)
    monkeypatch.setattr(profiling, "rank_candidates", lambda profiles, *, gpu: [candidate("port it", 1.0)], raising=False)
    return asked


def test_what_cannot_run_is_counted_and_named(advised, monkeypatch, tmp_path, capsys):
    missing = WORKLOADS[0].model_copy(update={"name": "gone", "package": "no-such-distribution"})
    monkeypatch.setattr(verdicts, "WORKLOADS", [missing, *WORKLOADS])
    verdicts.main(["--only", "gone", "price_list", "mlp_archive", "element_loop", "--json", str(tmp_path / "new" / "it.json")])
    found = verdicts.Record.model_validate_json((tmp_path / "new" / "it.json").read_bytes())
    assert [(outcome.workload.name, outcome.standing) for outcome in found.outcomes] == [
        ("gone", "not run"),
        ("mlp_archive", "right"),
        ("element_loop", "wrong"),
        ("price_list", "not run"),
    ]
    assert found.counts == {"right": 1, "unknown": 0, "wrong": 1, "not run": 2}
    assert (found.n_dangerous, found.n_wrong_ports) == (1, 1)
    assert found.versions["numpy"] == np.__version__
    assert "no-such-distribution" not in found.versions
    assert found.outcomes[1].run_s == 0.5
    printed = capsys.readouterr().out
    assert "no-such-distribution is not installed" in printed
    assert "DANGEROUS" in printed
    assert "no time" in printed
    json.loads((tmp_path / "new" / "it.json").read_text())


def test_all_are_profiled_with_their_inputs_and_nothing_is_written_unasked(advised, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verdicts.main([])
    installed = [workload for workload in WORKLOADS if workload.version is not None]
    assert advised == [(workload.target, f"{workload.target}_input") for workload in installed]
    assert not list(tmp_path.iterdir())


def test_a_name_that_no_workload_has_is_refused(advised, capsys):
    with pytest.raises(SystemExit):
        verdicts.main(["--only", "cosine_topk"])
    assert "cosine_topk: no such workload; there are cosine_top_k" in capsys.readouterr().err
    assert not advised
