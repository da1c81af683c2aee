"""Stratified draws, and scenes as views."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specfast.tasks.sampling import StratifiedSampler
from specfast.tasks.views import SceneViews, assign_pixels, cut_views, orient, orient_back, orient_sample
from tests.tasks.scenes import make_sample, make_scene

CLASSES = np.array([1] * 7 + [4] * 3 + [2] * 20)


def test_every_step_draws_as_many_of_each_class():
    sampler = StratifiedSampler(CLASSES, 5, seed=0)
    assert sampler.steps_per_epoch == 4
    assert sampler.draws == 15
    for step in range(9):
        drawn = CLASSES[sampler.draw(step)]
        assert {c: int((drawn == c).sum()) for c in (1, 2, 4)} == {1: 5, 2: 5, 4: 5}


def test_an_epoch_shows_every_pixel_and_repeats_evenly():
    sampler = StratifiedSampler(CLASSES, 5, seed=0)
    seen = np.bincount(np.concatenate([sampler.draw(step) for step in range(4)]), minlength=len(CLASSES))
    assert (seen[CLASSES == 2] == 1).all()
    for c, total in ((1, 7), (4, 3)):
        assert set(seen[c == CLASSES]) <= {20 // total, 20 // total + 1}


def test_a_draw_depends_on_seed_and_step_alone():
    one, other = StratifiedSampler(CLASSES, 5, seed=3), StratifiedSampler(CLASSES, 5, seed=3)
    last = one.draw(11)
    for step in (0, 5, 11):
        assert np.array_equal(other.draw(step), one.draw(step))
    assert np.array_equal(other.draw(11), last)
    assert not np.array_equal(StratifiedSampler(CLASSES, 5, seed=4).draw(0), one.draw(0))
    assert not np.array_equal(np.sort(one.draw(0)), np.sort(one.draw(1)))


def test_a_few_of_each_class():
    few = StratifiedSampler(CLASSES, 5, seed=0).few()
    assert len(np.unique(few)) == len(few)
    assert {c: int((CLASSES[few] == c).sum()) for c in (1, 2, 4)} == {1: 5, 2: 5, 4: 3}


def test_bad_draws():
    with pytest.raises(ValueError, match="at least one training pixel"):
        StratifiedSampler(np.array([], int), 5, 0)
    with pytest.raises(ValueError, match="per_class: expected at least 1"):
        StratifiedSampler(CLASSES, 0, 0)


@pytest.mark.parametrize("orientation", range(8))
def test_turns_can_be_undone(orientation):
    maps = torch.arange(2 * 3 * 5).reshape(2, 3, 5)
    assert torch.equal(orient_back(orient(maps, orientation), orientation), maps)
    assert sum(torch.equal(orient(maps, orientation), orient(maps, other)) for other in range(8)) == 1
    sample = orient_sample(make_scene(4, 6)[0], orientation)
    assert sample.image.shape[1:] == ((4, 6) if orientation % 2 == 0 else (6, 4))


@pytest.mark.parametrize("side", [8, 11, 100])
def test_every_pixel_lies_in_the_view_that_shows_most_around_it(side):
    sizes = [(24, 30), (9, 40)]
    views = cut_views(sizes, side)
    pixels = np.arange(24 * 30 + 9 * 40)
    chosen, row, column = assign_pixels(pixels, sizes, views)
    for pixel in pixels:
        scene = int(pixel >= 24 * 30)
        y, x = divmod(pixel - scene * 24 * 30, sizes[scene][1])
        to_edge = [  # pixels between this one and the nearest edge of each view; negative outside
            min(y - top, top + height - 1 - y, x - left, left + width - 1 - x) if view.scene == scene else -1
            for view in views
            for top, left, height, width in [view.box]
        ]
        assert to_edge[chosen[pixel]] == max(to_edge) >= 0
        top, left, _, _ = views[chosen[pixel]].box
        assert (y, x) == (row[pixel] + top, column[pixel] + left)
    assert max(max(view.box[2:]) for view in views) <= side


def test_views_blend_to_the_scene_itself():
    """A model that gives back what it sees gives the scene, in whatever tiles and turns."""
    samples = [make_scene(24, 30)[0], make_scene(17, 12, seed=1)[0]]
    samples[0].valid = torch.ones(24, 30, dtype=torch.bool)
    samples[0].valid[3:5, 7] = False

    class Echo(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Module()
            self.encoder.cls_token = torch.nn.Parameter(torch.zeros(1))
            self.config = type("Config", (), {"outputs": ("a",) * 12})

        def batch_of(self, turned):
            from specfast import SpectralBatch

            return SpectralBatch.from_samples(turned, patch_size=1)

        def encode(self, batch):
            return None

        def decode(self, encoded, batch):
            return batch.image.unflatten(0, (-1, 12))

    for orientations in (1, 8):
        maps = SceneViews(samples, 11).predict(Echo(), lambda values: values, orientations=orientations)
        for found, sample in zip(maps, samples, strict=True):
            valid = np.ones(found.shape[1:], bool) if sample.valid is None else sample.valid.numpy()
            np.testing.assert_allclose(found[:, valid], sample.image.numpy()[:, valid], atol=1e-5)
            assert np.isnan(found[:, ~valid]).all()


def test_views_of_one_size_go_together():
    views = SceneViews([make_scene(24, 30, seed=s)[0] for s in range(5)] + [make_scene(8, 8)[0]], 32)
    assert [len(group) for group in views.groups] == [1, 1, 1, 1, 1, 1]
    views = SceneViews([make_scene(16, 16, seed=s)[0] for s in range(5)], 32)
    assert [len(group) for group in views.groups] == [4, 1]
    with pytest.raises(ValueError, match="at least one scene"):
        SceneViews([], 32)
    with pytest.raises(ValueError, match="view: expected at least 1"):
        cut_views([(3, 3)], 0)


def test_scenes_of_other_bands_are_a_clear_error():
    scene, _ = make_scene()
    with pytest.raises(ValueError, match="wavelength"):
        SceneViews([scene, make_sample(np.ones((5, 6, 6)))], 32).batch(_Device(), 1, 0)


class _Device(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Module()
        self.encoder.cls_token = torch.nn.Parameter(torch.zeros(1))

    def batch_of(self, samples):
        from specfast import SpectralBatch

        return SpectralBatch.from_samples(samples, patch_size=1)
