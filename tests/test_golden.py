"""The model computes what the published implementation does: golden files of tests/golden and $EXPIRE_GOLDEN_DIR."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fairseq_expire.modules import AdaptiveSpan, ExpireSpan, FixedSpan, LayerMemory, Memory, MemoryTransformer

FOLDERS = [Path(__file__).parent / "golden"] + [Path(p) for p in [os.environ.get("EXPIRE_GOLDEN_DIR")] if p]
FILES = sorted(path for folder in FOLDERS for path in folder.glob("*.npz"))

# Name in the golden file -> name in our stack, per layer.
LAYER_NAMES = {
    "attn.attn.adaptive_span.mask.size_ratio": "policy.ratio",
    "attn.attn.expire_span.span_predictor.weight": "policy.predictor.weight",
    "attn.attn.expire_span.span_predictor.bias": "policy.predictor.bias",
    "attn.proj_query.weight": "query_proj.weight",
    "attn.proj_key.weight": "key_proj.weight",
    "attn.proj_val.weight": "value_proj.weight",
    "attn.proj_out.weight": "out_proj.weight",
    "ff.fc1.weight": "fc1.weight",
    "ff.fc1.bias": "fc1.bias",
    "ff.fc2.weight": "fc2.weight",
    "ff.fc2.bias": "fc2.bias",
    "norm1.weight": "attention_norm.weight",
    "norm1.bias": "attention_norm.bias",
    "norm2.weight": "ffn_norm.weight",
    "norm2.bias": "ffn_norm.bias",
}


def policy_of(config, data):
    if config.compress:
        pytest.skip(
            "the published compressive memory shifts compressed memories by whole groups of queries; "
            "see reader.compressed"
        )
    if config.adapt_span:
        ratio = data["param/layers.0.attn.attn.adaptive_span.mask.size_ratio"]
        return lambda: AdaptiveSpan(
            num_heads=config.nheads,
            max_span=config.attn_lim,
            ramp=config.adapt_span_len,
            per_layer=ratio.size == 1 and config.nheads > 1,
        )
    if config.expire_span:
        return lambda: RecordingExpireSpan(
            embed_dim=config.hid_sz,
            max_span=config.attn_lim,
            ramp=config.expire_span_ramp,
            span_init=config.attn_lim / 2,
            input_scale=config.expire_span_pre_div,
        )
    return lambda: FixedSpan(max_span=config.attn_lim)


class Model:
    """Our stack between plain embedding and output matrices, with the file's weights."""

    def __init__(self, data, config):
        policy = policy_of(config, data)
        position = torch.from_numpy(data["param/layers.0.attn.attn.key_pe"])[0].t().flip(0)
        self.stack = MemoryTransformer(
            embed_dim=config.hid_sz,
            num_heads=config.nheads,
            ffn_dim=config.inner_hid_sz,
            num_layers=config.nlayers,
            position_range=position.size(0),
            policy=policy,
            pre_norm=config.pre_norm,
        ).double()
        state = {"position": position}
        self.outer = {}
        for key in data.files:
            if not key.startswith("param/") or key.endswith("key_pe"):
                continue
            name, tensor = key[len("param/") :], torch.from_numpy(data[key])
            if name.startswith("layers."):
                _, number, rest = name.split(".", 2)
                # Spans of heads come as [K, 1, 1].
                tensor = tensor.flatten() if rest.endswith("size_ratio") else tensor
                state[f"layers.{number}.{LAYER_NAMES[rest]}"] = tensor
            elif name.startswith("out_norm."):
                state["final_norm." + name.split(".")[1]] = tensor
            else:
                self.outer[name] = tensor.clone().requires_grad_()
        self.stack.load_state_dict(state)

    def __call__(self, tokens, memory, shortening):
        out = self.stack(F.embedding(tokens, self.outer["in_emb.weight"]), memory, shortening=shortening)
        logits = F.linear(out.hidden, self.outer["out.out_emb.weight"], self.outer["out.out_emb.bias"])
        return logits.log_softmax(dim=-1), out

    def gradients(self):
        """Returns the gradients by the golden file's names."""
        grads = {name: tensor.grad for name, tensor in self.outer.items()}
        grads["layers.0.attn.attn.key_pe"] = self.stack.position.grad.flip(0).t().unsqueeze(0)
        for number, layer in enumerate(self.stack.layers):
            for theirs, ours in LAYER_NAMES.items():
                if ours in dict(layer.named_parameters()):
                    grads[f"layers.{number}.{theirs}"] = layer.get_parameter(ours).grad
        if self.stack.final_norm is not None:
            for part in ("weight", "bias"):
                grads[f"out_norm.{part}"] = self.stack.final_norm.get_parameter(part).grad
        return grads


def first_memory(data, config):
    layers = []
    for number in range(config.nlayers):
        hidden = torch.from_numpy(data[f"memory0/{number}"])
        if config.expire_span:
            age = torch.from_numpy(data[f"memory0/{config.nlayers + number}"]).long()
        else:
            age = torch.arange(hidden.size(1), 0, -1).expand(hidden.shape[:2])
        layers.append(LayerMemory.from_tensors(age=age, inputs=hidden))
    return Memory(tuple(layers))


def load(path):
    data = np.load(path)
    return data, SimpleNamespace(**json.loads(str(data["config"])))


class RecordingExpireSpan(ExpireSpan):
    """Expire-Span that also sums r and e over the pairs on the ramp: the file's auxiliary loss sums r, ours e."""

    def penalty(self, visibility, *, padding):
        distance = visibility.distance(0, visibility.block)
        span = visibility.span.squeeze(1).unsqueeze(1)  # [B, 1, S]
        remaining = span - distance
        on_ramp = (remaining > -self.ramp) & (remaining < 0)
        self.sum_remaining = (remaining * on_ramp).sum(dim=(1, 2)) / self.ramp
        self.sum_span = (span * on_ramp).sum(dim=(1, 2)) / self.ramp
        return super().penalty(visibility, padding=padding)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_values(path):
    data, config = load(path)
    model, memory = Model(data, config), first_memory(data, config)
    stream, block = torch.from_numpy(data["stream"]).long(), config.mem_sz
    for b in range(config.blocks):
        tokens = stream[:, b * block : (b + 1) * block]
        with torch.no_grad():
            logprobs, out = model(tokens, memory, config.noise[b] if config.noise else None)
        memory = out.memory
        np.testing.assert_allclose(logprobs, data[f"block{b}/logprobs"], atol=1e-6, rtol=0)
        if not config.expire_span:
            continue
        aux_loss = 0
        for number, (layer, report) in enumerate(zip(model.stack.layers, out.reports)):
            np.testing.assert_allclose(report.span.squeeze(-1), data[f"block{b}/spans/{number}"], atol=1e-6)
            assert memory.layers[number].occupied.sum(1).tolist() == data[f"block{b}/alive_count/{number}"].tolist()
            torch.testing.assert_close(report.penalty, layer.policy.sum_span)
            aux_loss = aux_loss + layer.policy.sum_remaining
        np.testing.assert_allclose(aux_loss * config.expire_span_loss / block, data[f"block{b}/aux_loss"], atol=1e-6)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_gradients(path):
    data, config = load(path)
    model, memory = Model(data, config), first_memory(data, config)
    stream, block = torch.from_numpy(data["stream"]).long(), config.mem_sz
    for b in range(config.blocks):
        tokens = stream[:, b * block : (b + 1) * block]
        targets = stream[:, b * block + 1 : (b + 1) * block + 1]
        with torch.set_grad_enabled(b == config.blocks - 1):
            logprobs, out = model(tokens, memory, config.noise[b] if config.noise else None)
        memory = out.memory
    nll = F.nll_loss(logprobs.flatten(0, 1), targets.flatten())
    np.testing.assert_allclose(nll.item(), data["grad_block/nll"], atol=1e-6)
    total = nll
    if config.expire_span or config.adapt_span:
        penalty = sum(report.penalty for report in out.reports).mean()
        weight = config.expire_span_loss if config.expire_span else config.adapt_span_loss
        total = nll + weight * penalty / block
    total.backward()
    grads = model.gradients()
    assert {"grad/" + name for name in grads} == {key for key in data.files if key.startswith("grad/")}
    for name, grad in grads.items():
        expected = data["grad/" + name]
        np.testing.assert_allclose(
            grad.reshape(expected.shape), expected, atol=1e-6 * np.abs(expected).max(), rtol=0, err_msg=name
        )
