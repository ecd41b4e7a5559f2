"""Inputs for frames in the editor: images and videos link to them, also in workflows that were saved before they took videos."""

from support.prompts import SIZE, node

NODES = {  # id -> node, with the inputs for frames of each kind of it
    "1": node("LoadImage", image="example.png"),
    "2": node("VAELoader", vae_name="untrained_vae.safetensors"),
    "3": node(
        "TemporalUNetSVDConditioning", init_image=["1", 0], vae=["2", 0], width=SIZE, height=SIZE, video_frames=3,
        motion_bucket_id=127, fps=6, augmentation_level=0.0, seed=5, resize="pad",
    ),
    "4": node("CreateVideo", images=["1", 0], fps=["3", 3]),
    "5": node("TemporalUNetJoinVideo", video=["1", 0], continuation=["4", 0]),
    "6": node("TemporalUNetContinueVideo", video=["4", 0], vae=["2", 0], video_frames=3, motion_bucket_id=127, fps=6, seed=7),
}
LINK = "([from, to, name]) => !!app.graph.getNodeById(from).connect(0, app.graph.getNodeById(to), name)"


WIRED = {"4": "video", "1": "continuation"}  # node -> the input of Join Video that it is linked to by hand


def links(prompt):
    return {id: {name: at for name, at in node["inputs"].items() if isinstance(at, list)} for id, node in prompt.items()}


def as_saved_by_0_1(workflow):
    """With inputs that take images alone, and Join Video not linked yet."""
    for saved in workflow["nodes"]:
        for slot in saved["inputs"]:
            slot["type"] = slot["type"].removesuffix(",VIDEO")
            slot["link"] = None if saved["id"] == 5 else slot["link"]
    return workflow | {"links": [link for link in workflow["links"] if link[3] != 5]}


def test_images_and_videos_link_to_inputs_for_frames(editor):
    editor.load_api(NODES, "frames")
    assert links(editor.prompt()) == links(NODES)
    editor.load_template(as_saved_by_0_1(editor.workflow()), "old")
    assert not links(editor.prompt())["5"]
    assert not editor.page.evaluate(LINK, [2, 5, "video"]), "a VAE is no video"
    for source, name in WIRED.items():
        assert editor.page.evaluate(LINK, [int(source), 5, name])
    assert links(editor.prompt())["5"] == {name: [source, 0] for source, name in WIRED.items()}


def test_the_seed_of_the_augmentation_stays_as_it_is_set(editor):
    """No control comes after it that would change it when a run is queued."""
    editor.load_api(NODES, "frames")
    values = {saved["type"]: saved["widgets_values"] for saved in editor.workflow()["nodes"] if "widgets_values" in saved}
    assert values["TemporalUNetSVDConditioning"] == [SIZE, SIZE, 3, 127, 6, 0, 5, "pad"]
    assert values["TemporalUNetContinueVideo"] == [3, 127, 6, 0, 7, True]
