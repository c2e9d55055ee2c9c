"""What a decoder remembers while it writes: keys and values of its tokens, and of the clips that it writes about.

Sequences leave when their texts end. The others stay where they are in memory, as far as they can.

Shape suffixes of names: B clips, N sequences, L tokens of a sequence, Q queries of a clip, M visual tokens of a clip, D
width, H attention heads, E channels of a head, C capacity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KeyValue = tuple[Tensor, Tensor]  # both [.., H, tokens, E]


@dataclass
class Seen:
    """What sequences see of their clips: keys and values of the visual tokens, which no step computes again."""

    blocks: list[KeyValue | None]  # cross-attention of each block, [B,H,M,E]; None where a block has none
    places: int = 0  # of each clip in the grid; 0: sequence i sees clip i // (N/B), and there is no grid
    place_N: Tensor | None = None  # the place of each sequence in the grid [B * places]

    @property
    def clips(self) -> int:
        assert self.blocks[0] is not None  # block 0 always attends to the visual tokens
        return len(self.blocks[0][0])

    def pack(self) -> None:
        """Lay the keys and values of each head together in memory, which speeds up many steps and costs a copy."""
        for index, pair in enumerate(self.blocks):
            if pair is not None:
                self.blocks[index] = (pair[0].contiguous(), pair[1].contiguous())

    def take(self, rows_N: Tensor, sequences: int) -> None:
        """Let sequence i see the clip of the one at rows_N[i] of `sequences` earlier ones.

        Rows may repeat and be left out. Clips without sequences leave.
        """
        if self.place_N is None:
            self.places = sequences // self.clips
            self.place_N = torch.arange(sequences, device=rows_N.device)
        clip_N = self.place_N[rows_N] // self.places
        count_B = torch.bincount(clip_N, minlength=self.clips)
        if not bool(count_B.all()):
            rows_B = survivors(count_B > 0)
            self.blocks = [pair and (moved(pair[0], rows_B), moved(pair[1], rows_B)) for pair in self.blocks]
            new_B = torch.zeros_like(count_B)
            new_B[rows_B] = torch.arange(len(rows_B), device=rows_N.device)
            clip_N, count_B = new_B[clip_N], count_B[rows_B]
        # The sequences of a clip take its first places.
        self.places = int(count_B.max())
        by_clip_N = clip_N.argsort(stable=True)
        place_N = torch.arange(len(clip_N), device=rows_N.device) - (count_B.cumsum(0) - count_B)[clip_N[by_clip_N]]
        self.place_N = torch.empty_like(clip_N)
        self.place_N[by_clip_N] = clip_N[by_clip_N] * self.places + place_N

    def to_grid(self, x_NLD: Tensor) -> Tensor:
        """[N,L,D] -> [B, places * L, D]: one row of queries for each clip; zeros where a place has no sequence."""
        if self.place_N is not None:
            grid = x_NLD.new_zeros(self.clips * self.places, *x_NLD.shape[1:])
            x_NLD = grid.index_copy(0, self.place_N, x_NLD)
        return x_NLD.reshape(self.clips, -1, x_NLD.shape[2])

    def from_grid(self, x_BQD: Tensor, length: int) -> Tensor:
        """The inverse of `to_grid` for sequences of `length` tokens."""
        x_NLD = x_BQD.reshape(-1, length, x_BQD.shape[2])
        return x_NLD if self.place_N is None else x_NLD[self.place_N]


@dataclass
class TokenCache:
    """Keys and values of the tokens that a decoder has seen, so that each step computes only one token."""

    blocks: list[KeyValue]  # self-attention of each block, [N,H,C,E]; C grows as tokens come
    limit: int  # the largest C
    length: int = 0  # number of tokens seen

    @property
    def sequences(self) -> int:
        return len(self.blocks[0][0])

    def take(self, rows_N: Tensor) -> None:
        """Let sequence i be the one at rows_N[i]. There may be fewer than before; rows may repeat."""
        self.blocks = [
            (moved(keys, rows_N, self.length), moved(values, rows_N, self.length)) for keys, values in self.blocks
        ]

    def make_room(self, length: int) -> None:
        """Grow to hold `length` tokens, at least twofold, so that few tokens are copied and short texts stay cheap."""
        capacity = self.blocks[0][0].shape[2]
        if length > capacity:
            capacity = min(self.limit, max(length, 2 * capacity))
            for index, pair in enumerate(self.blocks):  # one block at a time: the old tensors of a block are freed
                self.blocks[index] = (self._grown(pair[0], capacity), self._grown(pair[1], capacity))

    def _grown(self, old_NHCE: Tensor, capacity: int) -> Tensor:
        new = old_NHCE.new_empty(*old_NHCE.shape[:2], capacity, old_NHCE.shape[3])
        new[:, :, : self.length] = old_NHCE[:, :, : self.length]
        return new


def survivors(kept_N: Tensor) -> Tensor:
    """The rows to keep, in an order in which as many as possible stay where they are. kept: bool [N]."""
    count = int(kept_N.sum())
    rows_N = torch.arange(count, device=kept_N.device)
    rows_N[~kept_N[:count]] = kept_N[count:].nonzero()[:, 0] + count
    return rows_N


def moved(x: Tensor, rows_N: Tensor, length: int | None = None) -> Tensor:
    """x[rows_N] in the memory of x, which copies only rows that move. Of dimension 2 only `length` places move."""
    moving = (rows_N != torch.arange(len(rows_N), device=rows_N.device)).nonzero()[:, 0]
    x[moving, :, :length] = x[rows_N[moving], :, :length]
    return x[: len(rows_N)]
