"""Jobs as pods: one for each attempt, built and run by the Kubernetes provider's own machinery, found again by name and labels."""

from __future__ import annotations

from airflow_nnunet.backends.kubernetes.backend import KubernetesBackend
from airflow_nnunet.backends.kubernetes.options import Claim, PodOptions

__all__ = ["Claim", "KubernetesBackend", "PodOptions"]
