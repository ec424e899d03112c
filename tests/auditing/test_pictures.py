"""Pictures of images before and after an action."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
import torch

from cfptq.auditing import draw_changes
from cfptq.errors import DataError

pytest.importorskip("matplotlib", reason="pictures need Matplotlib")


@pytest.mark.parametrize("channels", [1, 3])
def test_three_pictures_are_drawn_of_each_image_and_described(channels: int) -> None:
    before = torch.zeros(2, channels, 6, 6)
    after = before.clone()
    after[0, :, :3] = 1.0
    plot = draw_changes(before, after, ["refused $x^2$", "accepted <b>"])
    ElementTree.fromstring(plot.svg)
    assert plot.svg.count("<image ") == 6
    assert "before" in plot.svg and "difference" in plot.svg and "refused $x^2$" in plot.svg and "<b>" not in plot.svg
    assert plot.description.endswith("by more than a tenth of their range are 50 %, 0 %.")
    assert draw_changes(before, after, ["refused $x^2$", "accepted <b>"]) == plot


def test_images_beyond_ten_are_counted() -> None:
    images = torch.rand(13, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    plot = draw_changes(images, images)
    assert plot.svg.count("<image ") == 30 and plot.description.endswith("3 further images are not drawn.")


def test_what_is_no_image_is_refused() -> None:
    images = torch.zeros(2, 1, 4, 4)
    for before, after in ((images, images[:1]), (images[:0], images[:0]), (images[:, 0], images[:, 0]), (torch.zeros(2, 2, 4, 4),) * 2):
        with pytest.raises(DataError, match="before and after must be images"):
            draw_changes(before, after)
    with pytest.raises(DataError, match="one text for each of the 2 images, got 1"):
        draw_changes(images, images, ["one"])
