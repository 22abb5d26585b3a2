"""Warnings of nnU-Net and what it imports, which a test that runs them does not turn into errors."""

from __future__ import annotations

import pytest

FOREIGN_WARNINGS = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
