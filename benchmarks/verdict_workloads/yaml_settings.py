"""Settings in YAML."""

import yaml


def service_settings_input(n: int = 800) -> str:
    """Settings of n services."""
    services = [
        {"name": f"service {i}", "port": 8000 + i, "hosts": [f"10.0.{i % 256}.{j}" for j in range(4)]} for i in range(n)
    ]
    return yaml.safe_dump({"services": services})


def service_settings(text: str) -> dict[str, int]:
    return {service["name"]: service["port"] for service in parsed(text)["services"]}


def parsed(text: str) -> dict:
    return yaml.safe_load(text)
