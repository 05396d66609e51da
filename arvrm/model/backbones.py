"""Frozen backbones from their authors' own files, as the models of transformers that the project uses.

    mae_pretrain_vit_base.pth      MAE ViT (facebookresearch/mae)           -> ViTMAEModel
    dinov2_vitb14_pretrain.pth     DINOv2 ViT (facebookresearch/dinov2)     -> Dinov2Model
    ViT-B-32.pt, or its state dict CLIP's text tower (openai/CLIP)          -> CLIPTextModelWithProjection

Every tensor is used, or known to be of a part that is not (decoders, CLIP's image tower); anything else is refused.
"""

from __future__ import annotations

import gzip
import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arvrm.interface import UserError
from arvrm.unpickle import NotAllowed, load_archive

HEAD_WIDTH = 64
"""Numbers of an attention head in all of these models."""
VIT_BLOCKS = {192: 12, 384: 12, 768: 12, 1024: 24, 1280: 32, 1536: 40}
"""Blocks of the published ViTs by their width. Of another width, those that a file has are taken for all."""
CLIP_BLOCKS: dict[int, int] = dict.fromkeys((512, 640, 768, 1024), 12)
"""The same for the text towers of OpenAI's CLIP."""
_WRAPPER = re.compile(r"((module|_orig_mod)\.)+")
_COPIES = 8
"""How often the numbers of a file may occur among its tensors: some names share one storage."""


class Weights(dict[str, Tensor]):
    """Tensors by name.

    Attributes:
        prefix: what the file has before each name, where wrappers such as DDP and torch.compile put something.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], prefix: str = "") -> None:
        super().__init__(tensors)
        self.prefix = prefix

    def part(self, prefix: str) -> Weights:
        """Return the tensors whose names begin so, without it."""
        inside = {name.removeprefix(prefix): t for name, t in self.items() if name.startswith(prefix)}
        return Weights(inside, self.prefix + prefix)


def transformers_for(need: str) -> Any:
    """Return the library transformers.

    Raises:
        UserError: `need` needs it, and it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"{need} needs transformers; run pip install 'arvrm[backbones]'") from error
    return transformers


def pretrained(kind: Any, path: str | None, place: str) -> Any:
    """Return what the class `kind` of transformers loads from a local directory, a hub name or an original file.

    Raises:
        UserError: `path`, the setting at `place`, is not set, or nothing can be loaded from it.
    """
    if not path:
        raise UserError(f"{place} is not set; give a local directory with the weights, a hub name or the original file")
    if Path(path).is_file():
        return load_original(path, kind.__name__)
    try:
        return kind.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever a damaged directory leads it to
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{place}: cannot load {path!r} ({reason}); download it once and give its directory") from error


def read_tensors(file: str | Path) -> Weights:
    """Read the weights of a .pth, .pt (also TorchScript's) or .safetensors file; no code in it is run.

    Wrappers ("model", "state_dict", "module.", "_orig_mod.") are taken off.

    Raises:
        UserError: no such file, a damaged one, or one with other objects than tensors and plain values.
    """
    file = Path(file)
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a file of weights")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(file)
        else:
            found = load_archive(file)
    except NotAllowed as error:
        raise UserError(
            f"{file}: holds a {error.name[:100]} beside its tensors, which is not loaded since it could run code; "
            "save its state_dict alone and give that"
        ) from error
    except Exception as error:  # whatever a damaged file leads a reader to
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{file}: cannot be read as weights ({reason}); copy it again") from error
    for _ in range(3):
        for name in ("state_dict", "model", "model_state_dict", "teacher"):
            if isinstance(found, dict) and isinstance(found.get(name), dict):
                found = found[name]
    arrays = found.items() if isinstance(found, dict) else ()
    tensors = {
        name: value for name, value in arrays if isinstance(name, str) and isinstance(value, np.ndarray | Tensor)
    }
    if not tensors:
        raise UserError(f"{file}: holds no tensors; give a file of weights")
    if sum(value.nbytes for value in tensors.values()) > _COPIES * file.stat().st_size:
        raise UserError(f"{file}: its tensors share numbers more than {_COPIES} times; give a file of weights")
    wrapper = _WRAPPER.match(next(iter(tensors)))
    prefix = wrapper[0] if wrapper and all(name.startswith(wrapper[0]) for name in tensors) else ""
    return Weights({name.removeprefix(prefix): _tensor(value) for name, value in tensors.items()}, prefix)


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.from_numpy(np.array(value, order="C"))


def load_original(file: str | Path, kind: str) -> Any:
    """Return the model of transformers of class name `kind` with the weights of an original file, in float32.

    Raises:
        UserError: the file is unreadable, or its tensors are not those of such a model.
    """
    convert = {"ViTMAEModel": mae, "Dinov2Model": dinov2, "CLIPTextModelWithProjection": clip_text}.get(kind)
    if convert is None:
        raise UserError(f"{file}: there is no original file format for {kind}; give a directory")
    return convert(read_tensors(file), str(file))


def mae(tensors: dict[str, Tensor], place: str = "MAE") -> Any:
    """Return a `ViTMAEModel` (nothing masked is left to the caller) from MAE's own names, also with GR-1's prefix."""
    import transformers

    others = ("decoder_", "mask_token", "head.")
    tensors = Weights({n: t for n, t in tensors.items() if not n.startswith(others)}, _prefix(tensors))
    shape = _vit_shape(tensors, place)
    options: dict[str, Any] = {**shape, "layer_norm_eps": 1e-6, "mask_ratio": 0.0}
    config = transformers.ViTMAEConfig(**options)
    return _fill(transformers.ViTMAEModel, config, tensors, _vit_names(shape, "mae"), place)


def dinov2(tensors: dict[str, Tensor], place: str = "DINOv2") -> Any:
    """Return a `Dinov2Model` from DINOv2's own names."""
    import transformers

    if "register_tokens" in tensors:
        raise UserError(f"{place}: is DINOv2 with registers; give the file without (dinov2_vitb14_pretrain.pth)")
    shape = _vit_shape(tensors, place)
    shape["mlp_ratio"] = shape.pop("intermediate_size") // shape["hidden_size"]
    options: dict[str, Any] = {**shape, "layer_norm_eps": 1e-6}
    config = transformers.Dinov2Config(**options)
    return _fill(transformers.Dinov2Model, config, tensors, _vit_names(shape, "dinov2"), place)


def dinov2_positions(positions: Tensor, side: int) -> Tensor:
    """Return DINOv2's position embedding (1, 1 + N, D) as its own code interpolates it to `side` x `side` patches.

    It asks for a scale a tenth of a patch too large, where transformers asks for the size; the two differ by more than
    rounding (published weights are for 37 x 37 patches, and 224 px are 16 x 16).
    """
    own = round((positions.shape[1] - 1) ** 0.5)
    if own == side:
        return positions
    grid = positions[:, 1:].float().unflatten(1, (own, own)).permute(0, 3, 1, 2)
    scale = (side + 0.1) / own
    grid = torch.nn.functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([positions[:, :1].float(), grid.flatten(2).transpose(1, 2)], dim=1)


def dinov2_hub(tensors: dict[str, Tensor], place: str = "DINOv2", block: str = "") -> Any:
    """Return a `Dinov2Model` from the names of the hub's files, whose sizes are read from the tensors.

    Args:
        block: what stands between a block's number and its parts, where something was put around blocks.
    """
    import transformers

    try:
        width, channels, patch, _ = tensors["embeddings.patch_embeddings.projection.weight"].shape
        cells = tensors["embeddings.position_embeddings"].shape[1] - 1
        inner = tensors[f"encoder.layer.0.{block}mlp.fc1.weight"].shape[0]
    except KeyError as error:
        missing = f"'{_prefix(tensors)}{error.args[0]}'"
        raise UserError(f"{place}: has no tensor {missing}; the file is of another model, or not whole") from error
    except (ValueError, IndexError) as error:
        raise UserError(f"{place}: a tensor has an unknown shape ({error}); it holds no DINOv2 of the hub") from error
    layers = _blocks(tensors, "encoder.layer.", VIT_BLOCKS.get(width), place)
    config = transformers.Dinov2Config(
        hidden_size=width,
        num_channels=channels,
        patch_size=patch,
        image_size=patch * round(max(cells, 1) ** 0.5),
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // HEAD_WIDTH),
        mlp_ratio=inner // width,
        layer_norm_eps=1e-6,
    )
    hub = itertools.chain(*_vit_names({"num_hidden_layers": layers}, "dinov2").values())
    names = {re.sub(r"^(encoder\.layer\.\d+\.)", rf"\g<1>{block}", name): [name] for name in hub}
    return _fill(transformers.Dinov2Model, config, tensors, names, place)


def _vit_shape(tensors: dict[str, Tensor], place: str) -> dict[str, int]:
    try:
        width, channels, patch, _ = tensors["patch_embed.proj.weight"].shape
        cells = tensors["pos_embed"].shape[1] - 1
        inner = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise UserError(f"{place}: has no {error}; it is not the original file of a ViT") from error
    except (ValueError, IndexError) as error:
        raise UserError(f"{place}: a tensor has an unknown shape ({error}); it is not the file of a ViT") from error
    layers = _blocks(tensors, "blocks.", VIT_BLOCKS.get(width), place)
    return {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": patch * round(max(cells, 1) ** 0.5),
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "intermediate_size": inner,
    }


def _blocks(tensors: Mapping[str, Tensor], prefix: str, expected: int | None, place: str) -> int:
    """Count the blocks whose names begin so; what is missing in one of them shows when they are filled."""
    numbers = {name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)}
    if numbers != {str(i) for i in range(len(numbers))}:
        missing = next(i for i in range(len(numbers) + 1) if str(i) not in numbers)
        raise UserError(f"{place}: has no tensor of {_prefix(tensors)}{prefix}{missing}; the file is not whole")
    if expected not in (None, len(numbers)):
        raise UserError(
            f"{place}: has {len(numbers)} blocks {_prefix(tensors)}{prefix}N, and models of this width {expected}; "
            "the file is not whole"
        )
    return len(numbers)


def _prefix(tensors: Mapping[str, Tensor]) -> str:
    return tensors.prefix if isinstance(tensors, Weights) else ""


# Names on the right are those of the hub's files, which every version of transformers reads.
_VIT = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_MAE_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.qkv": "attention.attention",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_DINO_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.qkv": "attention.attention",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}


def _vit_names(shape: dict[str, int], kind: str) -> dict[str, list[str]]:
    """Per original name the hub's: one, or three where one matrix holds queries, keys and values."""
    names: dict[str, list[str]] = {}

    def add(old: str, new: str) -> None:
        plain = old in ("cls_token", "pos_embed", "mask_token") or old.endswith(".gamma")
        for end in ("",) if plain else (".weight", ".bias"):
            if old.endswith("attn.qkv"):
                names[old + end] = [f"{new}.{part}{end}" for part in ("query", "key", "value")]
            else:
                names[old + end] = [new + end]

    for old, new in _VIT.items():
        add(old, new)
    if kind == "dinov2":
        add("mask_token", "embeddings.mask_token")
    for i in range(shape["num_hidden_layers"]):
        for old, new in (_MAE_BLOCK if kind == "mae" else _DINO_BLOCK).items():
            add(f"blocks.{i}.{old}", f"encoder.layer.{i}.{new}")
    return names


def clip_text(tensors: dict[str, Tensor], place: str = "CLIP") -> Any:
    """Return a `CLIPTextModelWithProjection` from OpenAI's names (CLIP's image tower is left out)."""
    import transformers

    others = ("visual.", "logit_scale", "input_resolution", "context_length", "vocab_size")
    tensors = Weights(
        {name: tensor for name, tensor in tensors.items() if not name.startswith(others)}, _prefix(tensors)
    )
    try:
        words, width = tensors["token_embedding.weight"].shape
        positions = tensors["positional_embedding"].shape[0]
        projection = tensors["text_projection"].shape[1]
        inner = tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
    except KeyError as error:
        raise UserError(f"{place}: has no {error}; it is not OpenAI's file of CLIP") from error
    layers = _blocks(tensors, "transformer.resblocks.", CLIP_BLOCKS.get(width), place)
    config = transformers.CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=inner,
        projection_dim=projection,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // HEAD_WIDTH),
        max_position_embeddings=positions,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
    )
    names = {
        "token_embedding.weight": ["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": ["text_model.embeddings.position_embedding.weight"],
        "text_projection": ["text_projection.weight"],
    }
    for end in (".weight", ".bias"):
        names["ln_final" + end] = ["text_model.final_layer_norm" + end]
        for i in range(layers):
            old, new = f"transformer.resblocks.{i}.", f"text_model.encoder.layers.{i}."
            names[f"{old}attn.in_proj_{end[1:]}"] = [f"{new}self_attn.{part}_proj{end}" for part in "qkv"]
            for a, b in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                names[old + a + end] = [new + b + end]
    turned = {n: t.T.contiguous() if n == "text_projection" else t for n, t in tensors.items()}
    tensors = Weights(turned, _prefix(tensors))
    return _fill(transformers.CLIPTextModelWithProjection, config, tensors, names, place)


def _fill(kind: Any, config: Any, tensors: dict[str, Tensor], names: dict[str, list[str]], place: str) -> Any:
    """Build the model and load it strictly."""
    prefix = _prefix(tensors)
    for name in names:
        if name not in tensors:
            raise UserError(f"{place}: has no tensor '{prefix}{name}'; the file is of another model, or not whole")
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name not in names:
            raise UserError(f"{place}: tensor '{prefix}{name}' is unknown; the file is of another model")
        check_numbers(tensor, f"{place}: {prefix}{name}")
        new = names[name]
        if tensor.ndim and tensor.shape[0] % len(new) == 0:
            renamed |= dict(zip(new, tensor.float().chunk(len(new)), strict=True))
    renamed = {name: tensor.contiguous().clone() for name, tensor in renamed.items()}
    try:
        with torch.device("meta"):
            needed = sum(parameter.numel() for parameter in kind(config).parameters())
        if needed > sum(tensor.numel() for tensor in renamed.values()):
            raise ValueError(f"it would have {needed} weights")
        # from_pretrained, not load_state_dict: it knows how this version's names differ from the hub's.
        model, report = kind.from_pretrained(None, config=config, state_dict=renamed, output_loading_info=True)
    except Exception as error:  # transformers raises whatever shapes that do not fit lead it to
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{place}: shapes do not fit transformers' {kind.__name__} ({reason}); give a whole file"
        ) from error
    missing = [name for name in report["missing_keys"] if not name.endswith("position_ids")]
    wrong = missing + list(report["unexpected_keys"]) + [str(entry) for entry in report["mismatched_keys"]]
    if wrong:
        raise UserError(f"{place}: does not fit transformers' {kind.__name__}: {', '.join(wrong[:3])}; report this")
    return model.float().eval()


def check_numbers(tensor: Tensor, place: str) -> None:
    """Raise UserError unless a weight, named by `place`, is of finite floating-point numbers."""
    if not tensor.is_floating_point():
        raise UserError(f"{place} is of {str(tensor.dtype).removeprefix('torch.')}, no weights; copy the file again")
    if not tensor.isfinite().all():
        raise UserError(f"{place} has NaN or infinity; the file is damaged, or its training failed: give another")


def clip_tokenizer(file: str | Path) -> Any:
    """Return CLIP's tokenizer from what lies beside an original file of weights.

    Either transformers' files (vocab.json, merges.txt) or OpenAI's bpe_simple_vocab_16e6.txt.gz.

    Raises:
        UserError: neither is there.
    """
    import transformers

    folder = Path(file).parent
    if (folder / "tokenizer.json").exists() or (folder / "vocab.json").exists():
        return transformers.CLIPTokenizer.from_pretrained(folder)
    for name in ("bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt"):
        source = folder / name
        if source.exists():
            data = source.read_bytes()
            text = (gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8")
            return _openai_tokenizer(text)
    raise UserError(
        f"{folder}: has weights of CLIP but no tokenizer; put bpe_simple_vocab_16e6.txt.gz of openai/CLIP beside them"
    )


def _openai_tokenizer(text: str) -> Any:
    """Words of CLIP: 256 bytes, the same at a word's end, one for each merge, start and end of the sentence."""
    import transformers

    # OpenAI's list is longer than what CLIP was trained with: 49,152 words less bytes and the two marks.
    merges: Any = [tuple(line.split()) for line in text.split("\n")[1 : 49152 - 256 - 2 + 1]]
    merges = [pair for pair in merges if len(pair) == 2]
    letters = _byte_letters()
    words = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges)


def _byte_letters() -> list[str]:
    """A printable letter for each byte, in GPT-2's order: printable bytes stand for themselves and come first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(rest))]
