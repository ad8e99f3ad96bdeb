"""No region of the picture loses all its tokens: a floor under what each tile of the token grid keeps."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from toprovar_compiler.schedule import grid_of

_ROUNDING = 9  # decimals: 0.1 * 30 is three tokens, not four


class _Layout(NamedTuple):
    """Tiles of one grid of N tokens, T in all.

    Attributes:
        members: [T, side * side], the tokens of each tile; N where a tile at the border has fewer.
        tile_of: [N], the tile of each token.
        last: [1, T, 1], how many tokens each tile keeps at least, less one.
    """

    members: Tensor
    tile_of: Tensor
    last: Tensor


class TileFloor:
    """Of every tile of ``side`` x ``side`` grid cells at least ``share`` is kept, and at least one token.

    A.5.3 promises "at least an alpha_min fraction" of each region, which eq. 6 does not give (NOTES 8). The
    lowest scores of each tile go first, then the lowest of all the others, so that the number of kept tokens
    stays what the budget says. Tiles at the border may be smaller; of c cells ceil(share * c) are kept.
    """

    def __init__(self, side: int, share: float) -> None:
        self._side, self._share = side, share
        self._layouts: dict[tuple[int, torch.device], _Layout] = {}

    def least(self, tokens: int) -> int | None:
        """How many tokens the floor takes of a scale; None where their grid is no square."""
        if grid_of(tokens) is None:
            return None
        return sum(self._least_of(len(tile)) for tile in self._tiles(tokens))

    def order(self, scores: Tensor) -> Tensor:
        """Scores [G, N], float32 or float64, on a square grid -> [G, N] of that dtype, finite and different.

        Of the result the K lowest fulfil the floor for every K of at least :meth:`least`. Nothing is read
        back to the host. NaN and infinity rank last, ties go to the lower index, as in the gate.
        """
        layout = self._layout(scores.shape[-1], scores.device)
        ranked = torch.where(scores.isfinite(), scores, math.inf)
        place = torch.sort(torch.sort(ranked, dim=-1, stable=True).indices, dim=-1).indices
        tokens = place.shape[-1]
        padded = torch.nn.functional.pad(place, (0, 1), value=tokens)
        of_tiles = padded[:, layout.members].sort(-1).values
        worst = of_tiles.gather(-1, layout.last.expand(len(scores), -1, 1))[..., 0]
        forced = place <= worst[:, layout.tile_of]
        return torch.where(forced, place - tokens, place).to(scores.dtype)

    def _least_of(self, cells: int) -> int:
        return max(1, math.ceil(round(self._share * cells, _ROUNDING)))

    def _tiles(self, tokens: int) -> list[list[int]]:
        grid = grid_of(tokens)
        assert grid is not None, "the caller checked the grid"
        height, width = grid
        corners = [(y, x) for y in range(0, height, self._side) for x in range(0, width, self._side)]
        return [
            [
                row * width + column
                for row in range(y, min(y + self._side, height))
                for column in range(x, min(x + self._side, width))
            ]
            for y, x in corners
        ]

    def _layout(self, tokens: int, device: torch.device) -> _Layout:
        if (tokens, device) not in self._layouts:
            tiles = self._tiles(tokens)
            longest = max(len(tile) for tile in tiles)
            members = [tile + [tokens] * (longest - len(tile)) for tile in tiles]
            tile_of = {token: number for number, tile in enumerate(tiles) for token in tile}
            last = [[self._least_of(len(tile)) - 1] for tile in tiles]
            self._layouts[tokens, device] = _Layout(
                torch.tensor(members, device=device),
                torch.tensor([tile_of[token] for token in range(tokens)], device=device),
                torch.tensor([last], device=device),
            )
        return self._layouts[tokens, device]
