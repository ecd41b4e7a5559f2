"""Windows over long clips: every frame covered, joints that move, what each window is given, memory, long flights."""

import itertools

import comfy.patcher_extension
import comfy.samplers
import pytest
import torch

from support.controls import windows_of
from support.families import relative_error
from support.oracle import TWO_LEVELS, Pair, prompts, run_node, sample

TOTAL, LENGTH, OVERLAP = 11, 5, 2


@pytest.fixture(scope="module")
def windows(pack):
    return pack("nodes.bridge.sampling.windows")


@pytest.fixture(scope="module")
def lengths(pack):
    return pack("nodes.bridge.model.trained_length")


@pytest.fixture(scope="module")
def svd(pack, tmp_path_factory):
    return Pair(pack, tmp_path_factory.mktemp("windows"), "svd", config=TWO_LEVELS)


@pytest.fixture
def run(svd, node):
    def run(model=None, frames=TOTAL, steps=2, sampler="euler", latent=None, **options):
        positive, negative = prompts(svd.config)
        latent = {"samples": torch.zeros(frames, 4, 8, 8), **(latent or {})}
        options = {"window_frames": LENGTH, "window_overlap": OVERLAP, **options}
        return run_node(
            node("TemporalUNetSVDSampler"), model or svd.ours, positive, negative, latent, 5, steps, 1.0, 2.5, "linear", sampler,
            "karras", **options,
        )[0]["samples"]

    return run


SHAPES = [(11, 5, 2), (100, 8, 4), (9, 8, 1), (26, 25, 6), (30, 14, 13), (7, 2, 1), (1000, 25, 6)]


@pytest.mark.parametrize(("total", "length", "overlap"), SHAPES)
@pytest.mark.parametrize("loop", [False, True])
def test_windows_cover_the_clip_in_order_of_time_from_the_first_frame(windows, total, length, overlap, loop):
    for step in range(12):
        starts = windows.window_starts(total, length, overlap, step, loop)
        assert starts[0] == 0 and starts == sorted(starts)
        covered = set()
        for start in starts:
            assert start == 0 or start in covered  # its image has been made
            covered |= {(start + i) % total for i in range(length)}
            assert loop or start + length <= total
        assert covered == set(range(total))
        assert not loop or starts[-1] + length > total  # the last runs over the end


def test_joints_move_from_step_to_step(windows):
    starts = [tuple(windows.window_starts(100, 25, 6, step, False)[1:-1]) for step in range(10)]
    assert len(set(starts)) >= 8
    assert all(a != b for a, b in itertools.pairwise(starts))


@pytest.mark.slow
@pytest.mark.one_host
def test_one_window_changes_nothing(run):
    assert torch.equal(run(frames=LENGTH), run(frames=LENGTH, window_frames=0))


@pytest.fixture
def recorded(svd):
    """(model, calls): of each call on a window its frames, the image given, what is made of the positive, and the noise level."""
    calls = []

    def record(executor, model, conds, x_in, timestep, options):
        out = executor(model, conds, x_in, timestep, options)
        window = options["transformer_options"]["context_window"]
        image = conds[0][0]["model_conds"]["c_concat"].cond
        calls.append((list(window.index_list), image.clone(), out[0].clone(), float(timestep[0])))
        return out

    model = svd.ours.clone()
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, "record", record)
    return model, calls


PYRAMID = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0]).reshape(-1, 1, 1, 1)


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("keep_colors", [False, True])
def test_each_window_is_given_what_was_made_of_its_first_frame(recorded, run, windows, keep_colors):
    """By hand: the same step, window after window, through the host's own batch of conditions."""
    model, calls = recorded
    run(model, steps=1, keep_colors=keep_colors)
    image = calls[0][1]
    sums, weight = torch.zeros(TOTAL, 4, 8, 8), torch.zeros(TOTAL, 1, 1, 1)
    assert [indices[0] for indices, *_ in calls] == windows.window_starts(TOTAL, LENGTH, OVERLAP, 0, False)
    for indices, given, made, _ in calls:
        if indices[0] > 0:
            expected = sums[indices[0]] / weight[indices[0]] / 0.18215
            if keep_colors:
                expected = in_colors_of(image[0], expected)
            assert relative_error(given, expected.expand_as(given)) <= 1e-5
        sums[indices] += PYRAMID * made
        weight[indices] += PYRAMID


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("sampler, evaluations", [("euler", 3), ("heun", 5)])
def test_each_window_may_be_given_what_the_step_before_made_of_its_first_frame(recorded, run, node, sampler, evaluations):
    """All windows over that frame count, not those before alone; in the first step it is as without the option.

    Where a sampler asks for a noise level twice, both times it is what the level before made.
    """
    model, calls = recorded
    run(model, steps=1, keep_colors=False)
    chained = list(calls)
    calls.clear()
    settings = {"window_frames": LENGTH, "window_overlap": OVERLAP, "keep_colors": False, "hand_over": "previous step"}
    run(model, steps=3, sampler=sampler, options=run_node(node("TemporalUNetVideoOptions"), **settings)[0], keep_colors=False)
    begins = [index for index, (frames, *_) in enumerate(calls) if frames[0] == 0]
    steps = [calls[begin:end] for begin, end in itertools.pairwise([*begins, len(calls)])]
    assert len(steps) == evaluations
    assert all(torch.equal(made, as_without) for (*_, made, _), (*_, as_without, _) in zip(steps[0], chained, strict=True))
    for step in steps[1:]:
        level = step[0][3]
        before = next(other for other in steps if other[0][3] == min(one[0][3] for one in steps if one[0][3] > level))
        sums, weight = torch.zeros(TOTAL, 4, 8, 8), torch.zeros(TOTAL, 1, 1, 1)
        for frames, _, made, _ in before:
            sums[frames] += PYRAMID * made
            weight[frames] += PYRAMID
        for frames, given, *_ in step[1:]:
            expected = sums[frames[0]] / weight[frames[0]] / 0.18215
            assert relative_error(given, expected.expand_as(given)) <= 1e-5


def test_where_images_are_not_handed_over_the_log_says_that_the_option_does_nothing(svd, windows, node, pack, caplog):
    options = pack("nodes.bridge.sampling.options").VideoOptions
    elsewhere = windows_of(svd.ours, node, LENGTH, OVERLAP)
    for model, frames, shape, reason in (
        (svd.ours, LENGTH, (LENGTH, OVERLAP), "since one window holds all 5 frames"), (svd.ours, TOTAL, (LENGTH, 0), "no image"),
        (elsewhere, TOTAL, (0, OVERLAP), "the context windows of another node act"), (svd.ours, TOTAL, (LENGTH, OVERLAP), None),
    ):
        caplog.clear()
        windows.windowed(model, frames, options(*shape), "Node")
        assert not caplog.text
        windows.windowed(model, frames, options(*shape, hand_over="previous step"), "Node")
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == (reason is not None) and all("hand_over = previous step does nothing" in one for one in said)
        assert reason is None or reason in said[0]


def test_a_hand_over_of_another_name_is_an_error_that_names_both(node):
    with pytest.raises(ValueError, match="Video Options: hand_over is 'next step', expected one of this step, previous step"):
        run_node(node("TemporalUNetVideoOptions"), hand_over="next step")


def in_colors_of(image, latent):
    """Each channel of latent [c, h, w] with the mean and spread that it has in the image; contrast changes by 1.5 at most."""
    channels = []
    for seen, wanted in zip(latent, image, strict=True):
        contrast = min(max(float(wanted.std() / seen.std()), 1 / 1.5), 1.5)
        channels.append((seen - seen.mean()) * contrast + wanted.mean())
    return torch.stack(channels)


@pytest.mark.slow
@pytest.mark.one_host
def test_kept_colors_leave_short_clips_alone(run):
    assert torch.equal(run(frames=LENGTH, keep_colors=True), run(frames=LENGTH, keep_colors=False))
    assert not torch.equal(run(keep_colors=True), run(keep_colors=False))


def test_without_overlap_windows_keep_the_image(svd, run):
    assert torch.isfinite(run(window_overlap=0)).all()


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("frames", [11, 40])
def test_calls_are_no_larger_for_longer_clips(svd, run, frames):
    rows = []
    handle = svd.ours.model.diffusion_model.input_blocks[0][0].register_forward_pre_hook(
        lambda module, args: rows.append(args[0].shape[0])
    )
    run(frames=frames, steps=1)
    handle.remove()
    assert set(rows) == {2 * LENGTH}


@pytest.fixture
def host(svd, node, windows):
    """The host's KSampler and linear guidance on a MODEL with our windows: noise, masks and samplers are the host's business."""

    def run(steps=2, closed_loop=False, **options):
        model = windows.with_windows(svd.ours, LENGTH, OVERLAP, closed_loop, keep_colors=True)
        model = run_node(node("VideoLinearCFGGuidance"), model, 1.0)[0]
        return sample(model, *prompts(svd.config), frames=TOTAL, cfg=2.5, steps=steps, scheduler="karras", **options)

    return run


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("sampler", ["heun", "dpmpp_sde", "dpmpp_2m_sde"])
def test_samplers_with_levels_in_between_or_noise_of_their_own(run, host, sampler):
    result = run(steps=3, sampler=sampler, closed_loop=True)
    assert torch.isfinite(result).all()
    assert relative_error(result, host(steps=3, sampler=sampler, closed_loop=True)) <= 1e-5


def starts_of_second_windows(model):
    """A clone and the list of where the second window of each evaluation of the clip will start."""
    model, starts, previous = model.clone(), [], []

    def noted(executor, model, conds, x_in, timestep, options):
        window = options["transformer_options"]["context_window"].index_list
        if previous == [0]:
            starts.append(window[0])
        previous[:] = window[:1]
        return executor(model, conds, x_in, timestep, options)

    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, "starts", noted)
    return model, starts


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("sampler, evaluations", [("dpm_fast", [3, 3, 2, 1]), ("dpm_adaptive", None)])
def test_joints_move_with_samplers_that_choose_their_noise_levels(svd, run, windows, sampler, evaluations):
    """But not within one of their steps: dpm_adaptive would take that for an error of its own and make its steps smaller."""
    model, starts = starts_of_second_windows(svd.ours)
    run(model, steps=9, sampler=sampler, window_overlap=1)
    assert evaluations is None or len(starts) == sum(evaluations)
    by_step = [starts[i:i + 3] for i in range(0, len(starts), 3)]
    assert all(len(set(step)) == 1 for step in by_step)
    expected = [windows.window_starts(TOTAL, LENGTH, 1, step, False)[1] for step in range(len(by_step))]
    assert [step[0] for step in by_step] == expected and len(set(expected)) > 1


@pytest.mark.slow
def test_a_level_that_a_node_asks_for_twice_is_one(svd, run, node):
    """PerturbedAttentionGuidance evaluates the clip a second time, in the same windows."""
    model, starts = starts_of_second_windows(run_node(node("PerturbedAttentionGuidance"), svd.ours, 0.7)[0])
    run(model, steps=5, sampler="dpm_fast", window_overlap=1)
    by_step = [starts[i:i + 6] for i in range(0, len(starts), 6)]
    assert len(starts) == 2 * 5 and all(len(set(step)) == 1 for step in by_step) and by_step[0] != by_step[1]


def noisy(seed=3):
    return torch.randn(TOTAL, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow
def test_a_mask_keeps_its_frames_through_windows(run, host):
    """Frames 0, 4 and 5 stay, of which each lies in other windows; of frame 7 the left half does."""
    mask = torch.ones(TOTAL, 1, 64, 64)
    mask[[0, 4, 5]] = 0
    mask[7, :, :, :32] = 0
    latent = {"samples": noisy(), "noise_mask": mask}
    result = run(latent=latent)
    assert relative_error(result, host(**latent)) <= 1e-5
    assert relative_error(result[[0, 4, 5]], noisy()[[0, 4, 5]]) <= 1e-3
    assert relative_error(result[7, :, :, :3], noisy()[7, :, :, :3]) <= 1e-3
    assert relative_error(result[7, :, :, 5:], noisy()[7, :, :, 5:]) > 0.1
    assert min(relative_error(result[i], noisy()[i]) for i in (1, 2, 3, 6, 8, 9, 10)) > 0.1


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("indices", [list(range(TOTAL))[::-1], [2] * TOTAL])
def test_noise_follows_batch_index_through_windows(run, host, indices):
    result = run(latent={"batch_index": indices})
    assert relative_error(result, host(batch_index=indices)) <= 1e-5
    assert relative_error(result, run()) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("denoise", [0.5, *(pytest.param(share, marks=pytest.mark.one_host) for share in (0.1, 0.0))])
def test_denoise_below_one_through_windows(run, host, denoise):
    result = run(steps=4, latent={"samples": noisy()}, denoise=denoise)
    assert relative_error(result, host(steps=4, samples=noisy(), denoise=denoise)) <= 1e-5
    assert (relative_error(result, noisy()) <= 1e-5) == (denoise == 0)


@pytest.mark.parametrize("said, frames", [
    ("14", 14), ("25", 25), ("1", 1), ("0", None), ("00", None), ("-3", None), ("", None), ("14.0", None), ("\u00b2", None),
    ("\u0663", None), ("14 frames", None), ("9" * 5000, None), (" 14\n", None), ("14\n", None),
])
def test_a_length_that_is_no_number_of_frames_counts_as_none(lengths, said, frames):
    assert lengths.trained_length({lengths.FRAMES_KEY: said}) == frames
    assert lengths.trained_length({}) is None


def test_the_length_is_that_of_training_where_the_file_says_it(svd, lengths):
    model = svd.ours.clone()
    assert lengths.automatic_length(model, 100) == lengths.LONGEST
    assert lengths.automatic_length(model, 20) == 20
    model.set_attachments(lengths.FRAMES_KEY, 8)
    assert lengths.automatic_length(model, 100) == 8
