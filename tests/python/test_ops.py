# SPDX-License-Identifier: Apache-2.0
"""Every operator against a dense float64 product, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import (
    ACTIVATIONS,
    DTYPES,
    GEOMETRIES,
    STEEPEST,
    Weight,
    assert_product,
    gather_blocks,
    packed,
    randn,
    random_weight,
)
from torch import Tensor

ops = torch.ops.block_sparse

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[-1])
every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
LEADING = ((), (0,), (1,), (5,), (2, 3, 7))


@every_dtype
@every_geometry
def test_linear(device, dtype, geometry):
    weight = random_weight(*geometry, dtype=dtype, device=device)
    out, in_ = weight.shape
    bias = randn(out, dtype=dtype, device=device, seed=3)
    dense = weight.dense()
    for leading in LEADING:
        x = randn(*leading, in_, dtype=dtype, device=device)
        for activation, function in ACTIVATIONS.items():
            for b in (None, bias):
                y = ops.linear(x, weight.values, weight.index, b, out, activation)
                assert y.is_contiguous()
                assert y.dtype == dtype
                shift = 0 if b is None else b.double()
                z = x.double() @ dense.T + shift
                magnitude = x.double().abs() @ dense.abs().T + abs(shift)
                assert_product(y, function(z), magnitude, in_ + 1, STEEPEST)
                y2, z2 = ops.linear_preactivation(
                    x, weight.values, weight.index, b, out, activation
                )
                assert torch.equal(y2, y)
                assert_product(z2, z, magnitude, in_ + 1)


@every_dtype
@every_geometry
def test_linear_input_grad(device, dtype, geometry):
    weight = random_weight(*geometry, dtype=dtype, device=device)
    out, in_ = weight.shape
    dense = weight.dense()
    for leading in LEADING:
        grad = randn(*leading, out, dtype=dtype, device=device)
        dx = ops.linear_input_grad(grad, weight.values, weight.index, in_)
        assert dx.is_contiguous()
        assert dx.dtype == dtype
        assert_product(dx, grad.double() @ dense, grad.double().abs() @ dense.abs(), out)


@every_dtype
@every_geometry
def test_linear_weight_grad(device, dtype, geometry):
    weight = random_weight(*geometry, dtype=dtype, device=device)
    out, in_ = weight.shape
    for leading in LEADING:
        x = randn(*leading, in_, dtype=dtype, device=device)
        grad = randn(*leading, out, dtype=dtype, device=device, seed=2)
        flat = grad.double().reshape(-1, out), x.double().reshape(-1, in_)
        tokens = flat[0].shape[0]
        expected = gather_blocks(flat[0].T @ flat[1], weight)
        magnitude = gather_blocks(flat[0].abs().T @ flat[1].abs(), weight)
        out_dtypes = {None, dtype} if dtype == torch.float64 else {None, dtype, torch.float32}
        for out_dtype in out_dtypes:
            dvalues = ops.linear_weight_grad(grad, x, weight.index, *weight.values.shape, out_dtype)
            assert dvalues.dtype == (out_dtype or dtype)
            assert_product(dvalues, expected, magnitude, tokens)
            assert not dvalues[~weight.mask()].any(), "spare slots and padding are zero"
        for out_dtype in out_dtypes - {None}:
            start = randn(*weight.values.shape, dtype=out_dtype, device=device, seed=5)
            sums = start.clone()
            ops.linear_weight_grad_accumulate_(sums, grad, x, weight.index)
            total = start.double() + expected
            assert_product(sums, total, magnitude + start.double().abs(), tokens + 1)
            assert torch.equal(sums[~weight.mask()], start[~weight.mask()])


@every_dtype
@every_geometry
def test_linear_backward(device, dtype, geometry):
    """All three gradients are those of the operators for one of them, bit for bit."""
    weight = random_weight(*geometry, dtype=dtype, device=device)
    values, index, (out, in_) = weight.values, weight.index, weight.shape
    for leading in (*LEADING, (70, 3)):  # torch sums the rows when there are many elements
        x = randn(*leading, in_, dtype=dtype, device=device)
        grad = randn(*leading, out, dtype=dtype, device=device, seed=2)
        rows = grad.double().reshape(-1, out)
        for out_dtype in (None, dtype if dtype == torch.float64 else torch.float32):
            dx, dvalues, dbias = ops.linear_backward(grad, x, values, index, out_dtype=out_dtype)
            assert torch.equal(dx, ops.linear_input_grad(grad, values, index, in_))
            expected = ops.linear_weight_grad(grad, x, index, *values.shape, out_dtype)
            assert torch.equal(dvalues, expected)
            assert dbias.dtype == (out_dtype or dtype)
            assert_product(dbias, rows.sum(0), rows.abs().sum(0), len(rows))
        dx, dvalues, dbias = ops.linear_backward(grad, x, values, index, False, False)
        assert dx is None
        assert torch.equal(dvalues, ops.linear_weight_grad(grad, x, index, *values.shape))
        assert dbias is None


@every_dtype
@every_geometry
def test_block_norms(device, dtype, geometry):
    (out, in_), (bh, bw), _ = geometry
    for leading in LEADING:
        x = randn(*leading, in_, dtype=dtype, device=device)
        grad = randn(*leading, out, dtype=dtype, device=device, seed=2)
        norms = ops.block_norms(grad, x, bh, bw)
        assert norms.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)

        def norms_of(dense: Tensor) -> Tensor:
            padded = torch.nn.functional.pad(dense, (0, -in_ % bw, 0, -out % bh))
            blocks = padded.reshape(-(-out // bh), bh, -(-in_ // bw), bw)
            return blocks.pow(2).sum((1, 3)).sqrt()

        flat = grad.double().reshape(-1, out), x.double().reshape(-1, in_)
        expected = norms_of(flat[0].T @ flat[1])
        # The norm moves by at most the norm of the errors; squaring and summing adds its own.
        magnitude = norms_of(flat[0].abs().T @ flat[1].abs())
        assert_product(norms, expected, magnitude, flat[0].shape[0] + bh * bw + 2)


def strided_views(tokens: int, features: int, dtype: torch.dtype, device: str):
    """(name, (tokens, features) view of integers, whether one row stride describes it)."""

    def draw(*shape: int) -> Tensor:
        return randn(*shape, dtype=dtype, device=device).round_()

    yield "column of 3-d", draw(tokens, 4, features)[:, 1], True
    yield "part of rows", draw(tokens, features + 9)[:, 3:-6], True
    yield "every other row", draw(2 * tokens, features)[::2], True
    yield "expanded", draw(1, features).expand(tokens, -1), False
    yield "transposed", draw(features, tokens).T, False
    yield "every other column", draw(tokens, 2 * features)[:, ::2], False
    yield "scalar expanded", draw(1, 1).expand(tokens, features), False


@every_dtype
def test_strided_inputs(device, dtype):
    """Of integers, whose sums are exact: another alignment may be another kernel's, which adds in
    another order."""
    weight = random_weight((48, 80), (16, 16), 0.5, dtype=dtype, device=device)
    values, index, (out, in_) = weight.values, weight.index, weight.shape
    values.mul_(2 * in_**0.5).round_()
    slots = values.shape
    grad = randn(6, out, dtype=dtype, device=device, seed=9).round_()
    for name, x, _ in strided_views(6, in_, dtype, device):
        same = x.contiguous()
        for got, expected in (
            (ops.linear(x, values, index, None, out), ops.linear(same, values, index, None, out)),
            (
                ops.linear_weight_grad(grad, x, index, *slots),
                ops.linear_weight_grad(grad, same, index, *slots),
            ),
            (ops.block_norms(grad, x, 16, 16), ops.block_norms(grad, same, 16, 16)),
        ):
            assert torch.equal(got, expected), name
    x = randn(6, in_, dtype=dtype, device=device).round_()
    for name, strided, _ in strided_views(6, out, dtype, device):
        same = strided.contiguous()
        for got, expected in (
            (
                ops.linear_input_grad(strided, values, index, in_),
                ops.linear_input_grad(same, values, index, in_),
            ),
            (
                ops.linear_weight_grad(strided, x, index, *slots),
                ops.linear_weight_grad(same, x, index, *slots),
            ),
        ):
            assert torch.equal(got, expected), name


def test_leading_dimensions_that_do_not_collapse(device):
    weight = random_weight((32, 32), (16, 16), 0.5, device=device)
    x = randn(4, 3, 5, 32, dtype=torch.float32, device=device).transpose(0, 1)[:, ::2]
    y = ops.linear(x, weight.values, weight.index, None, 32)
    assert torch.equal(y, ops.linear(x.contiguous(), weight.values, weight.index, None, 32))


def test_single_row_stride_is_read_in_place(device):
    weight = random_weight((48, 80), (16, 16), 0.5, device=device)
    for name, x, in_place in strided_views(6, 80, torch.float32, device):
        with torch.profiler.profile() as profile:
            ops.linear(x, weight.values, weight.index, None, 48)
        copied = any(
            event.key in ("aten::clone", "aten::copy_") for event in profile.key_averages()
        )
        assert copied != in_place, name


def test_padding_and_spare_slots_are_never_read(device):
    weight = random_weight((50, 70), (16, 32), 0.6, device=device)
    x = randn(5, 70, dtype=torch.float32, device=device)
    grad = randn(5, 50, dtype=torch.float32, device=device)
    poisoned = weight.values.where(weight.mask(), torch.nan)
    for values in (weight.values, poisoned):
        y = ops.linear(x, values, weight.index, None, 50)
        dx = ops.linear_input_grad(grad, values, weight.index, 70)
        if values is weight.values:
            expected = y, dx
    assert torch.equal(y, expected[0])
    assert torch.equal(dx, expected[1])


def test_inf_and_nan_come_through(device):
    weight = random_weight((32, 32), (16, 16), 1.0, device=device)
    x = randn(3, 32, dtype=torch.float32, device=device)
    x[0, 0], x[1, 0] = torch.inf, torch.nan
    y = ops.linear(x, weight.values, weight.index, None, 32)
    expected = x @ weight.dense().float().T
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.isinf(), expected.isinf())


def test_threads_do_not_change_the_bits():
    weight = random_weight((128, 96), (16, 16), 0.5)
    x, grad = randn(37, 96, dtype=torch.float32), randn(37, 128, dtype=torch.float32)

    def products() -> list[Tensor]:
        return [
            ops.linear(x, weight.values, weight.index, None, 128, "gelu"),
            ops.linear_input_grad(grad, weight.values, weight.index, 96),
            ops.linear_weight_grad(grad, x, weight.index, *weight.values.shape),
            ops.block_norms(grad, x, 16, 16),
        ]

    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(products())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@every_geometry
def test_pattern_transpose(geometry):
    weight = random_weight(*geometry)
    crow, col, ids, ccol, row, t_ids, _ = weight.index
    n = int(crow[-1])
    rows = torch.repeat_interleave(torch.arange(len(crow) - 1), crow.diff())
    order = torch.argsort(col[:n].long(), stable=True)
    counts = torch.bincount(col[:n].long(), minlength=len(ccol) - 1)
    assert torch.equal(ccol.diff().long(), counts)
    assert torch.equal(row[:n].long(), rows[order])
    assert torch.equal(t_ids[:n], ids[:n][order])
    assert not row[n:].any()
    assert not t_ids[n:].any()
    ops.pattern_check(crow, col, ids, len(ids), len(ccol) - 1)


@every_geometry
def test_index_in_one_tensor(device, geometry):
    weight = random_weight(*geometry, dtype=torch.float32, device=device)
    values, index, (out, in_) = weight.values, weight.index, weight.shape
    one = packed(index)
    x = randn(5, in_, dtype=torch.float32, device=device)
    grad = randn(5, out, dtype=torch.float32, device=device, seed=2)
    slots = values.shape
    for call in (
        lambda index: ops.linear(x, values, index, None, out),
        lambda index: ops.linear_preactivation(x, values, index, None, out, "gelu"),
        lambda index: ops.linear_input_grad(grad, values, index, in_),
        lambda index: ops.linear_weight_grad(grad, x, index, *slots),
        lambda index: ops.linear_backward(grad, x, values, index),
    ):
        torch.testing.assert_close(call(one), call(index), rtol=0, atol=0)
    bias = randn(out, dtype=torch.float32, device=device, seed=3)
    with torch._C._AutoDispatchBelowAutograd():  # where sums over tokens are the operator's own
        for past_autograd, expected in (
            (ops._linear(x, values, *one, bias, out), ops.linear(x, values, one, bias, out)),
            (
                ops._linear(x, values, *one, None, out, "gelu", True),
                ops.linear(x, values, one, None, out, "gelu", True),
            ),
            (
                ops._linear_backward(grad, x, values, *one, True, True),
                ops.linear_backward(grad, x, values, one),
            ),
            (
                ops._linear_backward(grad, x, values, *one, False, False, True)[1],
                ops.linear_backward(grad, x, values, one, False, False, None, True)[1],
            ),
        ):
            torch.testing.assert_close(past_autograd, expected, rtol=0, atol=0)
    short = one[0][: one[0].numel() - index[-1].numel() - 1]
    with pytest.raises(RuntimeError, match=r"index has shape .* expected at least \d+ elements"):
        ops.linear(x, values, [short], None, out)
    with pytest.raises(RuntimeError, match="index has dtype int64; expected int32"):
        ops.linear(x, values, [one[0].long()], None, out)


# opcheck ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("requires_grad", [False, True], ids=["no grad", "grad"])
def test_opcheck(device, dtype, requires_grad):
    weight = random_weight((48, 64), (16, 16), 0.5, dtype=dtype, device=device)
    values = weight.values.requires_grad_(requires_grad)
    index = weight.index
    x = randn(2, 3, 64, dtype=dtype, device=device).requires_grad_(requires_grad)
    grad = randn(2, 3, 48, dtype=dtype, device=device).requires_grad_(requires_grad)
    bias = randn(48, dtype=dtype, device=device).requires_grad_(requires_grad)
    slots = tuple(values.shape)
    for op, args in (
        (ops.linear, (x, values, index, bias, 48)),
        (ops.linear, (x, values, index, None, 48, "gelu", True)),
        (ops.linear, (x, values, index, bias, 48, "relu")),
        (ops.linear_preactivation, (x, values, index, bias, 48, "silu")),
        (ops.linear_input_grad, (grad, values, index, 64)),
        (ops.linear_weight_grad, (grad, x, index, *slots)),
        (ops.linear_weight_grad, (grad, x, index, *slots, torch.float32)),
        (ops.linear_backward, (grad, x, values, index)),
        (ops.linear_backward, (grad, x, values, index, False, False, torch.float32)),
        (ops._linear, (x.detach(), values.detach(), *packed(index), None, 48)),
        (ops._linear_backward, (grad.detach(), x.detach(), values.detach(), *packed(index), 1, 0)),
        (ops.block_norms, (grad, x, 16, 16)),
        (ops.pattern_check, (*index[:3], slots[0], 4)),
        (ops.pattern_transpose, (*index[:3], 4)),
        (ops.pattern_plan, (index, 48, 64, 16, 16)),
    ):
        torch.library.opcheck(op.default, args)
    accumulator = torch.zeros(slots, dtype=torch.float32, device=device)
    torch.library.opcheck(
        ops.linear_weight_grad_accumulate_.default,
        (accumulator, grad.detach(), x.detach(), index),
    )


def test_meta_device():
    weight = random_weight((48, 64), (16, 16), 0.5, dtype=torch.bfloat16)
    values, index = weight.values.to("meta"), [t.to("meta") for t in weight.index]
    x, grad = torch.empty(2, 3, 64, device="meta"), torch.empty(2, 3, 48, device="meta")
    x, grad = x.bfloat16(), grad.bfloat16()
    assert ops.linear(x, values, index, None, 48).shape == (2, 3, 48)
    assert ops.linear_input_grad(grad, values, index, 64).shape == (2, 3, 64)
    dvalues = ops.linear_weight_grad(grad, x, index, *values.shape, torch.float32)
    assert (dvalues.shape, dvalues.dtype) == (values.shape, torch.float32)
    dx, dvalues, dbias = ops.linear_backward(grad, x, values, index, out_dtype=torch.float32)
    assert (dx.shape, dx.dtype) == ((2, 3, 64), torch.bfloat16)
    assert (dvalues.shape, dvalues.dtype) == (values.shape, torch.float32)
    assert (dbias.shape, dbias.dtype) == ((48,), torch.float32)
    (one,) = packed(index)
    assert ops._linear(x, values, one, None, 48).shape == (2, 3, 48)
    dx, dvalues, dbias = ops._linear_backward(grad, x, values, one, False, True)
    assert (dx, dvalues.shape, dbias.shape) == (None, values.shape, (48,))
    assert ops.linear_backward(grad, x, values, index, False, False)[::2] == (None, None)
    assert ops.block_norms(grad, x, 32, 48).shape == (2, 2)
    assert [t.shape[0] for t in ops.pattern_transpose(*index[:3], 4)] == [5, *(len(values),) * 2]


# What is refused --------------------------------------------------------------------------------

Change = Callable[[Weight, Tensor], tuple[Tensor, Tensor, list[Tensor], Tensor | None, int, str]]


def replaced(index: list[Tensor], position: int, tensor: Tensor) -> list[Tensor]:
    return [*index[:position], tensor, *index[position + 1 :]]


BAD_LINEAR: dict[str, tuple[Change, str]] = {
    "integer x": (
        lambda w, x: (x.long(), w.values, w.index, None, 48, "none"),
        "x has dtype int64; expected float32, float64, bfloat16 or float16",
    ),
    "mixed dtypes": (
        lambda w, x: (x, w.values.double(), w.index, None, 48, "none"),
        "values has dtype float64, x has float32; expected the same",
    ),
    "0-d x": (
        lambda w, x: (x[0, 0], w.values, w.index, None, 48, "none"),
        "x has no dimension",
    ),
    "features of x": (
        lambda w, x: (x[:, :32], w.values, w.index, None, 48, "none"),
        r"ccol_indices has shape \(5,\); expected \(3,\)",
    ),
    "out_features": (
        lambda w, x: (x, w.values, w.index, None, 64, "none"),
        r"crow_indices has shape \(4,\); expected \(5,\)",
    ),
    "negative out_features": (
        lambda w, x: (x, w.values, w.index, None, -48, "none"),
        "out_features is -48; expected at least 0",
    ),
    "2-d values": (
        lambda w, x: (x, w.values[0], w.index, None, 48, "none"),
        r"values has shape \(16, 16\); expected \(slots, block_height, block_width\)",
    ),
    "empty blocks": (
        lambda w, x: (x, w.values[:, :0], w.index, None, 48, "none"),
        r"the block shape is \(0, 16\); expected sides of at least 1",
    ),
    "strided values": (
        lambda w, x: (x, w.values.transpose(1, 2), w.index, None, 48, "none"),
        "values is not contiguous",
    ),
    "number of slots": (
        lambda w, x: (x, w.values[1:], w.index, None, 48, "none"),
        r"col_indices has shape \(8,\); expected \(7,\)",
    ),
    "short index": (
        lambda w, x: (x, w.values, w.index[:3], None, 48, "none"),
        "index has 3 tensors; expected 7",
    ),
    "dtype of the index": (
        lambda w, x: (x, w.values, replaced(w.index, 1, w.index[1].long()), None, 48, "none"),
        "col_indices has dtype int64; expected int32",
    ),
    "strided index": (
        lambda w, x: (
            x, w.values, replaced(w.index, 2, w.index[2].repeat(2)[::2]), None, 48, "none"
        ),
        "block_ids is not contiguous",
    ),
    "shape of bias": (
        lambda w, x: (x, w.values, w.index, x.new_zeros(47), 48, "none"),
        r"bias has shape \(47,\); expected \(48,\)",
    ),
    "dtype of bias": (
        lambda w, x: (x, w.values, w.index, x.new_zeros(48).double(), 48, "none"),
        "bias has dtype float64, x has float32; expected the same",
    ),
    "activation": (
        lambda w, x: (x, w.values, w.index, None, 48, "tanh"),
        "activation is 'tanh'; expected 'none', 'relu', 'gelu', 'gelu_tanh' or 'silu'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LINEAR)
def test_linear_refuses(device, name):
    change, sentence = BAD_LINEAR[name]
    weight = random_weight((48, 64), (16, 16), 0.5, device=device)
    args = change(weight, randn(5, 64, dtype=torch.float32, device=device))
    for op in (ops.linear, ops.linear_preactivation):
        with pytest.raises(RuntimeError, match=sentence):
            op(*args)


def test_gradients_refuse(device):
    weight = random_weight((48, 64), (16, 16), 0.5, device=device)
    values, index, slots = weight.values, weight.index, weight.values.shape
    x = randn(5, 64, dtype=torch.float32, device=device)
    grad = randn(5, 48, dtype=torch.float32, device=device)
    for call, sentence in (
        (lambda: ops.linear_input_grad(grad.double(), values, index, 64), "values has dtype"),
        (lambda: ops.linear_input_grad(grad, values, index, 32), "ccol_indices has shape"),
        (lambda: ops.linear_input_grad(grad, values, index, -64), "in_features is -64"),
        (lambda: ops.linear_weight_grad(grad, x[:4], index, *slots), "expected as many rows"),
        (lambda: ops.linear_weight_grad(grad, x.double(), index, *slots), "x has dtype float64"),
        (lambda: ops.linear_weight_grad(grad, x, index, -1, 16, 16), "slots is -1"),
        (lambda: ops.linear_weight_grad(grad, x, index, 8, 0, 16), "block shape is"),
        (lambda: ops.linear_weight_grad(grad, x, index, *slots, torch.int32), "out_dtype has"),
        (lambda: ops.linear_weight_grad(grad, x, index, *slots, torch.float16), "float16"),
        (lambda: ops.linear_backward(grad, x[:4], values, index), "expected as many rows"),
        (lambda: ops.linear_backward(grad, x.double(), values, index), "x has dtype float64"),
        (lambda: ops.linear_backward(grad, x, values.double(), index), "values has dtype float64"),
        (lambda: ops.linear_backward(grad, x[:, :32], values, index), "ccol_indices has shape"),
        (lambda: ops.linear_backward(grad[0, 0], x, values, index), "grad has no dimension"),
        (lambda: ops.block_norms(grad, x, 0, 16), "block shape is"),
        (lambda: ops.block_norms(grad, x[:4], 16, 16), "expected as many rows"),
    ):
        with pytest.raises(RuntimeError, match=sentence):
            call()


def test_devices_without_a_backend_are_named():
    from pytorch_block_sparse import _library

    weight = random_weight((16, 16), (16, 16), 1.0)
    args = (torch.zeros(1, 16), weight.values, weight.index, None, 16)
    keys = {"XPU": "no XPU backend"}
    if _library.cuda_missing is not None:
        keys["CUDA"] = _library.cuda_missing
    for key, reason in keys.items():
        keyset = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
        with pytest.raises(
            NotImplementedError, match=f"block_sparse::linear .*{reason}.*to\\('cpu'\\)"
        ):
            ops.linear.default.redispatch(keyset, *args)
