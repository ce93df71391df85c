"""The contestants: for each row of `X` (n, d) the k others that are nearest by cosine, exactly, as each package does it best.

All start from the same raw float32 rows, so that scaling them to length 1 counts wherever a package leaves it to its user.
What they answer is brought into one form (`answer`) after the clock has stopped: leaving out the row itself, which most
packages find as its own nearest, costs them nothing here.
"""

import importlib.util
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

Run = Callable[[np.ndarray, int], Any]  # (n, d) float32 rows, k -> the answer in the package's own form
Answer = Callable[[Any, int], tuple[np.ndarray, np.ndarray]]  # that, k -> (n, k) indices and cosines, nearest first

_GPU_SCORES = 2**28  # of a tile: 1 GiB in float32


@dataclass(frozen=True)
class Contestant:
    """One way to the answer.

    Attributes:
        kind: `"bound"` multiplies the symmetric half and selects nothing; `"product"` multiplies all and selects nothing.
        modules: what it imports beside NumPy.
        prepare: imports, sets the number of threads and gives the function that is timed.
        answer: None where there is none, as with the bounds.
        openblas: whether its time hangs on the kernels that OpenBLAS chooses, so that each choice is tried.
        peak_gpu_bytes: what its pool has taken on the GPU.
    """

    name: str
    kind: Literal["ours", "peer", "bound", "product"]
    modules: tuple[str, ...]
    prepare: Callable[[int], Run]
    answer: Answer | None
    openblas: bool = False
    on_gpu: bool = False
    peak_gpu_bytes: Callable[[], int] | None = None

    @property
    def missing_modules(self) -> list[str]:
        return [module for module in self.modules if importlib.util.find_spec(module) is None]


def unit_rows(X: np.ndarray) -> np.ndarray:
    return X / np.sqrt(np.einsum("nd,nd->n", X, X))[:, None]


def row_blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def without_self(indices: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, k + 1) nearest rows without the row itself; where equal ones have pushed it out, without the last."""
    kept = indices != np.arange(len(indices))[:, None]
    kept[kept.all(axis=1), -1] = False
    return indices[kept].reshape(-1, k), scores[kept].reshape(-1, k)


# Ours ----------------------------------------------------------------------------------------------------------------


def _ours(**options: Any) -> Callable[[int], Run]:
    def prepare(n_threads: int) -> Run:
        from altlas_lib import similarity

        threads = {"n_jobs": n_threads} if options["device"] == "cpu" else {}
        return lambda X, k: similarity.top_k(X, k, **options, **threads)

    return prepare


def _of_neighbors(found: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    return found.indices, found.scores


# Peers on the CPU ----------------------------------------------------------------------------------------------------


def _faiss(n_threads: int) -> Run:
    import faiss

    faiss.omp_set_num_threads(n_threads)

    def run(X: np.ndarray, k: int) -> Any:
        unit = unit_rows(X)
        return faiss.knn(unit, unit, k + 1, metric=faiss.METRIC_INNER_PRODUCT)

    return run


def _of_faiss(found: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores, indices = found
    return without_self(indices, scores, k)


def _sklearnex(n_threads: int) -> Run:
    from sklearnex.neighbors import NearestNeighbors

    options = {"algorithm": "brute", "metric": "cosine", "n_jobs": n_threads}
    return lambda X, k: NearestNeighbors(n_neighbors=k, **options).fit(X).kneighbors()


def _sklearn_cosine(n_threads: int) -> Run:
    from sklearn.neighbors import NearestNeighbors

    return lambda X, k: NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine").fit(X).kneighbors()


def _of_cosine_distances(found: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    distances, indices = found
    return indices, 1 - distances


def _sklearn_euclidean(n_threads: int) -> Run:
    """Rows of length 1 are nearest by cosine where they are by distance, for which scikit-learn has compiled code."""
    from sklearn.neighbors import NearestNeighbors

    return lambda X, k: NearestNeighbors(n_neighbors=k, algorithm="brute", metric="sqeuclidean").fit(unit_rows(X)).kneighbors()


def _of_squared_distances(found: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    distances, indices = found
    return indices, 1 - distances / 2


def _usearch(n_threads: int) -> Run:
    from usearch.index import MetricKind, search

    def run(X: np.ndarray, k: int) -> Any:
        unit = unit_rows(X)
        return search(unit, unit, k + 1, MetricKind.IP, exact=True, threads=n_threads)

    return run


def _of_usearch(found: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    return without_self(found.keys.astype(np.int64), 1 - found.distances, k)


def tiled_topk(torch: Any, X: np.ndarray, k: int, device: str, n_rows: int, dtype: str = "float32") -> tuple[Any, Any]:
    """Products of `n_rows` rows with all, in float32 or float16, and `topk` of each."""
    unit = torch.nn.functional.normalize(torch.from_numpy(X).to(device)).to(getattr(torch, dtype))
    indices = torch.empty((len(X), k), dtype=torch.int64, device=device)
    scores = torch.empty((len(X), k), dtype=unit.dtype, device=device)
    for rows in row_blocks(len(X), n_rows):
        products = unit[rows] @ unit.T
        products.diagonal(rows.start).fill_(-torch.inf)
        torch.topk(products, k, out=(scores[rows], indices[rows]))
    return indices.cpu(), scores.cpu()  # from a GPU: waits for it


def _torch(n_threads: int) -> Run:
    import torch

    torch.set_num_threads(n_threads)
    return lambda X, k: tiled_topk(torch, X, k, "cpu", n_rows=256)  # of 128 to 2048 the fastest on an AMD EPYC


def _of_torch(found: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    indices, scores = found
    return indices.numpy(), scores.float().numpy()


def _semantic_search(n_threads: int) -> Run:
    import torch
    from sentence_transformers import util

    torch.set_num_threads(n_threads)

    def run(X: np.ndarray, k: int) -> Any:
        unit = util.normalize_embeddings(torch.from_numpy(X))
        return util.semantic_search(unit, unit, query_chunk_size=512, top_k=k + 1, score_function=util.dot_score)

    return run


def _of_semantic_search(found: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    indices = np.array([[hit["corpus_id"] for hit in row] for row in found])
    return without_self(indices, np.array([[hit["score"] for hit in row] for row in found]), k)


def _paraphrase_mining(n_threads: int) -> Run:
    import torch
    from sentence_transformers import util

    torch.set_num_threads(n_threads)

    def run(X: np.ndarray, k: int) -> Any:
        unit = util.normalize_embeddings(torch.from_numpy(X))
        return util.paraphrase_mining_embeddings(unit, max_pairs=len(X) * (k + 2), top_k=k, score_function=util.dot_score)

    return run


def of_pairs(pairs: list[list], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of each row from pairs (score, i, j), each once, that hold every row's k nearest."""
    scores, left, right = (np.array(column) for column in zip(*pairs, strict=True))
    rows, columns, scores = np.append(left, right), np.append(right, left), np.append(scores, scores)
    order = np.lexsort((columns, -scores, rows))
    rows, columns, scores = rows[order], columns[order], scores[order]
    starts = np.searchsorted(rows, np.arange(rows[-1] + 1))
    nearest = starts[:, None] + np.arange(k)
    return columns[nearest], scores[nearest]


# Bounds: what multiplying alone costs --------------------------------------------------------------------------------


def _products(tile: int, *, half: bool) -> Callable[[int], Run]:
    """Each thread multiplies its share of the tiles by itself: OpenBLAS's own threads wait for each other after every tile."""

    def prepare(n_threads: int) -> Run:
        from threadpoolctl import ThreadpoolController

        blas, pool = ThreadpoolController(), ThreadPoolExecutor(n_threads)

        def run(X: np.ndarray, k: int) -> None:
            pairs = itertools.product(row_blocks(len(X), tile), repeat=2)
            tiles = [(rows, columns) for rows, columns in pairs if rows.start <= columns.start or not half]
            with blas.limit(limits=1, user_api="blas"):
                list(pool.map(partial(_multiply, X, tile), (tiles[i::n_threads] for i in range(n_threads))))

        return run

    return prepare


def _multiply(X: np.ndarray, tile: int, tiles: Iterable[tuple[slice, slice]]) -> None:
    buffer = np.empty(tile * tile, np.float32)
    for rows, columns in tiles:
        shape = rows.stop - rows.start, columns.stop - columns.start
        # Of a block and itself NumPy makes a symmetric product, which takes another routine: so the left is a copy.
        left = X[rows].copy() if rows == columns else X[rows]
        np.matmul(left, X[columns].T, out=buffer[: math.prod(shape)].reshape(shape))


# On a GPU: host memory in, host memory out ---------------------------------------------------------------------------


def _torch_cuda(dtype: str = "float32", *, tf32: bool = False) -> Callable[[int], Run]:
    """TF32 and float16 are not exact: the record says by how much."""

    def prepare(n_threads: int) -> Run:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = tf32
        return lambda X, k: tiled_topk(torch, X, k, "cuda", max(256, _GPU_SCORES // len(X)), dtype)

    return prepare


def _faiss_cuda(n_threads: int) -> Run:
    import faiss

    resources = faiss.StandardGpuResources()

    def run(X: np.ndarray, k: int) -> Any:
        unit = unit_rows(X)
        return faiss.knn_gpu(resources, unit, unit, k + 1, metric=faiss.METRIC_INNER_PRODUCT)

    return run


def _cuvs(n_threads: int) -> Run:
    import cupy
    from cuvs.neighbors import brute_force

    def run(X: np.ndarray, k: int) -> Any:
        unit = cupy.asarray(unit_rows(X))
        found = brute_force.search(brute_force.build(unit, metric="inner_product"), unit, k + 1)
        return tuple(cupy.asnumpy(cupy.asarray(part)) for part in found)

    return run


def _torch_peak_bytes() -> int:
    import torch

    return torch.cuda.max_memory_reserved()


def tiled_argpartition(xp: Any, X: np.ndarray, k: int, n_rows: int) -> tuple[Any, Any]:
    """Products of `n_rows` rows with all, and `argpartition` of each, in NumPy or CuPy."""
    X = xp.asarray(X)
    unit = X / xp.linalg.norm(X, axis=1, keepdims=True)
    indices = xp.empty((len(X), k), xp.int64)
    scores = xp.empty((len(X), k), xp.float32)
    for rows in row_blocks(len(X), n_rows):
        products = -xp.dot(unit[rows], unit.T)
        products[xp.arange(len(products)), xp.arange(rows.start, rows.stop)] = xp.inf
        nearest = xp.argpartition(products, k - 1, axis=1)[:, :k]
        negated = xp.take_along_axis(products, nearest, axis=1)
        order = xp.argsort(negated, axis=1)
        indices[rows] = xp.take_along_axis(nearest, order, axis=1)
        scores[rows] = -xp.take_along_axis(negated, order, axis=1)
    return indices, scores


def _cupy(n_threads: int) -> Run:
    import cupy

    def run(X: np.ndarray, k: int) -> Any:
        n_rows = max(256, _GPU_SCORES // 4 // len(X))  # CuPy's argpartition sorts: it takes several times the tile
        return tuple(cupy.asnumpy(part) for part in tiled_argpartition(cupy, X, k, n_rows))

    return run


def _cupy_peak_bytes() -> int:
    import cupy

    return cupy.get_default_memory_pool().total_bytes()


def _as_it_is(found: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    return found


_ON_GPU = {"on_gpu": True, "peak_gpu_bytes": _cupy_peak_bytes}
_ON_GPU_TORCH = {"on_gpu": True, "peak_gpu_bytes": _torch_peak_bytes}
_ST = ("sentence_transformers", "torch")

CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant("ours, auto", "ours", (), _ours(device="cpu", method="auto"), _of_neighbors, openblas=True),
        Contestant("ours, int8", "ours", (), _ours(device="cpu", method="int8"), _of_neighbors, openblas=True),
        Contestant("ours, float32", "ours", (), _ours(device="cpu", method="float32"), _of_neighbors, openblas=True),
        Contestant("faiss knn", "peer", ("faiss",), _faiss, _of_faiss, openblas=True),
        Contestant("scikit-learn-intelex", "peer", ("sklearnex",), _sklearnex, _of_cosine_distances),
        Contestant("torch matmul + topk", "peer", ("torch",), _torch, _of_torch),
        Contestant("sentence-transformers search", "peer", _ST, _semantic_search, _of_semantic_search),
        Contestant("sentence-transformers mining", "peer", _ST, _paraphrase_mining, of_pairs),
        Contestant("scikit-learn cosine", "peer", ("sklearn",), _sklearn_cosine, _of_cosine_distances, openblas=True),
        Contestant("scikit-learn euclidean", "peer", ("sklearn",), _sklearn_euclidean, _of_squared_distances, openblas=True),
        Contestant("usearch exact", "peer", ("usearch",), _usearch, _of_usearch),
        *(
            Contestant(f"half product, tiles of {tile}", "bound", (), _products(tile, half=True), None, openblas=True)
            for tile in (256, 512, 768)
        ),
        Contestant("whole product, tiles of 512", "product", (), _products(512, half=False), None, openblas=True),
        Contestant("ours, GPU", "ours", ("cupy",), _ours(device="gpu"), _of_neighbors, **_ON_GPU),
        Contestant("CuPy argpartition, GPU", "peer", ("cupy",), _cupy, _as_it_is, **_ON_GPU),
        Contestant("torch topk, GPU", "peer", ("torch",), _torch_cuda(), _of_torch, **_ON_GPU_TORCH),
        Contestant("torch topk TF32, GPU", "peer", ("torch",), _torch_cuda(tf32=True), _of_torch, **_ON_GPU_TORCH),
        Contestant("torch topk float16, GPU", "peer", ("torch",), _torch_cuda("float16"), _of_torch, **_ON_GPU_TORCH),
        Contestant("cuVS brute_force, GPU", "peer", ("cuvs", "cupy"), _cuvs, _of_faiss, **_ON_GPU),
        Contestant("faiss knn_gpu, GPU", "peer", ("faiss",), _faiss_cuda, _of_faiss, on_gpu=True),
    )
}
