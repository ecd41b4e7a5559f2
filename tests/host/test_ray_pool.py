"""The network of a MODEL on workers of a real Ray, which is started on this machine: each is a process with its own network."""

import os
import signal
import socket
import sys
import time

import comfy.model_management as management
import pytest
import torch

from support.devices import clone_of, with_clones
from support.families import relative_error
from support.gguf_networks import write_gguf
from support.oracle import TWO_LEVELS, Pair, prompts, run_node, sample
from support.pools import PATIENCE, calls_here, on_call, pooled, processes  # noqa: F401  (fixtures)

TOTAL, LENGTH, OVERLAP, STEPS = 11, 5, 2, 2
pytestmark = [pytest.mark.slow, pytest.mark.one_host]


@pytest.fixture(scope="module")
def pairs(pack, tmp_path_factory):
    configs = {"svd": TWO_LEVELS, "sd1": None, "sdxl": None}
    return {name: Pair(pack, tmp_path_factory.mktemp("pool"), name, config=config) for name, config in configs.items()}


@pytest.fixture
def run(node, pairs):
    def run(model, sampler="euler", conds=None, frames=TOTAL, **options):
        return run_node(
            node("TemporalUNetSVDSampler"), model, *(conds or prompts(pairs["svd"].config)),
            {"samples": torch.zeros(frames, 4, 8, 8)}, 5, STEPS, 1.0, 2.5, "linear", sampler, "karras",
            **{"window_frames": LENGTH, "window_overlap": OVERLAP, **options},
        )[0]["samples"]

    return run


def test_one_and_two_workers_make_what_this_machine_makes(pairs, pooled, run, calls_here):
    """Windows of our sampler, of several steps at a time and of one, and the branches of KSampler; networks of the host, too."""
    svd = pairs["svd"]

    def all_made(prepared, *networks):
        made = {sampler: run(prepared(svd.ours), sampler) for sampler in ("euler", "dpmpp_2m")}
        return made | {(name, whose): sample(prepared(getattr(pairs[name], whose)), *prompts(pairs[name].config))
                       for name, whose in networks}

    networks = [("svd", "ours"), ("svd", "host"), ("sd1", "ours"), ("sdxl", "host")]
    expected = all_made(lambda model: model, *networks)
    calls = [calls_here(model) for model in (svd.ours, svd.host)]
    one = all_made(lambda model: pooled(model, 1)[0], ("sd1", "ours"))
    two = all_made(lambda model: pooled(model, 2)[0], *networks)
    assert calls == [[], []]
    assert all(torch.equal(made, two[name]) for name, made in one.items())
    assert {name: error for name in expected if (error := relative_error(two[name], expected[name])) > 1e-4} == {}
    here_too = run(pooled(svd.ours, here=True)[0])
    assert calls[0] and relative_error(here_too, expected["euler"]) <= 1e-4
    assert pooled(svd.ours)[1].count("(CPU)") == 2


def tensors_sent(pack, model):
    """The names of the weights that a worker gets which has read the file."""
    shared = pack("nodes.bridge.pool.shared_network").SharedNetwork(model)
    assert shared.spec["path"] is not None
    return [name for piece in shared.pieces(read=True) for name in piece]


def test_patched_weights_and_those_of_gguf_files_reach_the_workers(pack, pairs, pooled, run, tmp_path, calls_here):
    svd = pairs["svd"]
    key = "input_blocks.1.0.in_layers.2.weight"
    patched = svd.ours.clone()
    patched.add_patches({f"diffusion_model.{key}": (0.5 * svd.weights[key].flip(0),)}, 1.0)
    expected, plain = run(patched), run(svd.ours)
    calls = calls_here(svd.ours)
    pool = pooled(patched)[0]
    assert relative_error(run(pool), expected) <= 1e-4 < relative_error(plain, expected)
    assert relative_error(run(pooled(svd.ours)[0]), plain) <= 1e-4  # the other state again
    assert calls == [] and tensors_sent(pack, patched) == [key]
    write_gguf(tmp_path / "unet.gguf", svd.config, "Q8_0")
    gguf = pack("nodes.bridge.model.unet_loader").load_model(str(tmp_path / "unet.gguf"))
    assert tensors_sent(pack, gguf) == []
    assert relative_error(run(pooled(gguf)[0]), run(gguf)) <= 1e-4
    (tmp_path / "unet.gguf").unlink()
    shared = pack("nodes.bridge.pool.shared_network").SharedNetwork(gguf)
    sent = [kind for piece in shared.pieces(read=False) for _, kind, _ in piece.values()]
    assert shared.spec["path"] is None and sent.count("Q8_0") > len(sent) / 3


def test_patches_that_are_code_run_here_alone_or_are_refused_by_name(node, pairs, pooled, run, calls_here, caplog):
    freeu = run_node(node("FreeU"), pairs["svd"].ours, 1.3, 1.4, 0.9, 0.2)[0]
    expected = run(freeu)
    calls = calls_here(pairs["svd"].ours)
    assert torch.equal(run(pooled(freeu, here=True)[0]), expected) and calls
    assert "computed on this machine alone, since workers do not get the patches of FreeU" in caplog.text
    with pytest.raises(ValueError, match=r"Machines \(Ray\): workers do not get the patches of FreeU\. Take it out"):
        run(pooled(freeu)[0])


def test_what_acts_inside_the_network_by_code_is_named(pack, pairs):
    stays_here, model = pack("nodes.bridge.pool.stays_here").stays_here, pairs["sd1"].ours
    assert stays_here(model, {}, [[{"gligen": ("position", None, [])}]]).startswith("GLIGEN")
    assert stays_here(model, {"optimized_attention_override": print}, []) == "a replaced attention"
    assert stays_here(model, {}, [[{}]]) is None


def test_a_compiled_network_is_not_used_which_is_said_and_stays_out_of_the_model(node, pairs, pooled, run, caplog):
    model, network = pairs["svd"].ours.clone(), pairs["svd"].ours.model.diffusion_model
    model.add_patches({"diffusion_model.out.2.weight": (pairs["svd"].weights["out.2.weight"],)}, 1.0)  # no worker has it yet
    compiled = [pooled(run_node(node("TorchCompileModel"), model, "eager")[0])[0],
                run_node(node("TorchCompileModel"), pooled(model, here=True)[0], "eager")[0]]
    made = [run(each) for each in compiled]
    assert torch.equal(made[0], run(pooled(model)[0])) and relative_error(made[1], made[0]) <= 1e-4
    assert model.model.diffusion_model is network
    assert caplog.text.count("the compiled network is not used in this run, since workers compute without torch.compile") == 2


def test_the_hosts_clones_next_to_a_pool_stay_out_of_its_way(pairs, pooled, run):
    pool = pooled(pairs["svd"].ours)[0]
    assert torch.equal(run(with_clones(pool, [clone_of(pairs["svd"].ours)])), run(pool))


def test_a_worker_that_is_killed_or_hangs_costs_a_call_and_changes_nothing(pairs, pooled, run, on_call, processes):
    pool = pooled(pairs["svd"].ours)[0]
    expected, [killed, _] = run(pool), processes()
    on_call(pairs["svd"].ours, 8, lambda: os.kill(killed, signal.SIGKILL))
    assert torch.equal(run(pool), expected)
    stopped = processes()[1]
    run(pool)  # gives the new one the network
    on_call(pairs["svd"].ours, 8, lambda: os.kill(stopped, signal.SIGSTOP))
    assert torch.equal(run(pool), expected)
    os.kill(stopped, signal.SIGCONT)
    assert torch.equal(run(pool), expected)


def test_a_cancel_ends_a_run_and_what_is_out_is_dropped(pairs, pooled, run, on_call, processes):
    pool = pooled(pairs["svd"].ours)[0]
    expected, [_, stopped] = run(pool), processes()

    def cancel():
        os.kill(stopped, signal.SIGSTOP)  # whose call would not come back
        management.interrupt_current_processing()

    count = on_call(pairs["svd"].ours, 6, cancel)
    with pytest.raises(management.InterruptProcessingException):
        run(pool)
    assert len(count) <= 6 + 2
    os.kill(stopped, signal.SIGCONT)
    assert torch.equal(run(pool), expected)


@pytest.fixture
def left_at_work(pack):
    """Has both workers work for so many seconds on what nobody waits for any more, as after a cancel."""
    def left(seconds):
        [workers] = pack("nodes.bridge.pool.workers")._all
        for _ in range(2):
            worker = workers.take("")
            workers.give_back(worker, pending=worker.handle.__ray_call__.remote(lambda replica: time.sleep(seconds)))

    return left


def test_workers_that_still_work_after_a_cancel_are_waited_for_as_long_as_they_are_there(
    pairs, pooled, run, node, left_at_work, processes, pack, monkeypatch
):
    expected, both = run(pooled(pairs["svd"].ours)[0]), processes()
    hasty = run_node(node("TemporalUNetRayPool"), pairs["svd"].ours, "", 2, False, 1.0)[0]
    monkeypatch.setattr(pack("nodes.bridge.pool.pulse"), "PING", 0.5)
    left_at_work(4)
    assert torch.equal(run(hasty), expected)
    left_at_work(1)
    for process in both:
        os.kill(process, signal.SIGSTOP)
    try:
        with pytest.raises(RuntimeError, match="no worker answers within 1 seconds"):
            run(hasty)
    finally:
        for process in both:
            os.kill(process, signal.SIGCONT)
    assert torch.equal(run(pooled(pairs["svd"].ours)[0]), expected)


@pytest.fixture
def cluster(pack, pooled, pairs):
    """The module that connects, once this process is connected."""
    pooled(pairs["svd"].ours)
    return pack("nodes.bridge.pool.cluster")


def test_what_keeps_from_a_cluster_is_said_at_once(cluster, pack, monkeypatch, tmp_path):
    def said(address):
        with pytest.raises(RuntimeError) as error:
            cluster.connect(address)
        return str(error.value)

    assert "connected to a Ray on this machine already, and can be to one cluster only" in said("127.0.0.1:6379")
    [workers] = pack("nodes.bridge.pool.workers")._all
    with monkeypatch.context() as on_gpus:
        on_gpus.setattr(pack("nodes.bridge.pool.workers"), "HEAD", PATIENCE)
        on_gpus.setattr(workers, "kind", "cuda")
        on_gpus.setattr(workers, "workers", [])
        with pytest.raises(RuntimeError, match=r"no machine of the cluster has a GPU \(.+ \(0 GPUs\)\)\. Start Ray on"):
            workers.set_count(0)
    monkeypatch.setattr(cluster, "_joined", [])
    assert "expected host:6379, auto, or nothing" in said("somewhere")
    assert "nothing answers at 127.0.0.1:1 (" in said("127.0.0.1:1")
    with socket.create_server(("127.0.0.1", 0)) as head, monkeypatch.context() as alone:
        alone.setattr(cluster.psutil, "process_iter", lambda names: [])
        assert "this machine is no part of the cluster at 127.0.0.1" in said(f"127.0.0.1:{head.getsockname()[1]}")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cluster, "TOKEN_FILE", tmp_path / "auth_token")
    assert "has no token for the cluster at 127.0.0.1:1. Copy the file ~/.ray/auth_token" in said("127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert '-m pip install "ray>=2.52"' in said("")


@pytest.mark.parametrize("ray_says, we_say", [  # as Ray 2.60 puts it
    ("Version mismatch: The cluster was started with:\n    Ray: 2.55.0\n    Python: 3.11.7\nThis process",
     "has another version of Ray or Python. All machines need equal ones"),
    ("Failed to connect to GCS. Last connection error: Traceback (most recent call last):\n  File\n"
     "ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: Authentication token is missing or incorrect.",
     "the cluster at host:1 has another token than this machine. Copy the file ~/.ray/auth_token"),
    ("Could not find any running Ray instance. Please specify the one to connect to",
     "no Ray runs on this machine. Start it here"),
    ("No node info found matching attributes: '' when trying to resolve node to connect to.",
     "this machine is no part of the cluster at host:1. Run here, too"),
    ("Failed to connect to GCS.\n  Last try:\n timed out", "it is no Ray, or has another token"),
])
def test_what_ray_says_becomes_one_line_of_what_to_do(pack, ray_says, we_say):
    said = pack("nodes.bridge.pool.cluster")._why(ray_says, "host:1")
    assert we_say in said and "\n" not in said and "Traceback" not in said
