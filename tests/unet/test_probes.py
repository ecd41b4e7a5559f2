"""What is done where a quicker form is absent, wrong or slow, and where another process has chosen."""

import time

import pytest
import torch
import torch.nn.functional as F

from unet import onednn, probes, winograd
from unet.probes import Probe, chosen, only

SHAPES = [(512, 32), (64, 32), (64,)]


def probe(form, plain=F.linear, share=1.1):
    return Probe(form, plain, SHAPES, share)


def wrong(*args):
    return 1.001 * onednn.linear(*args)


def slow(*args):
    time.sleep(0.05)
    return onednn.linear(*args)


def absent(*args):
    raise RuntimeError("no such operator")


def changed(*args):
    raise TypeError("got other arguments")


@pytest.mark.parametrize("form", [wrong, slow, absent, changed], ids=lambda form: form.__name__)
def test_a_form_that_fails_its_probe_is_not_taken(form):
    assert not probe(form).pays()
    with only([form.__name__]):
        assert probe(form).pays() == (form is slow)


@pytest.fixture
def next_to_plain(monkeypatch):
    """The probe of a form next to one of PyTorch's that takes 1 ms, whatever this machine is, and what that one makes."""
    made = torch.ones(512, 64)

    def plain(x, weight, bias):
        time.sleep(0.001)
        return made

    monkeypatch.setattr(probes.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    return lambda form: probe(form, plain), made


def test_a_form_as_fast_as_pytorchs_passes_its_probe_once(next_to_plain):
    def fast(x, weight, bias):
        calls.append(len(x))
        return made

    calls, (probe_of, made) = [], next_to_plain
    fast_one = probe_of(fast)
    assert fast_one.pays()
    once = len(calls)
    assert fast_one.pays() and len(calls) == once


def test_a_form_that_is_slow_for_a_while_passes_its_probe(next_to_plain):
    """As on a machine whose processors are busy."""
    def form(x, weight, bias):
        calls.append(len(x))
        time.sleep(0.02 if len(calls) < 10 else 0)
        return made

    calls, (probe_of, made) = [], next_to_plain
    assert probe_of(form).pays()


def test_other_processors_are_not_even_probed(monkeypatch):
    monkeypatch.setattr(probes.platform, "machine", lambda: "arm64")
    assert not probe(absent).pays()


def test_what_another_process_chose_is_taken_whatever_is_quicker_here():
    ours = [probe(onednn.linear, share=9e9), probe(slow)]
    assert chosen(ours) == ["linear"]
    with only(["slow"]):
        assert chosen(ours) == ["slow"]
        with only([]):
            assert chosen(ours) == []
    assert chosen(ours) == ["linear"]


@pytest.mark.slow
def test_every_form_is_right_at_the_size_of_its_probe():
    every = [*onednn.PROBES.values(), winograd.PROBE]
    names = [each.form.__name__ for each in every]
    with only(names):
        assert chosen(every) == names == ["linear", "gelu", "times", "plus", "convolved"]
