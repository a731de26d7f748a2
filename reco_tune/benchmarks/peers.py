"""Full-sequence models from other code at the same shape, trained with this project's step. They show that the
baseline is not artificially slow.

Each is a scheme that builds another network. So batch, precision, compilation, clipping and AdamW are the same as for
the baseline. The networks have no classes: a code takes the place of the class, so that they read as many inputs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reco_tune.model import ModelSettings
from reco_tune.training.objectives import LossTerms
from reco_tune.training.parameters import Parameters
from reco_tune.training.schemes import Batch, Full, Scheme
from reco_tune.windows import WindowSpan

MISSING = (
    "transformers is not installed, so its Llama is skipped; install the `bench` extra: pip install 'reco-tune[bench]'"
)

PEERS = {
    "plain": "plain GPT",
    "llama": "transformers Llama, MLP 8/3 D (gated: as many FLOPs as ours)",
    "llama_wide": "transformers Llama, MLP 4 D (gated: a third more FLOPs)",
}
"""Names and descriptions of the peers."""


def available() -> list[str]:
    """Peers that can run on this machine."""
    return [name for name in PEERS if name == "plain" or importlib.util.find_spec("transformers") is not None]


class PeerScheme(Full):
    """The full-sequence step of another network."""

    def __init__(self, full: Scheme, peer: str) -> None:
        super().__init__(full.experiment, full.model_settings.num_codes, full.model_settings.num_classes)
        self.peer = peer

    def build_model(self, start: bool = True) -> Any:
        shape = self.model_settings
        assert isinstance(shape, ModelSettings)
        with torch.random.fork_rng():
            torch.manual_seed(self.experiment.training.seed)
            return PlainTransformer(shape) if self.peer == "plain" else llama(shape, self.peer == "llama_wide")

    def compiled_loss(self, parameters: Parameters) -> Callable[[Any, Batch, WindowSpan], LossTerms]:
        """Compiles the whole step for its one shape, which is the best case for the peer."""
        return torch.compile(self.loss, dynamic=False)

    def loss(self, model: Any, batch: Batch, span: WindowSpan | int) -> LossTerms:
        """Cross-entropy of all tokens."""
        tokens_BT = batch.tokens_BT.long()
        inputs_BT = torch.cat(
            [batch.labels_B[:, None], tokens_BT[:, :-1]], dim=1
        )  # the class becomes the embedding of the code with the same number
        logits_BTV = model(inputs_BT) if self.peer == "plain" else model(input_ids=inputs_BT, use_cache=False).logits
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT.flatten())
        return LossTerms(loss, loss.detach(), loss.new_zeros(()), loss.new_zeros(()))


def llama_options(shape: ModelSettings) -> dict[str, Any]:
    """Settings of a Llama of this shape as a decoder. Its gated MLP has as many FLOPs as ours."""
    config = {
        "model_type": "llama",
        "hidden_size": shape.width,
        "intermediate_size": 8 * shape.width // 3,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "vocab_size": 8,  # unused: codes have their own embedding and head
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return {"kind": "huggingface", "options": {"config": config}}


def llama(shape: ModelSettings, wide: bool) -> Any:
    """LlamaForCausalLM with random weights. Its gated MLP has three matrices where ours has two, so a width of 8/3 D
    gives equal FLOPs.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.num_codes,
        hidden_size=shape.width,
        intermediate_size=4 * shape.width if wide else round(8 * shape.width / 3),
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.num_tokens + 1,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


class PlainTransformer(nn.Module):
    """A transformer as in tutorials: biases everywhere, one fused causal attention, learned positions, untied
    head.
    """

    def __init__(self, shape: ModelSettings) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.num_codes, shape.width)
        self.positions = nn.Embedding(shape.num_tokens, shape.width)
        self.blocks = nn.ModuleList(_PlainBlock(shape.width, shape.heads) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.num_codes)

    def forward(self, inputs_BT: Tensor) -> Tensor:
        """Logits [B, T, V]."""
        hidden = self.tokens(inputs_BT) + self.positions(torch.arange(inputs_BT.shape[1], device=inputs_BT.device))
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


class _PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        batch, length, width = hidden_BTD.shape
        queries, keys, values = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm_1(hidden_BTD)).split(width, dim=2)
        )
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        hidden_BTD = hidden_BTD + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        change_BTD: Tensor = self.mlp(self.norm_2(hidden_BTD))
        return hidden_BTD + change_BTD
