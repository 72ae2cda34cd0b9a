"""Products of float32 matrices are the same numbers by either library, to rounding."""

from threading import Thread

import pytest
import torch
from torch.nn import functional

from workbench import products

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)
CPU = torch.device("cpu")


@pytest.fixture
def calls(monkeypatch):
    """Whichever processor this is; how many rows each product by oneDNN had."""
    found = []

    def counted(rows, columns, bias=None, real=products._product):
        found.append(rows.shape[:-1].numel())
        return real(rows, columns, bias)

    monkeypatch.setattr(products, "by_onednn", lambda: True)
    monkeypatch.setattr(products, "_product", counted)
    return found


def tensors(shape, out, bias, dtype=torch.float32):
    torch.manual_seed(0)
    found = [torch.randn(*shape), torch.randn(out, shape[-1])] + [torch.randn(out)] * bias
    return [each.to(dtype).requires_grad_() for each in found]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("shape", "out"), [((64, 32), 7), ((1, 192, 16), 48), ((2, 32, 5), 5)])
def test_layers_and_their_gradients_are_torchs(shape, out, bias, calls):
    given = tensors(shape, out, bias)
    weights = torch.randn(*shape[:-1], out)
    found = products.linear(*given)
    gradients = torch.autograd.grad((weights * found).sum(), given)
    exact = [each.detach().double().requires_grad_() for each in given]
    expected = functional.linear(*exact)
    wanted = torch.autograd.grad((weights * expected).sum(), exact)
    for one, other in zip((found, *gradients), (expected, *wanted), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
    rows = found.shape[:-1].numel()
    assert calls == [rows, rows, out]
    with torch.no_grad():
        assert torch.equal(products.linear(*given), found)


def test_nothing_is_rounded_to_fewer_digits(calls):
    """Of 23 binary digits: bfloat16 keeps 7, what is called TF32 keeps 10."""
    rows = torch.eye(64) * (1 + 2**-22)
    assert torch.equal(products.linear(rows, torch.eye(64)), rows)
    assert calls


def test_only_gradients_that_are_asked_for_are_computed(calls):
    rows, weight = tensors((64, 8), 4, bias=False)
    products.linear(rows.detach(), weight).sum().backward()
    assert calls == [64, 4] and rows.grad is None
    calls.clear()
    products.linear(rows, weight.detach()).sum().backward()
    assert calls == [64, 64]


@pytest.mark.parametrize("given", [
    tensors((63, 8), 4, bias=True),
    tensors((64, 8), 4, bias=True, dtype=torch.float64),
], ids=["a number of rows that does not come again", "double"])  # fmt: skip
def test_the_rest_is_torchs_own(given, calls):
    assert torch.equal(products.linear(*given), functional.linear(*given))
    assert not calls


def test_layers_are_faster_inside_in_this_thread_and_this_dtype(calls):
    layer, rows = torch.nn.Linear(8, 4), torch.randn(64, 8)
    with products.products(CPU, torch.bfloat16):
        layer(rows)
    with products.products(CPU, torch.float32):
        other = Thread(target=layer, args=(rows,))
        other.start()
        other.join()
        assert not calls
        layer(rows)
    layer(rows)
    assert calls == [64]


@pytest.mark.parametrize(("cpuinfo", "capability", "expected"), [
    ("vendor_id : AuthenticAMD", "AVX512", True),
    ("vendor_id : AuthenticAMD", "AVX2", False),
    ("vendor_id : GenuineIntel", "AVX512", False),
    (None, "AVX512", False),
])  # fmt: skip
def test_it_is_for_wide_processors_of_one_maker(cpuinfo, capability, expected, monkeypatch):
    def read(path, encoding):
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(products.Path, "read_text", read)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    products.by_onednn.cache_clear()
    try:
        assert products.by_onednn() is expected
    finally:
        products.by_onednn.cache_clear()
