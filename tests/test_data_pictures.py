"""Picture files become bytes of one size; a file at fault is named."""

from pathlib import Path

import files
import numpy as np
import pytest
import torch
from PIL import Image

from harness.data.pictures import Drawn, picture_files, read, read_pairs
from harness.errors import DataError


def test_pictures_of_the_right_size_are_read_to_the_bit(tmp_path: Path) -> None:
    places = [files.picture(tmp_path / f"{n}.png", seed=n) for n in range(3)]
    found = read(places, Drawn([20, 24]))
    expected = np.stack([files.noise(n, 20, 24, 3) for n in range(3)]).transpose(0, 3, 1, 2)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), expected)


def test_grey_pictures_and_those_with_transparency_become_colour(tmp_path: Path) -> None:
    grey = files.picture(tmp_path / "grey.png", mode="L")
    clear = files.picture(tmp_path / "clear.png", mode="RGBA")
    both = files.picture(tmp_path / "both.png", mode="LA")
    palette = tmp_path / "palette.png"
    Image.fromarray(files.noise(0, 20, 24, 3)).quantize(8).save(palette, transparency=b"\x00\x7f")
    found = read([grey, clear, both, palette], Drawn([20, 24])).numpy()
    assert found.shape == (4, 3, 20, 24)
    np.testing.assert_array_equal(found[0], np.stack([files.noise(0, 20, 24)] * 3))
    np.testing.assert_array_equal(found[1], files.noise(0, 20, 24, 4)[..., :3].transpose(2, 0, 1))
    np.testing.assert_array_equal(found[2], np.stack([files.noise(0, 20, 24, 2)[..., 0]] * 3))


def test_colour_becomes_grey_by_its_luminance(tmp_path: Path) -> None:
    place = files.picture(tmp_path / "a.png")
    found = read([place], Drawn([20, 24], channels=1))[0, 0].double().numpy()
    expected = files.noise(0, 20, 24, 3) @ np.array([0.299, 0.587, 0.114])
    assert abs(found - expected).max() <= 1


def ramp(file: Path, height: int, width: int) -> Path:
    """Red tells the column, green the row; 255 is the last."""
    rows, columns = np.mgrid[0:height, 0:width]
    shades = np.stack([255 * columns / (width - 1), 255 * rows / (height - 1),
                       np.zeros((height, width))], axis=-1)
    Image.fromarray(shades.round().astype(np.uint8)).save(file)
    return file


@pytest.mark.rows("R007")
@pytest.mark.parametrize(("fit", "columns", "rows"), [
    ("crop", (64, 191), (0, 255)),  # 40 x 80 to 20 x 20: the middle half of its columns
    ("imagenet", (255 * 22.5 / 80, 255 * 57.5 / 80), (255 / 16, 255 * 15 / 16)),
    ("stretch", (0, 255), (0, 255))])
def test_pictures_are_fitted_by_cutting_or_by_stretching(
        tmp_path: Path, fit: str, columns: tuple[float, float], rows: tuple[float, float]) -> None:
    """imagenet: to 8/7 of the size, as 256 for 224, then the middle, 7/8 of the shorter side."""
    size = 56 if fit == "imagenet" else 20
    found = read([ramp(tmp_path / "a.png", 40, 80)], Drawn(size, fit))[0].double()
    assert found.shape == (3, size, size)
    for shade, (least, most) in zip(found, (columns, rows)):
        assert float(shade.min()) == pytest.approx(least, abs=8)
        assert float(shade.max()) == pytest.approx(most, abs=8)


def test_a_mask_is_cut_and_sized_with_its_picture(tmp_path: Path) -> None:
    """A picture painted like its mask; smaller, still is, but on the edges between classes."""
    classes = np.kron(np.arange(8).reshape(2, 4) % 5, np.ones((16, 16), dtype=int))
    picture = files.mask(tmp_path / "a.png", np.stack([classes * 40] * 3, axis=-1))
    found, masks = read_pairs([(picture, picture)], Drawn([24, 32]),
                              lambda file: torch.from_numpy(classes.astype(np.uint8)))
    assert masks.dtype == torch.uint8
    assert set(masks.unique().tolist()) <= set(range(5))
    same = (found[0, 0] == masks[0] * 40).double().mean()
    assert same > 0.7
    assert (found[0, 0].double() - masks[0].double() * 40).abs().max() < 160


def test_all_broken_pictures_are_named_at_once(tmp_path: Path) -> None:
    good = files.picture(tmp_path / "good.png")
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    cut = files.picture(tmp_path / "cut.png", size=(90, 90))
    cut.write_bytes(cut.read_bytes()[:400])
    empty = tmp_path / "empty.png"
    empty.touch()
    deep = tmp_path / "deep.png"
    Image.fromarray(files.noise(0, 20, 24).astype(np.uint16)).save(deep)
    with pytest.raises(DataError) as caught:
        read([text, good, cut, empty, deep], Drawn(8))
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for line, file, words in zip(lines, (text, cut, empty, deep), (
            "it is no picture", "cannot be read", "it is no picture", "more than 8 bits a pixel")):
        assert str(file) in line
        assert words in line


def test_many_mistakes_are_counted(tmp_path: Path) -> None:
    broken = [tmp_path / f"{n}.png" for n in range(25)]
    with pytest.raises(DataError, match="and 15 more") as caught:
        read(broken, Drawn(8))
    assert len(str(caught.value).splitlines()) == 11


def test_a_picture_and_a_mask_of_different_sizes_are_both_named(tmp_path: Path) -> None:
    picture = files.picture(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a.jpg is 20 x 24 pixels, but its mask .*m.png is 3 x 4"):
        read_pairs([(picture, tmp_path / "m.png")], Drawn(8),
                   lambda file: torch.zeros(3, 4, dtype=torch.uint8))


def test_too_much_for_the_memory_is_said_before_anything_is_read() -> None:
    """10,000 pictures of 3 x 224 x 224 numbers of 4 bytes; masks have 8 bytes a pixel more."""
    nowhere = [Path("nowhere.png")] * 10_000
    with pytest.raises(DataError, match=r"10000 pictures of 224 x 224 would take 6.02 GB of "
                                        r"memory, more than data.options.memory_gb, 4. Make "
                                        r"data.size smaller, take fewer with data.options.limit"):
        read(nowhere, Drawn(224))
    with pytest.raises(DataError, match="would take 10 GB"):
        read_pairs([(p, p) for p in nowhere], Drawn(224, memory_gb=10), lambda file: torch.zeros(1))


@pytest.mark.parametrize(("values", "words"), [
    ({"fit": "crp"}, "unknown fit 'crp'. Nearest: crop"), ({"channels": 4}, "3 is colour"),
    ({"size": 0}, "data.size is 0")])
def test_ways_of_drawing_that_do_not_exist_are_refused(values: dict[str, object], words: str,
                                                       ) -> None:
    with pytest.raises(DataError, match=words):
        Drawn(**{"size": 8, **values})  # type: ignore[arg-type]


def test_files_that_are_no_pictures_are_named_and_litter_is_not(tmp_path: Path) -> None:
    inner = files.picture(tmp_path / "inner" / "a.PNG")
    first = files.picture(tmp_path / "b.jpg")
    for litter in (".DS_Store", "Thumbs.db"):
        (tmp_path / litter).touch()
    assert picture_files(tmp_path) == [first, inner]
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"notes.txt is no picture \(known: .jpg"):
        picture_files(tmp_path)
