"""The back end diffusers with a tiny pipeline of random weights: the classes are the real ones."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dlprobe.data.images import read_image, read_mask
from dlprobe.data.synthesis import SynthesisSettings, synthesize
from dlprobe.data.synthesis.generator import open_backend
from dlprobe.data.synthesis.photographs import load_photograph
from dlprobe.errors import DataError, ExtraError

SETTINGS = SynthesisSettings(window_px=56, side_px=70, shares=(0.25,))


def tokenizer_of(folder):
    """Return a tokenizer of single letters."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16), len(words)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Return the components of a tiny Stable Diffusion."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer, words = tokenizer_of(tmp_path_factory.mktemp("tokenizer"))
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=words,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )

    def unet(channels):
        return UNet2DConditionModel(
            sample_size=32,
            in_channels=channels,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
        )

    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    shared = {
        "vae": vae,
        "text_encoder": CLIPTextModel(text),
        "tokenizer": tokenizer,
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    }
    return shared, unet


@pytest.fixture(scope="module")
def inpainting(parts, tmp_path_factory):
    """Return the folder of an inpainting pipeline, whose network takes mask and masked image."""
    from diffusers import StableDiffusionInpaintPipeline

    shared, unet = parts
    folder = tmp_path_factory.mktemp("models") / "tiny inpainter"
    StableDiffusionInpaintPipeline(unet=unet(9), **shared).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("skimage:astronaut.png", "skimage:camera.png"):
        photograph = load_photograph(name, 70)
        Image.fromarray(photograph.pixels).save(folder / f"{photograph.name}.png")
    return folder


@pytest.fixture(scope="module")
def made(inpainting, photographs, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "set"
    options = {"model": str(inpainting), "steps": 2, "guidance": 3.0, "prompt": "a b", "device": "cpu"}
    return synthesize([photographs], out, settings=SETTINGS, backend="diffusers", **options)


def parameters(report):
    return list(map(json.loads, (report.path / "parameters.jsonl").read_text().splitlines()))


def test_families_hold_what_the_pipeline_and_its_autoencoder_made(made, inpainting):
    from diffusers import AutoencoderKL

    assert not made.rejects
    frame = made.manifest.frame
    assert frame["variant"].value_counts().to_dict() == {"real": 2, "ae": 2, "sp": 6, "fr": 6}
    assert set(frame["generator"]) == {"", "tiny_inpainter"}
    assert not frame["donor_id"].any()
    assert set(frame["width"]) == set(frame["height"]) == {70}
    vae = AutoencoderKL.from_pretrained(inpainting / "vae", use_safetensors=True)
    real = read_image(made.path / "astronaut/real.png")
    with torch.inference_mode():
        values = torch.from_numpy(real).permute(2, 0, 1)[None].float() / 255 * 2 - 1
        decoded = vae.decode(vae.encode(values).latent_dist.mean).sample[0].permute(1, 2, 0).numpy()
    expected = np.clip(np.rint((decoded + 1) / 2 * 255), 0, 255).astype(int)
    found = read_image(made.path / "astronaut/ae-tiny_inpainter.png").astype(int)
    assert np.abs(found - expected).max() <= 1
    assert (found == expected).mean() > 0.999


def test_splices_keep_the_photograph_and_regenerated_images_do_not(made):
    for _, row in made.manifest.frame.iterrows():
        if row["variant"] != "sp":
            continue
        name = row["source_id"].partition(":")[2]
        real, image = read_image(made.path / name / "real.png"), read_image(made.path / row["path"])
        whole = read_image(made.path / row["path"].replace("/sp-", "/fr-"))
        inside = read_mask(made.path / row["mask"], real.shape[:2])
        np.testing.assert_array_equal(image[~inside], real[~inside])
        np.testing.assert_array_equal(image[inside], whole[inside])
        assert (whole[~inside] != real[~inside]).any(axis=-1).mean() > 0.9
        if name == "camera":
            assert (whole == whole[..., :1]).all()


def test_a_regenerated_image_is_reproduced_by_the_pipeline_from_its_parameters(made, inpainting):
    from diffusers import StableDiffusionInpaintPipeline

    pipeline = StableDiffusionInpaintPipeline.from_pretrained(inpainting, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    row = next(row for row in parameters(made) if row["variant"] == "fr" and row["source_id"].endswith("astronaut"))
    assert (row["steps"], row["guidance"], row["strength"], row["prompt"]) == (2, 3.0, 1.0, "a b")
    assert (row["model"], row["pipeline"]) == (str(inpainting), "StableDiffusionInpaintPipeline")
    assert (row["device"], row["precision"], row["seed"]) == ("cpu", "float32", 0)
    assert row["mask_share_wanted"] == 0.25
    with Image.open(made.path / "astronaut/real.png") as real, Image.open(made.path / row["mask"]) as mask:
        result = pipeline(
            prompt=row["prompt"],
            image=real.copy(),
            mask_image=mask.copy(),
            height=70,
            width=70,
            num_inference_steps=row["steps"],
            guidance_scale=row["guidance"],
            strength=row["strength"],
            generator=torch.Generator().manual_seed(row["noise_seed"]),
        )
    found = read_image(made.path / row["path"]).astype(int)
    assert np.abs(found - np.asarray(result.images[0]).astype(int)).max() <= 1
    seeds = [row["noise_seed"] for row in parameters(made) if row["variant"] == "fr"]
    assert len(set(seeds)) == len(seeds)


def test_a_text_to_image_model_becomes_an_inpainter_and_sizes_come_from_the_model(parts, tmp_path):
    from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline

    shared, unet = parts
    StableDiffusionPipeline(unet=unet(4), **shared).save_pretrained(tmp_path / "model")
    backend = open_backend("diffusers", model=str(tmp_path / "model"), steps=4, strength=0.5, device="cpu")
    assert isinstance(backend._pipeline, StableDiffusionInpaintPipeline)
    assert (backend.multiple_px, backend.side_px) == (2, 64)
    photograph = load_photograph("skimage:coffee.png", 32)
    mask = np.zeros((32, 32), bool)
    mask[8:20, 10:24] = True
    (image,) = backend.inpainted(photograph, None, mask, np.random.default_rng(0))
    (again,) = backend.inpainted(photograph, None, mask, np.random.default_rng(0))
    np.testing.assert_array_equal(image.pixels, again.pixels)
    assert image.parameters["strength"] == 0.5
    assert image.parameters["guidance"] == 7.5  # the pipeline's own


def test_what_cannot_be_loaded_or_asked_is_one_line(inpainting, parts, photographs, tmp_path):
    with pytest.raises(DataError, match="needs a model"):
        open_backend("diffusers")
    with pytest.raises(DataError, match=r"no model_index\.json"):
        open_backend("diffusers", model=str(tmp_path))
    with pytest.raises(DataError, match="strength of 2 is out of range"):
        open_backend("diffusers", model=str(inpainting), strength=2.0)
    with pytest.raises(DataError, match="no precision 'half'"):
        open_backend("diffusers", model=str(inpainting), precision="half")
    with pytest.raises(DataError, match="no device 'cuda:77'"):
        open_backend("diffusers", model=str(inpainting), device="cuda:77")
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline", "_diffusers_version": "0.30.0"}')
    with pytest.raises(DataError, match="cannot be loaded as an inpainting pipeline"):
        open_backend("diffusers", model=str(tmp_path), device="cpu")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be loaded as an inpainting pipeline"):
        open_backend("diffusers", model=str(tmp_path), device="cpu")
    damaged = tmp_path / "damaged"
    shutil.copytree(inpainting, damaged)
    weights = damaged / "vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be loaded as an inpainting pipeline"):
        open_backend("diffusers", model=str(damaged), device="cpu")


def test_a_pipeline_that_pastes_or_blackens_makes_rejects(inpainting, photographs, tmp_path, monkeypatch):
    backend = open_backend("diffusers", model=str(inpainting), steps=1, device="cpu")
    kind = type(backend._pipeline)
    real_call = kind.__call__

    def flagged(self, *arguments, **options):
        result = real_call(self, *arguments, **options)
        result.nsfw_content_detected = [True]
        return result

    with monkeypatch.context() as patch:
        patch.setattr(kind, "__call__", flagged)
        with pytest.raises(DataError, match=r"not one of 2 photographs could be altered.*safety checker"):
            synthesize([photographs], tmp_path / "set", settings=SETTINGS, backend=backend)

    def pasting(self, *arguments, **options):
        result = real_call(self, *arguments, **options)
        mask, image = (np.asarray(options[name]) for name in ("mask_image", "image"))
        result.images = np.where(mask[..., None] > 0, result.images, image / 255)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(kind, "__call__", pasting)
        with pytest.raises(DataError, match="leaves the photograph as it was outside the mask"):
            synthesize([photographs], tmp_path / "set", settings=SETTINGS, backend=backend)
    assert not any(tmp_path.iterdir())


def test_a_missing_extra_is_one_line_that_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ExtraError, match=r"needs diffusers; install with pip install 'dlprobe\[diffusers\]'"):
        open_backend("diffusers", model="x")
