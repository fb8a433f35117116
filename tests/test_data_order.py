"""The order of images: permutations that are functions of (seed, epoch), batches that leave nothing out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roadmap.data.sampling import Draw, derived_seed, epoch_order, eval_index_batches, sample_seed, train_index_batches
from roadmap.errors import ConfigError

SIZES = st.integers(1, 300)
SEEDS = st.integers(0, 2**31 - 1)


@given(num_images=SIZES, seed=SEEDS, epoch=st.integers(0, 500))
def test_an_epochs_order_is_a_permutation_and_the_same_when_asked_again(num_images, seed, epoch):
    order = epoch_order(num_images, seed, epoch)
    assert torch.equal(order.sort().values, torch.arange(num_images))
    assert torch.equal(order, epoch_order(num_images, seed, epoch))


def test_the_order_differs_by_seed_and_by_epoch_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    orders = {(s, e): epoch_order(1000, s, e) for s in range(3) for e in range(3)}
    assert torch.equal(before, torch.get_rng_state())
    keys = list(orders)
    assert all(not torch.equal(orders[a], orders[b]) for i, a in enumerate(keys) for b in keys[:i])


@given(num_images=SIZES, batch_size=SIZES, seed=SEEDS, data=st.data())
def test_training_batches_are_full_disjoint_and_resume_where_they_were_left(num_images, batch_size, seed, data):
    if batch_size > num_images:
        told = rf"recipe.batch_size={batch_size}: larger than the {num_images} training images"
        with pytest.raises(ConfigError, match=told):
            train_index_batches(num_images, batch_size, seed, 0)
        return
    batches = train_index_batches(num_images, batch_size, seed, 0)
    assert [len(b) for b in batches] == [batch_size] * (num_images // batch_size)
    assert len(torch.cat(batches).unique()) == len(batches) * batch_size
    skip = data.draw(st.integers(0, len(batches)))
    rest = train_index_batches(num_images, batch_size, seed, 0, skip=skip)
    assert len(rest) == len(batches) - skip
    assert all(torch.equal(a, b) for a, b in zip(rest, batches[skip:], strict=True))


@given(num_images=SIZES, batch_size=SIZES)
def test_evaluation_visits_each_image_once_in_order(num_images, batch_size):
    assert torch.cat(eval_index_batches(num_images, batch_size)).tolist() == list(range(num_images))


def test_seeds_of_different_purposes_epochs_and_images_differ():
    seeds = {sample_seed(s, e, i) for s in range(3) for e in range(3) for i in range(100)}
    assert len(seeds) == 900
    assert len({derived_seed(draw, 0, 0) for draw in Draw}) == len(Draw)
    assert derived_seed(Draw.order, 0, 1) == 892115846157824453  # a run goes on with the images of its first start
