"""A short soak: what `dev.py bench soak` asks of 300 prompts."""

import pytest

import dev
from tools.bench.soak import KINDS, soak


@pytest.mark.slow
@pytest.mark.one_host
def test_prompts_of_random_settings_cancels_faults_and_two_clients_leave_the_server_right_and_small(host, tmp_path):
    report = soak(host, dev.untrained_models(host), tmp_path, prompts=24)  # the references thrice, and each kind once
    assert report.faults == []
    assert report.counts.keys() >= KINDS.keys() and len(report.held) >= 2
