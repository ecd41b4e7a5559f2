"""Load Checkpoint on a server: one choice of file to a video, and what a user sees where the file lacks a part."""

from support.client import watch
from support.prompts import FRAMES, SIZE, changed, node, only, svd

LOADER = "TemporalUNetCheckpointLoader"
LACKS_ENCODER = (
    "Load Checkpoint (Temporal UNet): miniature_svd.safetensors holds no image encoder (CLIP Vision) that can be used. Delete "
    "the link from the output clip_vision where the input is optional, as that of SVD Image to Video (inside of the blueprint, "
    "too), or connect Load CLIP Vision there."
)


def one_loader(name="miniature_svd.safetensors", **conditioning) -> dict:
    """`svd` with model and VAE out of one checkpoint."""
    prompt = svd()
    loader, vae = only(prompt, "TemporalUNetLoader"), only(prompt, "VAELoader")
    del prompt[vae]
    prompt[loader] = node(LOADER, ckpt_name=name)
    for part in prompt.values():
        for key, value in part["inputs"].items():
            if value == [vae, 0]:
                part["inputs"][key] = [loader, 2]
    return changed(prompt, "TemporalUNetSVDConditioning", **conditioning)


def test_the_bundled_miniature_makes_a_video_with_one_loader(server):
    assert server.pictures(server.run(one_loader())).shape == (FRAMES, SIZE, SIZE, 3)
    assert not (server.base / "models" / "checkpoints" / "miniature_svd.safetensors").exists()


def test_a_part_that_the_file_lacks_is_an_error_where_it_is_used(server):
    """The editor gets the error of the node that would use it; that node and those after it do not run."""
    prompt = one_loader()
    loader, conditioning = only(prompt, LOADER), only(prompt, "TemporalUNetSVDConditioning")
    prompt[conditioning]["inputs"]["clip_vision"] = [loader, 3]
    watched = watch(server, prompt)
    [error] = [data for kind, data in watched.events if kind == "execution_error"]
    assert error["node_id"] == conditioning
    assert error["exception_message"] == f"Execution Blocked: {LACKS_ENCODER}"
    assert server.wait(watched.prompt_id, 60)["outputs"] == {}


def test_files_that_a_workflow_of_version_0_1_names_are_taken(server):
    """`checkpoints/<name>` in Load UNet."""
    prompt = changed(svd(), "TemporalUNetLoader", unet_name="checkpoints/untrained_sd15.safetensors")
    sampled = only(prompt, "TemporalUNetSVDSampler")
    assert server.fault(prompt)["node_id"] == sampled  # the file is taken, and is no video model
