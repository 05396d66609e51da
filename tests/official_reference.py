"""GR-1's family, in own words and with its parameter names: what imports are compared with.

Plain on purpose: no masks but the original's, no shared code with arvrm. GPT-2 is transformers', as in GR-Chunk.
"""

import torch
import torch.nn.functional as F
from torch import nn


class VitBlock(nn.Module):
    def __init__(self, width, heads, eps):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x):
        n, count, width = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).view(n, count, 3, self.heads, width // self.heads)
        q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
        weights = (q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5).softmax(-1)
        # DINOv2 scales what a block adds; MAE does not.
        first, second = (getattr(self, name).gamma if hasattr(self, name) else 1.0 for name in ("ls1", "ls2"))
        x = x + first * self.attn["proj"]((weights @ v).transpose(1, 2).reshape(n, count, width))
        return x + second * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Vit(nn.Module):
    def __init__(self, width=64, layers=2, size=32, patch=16, heads=1):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, stride=patch)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (size // patch) ** 2, width))
        self.blocks = nn.ModuleList(VitBlock(width, heads, 1e-6) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x):
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x[:, 0], x[:, 1:]


class MediaAttention(nn.Module):
    def __init__(self, width, heads, head_width):
        super().__init__()
        self.heads, inner = heads, heads * head_width
        self.norm_media, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, media, latents):
        media, latents = self.norm_media(media), self.norm_latents(latents)
        q = self.to_q(latents)
        k, v = self.to_kv(torch.cat([media, latents], dim=1)).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class Resampler(nn.Module):
    def __init__(self, width, layers, heads, head_width, latents):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.media_pos_emb = nn.Parameter(torch.randn(1, 1, width))

        def feed_forward():
            up, down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
            return nn.Sequential(nn.LayerNorm(width), up, nn.GELU(), down)

        self.layers = nn.ModuleList(
            nn.ModuleList([MediaAttention(width, heads, head_width), feed_forward()]) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, media):
        media = media + self.media_pos_emb[0]
        x = self.latents.expand(len(media), -1, -1)
        for attention, feed_forward in self.layers:
            x = attention(media, x) + x
            x = feed_forward(x) + x
        return self.norm(x)


class FilmedBlock(nn.Module):
    def __init__(self, block, width, words):
        super().__init__()
        self.block, self.scale, self.shift = block, nn.Linear(words, width), nn.Linear(words, width)


class FilmedDino(nn.Module):
    """DINOv2 as AR-VRM's ABCD code modulates it: words scale and shift each block's stream after its attention."""

    def __init__(self, width, words):
        super().__init__()
        import transformers

        sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 1, "image_size": 42}
        config = transformers.Dinov2Config(**sizes, patch_size=14, layer_norm_eps=1e-6, attn_implementation="eager")
        self.vision_backbone = transformers.Dinov2Model(config)
        layers = self.vision_backbone.encoder.layer
        for i in range(len(layers)):
            layers[i] = FilmedBlock(layers[i], width, words)

    def forward(self, images, words):
        vit = self.vision_backbone
        x = vit.embeddings(images)
        for layer in vit.encoder.layer:
            block = layer.block
            x = x + block.layer_scale1(block.attention(block.norm1(x))[0])
            x = x * (1 + layer.scale(words)[:, None]) + layer.shift(words)[:, None]
            x = x + block.layer_scale2(block.mlp(block.norm2(x)))
        return vit.layernorm(x)


class PlainDino(nn.Module):
    """DINOv2 as its own code has it, of 2 blocks; made for 5 x 5 patches. Gives the CLS token."""

    def __init__(self, width):
        super().__init__()
        self.cls_token, self.mask_token = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 26, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 14, 14)})
        self.blocks = nn.ModuleList()
        for _ in range(2):
            block = VitBlock(width, 1, 1e-6)
            for name in ("ls1", "ls2"):
                setattr(block, name, nn.Module())
                getattr(block, name).gamma = nn.Parameter(torch.ones(width))
            self.blocks.append(block)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images):
        x = self.patch_embed["proj"](images)
        side = x.shape[-1]
        grid = self.pos_embed[:, 1:].reshape(1, 5, 5, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, scale_factor=((side + 0.1) / 5, (side + 0.1) / 5), mode="bicubic")
        assert grid.shape[-1] == side
        x = x.flatten(2).transpose(1, 2) + grid.flatten(2).transpose(1, 2)
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


def hub_names(state):
    """Names of DINOv2's tensors as files have them, which this version of transformers renames."""
    parts = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
    parts["o_proj"] = "output.dense"
    renamed = {}
    for name, value in state.items():
        if ".vision_backbone." in name:
            for new, old in parts.items():
                name = name.replace(f".attention.{new}.", f".attention.{old}.")
        renamed[name] = value
    return renamed


class OfficialGR1(nn.Module):
    """`chunk` None: GR-1, one action query and no positions in the transformer; a number: GR-Chunk.

    `dino`: AR-VRM's second variant, with a modulated DINOv2 beside MAE; `cls_only`: its first, which reads DINOv2's CLS
    token alone.
    """

    def __init__(
        self,
        chunk=4,
        width=64,
        layers=2,
        heads=4,
        frames=5,
        latents=3,
        text=24,
        patch=16,
        size=32,
        features=64,
        vit_layers=2,
        vit_heads=1,
        resampler=(2, 2, 8),
        decoder_heads=16,
        noise=0.1,
        dino=False,
        cls_only=False,
    ):
        super().__init__()
        from transformers import GPT2Config, GPT2Model

        self.chunk, self.frames, self.latents, self.patch = chunk, frames, latents, patch
        self.model_mae = Vit(features, vit_layers, size, patch, vit_heads)
        config = GPT2Config(
            vocab_size=1,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            n_inner=4 * width,
            activation_function="relu",
            n_positions=1024,
            attn_implementation="eager",
        )
        self.transformer = GPT2Model(config)
        self.perceiver_resampler = Resampler(features, *resampler, latents)
        self.embed_arm_state, self.embed_gripper_state = nn.Linear(6, width), nn.Linear(2, width)
        self.embed_state = nn.Linear(2 * width, width)
        self.embed_timestep = nn.Embedding(frames, width)
        self.embed_lang = nn.Linear(text, width)
        self.embed_img, self.embed_hand_img = nn.Linear(features, width), nn.Linear(features, width)
        self.embed_patch, self.embed_hand_patch = nn.Linear(features, width), nn.Linear(features, width)
        if dino:
            self.dino = FilmedDino(features, width)
            self.perceiver_resampler_dino = Resampler(features, *resampler, latents)
            for name in ("img", "hand_img", "patch", "hand_patch"):
                setattr(self, f"embed_dino_{name}", nn.Linear(features, width))
        if cls_only:
            self.dinov2_vitb14 = PlainDino(features)
            self.embed_dino_img, self.embed_dino_hand_img = nn.Linear(features, width), nn.Linear(features, width)
        self.embed_ln = nn.LayerNorm(width)
        self.action_queries = nn.Embedding(1, width)
        if chunk is not None:
            self.action_chunk_queries = nn.Embedding(chunk, width)
        self.obs_queries, self.obs_hand_queries = nn.Embedding(latents + 1, width), nn.Embedding(latents + 1, width)
        self.pred_act_mlps = nn.ModuleList([nn.Linear(width, width // 2), nn.Linear(width // 2, width // 2)])
        self.pred_arm_act, self.pred_gripper_act = nn.Linear(width // 2, 6), nn.Linear(width // 2, 1)
        self.decoder_embed = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, 1, width))
        self.decoder_blocks = nn.ModuleList(VitBlock(width, decoder_heads, 1e-5) for _ in range(2))
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, 3 * patch**2)
        self.decoder_pos_embed = nn.Parameter(torch.randn(1, (size // patch) ** 2, width))
        for parameter in self.parameters():  # no zero bias, no unit norm: every tensor must count
            parameter.data += noise * torch.randn_like(parameter)
        if chunk is None:
            self.transformer.wpe.weight.data.zero_()

    def configuration(self):
        """What the original's own JSON configuration says of these sizes."""
        width, attention = self.embed_ln.weight.shape[0], self.perceiver_resampler.layers[0][0]
        values = {
            "embed_dim": width,
            "n_layer": len(self.transformer.h),
            "n_head": self.transformer.config.n_head,
            "seq_len": self.frames,
            "lang_feat_dim": self.embed_lang.in_features,
            "rgb_shape": self.patch * round(self.decoder_pos_embed.shape[1] ** 0.5),
            "patch_size": self.patch,
            "resampler_depth": len(self.perceiver_resampler.layers),
            "resampler_heads": attention.heads,
            "resampler_dim_head": attention.to_q.out_features // attention.heads,
            "resampler_num_latents": self.latents,
        }
        return values if self.chunk is None else {**values, "chunk_size": self.chunk}

    def saved(self):
        """The state dict as the original would save it, without the frozen encoders."""
        state = hub_names({name: value for name, value in self.state_dict().items() if not name.startswith("model_")})
        if self.chunk is None:
            del state["transformer.wpe.weight"]
        return state

    def forward(self, rgb, hand, arm, gripper, sentence, mask):
        """rgb, hand (B, T, 3, H, W) normalised; arm (B, T, 6); gripper (B, T, 2); sentence (B, E); mask (B, T)."""
        batch, frames = rgb.shape[:2]
        state = self.embed_state(torch.cat([self.embed_arm_state(arm), self.embed_gripper_state(gripper)], dim=-1))
        words = self.embed_lang(sentence / (sentence.norm(dim=1, keepdim=True) + 1e-6))
        time = self.embed_timestep.weight

        def camera(images, cls_layer, patch_layer):
            cls, patches = self.model_mae(images.flatten(0, 1))
            patches = patch_layer(self.perceiver_resampler(patches)).unflatten(0, (batch, frames))
            return patches + time[:, None], cls_layer(cls).unflatten(0, (batch, frames))[:, :, None] + time[:, None]

        patches, cls = camera(rgb, self.embed_img, self.embed_patch)
        hand_patches, hand_cls = camera(hand, self.embed_hand_img, self.embed_hand_patch)
        plain, words = words, (words[:, None] + time)[:, :, None]
        seen = [words, (state + time)[:, :, None], patches, cls, hand_patches, hand_cls]
        if hasattr(self, "dino"):

            def second(images, cls_layer, patch_layer, timed):
                x = self.dino(images.flatten(0, 1), plain.repeat_interleave(frames, 0))
                cls = cls_layer(x[:, 0]).unflatten(0, (batch, frames)) + time
                patches = patch_layer(self.perceiver_resampler_dino(x)).unflatten(0, (batch, frames))
                return [cls[:, :, None], patches + time[:, None] if timed else patches]

            # The static camera's carry no time in the published code.
            seen[4:4] = second(rgb, self.embed_dino_img, self.embed_dino_patch, False)
            seen += second(hand, self.embed_dino_hand_img, self.embed_dino_hand_patch, True)
        if hasattr(self, "dinov2_vitb14"):
            looked = [(rgb, self.embed_dino_img), (hand, self.embed_dino_hand_img)]
            static, gripper = (
                (layer(self.dinov2_vitb14(x.flatten(0, 1))).unflatten(0, (batch, frames)) + time)[:, :, None]
                for x, layer in looked
            )
            seen[4:4] = [static]
            seen.append(gripper)
        actions = self.action_queries.weight
        if self.chunk is not None:
            actions = self.action_chunk_queries.weight + actions
        asked = [actions, self.obs_queries.weight, self.obs_hand_queries.weight]
        x = torch.cat(seen + [q.expand(batch, frames, -1, -1) for q in asked], dim=2)
        context, total = sum(t.shape[2] for t in seen), x.shape[2]
        keys = torch.zeros(batch, frames, total, dtype=torch.long)
        keys[:, :, :context] = mask[:, :, None]
        x = self.transformer(inputs_embeds=self.embed_ln(x.flatten(1, 2)), attention_mask=keys.flatten(1))
        x = x["last_hidden_state"].view(batch, frames, total, -1)
        hidden = x[:, :, context : context + len(actions)]
        for layer in self.pred_act_mlps:
            hidden = layer(hidden)

        def image(first):
            queries = self.decoder_embed(x[:, :, first : first + self.latents + 1])
            tokens = (self.mask_token + self.decoder_pos_embed).expand(batch, frames, -1, -1)
            y = torch.cat([queries, tokens], dim=2).flatten(0, 1)
            for block in self.decoder_blocks:
                y = block(y)
            y = self.decoder_pred(self.decoder_norm(y))[:, self.latents + 1 :]
            return y.unflatten(0, (batch, frames))

        first = context + len(actions)
        return {
            "arm": self.pred_arm_act(hidden),
            "gripper": self.pred_gripper_act(hidden)[..., 0],
            "static": image(first),
            "gripper_image": image(first + self.latents + 1),
        }


def seen(images, view=32):
    """Return (..., H, W, 3) uint8 as the original reads it: scaled, resized (bicubic, antialias), then normalised."""
    x = torch.from_numpy(images).flatten(0, -4).permute(0, 3, 1, 2).float() / 255
    x = F.interpolate(x, (view, view), mode="bicubic", antialias=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (x - mean[:, None, None]) / (std[:, None, None] + 1e-6)
    return x.unflatten(0, images.shape[:-3])


class OfficialRollout:
    """The original's evaluation of one instruction: it looks back to what it saw when it planned, padding behind.

    Args:
        sentence: the instruction as (E,), from CLIP.
        executed: actions of a plan before the next, the original's test_chunk_size.
    """

    def __init__(self, model, sentence, executed=1, view=32):
        self.model, self.sentence, self.executed, self.view = model, sentence, executed, view
        self.frames, self.plan = [], []

    def act(self, static, gripper, robot_obs):
        """Return the (7,) action of a step that sees (H, W, 3) images and a robot_obs (15,)."""
        if not self.plan:
            self.plan = list(self.step(static, gripper, robot_obs))
        return self.plan.pop(0)

    @torch.no_grad()
    def step(self, static, gripper, robot_obs):
        """Return the plan (executed, 7)."""
        self.frames = [*self.frames, (static, gripper, robot_obs)][-self.model.frames :]
        count, missing = len(self.frames), self.model.frames - len(self.frames)
        images = []
        for camera in (0, 1):
            shown = [frame[camera] for frame in self.frames]
            shown += [0 * shown[0]] * missing
            images.append(torch.stack([seen(one[None], self.view)[0] for one in shown])[None])
        states = torch.zeros(self.model.frames, 7)
        states[:, 6] = -1
        for i, frame in enumerate(self.frames):
            states[i] = torch.from_numpy(frame[2][[0, 1, 2, 3, 4, 5, 14]]).float()
        gripped = F.one_hot(((states[:, 6] + 1) / 2).long(), 2).float()
        mask = (torch.arange(self.model.frames) < count).long()
        said = self.model(*images, states[None, :, :6], gripped[None], self.sentence[None], mask[None])
        arm, logits = said["arm"][0, count - 1], said["gripper"][0, count - 1]
        opened = (torch.sigmoid(logits) > 0.5).float() * 2 - 1
        return torch.cat([arm, opened[:, None]], dim=-1)[: self.executed].numpy()


def inputs(model, batch=2, seed=0, text=24, sizes=(200, 84), view=32, padded=0):
    """The same robot window for the original and for ours; the last row has `padded` frames of padding."""
    import numpy as np

    from arvrm.robots.calvin import CALVIN

    rng = np.random.default_rng(seed)
    frames = model.frames
    images = [rng.integers(0, 256, (batch, frames, size, size, 3), dtype=np.uint8) for size in sizes]
    opened = rng.choice([-1, 1], (batch, frames, 1))
    robot_obs = np.concatenate([rng.uniform(-0.5, 0.5, (batch, frames, 14)), opened], -1)
    robot_obs[..., 3] = rng.choice([-3.1, 3.1], (batch, frames))  # roll jumps about pi, as CALVIN's does
    sentence = torch.from_numpy(rng.normal(size=(batch, text))).float()
    mask = torch.ones(batch, frames, dtype=torch.bool)
    mask[-1, :padded] = False
    ours = {
        "text": sentence[:, None],
        "text_mask": torch.ones(batch, 1, dtype=torch.bool),
        "static": torch.from_numpy(images[0]),
        "gripper": torch.from_numpy(images[1]),
        "frame_mask": mask,
        "state": torch.from_numpy(CALVIN.encode_state({"robot_obs": robot_obs})),
        "components": torch.from_numpy(CALVIN.encode_components({"robot_obs": robot_obs})),
    }

    opened = torch.from_numpy((robot_obs[..., 14] > 0).astype(np.int64))
    theirs = {
        "rgb": seen(images[0], view),
        "hand": seen(images[1], view),
        "arm": torch.from_numpy(robot_obs[..., :6]).float(),
        "gripper": F.one_hot(opened, 2).float(),
        "mask": mask.long(),
    }
    # The original pads behind.
    for name, value in theirs.items():
        value[-1] = torch.roll(value[-1], -padded, dims=0)
        theirs[name] = value
    return ours, {**theirs, "sentence": sentence}
