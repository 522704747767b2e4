# SPDX-License-Identifier: Apache-2.0
"""Small random models of transformers, with inputs and the layers that the tests patch."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from pytorch_block_sparse import BlockSparseLinear
from pytorch_block_sparse.patching.layers import is_conv1d

HIDDEN, INNER, HEADS, LAYERS, VOCABULARY = 64, 128, 4, 2, 97
BATCH, LENGTH = 2, 12


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For files that import it: such small models are slower on many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclasses.dataclass(frozen=True)
class Family:
    """How to make a tiny model of one architecture, and what to patch in it."""

    model: str
    config: Callable[[], transformers.PreTrainedConfig]
    pattern: str
    mlps: int  # whose activation can be fused
    patched: int
    inputs: Callable[[], dict[str, Tensor]]

    def make(self, seed: int = 0) -> transformers.PreTrainedModel:
        torch.manual_seed(seed)
        return getattr(transformers, self.model)(self.config()).eval()  # type: ignore[no-any-return]


def _tokens(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, VOCABULARY, (BATCH, LENGTH), generator=generator, device="cpu")
    return tokens.to(torch.get_default_device())


def _text() -> dict[str, Tensor]:
    tokens = _tokens()
    return {"input_ids": tokens, "labels": tokens}


def _image() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(BATCH, 3, 16, 16, generator=generator, device="cpu")
    return {
        "pixel_values": pixels.to(torch.get_default_device()),
        "labels": torch.tensor([0, 1]),
    }


def _bert_like(kind: str) -> Callable[[], transformers.PreTrainedConfig]:
    return lambda: getattr(transformers, kind)(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=32,
    )


def _llama_like(kind: str) -> Callable[[], transformers.PreTrainedConfig]:
    return lambda: getattr(transformers, kind)(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        head_dim=HIDDEN // HEADS,
        max_position_embeddings=32,
    )


def _t5(feed_forward: str) -> Callable[[], transformers.PreTrainedConfig]:
    return lambda: transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=HIDDEN,
        d_ff=INNER,
        d_kv=HIDDEN // HEADS,
        num_layers=LAYERS,
        num_heads=HEADS,
        feed_forward_proj=feed_forward,
        decoder_start_token_id=0,
    )


ENCODER = r".*encoder\.layer\.\d+\.(attention\.self\.(query|key|value)$|(.*\.)?(dense)$)"
DECODER = r".*layers\.\d+\..*_proj$"
T5 = r"(en|de)coder\.block\.\d+\.layer\.\d+\.(.*\.[qkvo]|DenseReluDense\.w.*)$"

FAMILIES = {
    "bert": Family("BertForMaskedLM", _bert_like("BertConfig"), ENCODER, 2, 12, _text),
    "roberta": Family("RobertaForMaskedLM", _bert_like("RobertaConfig"), ENCODER, 2, 12, _text),
    "distilbert": Family(
        "DistilBertForMaskedLM",
        lambda: transformers.DistilBertConfig(
            vocab_size=VOCABULARY,
            dim=HIDDEN,
            hidden_dim=INNER,
            n_layers=LAYERS,
            n_heads=HEADS,
            max_position_embeddings=32,
        ),
        r".*layer\.\d+\.(ffn\.lin[12]|attention\..*_lin)$",
        2,
        12,
        _text,
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        lambda: transformers.GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=HIDDEN,
            n_layer=LAYERS,
            n_head=HEADS,
            n_positions=32,
            bos_token_id=0,
            eos_token_id=0,
        ),
        r".*\.(c_attn|c_proj|c_fc)$",
        2,
        8,
        _text,
    ),
    "llama": Family("LlamaForCausalLM", _llama_like("LlamaConfig"), DECODER, 2, 14, _text),
    "qwen2": Family("Qwen2ForCausalLM", _llama_like("Qwen2Config"), DECODER, 2, 14, _text),
    "qwen3": Family("Qwen3ForCausalLM", _llama_like("Qwen3Config"), DECODER, 2, 14, _text),
    "vit": Family(
        "ViTForImageClassification",
        lambda: transformers.ViTConfig(
            hidden_size=HIDDEN,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            image_size=16,
            patch_size=8,
            num_labels=3,
        ),
        r"vit\..*\.(fc[12]|[qkvo]_proj)$",
        2,
        12,
        _image,
    ),
    "t5": Family("T5ForConditionalGeneration", _t5("relu"), T5, 4, 32, _text),
    "t5-gated": Family("T5ForConditionalGeneration", _t5("gated-gelu"), T5, 4, 36, _text),
}


def sparse_layers(model: nn.Module) -> dict[str, BlockSparseLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, BlockSparseLinear)}


def masked_twin(dense: nn.Module, sparse: nn.Module) -> nn.Module:
    """A copy of the dense model whose weights are those of the sparse one, zeros included."""
    twin = copy.deepcopy(dense)
    with torch.no_grad():
        for name, layer in sparse_layers(sparse).items():
            module = twin.get_submodule(name)
            weight = layer.weight.to_dense()
            module.weight.copy_(weight.t() if is_conv1d(module) else weight)
    return twin


def run(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss, logits and the gradient of every parameter, laid out as the dense weight is."""
    model.zero_grad()
    dtype = next(model.parameters()).dtype
    outputs: Any = model(
        **{k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    )
    outputs.loss.backward()
    layers = sparse_layers(model)
    grads = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            owner = name.removesuffix(".weight.values")
            is_values = owner in layers and owner != name
            grad = layers[owner].weight.to_dense(parameter.grad) if is_values else parameter.grad
            grads[name.removesuffix(".values") if is_values else name] = grad.detach()
    return outputs.loss.detach(), outputs.logits.detach(), grads


def worst(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).abs().max())
