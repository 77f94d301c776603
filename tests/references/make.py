"""Record what the reference implementations of networks make of images and sounds: python tests/references/make.py

Written with torch 2.14.1, torchvision 0.29.1, transformers 5.24.0 and timm 1.0.31, on a CPU, in float32. These are the
extra `reference`; tests need none of them: they read what this has written (see `tests/reference_models.py`).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import transformers as hf
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from reference_models import EXPECTED, REFERENCES, SHAPES, draw, images, sounds

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 16}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
P14, P16 = {"patch_size": 14, "image_size": 70}, {"patch_size": 16, "image_size": 80}
SQUARE = {"size": {"height": 80, "width": 80}}
CROPPED = {"size": {"shortest_edge": 80}, "crop_size": {"height": 70, "width": 70}}


def main() -> None:
    """Write the folder of each family."""
    torch.set_grad_enabled(False)
    vit = hf.ViTForImageClassification(hf.ViTConfig(**SMALL, **P16, layer_norm_eps=1e-3, num_labels=5))
    transformer("vit", vit, vit.vit, hf.ViTImageProcessor(**SQUARE))
    bare = hf.ViTModel(hf.ViTConfig(**SMALL, **P16, layer_norm_eps=1e-3))
    transformer("vit-bare", bare, bare, hf.ViTImageProcessor(**SQUARE))
    deit = hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**SMALL, **P16, layer_norm_eps=1e-3, num_labels=5))
    transformer("deit", deit, deit.deit, hf.DeiTImageProcessor(**CROPPED), first_patch=2)
    dinov2 = hf.Dinov2Model(hf.Dinov2Config(**SMALL, **P14, mlp_ratio=2))
    transformer("dinov2", dinov2, dinov2, hf.BitImageProcessor(**CROPPED))
    registers = hf.Dinov2WithRegistersConfig(**SMALL, **P14, mlp_ratio=2, num_register_tokens=4, use_swiglu_ffn=True)
    with_registers = hf.Dinov2WithRegistersModel(registers)
    transformer("dinov2-registers", with_registers, with_registers, hf.BitImageProcessor(**CROPPED), first_patch=5)
    dinov3 = hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**SMALL, **P16, num_register_tokens=4, layer_norm_eps=1e-3))
    transformer("dinov3", dinov3, dinov3, hf.DINOv3ViTImageProcessor(**SQUARE), first_patch=5)
    gated = hf.DINOv3ViTConfig(**SMALL, **P16, num_register_tokens=4, use_gated_mlp=True, hidden_act="silu")
    plus = hf.DINOv3ViTModel(gated)  # as `small_plus` and the largest ones are
    transformer("dinov3-gated", plus, plus, hf.DINOv3ViTImageProcessor(**SQUARE), first_patch=5)
    clip = hf.CLIPModel(hf.CLIPConfig(vision_config=SMALL | P16, text_config=TEXT, projection_dim=8))
    transformer("clip", clip, clip.vision_model, hf.CLIPImageProcessor(**CROPPED))
    siglip = hf.SiglipModel(hf.SiglipConfig(vision_config=SMALL | P16, text_config=TEXT))
    transformer("siglip", siglip, siglip.vision_model, hf.SiglipImageProcessor(**SQUARE), first_patch=0)
    # as siglip2-so400m-patch14-384: the last pixels make no patch
    siglip2 = hf.SiglipModel(hf.SiglipConfig(vision_config=SMALL | P16 | {"patch_size": 14}, text_config=TEXT))
    transformer("siglip2", siglip2, siglip2.vision_model, hf.SiglipImageProcessor(**SQUARE), first_patch=0)
    resnet("resnet", "resnet26", 64)
    whisper("whisper", seconds=2)
    moonshine("moonshine")


def transformer(name: str, model: Any, tower: Any, processor: Any, first_patch: int = 1) -> None:
    """Write the folder of a vision transformer; `tower` is the part of `model` that takes images."""
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        names = load_file(Path(temporary, "model.safetensors"))
        weights = {key: draw(key, list(value.shape)) for key, value in names.items() if "text" not in key}
        save_file(names | weights, Path(temporary, "model.safetensors"))
        configs = {file.name: file.read_text() for file in Path(temporary).glob("*config.json")}
        loaded = type(model).from_pretrained(temporary, attn_implementation="eager").eval()  # which gives attention
        tower = loaded if tower is model else getattr(loaded, next(k for k, v in model.named_children() if v is tower))
    patch, trained_at = tower.config.patch_size, tower.config.image_size
    result = {}
    for size in (trained_at, trained_at - 2 * patch, trained_at + 2 * patch):
        pixels = processor(list(images(size)), do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values
        more = {} if "dino" in name else {"interpolate_pos_encoding": True}
        out = tower(pixels, output_hidden_states=True, output_attentions=True, **more)
        # CLIP norms the class token alone, and only on the way to its pooled output
        tokens = tower.post_layernorm(out.last_hidden_state) if name == "clip" else out.last_hidden_state
        found = {"patches": tokens[:, first_patch:].mean(dim=1)}
        found["class"] = tokens[:, 0] if first_patch else found["patches"]  # SigLIP has no class token
        found["pooled"] = out.pooler_output if hasattr(tower, "post_layernorm") else found["class"]
        result |= {f"{size}/{key}": value for key, value in found.items()}
        if size == trained_at:
            result |= {f"hidden/{number}": state[0] for number, state in enumerate(out.hidden_states) if number}
            result["attention/2"] = out.attentions[1][0][:, [0, -1]]
    write(name, configs, weights, result)


def resnet(name: str, architecture: str, trained_at: int) -> None:
    """Write the folder of a ResNet by timm."""
    model = timm.create_model(architecture, pretrained=False).eval()
    shapes = {key: list(value.shape) for key, value in model.state_dict().items() if "num_batches" not in key}
    weights = {key: draw(key, shape) for key, shape in shapes.items()}
    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()}, strict=False)
    known = ("mean", "std", "interpolation", "crop_pct", "first_conv", "classifier")
    about = {key: model.pretrained_cfg[key] for key in known} | {"input_size": [3, trained_at, trained_at]}
    config = {"architecture": architecture, "num_classes": 1000, "num_features": 2048, "pretrained_cfg": about}
    result = {}
    for size in (trained_at, trained_at + 32):
        mean, std = (torch.tensor(about[key]) for key in ("mean", "std"))
        pixels = ((torch.from_numpy(images(size)) / 255 - mean) / std).permute(0, 3, 1, 2)
        result[f"{size}/pooled"] = model.forward_features(pixels).mean(dim=(2, 3))
    write(name, {"config.json": json.dumps(config, indent=1)}, weights, result)


def whisper(name: str, seconds: int) -> None:
    """Write the folder of a Whisper that was trained on sounds of so many seconds."""
    sizes = {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 1, "decoder_ffn_dim": 8, "max_target_positions": 4}
    tokens = {"vocab_size": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    tokens |= {"suppress_tokens": None, "begin_suppress_tokens": None}
    result = {}
    for heard in (seconds, seconds - 1):  # of its positions the first ones alone
        config = hf.WhisperConfig(**sizes, **decoder, **tokens, max_source_positions=50 * heard)
        model = hf.WhisperForConditionalGeneration(config).eval()
        processor = hf.WhisperFeatureExtractor(chunk_length=heard)
        names = {key: list(value.shape) for key, value in model.state_dict().items() if "encoder" in key}
        if heard == seconds:
            weights = {key: draw(key, shape) for key, shape in names.items()}
            with tempfile.TemporaryDirectory() as temporary:
                config.architectures = [type(model).__name__]
                config.save_pretrained(temporary)
                processor.save_pretrained(temporary)
                configs = {file.name: file.read_text() for file in Path(temporary).glob("*config.json")}
        own = {key: torch.from_numpy(array[: names[key][0]]) for key, array in weights.items()}
        model.load_state_dict(own, strict=False)
        bands = processor(sounds(), sampling_rate=16_000, return_tensors="pt").input_features
        out = model.model.encoder(bands, output_hidden_states=True)
        steps = [tokens[: -(-len(sound) // 320)] for tokens, sound in zip(out.last_hidden_state, sounds(), strict=True)]
        both = [torch.cat([one.mean(dim=0), one.std(dim=0, correction=0)]) for one in steps]
        result[f"{heard}/features"] = torch.stack(both)
        if heard == seconds:
            result["spectrum"] = torch.cat([bands[-1, :, :20], bands[-1, :, -20:]], dim=1)
            result |= {f"hidden/{number}": state[1, ::10] for number, state in enumerate(out.hidden_states) if number}
    write(name, configs, weights, result)


def moonshine(name: str) -> None:
    """Write the folder of a Moonshine; each sound is heard alone, in whole steps of 20 ms."""
    sizes = {"hidden_size": 48, "intermediate_size": 96, "encoder_num_hidden_layers": 3}
    sizes |= {"encoder_num_attention_heads": 4, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4}
    config = hf.MoonshineConfig(**sizes, vocab_size=16, pad_head_dim_to_multiple_of=8)
    model = hf.MoonshineForConditionalGeneration(config).eval()
    weights = {key: draw(key, list(value.shape)) for key, value in model.state_dict().items() if "encoder." in key}
    model.load_state_dict({key: torch.from_numpy(array) for key, array in weights.items()}, strict=False)
    with tempfile.TemporaryDirectory() as temporary:
        config.architectures = [type(model).__name__]
        config.save_pretrained(temporary)
        configs = {file.name: file.read_text() for file in Path(temporary).glob("*config.json")}
    outputs = []
    for sound in sounds():
        values = torch.from_numpy(np.pad(sound, (0, -len(sound) % 320)))[None]
        outputs.append(model.model.encoder(values, output_hidden_states=True))
    both = [torch.cat([one.mean(dim=0), one.std(dim=0, correction=0)]) for one in (out[0][0] for out in outputs)]
    result = {"features": torch.stack(both)}
    states = enumerate(outputs[1].hidden_states)
    result |= {f"hidden/{number}": state[0, ::10] for number, state in states if number}
    write(name, configs, weights, result)


def write(name: str, configs: dict[str, str], weights: dict[str, np.ndarray], result: dict[str, torch.Tensor]) -> None:
    """Write one folder, and say how large it is."""
    folder = REFERENCES / name
    folder.mkdir(exist_ok=True)
    for file, text in configs.items():
        (folder / file).write_text(text, encoding="utf-8")
    shapes = ",\n".join(f' "{key}": {list(value.shape)}' for key, value in sorted(weights.items()))
    (folder / SHAPES).write_text(f"{{\n{shapes}\n}}\n", encoding="utf-8")
    save_file({key: value.numpy().astype(np.float32).copy() for key, value in result.items()}, folder / EXPECTED)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1024
    print(f"{name}: {len(weights)} tensors, {size:.0f} KB", {k: v.std().item() for k, v in list(result.items())[:4]})


if __name__ == "__main__":
    main()
