"""Block of GPT-2 against transformers."""

from __future__ import annotations

import torch

from recpipe.layers.gpt2 import GPT2Block


def test_a_block_is_that_of_gpt2():
    """With the weights of transformers' GPT2Block, biases and the exact GELU."""
    from transformers import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block as TransformersBlock

    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_head=4, activation_function="gelu", attn_implementation="eager")
    theirs = TransformersBlock(config, layer_idx=0).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    ours = GPT2Block(32, heads=4, inner=128, dropout=0.1, bias=True).eval()
    names = {
        "ln_1": ours.norm_attention,
        "attn.c_attn": ours.qkv,
        "attn.c_proj": ours.out,
        "ln_2": ours.norm_feed,
        "mlp.c_fc": ours.up,
        "mlp.c_proj": ours.down,
    }
    state = theirs.state_dict()
    with torch.no_grad():
        for name, module in names.items():
            weight = state[f"{name}.weight"]
            module.weight.copy_(weight.T if weight.dim() == 2 else weight)  # theirs stand input x output
            module.bias.copy_(state[f"{name}.bias"])
    x = torch.randn(3, 9, 32)
    causal = torch.full((9, 9), -torch.inf).triu(1)[None, None]
    expected = theirs(x, attention_mask=causal)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)
