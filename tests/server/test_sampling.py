"""The same prompt gives the same frames, another seed or another control others."""

import numpy as np
import pytest

from support.client import cached
from support.prompts import changed, image_model, node, only, svd, with_control

pytestmark = pytest.mark.slow


def computed(server, prompt: dict, sampler: str = "TemporalUNetSVDSampler") -> np.ndarray:
    """The images of a prompt whose sampler really ran: the host keeps the results of the last prompt only."""
    entry = server.run(prompt)
    assert only(prompt, sampler) not in cached(entry), "the host took the sampler's result from its cache"
    return server.pictures(entry)


def test_a_seed_gives_the_same_frames_again_and_another_seed_others(server):
    first = computed(server, svd(seed=1))
    other = computed(server, svd(seed=2))
    again = computed(server, svd(seed=1))
    assert np.array_equal(again, first)
    assert not np.array_equal(other, first)


def test_all_frames_differ(server):
    frames = computed(server, svd(frames=3))
    assert len(np.unique(frames.reshape(3, -1), axis=0)) == 3


def test_the_control_image_steers_the_result(server):
    prompt = with_control(image_model("untrained_sd15.safetensors", 768), "sampler")
    steered = computed(server, prompt, "KSampler")
    prompt["control"]["inputs"]["strength"] = 0.0
    unsteered = computed(server, prompt, "KSampler")
    prompt["sampler"]["inputs"] |= {"positive": ["positive", 0], "negative": ["positive", 0]}
    assert not np.array_equal(steered, unsteered)
    assert np.array_equal(unsteered, computed(server, prompt, "KSampler"))


def test_a_lora_for_a_layer_over_time_changes_the_video_and_at_strength_0_does_not(server):
    plain = svd(seed=1)
    inputs = {"model": [only(plain, "TemporalUNetLoader"), 0], "lora_name": "over_time.safetensors"}

    def video(strength: float):
        lora = node("TemporalUNetLoraLoader", strength_model=strength, **inputs)
        return computed(server, {"lora": lora, **changed(plain, "TemporalUNetSVDSampler", model=["lora", 0])})

    expected = computed(server, plain)
    assert not np.array_equal(video(1.0), expected)
    assert np.array_equal(video(0.0), expected)
