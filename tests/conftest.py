"""Assertions in tests/support report their values as those in tests do; property tests have the same inputs in every run."""

import gc
import tempfile
from pathlib import Path

import hypothesis
import pytest
from hypothesis.configuration import set_hypothesis_home_dir

gc.disable()  # until all is imported: that makes no garbage, and looking for some took a third of ComfyUI's start

pytest.register_assert_rewrite("support")

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "temporal-unet-hypothesis")  # not in the repository
hypothesis.settings.register_profile(
    "fixed", derandomize=True, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile("fixed")


def pytest_collection_finish():
    gc.freeze()
    gc.enable()
