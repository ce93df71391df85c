"""Writes dashboard.json, the board of a server, its GPUs and trainings, from the table below.

python deploy/grafana/make_dashboard.py
"""

from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, prometheus, timeseries
from grafana_foundation_sdk.builders.common import VizLegendOptions
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef

RATE = "sum by ({by}) (rate({metric}[$__rate_interval]))"
BUCKETS = "sum by (le) (rate(altlas_request_seconds_bucket{route=~'.*infer'}[$__rate_interval]))"
ROWS = {  # row -> panels: title, unit, queries by their legends
    "Requests": [
        ("Latency", "s", {f"p{100 * share:g}": f"histogram_quantile({share}, {BUCKETS})" for share in (0.5, 0.95, 0.99)}),
        ("Answers", "reqps", {"{{status}}": RATE.format(by="status", metric="altlas_request_seconds_count")}),
        (
            "Requests in a batch",
            "short",
            {"mean": "rate(altlas_batch_requests_sum[$__rate_interval]) / rate(altlas_batch_requests_count[$__rate_interval])"},
        ),
        ("Waiting requests", "short", {"{{instance}}": "altlas_waiting_requests"}),
        ("Time of the worker", "percentunit", {"{{device}}": RATE.format(by="device", metric="altlas_compute_seconds_sum")}),
        ("Refused", "reqps", {"{{limit}}": RATE.format(by="limit", metric="altlas_refused_total")}),
    ],
    "Jobs": [
        ("Jobs", "short", {"{{state}}": "sum by (state) (altlas_jobs)"}),
        ("Oldest job", "s", {"{{state}}": "max by (state) (altlas_oldest_job_seconds)"}),
        ("Deaths of workers", "short", {"{{device}} {{role}}": "increase(altlas_worker_deaths_total[$__rate_interval])"}),
        (
            "Memory",
            "bytes",
            {"server": "process_resident_memory_bytes", "{{device}} {{role}}": "altlas_worker_resident_bytes"},
        ),
    ],
    "GPUs": [
        (
            "GPU in use",
            "percent",
            {"GPU {{gpu}}": "DCGM_FI_DEV_GPU_UTIL", "GPU {{gpu}}, bus": "DCGM_FI_DEV_MEM_COPY_UTIL"},
        ),
        ("GPU memory", "mbytes", {"GPU {{gpu}}, used": "DCGM_FI_DEV_FB_USED", "GPU {{gpu}}, free": "DCGM_FI_DEV_FB_FREE"}),
        ("Temperature", "celsius", {"GPU {{gpu}}": "DCGM_FI_DEV_GPU_TEMP", "GPU {{gpu}}, memory": "DCGM_FI_DEV_MEMORY_TEMP"}),
        ("Power", "watt", {"GPU {{gpu}}": "DCGM_FI_DEV_POWER_USAGE"}),
        ("Last XID error", "short", {"GPU {{gpu}}": "DCGM_FI_DEV_XID_ERRORS"}),
    ],
    "Trainings": [
        ("Time of a step", "s", {"{{run}}": "altlas_training_step_seconds"}),
        ("Loss", "short", {"{{run}} {{part}}": "altlas_training_loss"}),
        ("GPU memory of a training", "bytes", {"{{run}}": "altlas_training_gpu_peak_bytes"}),
    ],
}


def make_dashboard() -> str:
    board = (
        dashboard.Dashboard("ALT_LAS acceleration")
        .uid("altlas")
        .tags(["altlas"])
        .refresh("30s")
        .time("now-1h", "now")
        .with_variable(dashboard.DatasourceVariable("source").type("prometheus"))
    )
    for name, panels in ROWS.items():
        board.with_row(dashboard.Row(name))
        for title, unit, queries in panels:
            panel = timeseries.Panel().title(title).unit(unit).height(7).span(8).min(0)
            panel.datasource(DataSourceRef(type_val="prometheus", uid="${source}")).legend(VizLegendOptions().show_legend(True))
            for letter, (legend, query) in zip("ABCD", queries.items(), strict=False):
                panel.with_target(prometheus.Dataquery().expr(query).legend_format(legend).ref_id(letter))
            board.with_panel(panel)
    return JSONEncoder(sort_keys=True, indent=1).encode(board.build()) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("dashboard.json").write_text(make_dashboard())
