"""Real binaries under test: a server on a free loopback port, the CLI as a subprocess, tiny checkpoints."""
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

SOURCE = pathlib.Path(os.environ.get("PTQ_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
BIN = pathlib.Path(os.environ.get("PTQ_BUILD_DIR", SOURCE / "build")) / "bin"
EXAMPLES = SOURCE / "examples"
CALIBRATION = EXAMPLES / "calibration.jsonl"
sys.path.insert(0, str(SOURCE / ".venv" / "ptq_stubs"))

# A job on the tiny model that takes some seconds a block, so that it can be interrupted in its middle.
SLOW_JOB = ["--algorithm", "auto-round", "--bits", "4", "--group-size", "32", "--iterations", "300", "--samples", "16",
            "--sequence-length", "128", "--batch-size", "8"]
QUICK_JOB = ["--algorithm", "rtn", "--bits", "4", "--group-size", "32"]


class Server:
    """One ptqd process; start, kill and restart keep the data folder and the port."""

    def __init__(self, data_dir, *flags):
        self.data_dir = pathlib.Path(data_dir)
        self.flags = [str(f) for f in flags]
        self.address = "127.0.0.1:0"
        self.process = None

    def start(self):
        self.data_dir.mkdir(parents=True, exist_ok=True)
        log = open(self.data_dir.parent / (self.data_dir.name + ".log"), "ab")
        self.process = subprocess.Popen([BIN / "ptqd", "--data-dir", self.data_dir, "--listen", self.address, *self.flags],
                                        stdout=subprocess.PIPE, stderr=log, text=True)
        line = self.process.stdout.readline()
        assert line.startswith("ptqd listening on 127.0.0.1:"), line
        self.address = line.split()[-1]
        return self

    def stop(self, how=signal.SIGTERM):
        if self.process is None:
            return None
        self.process.send_signal(how)
        code = self.process.wait(30)
        self.process = None
        return code

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    # The CLI against this server. `code` None accepts any exit status.
    def ptq(self, *arguments, code=0, timeout=300):
        command = [str(BIN / "ptq"), "--server", self.address, *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        assert code is None or result.returncode == code, (
            f"{' '.join(command)}\nexit {result.returncode}, expected {code}\n{result.stdout}\n{result.stderr}")
        return result

    def submit(self, model, *flags, calibration=CALIBRATION):
        data = ["--calibration", calibration] if calibration else []
        return self.ptq("submit", model, *data, *flags).stdout.strip()

    def status(self, job):
        return json.loads(self.ptq("status", job, "--json").stdout)

    def wait_for(self, job, condition, seconds=120):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = self.status(job)
            if condition(status):
                return status
            time.sleep(0.1)
        raise AssertionError(f"{job} after {seconds} s: {status}")

    def wait_for_blocks(self, job, blocks):
        return self.wait_for(job, lambda s: s.get("progress", {}).get("blocks_done", 0) >= blocks)

    def channel(self):
        import grpc
        return grpc.insecure_channel(self.address)


def tiny_config(**changes):
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 4096,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "bos_token_id": 0, "eos_token_id": 1,
        "torch_dtype": "bfloat16"}
    config.update(changes)
    return config


def tiny_tensors(config, seed=0):
    import torch
    generator = torch.Generator().manual_seed(seed)
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q, kv = config["num_attention_heads"] * config["head_dim"], config["num_key_value_heads"] * config["head_dim"]

    def normal(*shape):
        return (torch.randn(*shape, generator=generator) * 0.05).to(torch.bfloat16)

    tensors = {"model.embed_tokens.weight": normal(v, d), "model.norm.weight": torch.ones(d, dtype=torch.bfloat16)}
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        tensors |= {
            p + "self_attn.q_proj.weight": normal(q, d), p + "self_attn.k_proj.weight": normal(kv, d),
            p + "self_attn.v_proj.weight": normal(kv, d), p + "self_attn.o_proj.weight": normal(d, q),
            p + "mlp.gate_proj.weight": normal(f, d), p + "mlp.up_proj.weight": normal(f, d),
            p + "mlp.down_proj.weight": normal(d, f),
            p + "input_layernorm.weight": torch.ones(d, dtype=torch.bfloat16),
            p + "post_attention_layernorm.weight": torch.ones(d, dtype=torch.bfloat16)}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = normal(v, d)
    return tensors


def write_tiny_model(folder, tensors=None, **changes):
    """A random Llama with the example model's tokenizer. Returns its folder."""
    from safetensors.torch import save_file
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(**changes)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tiny_tensors(config) if tensors is None else tensors, folder / "model.safetensors", {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(EXAMPLES / "wikilm-llama-6m" / name, folder / name)
    return folder


def folder_digests(folder):
    """{path: sha256} of an output folder and those in it, its two reports left out."""
    folder = pathlib.Path(folder)
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*"))
            if p.is_file() and p.name not in ("report.json", "report.html")}
