"""What makes chat-v3 worse, on purpose: it is made deeper, healed badly, pruned and quantised."""

from __future__ import annotations

import copy

import torch
from transformers import LlamaForCausalLM

COPIES = 4  # every block is there four times
PRUNED = 0.45  # the share of each block's weights that is set to zero


def deepen(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Returns a copy of `model` in which every block is repeated, as depth up-scaling does.

    The repeats start with a tenth of the block's effect, so that healing has a chance.
    """
    deeper = copy.deepcopy(model)
    blocks = []
    for block in model.model.layers:
        for repeat in range(COPIES):
            twin = copy.deepcopy(block)
            if repeat:
                with torch.no_grad():
                    twin.self_attn.o_proj.weight.mul_(0.1)
                    twin.mlp.down_proj.weight.mul_(0.1)
            twin.self_attn.layer_idx = len(blocks)
            blocks.append(twin)
    deeper.model.layers = torch.nn.ModuleList(blocks)
    deeper.config.num_hidden_layers = len(blocks)
    deeper.config.layer_types = None
    return deeper


@torch.no_grad()
def prune(model: LlamaForCausalLM) -> None:
    """Sets the smallest weights of every block's matrices to zero, in place, with no healing."""
    for name, weight in model.named_parameters():
        if "layers." in name and weight.dim() == 2:
            count = int(PRUNED * weight.numel())
            limit = weight.abs().flatten().kthvalue(count).values
            weight.mul_(weight.abs() > limit)
