"""What the server says of itself: metrics for Prometheus, and log lines as JSON on stdout."""

import json
import logging
import sys
from datetime import UTC, datetime

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

REQUESTS = Histogram("altlas_request_seconds", "From the first byte to the answer", ["route", "status"], buckets=_SECONDS)
COMPUTE = Histogram("altlas_compute_seconds", "A batch in its worker", ["device", "model"], buckets=_SECONDS)
BATCH = Histogram("altlas_batch_requests", "Requests that were computed together", ["model"], buckets=(1, 2, 4, 8, 16, 32, 64))
WAITING = Gauge("altlas_waiting_requests", "Requests that wait for a worker")
HELD_BYTES = Gauge("altlas_held_bytes", "Bodies of requests held in memory")
REFUSED = Counter("altlas_refused_total", "Requests refused because a limit was reached", ["limit"])
DEATHS = Counter("altlas_worker_deaths_total", "Worker processes that ended before they should", ["device", "role"])
WORKER_BYTES = Gauge("altlas_worker_resident_bytes", "Memory of a worker process", ["device", "role"])
JOBS = Gauge("altlas_jobs", "Jobs in the store", ["state"])
OLDEST_JOB = Gauge("altlas_oldest_job_seconds", "Since the oldest job of a state came into it", ["state"])
JOB_LIMIT = Gauge("altlas_jobs_limit", "Queued jobs beyond which more are refused")
JOB_SECONDS = Histogram("altlas_job_seconds", "A job in its worker", ["kind"], buckets=(0.1, 1, 10, 60, 300, 900, 3600))

LOG = logging.getLogger("altlas")


class JsonLines(logging.Formatter):
    """A record as one line of JSON, with what `extra={"fields": ...}` holds."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {"time": datetime.now(UTC).isoformat(), "level": record.levelname, "message": record.getMessage()}
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields | getattr(record, "fields", {}), default=str)


def log_json_lines() -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
