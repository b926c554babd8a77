"""The contrast of pictures, before they are brought to size: gamma, and CLAHE.

Shapes: (C, H, W) bytes; CLAHE is of grey pictures, (1, H, W).
"""

import torch
from torch import Tensor, nn

TILES = 8  # in each direction
_SHADES = 256


def with_gamma(picture: Tensor, gamma: float) -> Tensor:
    """255 x (value / 255) ^ gamma: below 1 dark places become brighter."""
    shades = torch.arange(_SHADES, dtype=torch.float64) / (_SHADES - 1)
    table = ((_SHADES - 1) * shades**gamma).round().to(torch.uint8)
    return table[picture.long()]


def equalized(picture: Tensor, limit: float) -> Tensor:
    """Contrast-limited adaptive histogram equalisation over 8 x 8 tiles, as OpenCV computes it.

    H and W must be at least 16. limit: no shade counts for more than so many times the mean count
    in its tile; what is over is given to all shades alike. Between the middles of tiles their
    tables are mixed linearly.
    Zuiderveld, Graphics Gems IV, 1994.
    """
    _, height, width = picture.shape
    fits = height % TILES == width % TILES == 0
    right, bottom = (0 if fits else TILES - side % TILES for side in (width, height))
    padded = nn.functional.pad(picture.float(), (0, right, 0, bottom), mode="reflect")[0].long()
    rows, columns = padded.shape[0] // TILES, padded.shape[1] // TILES
    tables = _tables(padded, rows, columns, limit)
    up, down, of_down = _neighbours(height, rows)
    west, east, of_right = _neighbours(width, columns)
    values, of_down = picture[0].long(), of_down[:, None]

    def looked_up(row: Tensor, column: Tensor) -> Tensor:
        return tables[row[:, None], column[None, :], values]

    above = looked_up(up, west) * (1 - of_right) + looked_up(up, east) * of_right
    below = looked_up(down, west) * (1 - of_right) + looked_up(down, east) * of_right
    return (above * (1 - of_down) + below * of_down).round().to(torch.uint8)[None]


def _tables(padded: Tensor, rows: int, columns: int, limit: float) -> Tensor:
    """(8, 8, 256) the new shade of every shade, tile by tile."""
    tiles = padded.reshape(TILES, rows, TILES, columns).transpose(1, 2).reshape(TILES**2, -1)
    area = tiles.shape[1]
    counts = torch.zeros(TILES**2, _SHADES, dtype=torch.long)
    counts.scatter_add_(1, tiles, torch.ones_like(tiles))
    most = max(1, int(limit * area / _SHADES))
    excess = (counts - most).clamp_min(0).sum(1)
    counts = counts.clamp_max(most) + (excess // _SHADES)[:, None]
    for tile, left in enumerate((excess % _SHADES).tolist()):
        if left:  # one more for so many shades, evenly spread from the darkest on
            counts[tile, ::max(1, _SHADES // left)][:left] += 1
    table = (counts.cumsum(1) * ((_SHADES - 1) / area)).round().clamp_max(_SHADES - 1)
    return table.reshape(TILES, TILES, _SHADES)


def _neighbours(size: int, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """For every pixel of a direction: the tiles before and behind it, the share of the latter."""
    place = torch.arange(size) / tile - 0.5
    before = place.floor()
    behind = (before.long() + 1).clamp_max(TILES - 1)
    return before.long().clamp_min(0), behind, place - before
