"""Pictures of images before and after an action, and of their difference."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from cfptq.auditing.plots import STYLE, Plot
from cfptq.errors import ConfigurationError, DataError
from cfptq.io.printable import escape_unprintable

#: Images that are drawn side by side at most.
MOST_IMAGES = 10
INCHES_PER_IMAGE = 1.1
#: Characters of a caption that are drawn.
MOST_CHARACTERS = 24


def draw_changes(before: Tensor, after: Tensor, captions: Sequence[str] = (), *, bounds: tuple[float, float] = (0.0, 1.0)) -> Plot:
    """Draw images, what actions make of them, and the difference, in three rows.

    Args:
        before: the images as they are, (N, channels, height, width) with one or three channels. The first ``MOST_IMAGES`` are drawn.
        after: the same images after the actions, such as ``RecourseBatch.points``.
        captions: words below each image, such as a model's decisions. None by default.
        bounds: least and largest value of a pixel.

    Raises:
        DataError: the images are none, or the two differ in shape.
        ConfigurationError: Matplotlib is not installed.
    """
    if before.shape != after.shape or before.dim() != 4 or before.shape[1] not in (1, 3) or len(before) == 0:
        raise DataError(
            "before and after must be images of one shape (N, channels, height, width) with one or three channels and N > 0, got "
            f"{tuple(before.shape)} and {tuple(after.shape)}."
        )
    if captions and len(captions) != len(before):
        raise DataError(f"captions must hold one text for each of the {len(before)} images, got {len(captions)}.")
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError("Pictures need Matplotlib, which is not installed. Run pip install 'cfptq[report]'.") from error
    count = min(len(before), MOST_IMAGES)
    width = bounds[1] - bounds[0]
    first, second = (
        np.clip((images[:count].detach().permute(0, 2, 3, 1).double().numpy() - bounds[0]) / width, 0, 1) for images in (before, after)
    )
    change = (second - first).mean(-1)
    file = io.StringIO()
    with rc_context(STYLE):
        figure = Figure(figsize=(0.9 + INCHES_PER_IMAGE * count, 3.2 * INCHES_PER_IMAGE + 0.2), layout="constrained")
        panels = figure.subplots(3, count, squeeze=False)
        for row, (name, images) in enumerate((("before", first), ("after", second), ("difference", change))):
            for place in range(count):
                axes = panels[row, place]
                if name == "difference":
                    axes.imshow(images[place], cmap="RdBu", vmin=-1, vmax=1)
                else:
                    axes.imshow(images[place].squeeze(-1) if images.shape[-1] == 1 else images[place], cmap="gray", vmin=0, vmax=1)
                axes.set_xticks([])
                axes.set_yticks([])
                if place == 0:
                    axes.set_ylabel(name)
                if row == 2 and captions:
                    axes.set_xlabel(_shorten(captions[place]), fontsize=7)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    sizes = np.abs(second - first).reshape(count, -1)
    changed = ", ".join(f"{share:.0f} %" for share in 100 * (sizes > 0.1).mean(1))
    left_out = f" {len(before) - count} further images are not drawn." if len(before) > count else ""
    description = (
        f"{count} images before and after an action, and the difference, where blue is brighter and red is darker. The shares of values "
        f"that change by more than a tenth of their range are {changed}.{left_out}"
    )
    return Plot("changes", "Images before and after", description, file.getvalue())


def _shorten(caption: str) -> str:
    text = " ".join(escape_unprintable(caption).split())
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"
