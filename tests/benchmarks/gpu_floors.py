"""The least that one tuning iteration of a Llama block can take on this GPU: its matrix products and its attention.

Everything runs in the real loop's arithmetic (random data, deterministic kernels, outputs that exist already) and is timed
as one repeated sequence, because alone each product would run at a higher clock than the GPU keeps up in the loop.
"""
import functools
import os
import statistics

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as ptq-worker; torch insists on it for deterministic products

import torch

WARM_UP, REPEATS = 10, 30


def products(config):
    """{name: (N, K)} of the block's matrix products; q, k, v and gate, up are one product each."""
    d, f = config["hidden_size"], config["intermediate_size"]
    q, kv = (config[key] * config["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
    return {"qkv": (q + 2 * kv, d), "o": (d, q), "gate_up": (2 * f, d), "down": (d, f)}


def normal(*shape):
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def bf16_product(m, n, k, a_transposed=False, b_transposed=True):
    """[m, k] x [k, n] of operands that lie as the loop has them."""
    a = normal(k, m).t() if a_transposed else normal(m, k)
    b = normal(n, k).t() if b_transposed else normal(k, n)
    return functools.partial(torch.mm, a, b, out=torch.empty(m, n, device="cuda", dtype=torch.bfloat16))


def fp8_product(m, n, k, blocks):
    """[m, k] x [k, n] of e4m3 with a scale for 1 x 128 of A and for 1 x 128 or, `blocks`, 128 x 128 of B."""
    a, b = normal(m, k).to(torch.float8_e4m3fn), normal(n, k).to(torch.float8_e4m3fn)
    scale_a = torch.ones(k // 128, m, device="cuda").t()
    if blocks:  # its rows are padded to four scales
        scale_b = torch.ones(n // 128, (k // 128 + 3) // 4 * 4, device="cuda")[:, :k // 128].t()
    else:
        scale_b = torch.ones(k // 128, n, device="cuda")
    product = functools.partial(torch._scaled_mm, a, b.t(), scale_a, scale_b, out_dtype=torch.bfloat16, use_fast_accum=False,
                                out=torch.empty(m, n, device="cuda", dtype=torch.bfloat16))
    if blocks:
        try:
            product()
        except (RuntimeError, ValueError) as error:
            print(f"  no 128 x 128 scales for [{m}, {k}] x [{k}, {n}] ({str(error)[:150]}): 1 x 128", flush=True)
            return fp8_product(m, n, k, blocks=False)
    return product


def median_ms(groups, repeats=REPEATS):
    """Medians over the repeats of the sequence of all groups: of the whole, and of each group in it."""
    runs = []
    for _ in range(WARM_UP + repeats):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(groups) + 1)]
        marks[0].record()
        for mark, operations in zip(marks[1:], groups.values()):
            for operation in operations:
                operation()
            mark.record()
        runs.append(marks)
    torch.cuda.synchronize()
    runs = runs[WARM_UP:]
    whole = statistics.median(marks[0].elapsed_time(marks[-1]) for marks in runs)
    return whole, {name: statistics.median(marks[i].elapsed_time(marks[i + 1]) for marks in runs)
                   for i, name in enumerate(groups)}


def attention(config, batch, length):
    """{kernel: (forward, backward)} of causal attention, of the kernels that give the same bits every time."""
    heads, kv_heads, width = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    q, k, v = (part.transpose(1, 2) for part in normal(batch, length, heads + 2 * kv_heads, width).split(
        [heads, kv_heads, kv_heads], dim=2))
    gradient = normal(batch, length, heads, width).transpose(1, 2)
    aten, kernels = torch.ops.aten, {}

    def cudnn():
        forward = functools.partial(aten._scaled_dot_product_cudnn_attention, q, k, v, None, True, 0.0, True, False)
        out, logsumexp, cum_q, cum_k, max_q, max_k, seed, offset, _ = forward()
        return forward, functools.partial(aten._scaled_dot_product_cudnn_attention_backward, gradient, q, k, v, out, logsumexp,
                                          seed, offset, None, cum_q, cum_k, max_q, max_k, 0.0, True)

    def flash():
        forward = functools.partial(aten._scaled_dot_product_flash_attention, q, k, v, 0.0, True, False)
        out, logsumexp, cum_q, cum_k, max_q, max_k, seed, offset, _ = forward()
        return forward, functools.partial(aten._scaled_dot_product_flash_attention_backward, gradient, q, k, v, out, logsumexp,
                                          cum_q, cum_k, max_q, max_k, 0.0, True, seed, offset)

    for make in (cudnn, flash):
        try:
            forward, backward = make()
            first = backward()
            if all(torch.equal(a, b) for _ in range(5) for a, b in zip(first, backward())):
                kernels[make.__name__] = forward, backward
            else:
                print(f"  {make.__name__} attention: other bits every time", flush=True)
        except RuntimeError as error:
            print(f"  no {make.__name__} attention: {str(error)[:150]}", flush=True)
    return kernels


def measure(config, precision, batch=8, length=2048):
    """Floors in ms: `paper_ms` of an iteration as published, `ms` of the learned-scale recipe with its Fisher metric, and of
    the latter's sequence each part's ms and TFLOP/s. `precision` is that of the block's products: bf16 or fp8."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.manual_seed(0)
    tokens, width = batch * length, config["hidden_size"]
    kernels = attention(config, batch, length)
    alone = {name: median_ms({name: pair})[0] for name, pair in kernels.items()}
    fastest = min(alone, key=alone.get)
    forward, backward = kernels[fastest]

    groups = {"forward": [], "attention": [forward], "metric": [bf16_product(tokens, width, width)], "dX": [], "dW": [],
              "attention backward": [backward]}
    flop = dict.fromkeys(groups, 0)
    for name, (n, k) in products(config).items():
        if precision == "fp8":
            made = {"forward": fp8_product(tokens, n, k, blocks=False), "dX": fp8_product(tokens, k, n, blocks=True),
                    "dW": fp8_product(n, k, tokens, blocks=True)}
        else:
            made = {"forward": bf16_product(tokens, n, k), "dX": bf16_product(tokens, k, n, b_transposed=False),
                    "dW": bf16_product(n, k, tokens, a_transposed=True, b_transposed=False)}
        if name == "qkv":
            del made["dX"]  # the block's input needs no gradient
        for group, product in made.items():
            groups[group].append(product)
            flop[group] += 2 * tokens * n * k
    flop["metric"] = 2 * tokens * width * width
    flop["attention"] = 2 * tokens * length * config["num_attention_heads"] * config["head_dim"]  # causal: half of the square
    flop["attention backward"] = 2.5 * flop["attention"]

    whole, parts = median_ms(groups)
    paper, _ = median_ms({name: operations for name, operations in groups.items() if name != "metric"})
    return {"ms": whole, "paper_ms": paper, "attention": fastest, "attention_alone_ms": alone,
            "parts": {name: {"ms": ms, "tflops": flop[name] / ms / 1e9} for name, ms in parts.items()}}


def copy_rate():
    """Bytes read and written a second by a copy on the device."""
    source = torch.empty(2**30, device="cuda", dtype=torch.bfloat16).normal_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / (median_ms({"copy": [functools.partial(target.copy_, source)]})[0] / 1000)
