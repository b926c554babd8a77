"""The picture of a step: which filters it left."""

from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

from harness.analysis.ink import BLACK, BLUE, GREY, WHITE

SIDE = 480  # pixels; MLflow's picture grid shows squares
LEGEND = 34  # pixels, for the line above the bars


def layer_widths(before: Mapping[str, int], after: Mapping[str, int]) -> Image.Image:
    """Bars: output channels of every convolution, whole (grey) and kept (blue).

    Drawn without a plotting library: a study makes one for every step, and 200 ms each would cost
    more than the training of a small network.
    """
    row = max(14, (SIDE - LEGEND) // max(1, len(before)))
    picture = Image.new("RGB", (SIDE, LEGEND + row * len(before)), WHITE)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(10, min(16, row - 4)))
    labels = {name: f"{after.get(name, 0)} of {width}" for name, width in before.items()}
    left = 12 + max(int(pen.textlength(name, font)) for name in before)
    scale = (SIDE - left - 12 - max(int(pen.textlength(t, font)) for t in labels.values()))
    widest = max(before.values())
    pen.text((6, LEGEND // 2), "filters kept (blue) of all (grey)", BLACK, font, anchor="lm")
    for place, (name, width) in enumerate(before.items()):
        top = LEGEND + place * row
        middle = top + row // 2
        whole, kept = (left + scale * n // widest for n in (width, after.get(name, 0)))
        pen.rectangle((left, top + 2, whole, top + row - 3), GREY)
        if kept > left:
            pen.rectangle((left, top + 2, kept, top + row - 3), BLUE)
        pen.text((6, middle), name, BLACK, font, anchor="lm")
        pen.text((whole + 6, middle), labels[name], BLACK, font, anchor="lm")
    return picture
