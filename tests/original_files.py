"""Small random weights under the names of OpenAI's CLIP and of DINOv2's own file."""

import torch
import torch.nn.functional as F

MERGES = ["g o</w>", "o p", "op e", "ope n</w>", "t h", "th e</w>"]
CLIP_WORDS = 2 * 256 + len(MERGES) + 2


def openai_vocabulary():
    return '"bpe_simple_vocab_16e6.txt#version: 0.2\n' + "\n".join(MERGES) + "\n"


def openai_clip(seed=0, width=64, layers=2, out=24, positions=20):
    """Return a state dict and the text tower it describes: a function of token ids, written out plainly."""
    g = torch.Generator().manual_seed(seed)

    def random(*shape):
        return 0.2 * torch.randn(*shape, generator=g)

    s = {
        "token_embedding.weight": random(CLIP_WORDS, width),
        "positional_embedding": random(positions, width),
        "text_projection": random(width, out),
        "logit_scale": torch.tensor(1.0),
        "visual.proj": random(8, 8),
        "ln_final.weight": 1 + random(width),
        "ln_final.bias": random(width),
    }
    for i in range(layers):
        at = f"transformer.resblocks.{i}."
        s |= {at + "attn.in_proj_weight": random(3 * width, width), at + "attn.in_proj_bias": random(3 * width)}
        for name, a, b in (("attn.out_proj", width, width), ("mlp.c_fc", 4 * width, width), ("mlp.c_proj", width, 0)):
            s |= {f"{at}{name}.weight": random(a, b or 4 * width), f"{at}{name}.bias": random(a)}
        for name in ("ln_1", "ln_2"):
            s |= {f"{at}{name}.weight": 1 + random(width), f"{at}{name}.bias": random(width)}

    def text(ids):
        x = s["token_embedding.weight"][ids] + s["positional_embedding"][: len(ids)]

        def norm(name, x):
            return F.layer_norm(x, (width,), s[name + ".weight"], s[name + ".bias"])

        for i in range(layers):
            at = f"transformer.resblocks.{i}."
            qkv = F.linear(norm(at + "ln_1", x), s[at + "attn.in_proj_weight"], s[at + "attn.in_proj_bias"])
            q, k, v = qkv.chunk(3, dim=-1)  # one head of 64
            future = torch.triu(torch.full((len(ids), len(ids)), -torch.inf), 1)
            seen = (q @ k.T / width**0.5 + future).softmax(-1) @ v
            x = x + F.linear(seen, s[at + "attn.out_proj.weight"], s[at + "attn.out_proj.bias"])
            h = F.linear(norm(at + "ln_2", x), s[at + "mlp.c_fc.weight"], s[at + "mlp.c_fc.bias"])
            x = x + F.linear(h * torch.sigmoid(1.702 * h), s[at + "mlp.c_proj.weight"], s[at + "mlp.c_proj.bias"])
        return norm("ln_final", x)[-1] @ s["text_projection"]

    return s, text


def original_dinov2(model):
    """Return the state dict of a Dinov2Model (64 wide) under the names of facebookresearch/dinov2."""
    tensors = {}
    parts = {}
    for name, value in model.state_dict().items():
        name = name.replace("attention.attention.", "attention.").replace(".query.", ".q_proj.")
        name = name.replace(".key.", ".k_proj.").replace(".value.", ".v_proj.").replace("output.dense", "o_proj")
        name = name.replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
        name = name.replace("embeddings.position_embeddings", "pos_embed").replace("embeddings.", "")
        name = name.replace("encoder.layer.", "blocks.").replace("layernorm", "norm")
        name = name.replace("layer_scale1.lambda1", "ls1.gamma").replace("layer_scale2.lambda1", "ls2.gamma")
        name = name.replace("attention.o_proj", "attn.proj")
        if "attention." in name:
            block, part = name.split(".attention.")
            parts.setdefault((block, part.split(".")[-1]), {})[part[0]] = value
        else:
            tensors[name] = value
    for (block, end), three in parts.items():
        tensors[f"{block}.attn.qkv.{end}"] = torch.cat([three["q"], three["k"], three["v"]])
    return tensors
