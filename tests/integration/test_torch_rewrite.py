"""Operators in forms that few runtimes have, rewritten in an exported program without changing results."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optkit.formats.torch.files import quiet
from optkit.formats.torch.rewrite import rewrite


class Tiles(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        cut = F.unfold(image, (2, 3), stride=(2, 3))
        return F.fold(cut * torch.arange(24.0)[:, None], (8, 12), (2, 3), stride=(2, 3))


class Overlapping(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return F.fold(F.unfold(image, 3, padding=1), (8, 12), 3, padding=1)


class Windows(nn.Module):
    def __init__(self, axis: int, size: int, step: int) -> None:
        super().__init__()
        self.window = (axis, size, step)

    def forward(self, image: Tensor) -> Tensor:
        return image.unfold(*self.window) * 2


class OneWindow(nn.Module):
    def __init__(self, kernel: int = 320, **options: Any) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(kernel, ceil_mode=True, **options)

    def forward(self, image: Tensor) -> Tensor:
        return self.pool(image)


def rewritten(module: nn.Module) -> tuple[float, Counter[str]]:
    """The largest difference the rewriting makes at a batch that was not traced, and the operators afterwards."""
    batch = torch.export.Dim("batch", min=1, max=9)
    program = torch.export.export(module.eval(), (torch.randn(3, 4, 8, 12),), dynamic_shapes=[{0: batch}])
    rewrite(program)
    image = torch.randn(5, 4, 8, 12)
    got, wanted = program.module()(image), module(image)
    assert got.shape == wanted.shape
    with quiet():
        decomposed = program.run_decompositions()
    assert torch.equal(decomposed.module()(image), got)
    return float((got - wanted).abs().max()), Counter(str(n.target) for n in program.graph.nodes)


def test_patches_that_do_not_overlap() -> None:
    difference, operators = rewritten(Tiles())
    assert difference == 0
    assert operators["aten.permute.default"] == 2
    assert not {"aten.im2col.default", "aten.col2im.default"} & set(operators)


@pytest.mark.parametrize("window", [(-1, 4, 2), (3, 5, 3), (2, 8, 1), (1, 1, 1)])
def test_windows_along_an_axis(window: tuple[int, int, int]) -> None:
    difference, operators = rewritten(Windows(*window))
    assert difference == 0
    assert operators["aten.slice.Tensor"] == window[1]
    assert "aten.unfold.default" not in operators


def test_windows_along_an_open_axis_are_left_alone() -> None:
    difference, operators = rewritten(Windows(0, 1, 1))
    assert difference == 0
    assert operators["aten.unfold.default"] == 1


def test_patches_that_overlap_are_left_alone() -> None:
    difference, operators = rewritten(Overlapping())
    assert difference == 0
    assert operators["aten.im2col.default"] == operators["aten.col2im.default"] == 1


def test_a_window_larger_than_the_image() -> None:
    difference, operators = rewritten(OneWindow())
    assert difference < 1e-6
    assert operators["aten.mean.dim"] == 1


@pytest.mark.parametrize("module", [OneWindow(4), OneWindow(14, padding=2), OneWindow(16, divisor_override=3)])
def test_other_windows_are_left_alone(module: nn.Module) -> None:
    difference, operators = rewritten(module)
    assert difference == 0
    assert operators["aten.avg_pool2d.default"] == 1


class Unmasked(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return (1.0 - (image > 0).long()) * -3.0 + (2.5 - image)


def test_integers_taken_from_a_float() -> None:
    difference, operators = rewritten(Unmasked())
    assert difference == 0
    assert operators["aten.rsub.Scalar"] == 2
    assert operators["aten.to.dtype"] == 2


def test_nodes_keep_their_place() -> None:
    program = torch.export.export(Tiles(), (torch.randn(1, 4, 8, 12),))
    rewrite(program)
    made = [n for n in program.graph.nodes if str(n.target) == "aten.permute.default"]
    assert all("stack_trace" in node.meta for node in made)
