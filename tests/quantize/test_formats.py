"""Formats against ONNX's own QuantizeLinear, and the ranges that every toolchain holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cfptq.errors import ModelError
from cfptq.quantize import PORTABLE_WIDTHS, WIDTHS, ActivationFormat, container_bits, fake_quantize, integer_limit
from cfptq.quantize.formats import layer_widths


@pytest.mark.parametrize(("bits", "limit"), [(2, 1), (3, 3), (4, 7), (5, 15), (6, 31), (7, 63), (8, 127)])
def test_the_range_of_a_width_is_narrow_and_symmetric(bits: int, limit: int) -> None:
    assert integer_limit(bits) == limit


def test_portable_widths_leave_room_for_sixteen_bit_sums() -> None:
    # two products of an unsigned and a signed byte are summed in 16 bits on processors without VNNI
    assert all(2 * 255 * integer_limit(bits) <= 2**15 - 1 for bits in PORTABLE_WIDTHS)
    assert 2 * 255 * (integer_limit(max(PORTABLE_WIDTHS)) + 2) > 2**15 - 1


def test_only_layers_that_integer_kernels_run_are_kept_from_eight_bits() -> None:
    assert layer_widths(feeds_integers=True, portable=True) == PORTABLE_WIDTHS
    assert layer_widths(feeds_integers=False, portable=True) == layer_widths(feeds_integers=True, portable=False) == WIDTHS


@pytest.mark.parametrize("bits", [-1, 1, 9, 16])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ModelError, match="2, 3, 4, 5, 6, 7, 8"):
        integer_limit(bits)


def test_three_bit_integers_live_in_a_four_bit_container() -> None:
    assert [container_bits(bits) for bits in (2, 3, 4, 7, 8)] == [2, 4, 4, 8, 8]


@given(
    low=st.floats(-1e3, 1e3, width=32),
    width=st.floats(0.0078125, 1e3, width=32),
    bits=st.sampled_from([8, 16]),
)
def test_zero_is_exact_and_the_span_is_covered_to_one_step(low: float, width: float, bits: int) -> None:
    form = ActivationFormat.from_range("t", low, low + width, bits)
    ends = torch.tensor([0.0, low, low + width])
    rounded = fake_quantize(ends, form)
    assert rounded[0] == 0
    assert torch.allclose(rounded[1:], ends[1:], atol=form.scale * 1.01)


@given(
    values=st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=50),
    scale=st.floats(0.0078125, 3, width=32),
    zero=st.integers(0, 255),
)
def test_rounding_is_that_of_onnx(values: list[float], scale: float, zero: int) -> None:
    form = ActivationFormat("t", 8, scale, zero)
    x = torch.tensor(values, dtype=torch.float32)
    integers = np.clip(np.rint(x.numpy() / np.float32(scale)) + zero, 0, 255)
    expected = ((integers - zero) * np.float32(scale)).astype(np.float32)
    assert torch.equal(fake_quantize(x, form), torch.from_numpy(expected))


def test_the_gradient_passes_inside_the_range_and_stops_where_it_clips() -> None:
    form = ActivationFormat("t", 8, 0.1, 0)
    x = torch.tensor([-1.0, 0.5, 20.0, 30.0], requires_grad=True)
    fake_quantize(x, form).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_a_float_format_changes_nothing() -> None:
    x = torch.randn(5)
    assert fake_quantize(x, ActivationFormat("t", 32)) is x


def test_a_constant_zero_tensor_has_a_harmless_format() -> None:
    form = ActivationFormat.from_range("t", 0.0, 0.0)
    assert fake_quantize(torch.zeros(3), form).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("bits", "scale", "zero"), [(7, 1.0, 0), (8, 0.0, 0), (8, float("nan"), 0), (8, 1.0, 256), (8, -1.0, 0), (8, 10**400, 0), (8, 1.0, 2.5)]
)
def test_impossible_formats_are_refused_by_name(bits: int, scale: float, zero: float) -> None:
    with pytest.raises(ModelError, match="'t'"):
        ActivationFormat("t", bits, scale, zero)


@given(low=st.floats(-1e3, 0, width=32), high=st.floats(0.125, 1e3, width=32), seed=st.integers(0, 9))
def test_two_steps_see_values_256_times_finer_than_one_and_one_hot_columns_exactly(low: float, high: float, seed: int) -> None:
    form, single = ActivationFormat.two_steps_from_range("t", low, high), ActivationFormat.from_range("t", low, high)
    x = low + (high - low) * torch.rand(200, generator=torch.Generator().manual_seed(seed))
    x = torch.cat([x, torch.tensor([low, high])])
    assert float((fake_quantize(x, form) - x).abs().max()) <= single.scale / 254 * 0.51 + 1e-6 * (high - low)
    if high >= 1:
        assert torch.allclose(fake_quantize(torch.tensor([0.0, 1.0]), form), torch.tensor([0.0, 1.0]), rtol=0, atol=2e-7 * (high - low))
    assert (form.bits, form.is_float, form.is_affine, form.feeds_integers) == (16, False, False, True)


def test_two_steps_clip_and_let_gradients_through_inside_the_range_only() -> None:
    form = ActivationFormat.two_steps_from_range("t", -1.0, 1.0)
    x = torch.tensor([-9.0, -0.5, 0.3, 9.0], requires_grad=True)
    rounded = fake_quantize(x, form)
    assert torch.allclose(rounded.detach(), torch.tensor([-1.0, -0.5, 0.3, 1.0]), atol=0.01)
    rounded.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 0]


def test_a_second_step_is_finer_than_the_first() -> None:
    with pytest.raises(ModelError, match="second step"):
        ActivationFormat("t", 16, 0.5, 0, fine_scale=0.5)
    with pytest.raises(ModelError, match="second step"):
        ActivationFormat("t", 8, 0.5, 0, fine_scale=0.1)
