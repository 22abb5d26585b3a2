"""Defines the Prometheus metrics: requests, their phases, waiting requests, models in memory. Labels hold no case, file or patient."""

from __future__ import annotations

from typing import Any


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        seconds = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
        self.registry: Any = CollectorRegistry()
        self.requests = Counter("nnunet_requests", "Requests for a prediction, by HTTP status.", ["status"], registry=self.registry)
        self.seconds = Histogram("nnunet_request_seconds", "From the request to its answer.", buckets=seconds, registry=self.registry)
        self.phase = Histogram(
            "nnunet_phase_seconds", "One case's reading, network and writing.", ["phase"], buckets=seconds, registry=self.registry
        )
        self.inside = Gauge("nnunet_requests_inside", "Requests in the server, waiting ones included.", registry=self.registry)
        self.models = Gauge("nnunet_model_bytes", "Models in memory, bytes of weights.", ["dataset", "model"], registry=self.registry)
        self.loads = Gauge("nnunet_model_loads", "Models loaded since the start.", registry=self.registry)

    def text(self, models: dict[tuple[str, str], int], loads: int) -> bytes:
        """Return the page that Prometheus reads."""
        from prometheus_client import generate_latest

        self.models.clear()
        for (dataset, model), size in models.items():
            self.models.labels(dataset, model).set(size)
        self.loads.set(loads)
        return bytes(generate_latest(self.registry))
