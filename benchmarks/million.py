"""A million rows from a memory map, for the record: time, and memory beyond the mapped file.

    python -m benchmarks.million

The file (1.5 GB) is made in the folder for temporary files and removed at the end.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from pydantic import Field

from altlas_lib import similarity
from altlas_lib.paths import write_atomically
from altlas_lib.results import Model, Provenance, format_value
from altlas_lib.similarity.poc.validation import compare


class MillionRecord(Model):
    provenance: Provenance
    n: int
    d: int
    k: int
    wall_s: float
    cpu_s: float
    peak_bytes: int = Field(description="anonymous memory, without the mapped file, beyond what there was before the call")
    largest_error: float = Field(description="of a score on 20 random rows, against float64")
    n_wrong: int = Field(description="neighbours of these rows that are not among the nearest")


def _anonymous_bytes() -> int:
    """Resident memory that is not pages of a file (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/million.json"))
    options = parser.parse_args()
    similarity.warm_up()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        X = np.lib.format.open_memmap(Path(folder) / "X.npy", "w+", np.float32, (options.rows, options.dimensions))
        for start in range(0, len(X), 50_000):
            X[start : start + 50_000] = rng.standard_normal(X[start : start + 50_000].shape, dtype=np.float32)
        X.flush()
        X = np.load(Path(folder) / "X.npy", mmap_mode="r")
        before, peak, finished = _anonymous_bytes(), [0], threading.Event()

        def watch() -> None:
            while not finished.wait(0.2):
                peak[0] = max(peak[0], _anonymous_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            found = similarity.top_k(X, options.k, device="cpu", n_jobs=options.threads, progress=True)
        finally:
            wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
            finished.set()
            watcher.join()
        rows = rng.choice(len(X), 20, replace=False)
        expected = similarity.reference(X, options.k, rows=rows)
        largest_error, n_wrong = compare(X, rows, found.indices[rows], found.scores[rows], expected.scores)
        record = MillionRecord(
            provenance=Provenance.now({"threads": options.threads}),
            n=options.rows,
            d=options.dimensions,
            k=options.k,
            wall_s=wall_s,
            cpu_s=cpu_s,
            peak_bytes=peak[0] - before,
            largest_error=largest_error,
            n_wrong=n_wrong,
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.output, record.model_dump_json(indent=1) + "\n")
    print(
        f"{record.n:,} rows: {format_value(wall_s, 's')}, {format_value(cpu_s, 's')} of CPU time, "
        f"{format_value(record.peak_bytes, 'bytes')} beyond the file, "
        f"largest error {record.largest_error:.1g}, {record.n_wrong} wrong neighbours"
    )


if __name__ == "__main__":
    main()
