"""What deploys and watches the server, by the tools that will read it; each tool that is missing here is a skipped test."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import prometheus_client
import pytest
import yaml
from serving_helpers import CORPUS, LIMIT_S, as_npy, ended, serve, tensor

from altlas_lib import paths
from altlas_lib.serving import watch

DEPLOY = paths.project_root() / "deploy"
EXPORTED_BY_OTHERS = {
    *(
        f"DCGM_FI_DEV_{name}"
        for name in ("GPU_UTIL", "MEM_COPY_UTIL", "GPU_TEMP", "MEMORY_TEMP", "POWER_USAGE", "FB_USED", "FB_FREE")
    ),
    *("DCGM_FI_DEV_XID_ERRORS", "up"),
    *(f"altlas_training_{name}" for name in ("step_seconds", "loss", "gpu_peak_bytes")),
}


def tool(name) -> str:
    """Its path, beside Python or on the PATH."""
    found = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    return found or pytest.skip(f"{name} is not installed")


def check(*command, cwd=None):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def manifests(overlay) -> dict:
    found = yaml.safe_load_all(check(tool("kubectl"), "kustomize", DEPLOY / "kubernetes" / overlay))
    return {each["kind"]: each for each in found}


def rules() -> list[dict]:
    groups = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def board_queries() -> list[str]:
    panels = json.loads((DEPLOY / "grafana/dashboard.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


# Kubernetes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", ["base", "gpu"], ids=["cpu", "one-gpu"])
def test_manifests_are_what_kubernetes_takes(overlay, tmp_path):
    (tmp_path / "all.yaml").write_text(check(tool("kubectl"), "kustomize", DEPLOY / "kubernetes" / overlay))
    check(tool("kubernetes-validate"), "--strict", "--quiet", tmp_path / "all.yaml")


def test_a_gpu_replica_gets_a_whole_gpu_and_never_shares_its_volume():
    deployment = manifests("gpu")["Deployment"]["spec"]
    (container,) = deployment["template"]["spec"]["containers"]
    assert (deployment["replicas"], deployment["strategy"]["type"]) == (1, "Recreate")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"] == 1
    assert container["image"] == "altlas-serve:gpu"
    assert "gpu" in container["args"]
    assert container["securityContext"]["readOnlyRootFilesystem"]


def test_selectors_meet_the_pods_and_the_policy_asks_nothing_else_of_who_comes_in():
    found = manifests("base")
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    for selector in (
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector
        assert selector.items() <= labels
    gateway, prometheus = found["NetworkPolicy"]["spec"]["ingress"][0]["from"]
    assert gateway["podSelector"]["matchLabels"] == {"app": "api-gateway"}
    assert prometheus["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "prometheus"}


# Prometheus and Grafana ------------------------------------------------------------------------------------------------


def test_rules_are_checked_and_tested_by_promtool():
    promtool, folder = tool("promtool"), DEPLOY / "prometheus"
    check(promtool, "check", "config", "prometheus.yml", cwd=folder)
    check(promtool, "test", "rules", "rules_test.yml", cwd=folder)
    tested = yaml.safe_load((folder / "rules_test.yml").read_text())["tests"]
    fired = {test["alertname"] for case in tested for test in case["alert_rule_test"] if test.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in rules()}


def test_the_dashboard_is_what_its_script_makes():
    spec = importlib.util.spec_from_file_location("make_dashboard", DEPLOY / "grafana/make_dashboard.py")
    pytest.importorskip("grafana_foundation_sdk")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DEPLOY / "grafana/dashboard.json").read_text() == module.make_dashboard()


def test_board_and_rules_ask_only_for_what_is_exported():
    assert watch.JOBS  # what imports it, registers it
    exported = set(prometheus_client.REGISTRY._names_to_collectors) | EXPORTED_BY_OTHERS
    for expression in (*board_queries(), *(rule["expr"] for rule in rules())):
        names = set(re.findall(r"\b(?:(?:altlas|DCGM|process)_\w+|up\b)", expression))
        assert names
        assert names <= exported, expression


class Exporter(BaseHTTPRequestHandler):
    """What DCGM's exporter and node_exporter's textfile collector show."""

    def do_GET(self):
        lines = [f'{name}{{gpu="0",run="full",part="training"}} {time.time() % 7}' for name in EXPORTED_BY_OTHERS - {"up"}]
        self.send_response(200)
        self.end_headers()
        self.wfile.write("\n".join([*lines, ""]).encode())

    def log_message(self, *arguments):
        pass


def test_prometheus_scrapes_the_server_and_every_query_of_the_board_answers(tmp_path):
    prometheus = tool("prometheus")
    exporter = ThreadingHTTPServer(("127.0.0.1", 0), Exporter)
    threading.Thread(target=exporter.serve_forever, daemon=True).start()
    with serve(tmp_path) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(DEPLOY / "prometheus/rules.yml")]
        for job, port in zip(config["scrape_configs"], (server.port, exporter.server_port), strict=True):
            job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = exporter.server_port + 1 if exporter.server_port < 60_000 else exporter.server_port - 1
        command = [prometheus, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb"]
        with open(tmp_path / "prometheus.log", "wb") as log:
            process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
        try:
            missing, deadline = (
                {query.replace("$__rate_interval", "10s") for query in board_queries()},
                time.monotonic() + LIMIT_S,
            )
            job = client.post("/v1/jobs?kind=top_k", content=as_npy(CORPUS)).json()["id"]
            ended(client, job)
            while missing:
                client.post("/v2/models/similarity/infer", json={"inputs": [tensor(CORPUS[:4])]})
                for query in list(missing):
                    try:
                        answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": query})
                    except httpx.TransportError:
                        break
                    if answer.status_code == 503:  # Prometheus is still starting
                        break
                    reply = answer.json()
                    assert reply["status"] == "success", reply
                    if reply["data"]["result"]:
                        missing.remove(query)
                assert time.monotonic() < deadline, missing
                time.sleep(0.5)
            loaded = httpx.get(f"http://127.0.0.1:{port}/api/v1/rules").json()["data"]["groups"]
            assert {rule["health"] for group in loaded for rule in group["rules"]} == {"ok"}
        finally:
            process.terminate()
            process.wait(LIMIT_S)
            exporter.shutdown()


# Images and hosts ------------------------------------------------------------------------------------------------------


def test_hadolint_and_shellcheck_find_nothing():
    check(tool("hadolint"), DEPLOY / "Dockerfile")
    check(tool("shellcheck"), *DEPLOY.glob("*.sh"))


def test_the_setup_of_a_gpu_host_says_what_it_would_do_and_does_nothing():
    said = check(DEPLOY / "setup-gpu-host.sh", "--dry-run")
    assert "+ apt-get install --yes nvidia-container-toolkit" in said
    assert said.endswith("nothing was changed\n")
    assert "driver" not in check(DEPLOY / "setup-gpu-host.sh", "--dry-run", "--no-driver").split("== driver")[1].split("==")[0]
    wrong = subprocess.run([DEPLOY / "setup-gpu-host.sh", "--drive"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr) == (2, "unknown option --drive; expected --dry-run, --no-driver\n")


def test_the_smoke_script_passes_on_a_server_and_fails_on_none(tmp_path):
    tool("curl")
    (tmp_path / "token").write_text("secret")
    with serve(tmp_path, "--token-file", tmp_path / "token") as server:
        assert check(DEPLOY / "smoke.sh", server.url, "secret").endswith("all well\n")
        assert subprocess.run([DEPLOY / "smoke.sh", server.url, "wrong"], capture_output=True).returncode
    assert subprocess.run([DEPLOY / "smoke.sh", server.url], capture_output=True).returncode


def test_the_editors_files_are_json():
    text = (paths.project_root() / ".devcontainer/devcontainer.json").read_text()
    container = json.loads(re.sub(r"^//.*\n", "", text))
    assert (paths.project_root() / ".devcontainer" / container["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    recommended = json.loads((paths.project_root() / ".vscode/extensions.json").read_text())["recommendations"]
    assert set(container["customizations"]["vscode"]["extensions"]) <= set(recommended)
