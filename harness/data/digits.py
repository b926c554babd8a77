"""Handwritten digits that come with scikit-learn: 1797 real pictures, nothing to download."""

import torch
from torch.nn.functional import interpolate

from harness.data.splits import Data, Size, from_tensors, sides


def digits(*, size: Size, val: float, test: float, seed: int) -> Data:
    """Ten classes, 8 x 8 grey pixels drawn to size (bilinear), one channel.

    E. Alpaydin and C. Kaynak 1998, doi:10.24432/C50P49 (its test part).

    Raises: DataError if size or shares do not fit.
    """
    from sklearn.datasets import load_digits  # here: its import costs a second

    height_and_width = sides(size)
    found = load_digits()
    pixels = torch.as_tensor(found.images, dtype=torch.float32).unsqueeze(1)  # (N, 1, 8, 8)
    inputs = interpolate(pixels, size=height_and_width, mode="bilinear", align_corners=False)
    return from_tensors("digits", inputs, torch.as_tensor(found.target).long(),
                        labels=[str(name) for name in found.target_names],
                        val=val, test=test, seed=seed)
