"""What a decoder remembers: sequences that leave change nothing for the others, and the memory grows with the texts."""

from __future__ import annotations

import dataclasses

import torch

from lavila.models.token_cache import survivors
from tests.models.test_gated_gpt2 import TINY, decoder_of, some_tokens


def test_sequences_that_leave_change_nothing_for_the_others() -> None:
    decoder, tokens = decoder_of(), some_tokens(9, 16)
    visual = torch.randn(3, 5, 24)
    rows = torch.arange(9)
    with torch.no_grad():
        whole = decoder(tokens, decoder.look(visual))
        seen, cache = decoder.look(visual), decoder.new_cache(9, 16)
        seen.pack()
        # One sequence leaves; then all of the clip in the middle; then all but two.
        leaving = {3: [1], 7: [3, 4, 5], 11: [0, 6, 8]}
        for place in range(16):
            if place in leaving:
                kept = survivors(~torch.isin(rows, torch.tensor(leaving[place])))
                seen.take(kept, len(rows))
                cache.take(kept)
                rows = rows[kept]
            step = decoder(tokens[rows, place : place + 1], seen, cache)
            torch.testing.assert_close(step[:, 0], whole[rows, place], rtol=1e-5, atol=1e-5)
    assert sorted(rows.tolist()) == [2, 7]
    assert seen.clips == 2 and seen.places == 1
    assert cache.blocks[0][0].shape[2] == 16


def test_a_cache_grows_with_its_texts() -> None:
    config = dataclasses.replace(TINY, positions=100)
    decoder, tokens = decoder_of(config), some_tokens(2, 50)
    with torch.no_grad():
        seen, cache, room = decoder.look(torch.randn(1, 5, 24)), decoder.new_cache(2, 50), []
        for place in range(50):
            step = decoder(tokens[:, place : place + 1], seen, cache)
            room.append(cache.blocks[0][0].shape[2])
        torch.testing.assert_close(step, decoder(tokens, seen)[:, -1:], rtol=1e-5, atol=1e-5)
    assert sorted(set(room)) == [20, 40, 50]
