"""Runs jobs as pods, one for each attempt, which the Kubernetes provider's own classes build and create."""

from __future__ import annotations

from airflow_nnunet.backends.kubernetes.backend import KubernetesBackend
from airflow_nnunet.backends.kubernetes.options import Claim, PodOptions

__all__ = ["Claim", "KubernetesBackend", "PodOptions"]
