"""A cache with room for what comes gives what transformers' own gives, and never writes into another's keys."""

import copy

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from segregation.models.growing import GrowingLayer, GrowingWindowLayer, make_room
from segregation.models.memory import Memory


def keys(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, tokens, 4, generator=torch.Generator().manual_seed(seed))


def filled(layer: DynamicLayer, tokens: int) -> DynamicLayer:
    layer.update(keys(tokens), -keys(tokens))
    return layer


@pytest.mark.parametrize(
    "make", [DynamicLayer, lambda: DynamicSlidingWindowLayer(9), lambda: DynamicSlidingWindowLayer(7)]
)
@pytest.mark.parametrize("room", [1, 4, 20])
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_layer_with_room_grows_as_one_without(make, room: int, at_once: int) -> None:
    own, ours = filled(make(), 5), filled(make(), 5)
    make_room(cache_of(ours), room)
    assert (type(ours) is not type(own)) == (getattr(own, "sliding_window", 10**9) > 6)
    for step in range(6):
        new = keys(at_once, seed=step + 1)
        for mine, theirs in zip(ours.update(new, 2 * new), own.update(new, 2 * new), strict=True):
            assert torch.equal(mine, theirs)
        assert torch.equal(ours.keys, own.keys) and torch.equal(ours.values, own.values)
        assert ours.get_seq_length() == own.get_seq_length() and ours.get_mask_sizes(1) == own.get_mask_sizes(1)


def test_what_is_appended_is_not_copied_while_there_is_room() -> None:
    layer = filled(DynamicLayer(), 5)
    make_room(cache_of(layer), 2)
    places = []
    for step in range(3):
        layer.update(keys(1, step), keys(1, step))
        places.append(layer.keys.data_ptr())
    assert places[0] == places[1] != places[2]


def test_a_window_takes_room_for_no_more_than_it_keeps_and_gives_it_back() -> None:
    layer = filled(DynamicSlidingWindowLayer(9), 5)
    make_room(cache_of(layer), 40)
    assert isinstance(layer, GrowingWindowLayer) and layer.room is not None and layer.room[0].shape[-2] == 8
    for step in range(6):
        layer.update(keys(1, step), keys(1, step))
    assert layer.room is None and layer.keys.untyped_storage().nbytes() <= 4 * 2 * 3 * 9 * 4
    make_room(cache_of(layer), 40)
    assert layer.room is None


def test_two_caches_never_share_a_buffer_to_write_to() -> None:
    """Whatever is made of a memory leaves it as it is, also when both go on."""
    cache = cache_of(filled(DynamicLayer(), 5))
    make_room(cache, 6)
    memory = Memory(cache, (), torch.tensor([5, 5]))
    twins = [memory.trimmed(), memory.select(torch.tensor([0, 1]))]
    layers = [cache.layers[0], *[twin.cache.layers[0] for twin in twins]]
    for number, layer in enumerate(layers):
        layer.update(keys(1, number), keys(1, number))
    for number, layer in enumerate(layers):
        assert isinstance(layer, GrowingLayer)
        assert_close(layer.keys, torch.cat([keys(5), keys(1, number)], dim=-2), atol=0, rtol=0)


def test_layers_of_other_kinds_and_empty_ones_are_left_alone() -> None:
    empty, full = DynamicLayer(), filled(DynamicLayer(), 2)
    cache = cache_of(empty, full)
    make_room(cache, 3)
    assert type(empty) is DynamicLayer and type(full) is GrowingLayer
    make_room(cache, 5)  # again, as after rows were dropped
    assert full.room is not None and full.room[0].shape[-2] == 7


def test_gradients_of_what_is_appended_are_kept() -> None:
    own, ours = filled(DynamicLayer(), 3), filled(DynamicLayer(), 3)
    make_room(cache_of(ours), 3)
    for layer in (own, ours):
        new = keys(1, 7).requires_grad_()
        layer.update(new, new)[0].square().sum().backward()
        assert_close(new.grad, 2 * new.detach())


def cache_of(*layers: DynamicLayer) -> DynamicCache:
    cache = copy.copy(DynamicCache())
    cache.layers = list(layers)
    return cache
