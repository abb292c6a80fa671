"""RTN codes, scales and zero points, bit for bit the peers': torchao's primitives and auto-round's formulas."""

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine

TOOL = Path(os.environ["PTQ_BUILD_DIR"]) / "tests" / "quantize_matrix"
EXAMPLE = Path(os.environ["PTQ_SOURCE_DIR"]) / "examples" / "wikilm-llama-6m" / "model.safetensors"
GROUPS = [32, 128, -1, 0]
DTYPES = [torch.bfloat16, torch.float32, torch.float16]


def stand_in(attribute):
    if attribute.startswith("__"):
        raise AttributeError(attribute)
    return type(attribute, (), {})


@pytest.fixture(scope="module")
def auto_round():
    """auto-round's integer formulas. Its package imports datasets, which these formulas don't use, so empty
    modules stand in for what is not installed."""
    for name in ("datasets", "cpuinfo", "requests"):
        if importlib.util.find_spec(name) is None:
            module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            module.__getattr__ = stand_in
            sys.modules[name] = module
    import auto_round.data_type.int as formulas
    return formulas


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """weight, bits, group_size, symmetric, rule -> (codes [N, K], scale [N/b0, K/b1], zero_point) by the C++
    quantizer, in signed storage. One process answers all requests."""
    folder = tmp_path_factory.mktemp("matrices")
    tool = subprocess.Popen([TOOL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def quantize(weight, bits, group_size, symmetric=True, rule="full-range"):
        (folder / "weight").write_bytes(weight.contiguous().view(torch.uint8).numpy().tobytes())
        print("rtn", bits, group_size, "symmetric" if symmetric else "asymmetric", rule,
              str(weight.dtype).removeprefix("torch."), *weight.shape, folder / "weight", folder / "out",
              file=tool.stdin, flush=True)
        assert tool.stdout.readline() == "done\n"
        rows, columns = weight.shape
        shape = (1, 1) if group_size == 0 else (rows, columns // group_size if group_size > 0 else 1)

        def read(name, dtype):
            return torch.frombuffer(bytearray((folder / f"out.{name}").read_bytes()), dtype=dtype)

        return (read("codes", torch.int8).view(rows, columns),
                read("scale", weight.dtype if rule == "torchao" else torch.float16).view(shape),
                read("zero_point", torch.int32).view(shape))

    yield quantize
    tool.stdin.close()
    assert tool.wait() == 0


def weights(dtype):
    """Normal weights with outliers, ties, groups of one sign, zero groups and tiny groups."""
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(48, 512, generator=generator) * 0.03
    weight *= 1 + 20 * (torch.rand(weight.shape, generator=generator) > 0.998)
    weight[1] = weight[1].abs()
    weight[2] = -weight[2].abs()
    weight[3] = 0
    weight[4] = torch.randint(-8, 9, (512,), generator=generator) / 16
    weight[5] = torch.randint(-16, 17, (512,), generator=generator) / 32
    weight[6] *= 1e-4
    weight[7, :64] *= 1e-7
    weight[8] = 0.7
    return weight.to(dtype)


def block_size(weight, group_size):
    rows, columns = weight.shape
    return {0: (rows, columns), -1: (1, columns)}.get(group_size, (1, group_size))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_torchao_rule_is_torchaos(ours, bits, symmetric, group_size, dtype):
    weight = weights(dtype)
    block, low, high = block_size(weight, group_size), -2 ** (bits - 1), 2 ** (bits - 1) - 1
    mapping = MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC
    scale, zero_point = choose_qparams_affine(weight, mapping, block, torch.int8, low, high,
                                              zero_point_dtype=torch.int8, keepdim=True)
    codes = quantize_affine(weight, block, scale, zero_point, torch.int8, low, high)
    our_codes, our_scale, our_zero_point = ours(weight, bits, group_size, symmetric, "torchao")
    assert torch.equal(our_scale, scale)
    assert torch.equal(our_zero_point, zero_point.int())
    assert torch.equal(our_codes, codes)


def check_symmetric(auto_round, ours, weight, bits, group_size):
    half_range = 2 ** (bits - 1)
    dequantized, scale, _ = auto_round.quant_tensor_rtn_sym(weight.clone(), bits, group_size)
    codes, our_scale, zero_point = ours(weight, bits, group_size)
    assert torch.equal(our_scale, scale.view(our_scale.shape))
    assert our_scale.dtype == scale.dtype == torch.float16
    assert not zero_point.any()
    # The peer returns values, not codes: the codes are its own expression again.
    grouped = auto_round.reshape_pad_tensor_by_group_size(weight, group_size)[0]
    expected = grouped.div(scale).round().clamp(-half_range, half_range - 1)
    assert torch.equal(codes, expected.view(codes.shape).to(torch.int8))
    wide = (expected * scale).to(weight.dtype).view(weight.shape)
    assert torch.equal(dequantized, wide)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_full_range_rule_is_auto_rounds(auto_round, ours, bits, group_size, dtype):
    check_symmetric(auto_round, ours, weights(dtype), bits, group_size)


@pytest.mark.parametrize("bits", [2, 4])
def test_full_range_rule_on_the_example_model(auto_round, ours, bits):
    with safe_open(EXAMPLE, "pt") as file:
        names = [name for name in file.keys() if "layers.0." in name and "proj" in name]
        assert len(names) == 7
        for name in names:
            check_symmetric(auto_round, ours, file.get_tensor(name), bits, 128)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_asymmetric_rule_is_auto_rounds_tuning_start(auto_round, ours, bits, group_size, dtype):
    """alpha = beta = 1 as float32 tensors, as in tuning: the range is then computed in float32."""
    weight = weights(dtype)
    grouped = auto_round.reshape_pad_tensor_by_group_size(weight, group_size)[0]
    ones = torch.ones(len(grouped))
    dequantized, scale, zero_point = auto_round.quant_tensor_asym(weight.clone(), bits, group_size, min_scale=ones,
                                                                  max_scale=ones)
    codes, our_scale, our_zero_point = ours(weight, bits, group_size, symmetric=False)
    assert torch.equal(our_scale, scale.view(our_scale.shape))
    shift = 2 ** (bits - 1)
    assert torch.equal(our_zero_point + shift, zero_point.view(our_scale.shape).int())
    expected = ((grouped / scale).round() + zero_point).clamp(0, 2 * shift - 1)
    assert torch.equal(codes + 0, (expected.view(codes.shape) - shift).to(torch.int8))
    assert torch.equal(dequantized, (scale * (expected - zero_point)).to(dtype).view(weight.shape))
