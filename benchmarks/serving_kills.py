"""SIGKILL for the server and its workers while requests are being sent: is an accepted job ever lost?

    python -m benchmarks.serving_kills --kills 100

Clients send jobs, each with an Idempotency-Key, until one is accepted, and searches; a seeded hand kills the server (and starts
it again) or one of its workers at random moments. At the end every job that was answered 202 must be done, with the bits that
`similarity.top_k` gives here, every search that was answered 200 must have been right, and no process may be left over.
"""

import argparse
import io
import json
import random
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil

from altlas_lib import similarity
from altlas_lib.serving import infer_request, read_answer, running_server

_LIMIT_S = 120  # for a restart, an end of all jobs, an end of all processes


@dataclass
class Drill:
    """What the kills did."""

    seed: int
    n_server_kills: int = 0
    n_worker_kills: int = 0
    n_accepted: int = 0
    n_sent_again: int = 0  # requests without an answer, sent again with their key
    n_started_again: int = 0  # accepted jobs that took more than one try
    n_searches: int = 0
    n_lost: int = 0
    n_wrong_jobs: int = 0
    n_wrong_searches: int = 0
    n_jobs_of_one_key: int = 0  # beyond the first
    n_orphans: int = 0
    longest_restart_s: float = 0

    def is_clean(self) -> bool:
        return not (self.n_lost + self.n_wrong_jobs + self.n_wrong_searches + self.n_jobs_of_one_key + self.n_orphans)


def as_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def drill(n_kills: int, seed: int, folder: Path, *, n_clients: int = 3) -> Drill:
    """Kill `n_kills` times, then account for everything. Files go to `folder`."""
    rng, hand = np.random.default_rng(seed), random.Random(seed)
    corpus = rng.standard_normal((3000, 64), dtype=np.float32)
    bodies = [rng.standard_normal((n, 64), dtype=np.float32) for n in (40, 700, 2500, 6000)]
    answers = [similarity.top_k(body, 5) for body in bodies]
    queries = corpus[:20]
    nearest = similarity.top_k(queries, 3, Y=corpus)
    np.save(folder / "corpus.npy", corpus)
    found, accepted, over, lock = Drill(seed), {}, threading.Event(), threading.Lock()
    options = ("--corpus", folder / "corpus.npy", "--store", folder / "store", "--max-tries", 10_000, "--max-jobs", 10_000)
    port, client = None, httpx.Client(timeout=30)

    def send_jobs(number: int) -> None:
        chance = random.Random(seed * 1000 + number)
        for i in range(10**9):
            which, key = chance.randrange(len(bodies)), f"{number}-{i}"
            content = as_npy(bodies[which])
            ids = set()
            while not ids or (chance.random() < 0.1 and not over.is_set()):  # now and then the same key again
                if over.is_set():
                    return
                try:
                    reply = client.post(
                        f"http://127.0.0.1:{port}/v1/jobs?kind=top_k&k=5", content=content, headers={"Idempotency-Key": key}
                    )
                    if reply.status_code == 202:
                        ids.add(reply.json()["id"])
                        with lock:
                            accepted[reply.json()["id"]] = which
                except httpx.TransportError:
                    found.n_sent_again += 1
                    time.sleep(0.1)
            found.n_jobs_of_one_key += len(ids) - 1
            time.sleep(chance.random() * 0.2)

    def search() -> None:
        body, headers = infer_request({"queries": queries}, k=3)
        while not over.is_set():
            try:
                reply = client.post(f"http://127.0.0.1:{port}/v2/models/similarity/infer", content=body, headers=headers)
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            if reply.status_code == 200:
                answer = read_answer(reply.content, reply.headers)
                right = all((answer[name] == getattr(nearest, name)).all() for name in ("indices", "scores"))
                found.n_searches += 1
                found.n_wrong_searches += not right

    threads = [threading.Thread(target=send_jobs, args=[number], daemon=True) for number in range(n_clients)]
    threads.append(threading.Thread(target=search, daemon=True))
    left_over: list[psutil.Process] = []
    while found.n_server_kills + found.n_worker_kills < n_kills:
        started = time.monotonic()
        with running_server(folder / "log.txt", *options, port=port) as server:
            found.longest_restart_s = max(found.longest_restart_s, time.monotonic() - started) if port else 0
            if port is None:
                port = server.port
                for thread in threads:
                    thread.start()
            while found.n_server_kills + found.n_worker_kills < n_kills:
                time.sleep(hand.random() * 1.5)
                children = psutil.Process(server.process.pid).children()
                if hand.random() < 0.5 or not children:
                    left_over += children
                    server.process.kill()
                    found.n_server_kills += 1
                    break
                hand.choice(children).kill()
                found.n_worker_kills += 1
    with running_server(folder / "log.txt", *options, port=port) as server:
        over.set()
        for thread in threads:
            thread.join()
        left_over += psutil.Process(server.process.pid).children()
        deadline = time.monotonic() + _LIMIT_S
        for job, which in accepted.items():
            known = client.get(f"{server.url}/v1/jobs/{job}").json()
            while known.get("state") in ("queued", "running") and time.monotonic() < deadline:
                time.sleep(0.05)
                known = client.get(f"{server.url}/v1/jobs/{job}").json()
            if known.get("state") != "done":
                found.n_lost += 1
                continue
            found.n_started_again += known["tries"] > 1
            with np.load(io.BytesIO(client.get(f"{server.url}/v1/jobs/{job}/result").content)) as result:
                right = all((result[name] == getattr(answers[which], name)).all() for name in ("indices", "scores"))
            found.n_wrong_jobs += not right
        found.n_accepted = len(accepted)
    _, alive = psutil.wait_procs(left_over, timeout=_LIMIT_S)
    found.n_orphans = len(alive)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = drill(options.kills, options.seed, Path(folder))
    print(json.dumps(asdict(found), indent=1))
    raise SystemExit(0 if found.is_clean() else 1)


if __name__ == "__main__":
    main()
