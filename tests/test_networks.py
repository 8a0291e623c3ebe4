"""The facts of the networks: what is blind to what, what sums to one, what one preset shares with the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import needs_torch  # noqa: F401  (skips this file where torch is absent)
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from toys import COMPACT, PAPER, TOYS, boxes_of

from lipdub.bundles.bundle import load_spec
from lipdub.bundles.network import NetworkConfig
from lipdub.errors import CheckpointInvalid, TrainingError
from lipdub.speech.memory import OnnxMemory
from lipdub.train import checkpoints
from lipdub.train.export import gflop_per_frame
from lipdub.train.networks import (
    PRESETS,
    AudioLipMemory,
    Discriminator,
    FaceEncoder,
    FaceGenerator,
    LipEncoder,
    LipMemory,
)
from lipdub.train.weights import load_bundle_memory, load_lip_side, load_memory, load_weights

BASE = Path(__file__).parent.parent / "models" / "base"

SEEDS = st.integers(0, 2**31 - 1)


@pytest.fixture(params=TOYS, scope="module")
def config(request: pytest.FixtureRequest) -> NetworkConfig:
    return TOYS[request.param]


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    """Uniform in [-1, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# ---- the memory


def numpy_recall(query: np.ndarray, slots: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """softmax(16 cos(query, slot)) and its product with the unit rows of V, in float64, written as the paper has it."""
    cosine = (query @ slots.T) / (np.linalg.norm(query, axis=1)[:, None] * np.linalg.norm(slots, axis=1)[None])
    address = np.exp(16 * cosine)
    address /= address.sum(axis=1, keepdims=True)
    return address, address @ (values / np.linalg.norm(values, axis=1, keepdims=True))


@settings(max_examples=40)
@given(seed=SEEDS, batch=st.integers(1, 9), length=st.floats(1e-3, 1e3), by=st.sampled_from(["audio", "lips"]))
def test_address_is_softmax_of_16_cos_and_recall_is_address_times_V(seed: int, batch: int, length: float, by: str) -> None:
    torch.manual_seed(seed)
    memory = AudioLipMemory(COMPACT)
    with torch.no_grad():
        memory.keys.mul_(3.0)
        memory.values.mul_(torch.rand(COMPACT.slots, 1) * 5 + 0.1)
    feature = length * torch.randn(batch, COMPACT.channels)
    with torch.no_grad():
        address, recalled = memory.by_audio(feature) if by == "audio" else memory.by_lips(feature)
    assert address.shape == (batch, COMPACT.slots)
    assert recalled.shape == (batch, COMPACT.channels)
    np.testing.assert_allclose(address.sum(dim=1).numpy(), 1.0, atol=1e-5)
    assert (address >= 0).all()
    linear = memory.audio_query if by == "audio" else memory.lip_query
    weights = {key: value.detach().numpy().astype(np.float64) for key, value in linear.named_parameters()}
    query = feature.numpy().astype(np.float64) @ weights["weight"].T + weights["bias"]
    keys, values = (part.detach().numpy().astype(np.float64) for part in (memory.keys, memory.values))
    expected = numpy_recall(query, keys if by == "audio" else values, values)
    np.testing.assert_allclose(address.numpy(), expected[0], atol=2e-5)
    np.testing.assert_allclose(recalled.numpy(), expected[1], atol=2e-5)


def test_slots_are_recalled_as_unit_rows() -> None:
    memory = AudioLipMemory(COMPACT)
    with torch.no_grad():
        memory.values.mul_(9.0)
    np.testing.assert_allclose(memory.slots().norm(dim=1).detach().numpy(), 1.0, atol=1e-6)


def test_addresses_stay_float32_under_bfloat16() -> None:
    memory = AudioLipMemory(COMPACT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        recall = memory.by_audio(torch.randn(3, COMPACT.channels))
    assert recall.address.dtype == recall.recalled.dtype == torch.float32


def test_both_recalls_read_the_same_values() -> None:
    """The audio address is over K, but what is recalled is V: moving V moves both recalls, moving K the audio's alone."""
    memory, feature = AudioLipMemory(COMPACT), torch.randn(2, COMPACT.channels)

    def moved(parameter: nn.Parameter) -> tuple[bool, bool]:
        before = memory.by_audio(feature).recalled, memory.by_lips(feature).recalled
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter))
        after = memory.by_audio(feature).recalled, memory.by_lips(feature).recalled
        return tuple(not torch.equal(a, b) for a, b in zip(before, after, strict=True))

    assert moved(memory.values) == (True, True)
    assert moved(memory.keys) == (True, False)


# ---- who sees what


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
@pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)
def test_the_lip_encoder_sees_no_upper_half(toy: NetworkConfig, seed: int) -> None:
    encoder = LipEncoder(toy).eval()
    crops = some(2, 3, toy.frames, toy.size, toy.size, seed=seed)
    changed = crops.clone()
    changed[..., : toy.size // 2, :] = some(2, 3, toy.frames, toy.size // 2, toy.size, seed=seed + 1)
    with torch.no_grad():
        assert torch.equal(encoder(boxes_of(crops, toy)), encoder(boxes_of(changed, toy)))
        lower = crops.clone()
        lower[..., toy.size // 2 :, :] *= -1
        assert not torch.allclose(encoder(boxes_of(crops, toy)), encoder(boxes_of(lower, toy)))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_presets_lip_encoders_see_no_upper_half(preset: str) -> None:
    full = PRESETS[preset]
    encoder = LipEncoder(full).eval()
    crops = some(1, 3, full.frames, full.size, full.size)
    row = crops.clone().requires_grad_()
    encoder(boxes_of(row, full)).sum().backward()
    assert row.grad is not None
    assert (row.grad[..., :64, :] == 0).all()
    assert (row.grad[..., 64, :] != 0).any()


def test_the_lip_encoder_sees_each_of_the_five_frames(config: NetworkConfig) -> None:
    encoder = LipEncoder(config).eval()
    crops = some(1, 3, 5, config.size, config.size).requires_grad_()
    encoder(boxes_of(crops, config)).sum().backward()
    assert crops.grad is not None
    assert (crops.grad.abs().sum(dim=(0, 1, 3, 4)) > 0).all()


def test_the_face_encoder_sees_no_lower_half_of_the_target_but_the_whole_reference(config: NetworkConfig) -> None:
    encoder = FaceEncoder(config).eval()
    target, reference = some(2, 3, 64, 64).requires_grad_(), some(2, 3, 64, 64, seed=1).requires_grad_()
    sum((level**2).sum() for level in encoder(target, reference).levels).backward()
    assert target.grad is not None
    assert reference.grad is not None
    assert (target.grad[:, :, 32:] == 0).all()
    assert (target.grad[:, :, :32] != 0).any()
    assert (reference.grad[:, :, 32:] != 0).any()
    assert (reference.grad[:, :, :32] != 0).any()
    with torch.no_grad():
        other = target.clone()
        other[:, :, 32:] = some(2, 3, 32, 64, seed=2)
        for one, two in zip(encoder(target, reference).levels, encoder(other, reference).levels, strict=True):
            assert torch.equal(one, two)


def test_a_drawn_face_depends_on_lips_reference_and_upper_target(config: NetworkConfig) -> None:
    generator = FaceGenerator(config).eval()
    target, reference, lips = some(1, 3, 64, 64), some(1, 3, 64, 64, seed=1), some(1, 16, seed=2)
    with torch.no_grad():
        drawn = generator(target, reference, lips)
        assert not torch.equal(drawn, generator(target, reference, -lips))
        assert not torch.equal(drawn, generator(target, -reference, lips))
        assert not torch.equal(drawn, generator(-target, reference, lips))


def test_a_face_is_paint_and_what_the_flow_brings(config: NetworkConfig) -> None:
    """The paste takes the picture apart by these words: painted, and copied from where the flow says, in half crop sides."""
    torch.manual_seed(3)
    generator = FaceGenerator(config).eval()
    target, reference = torch.rand(2, 2, 3, config.size, config.size) * 2 - 1
    features = generator.encoder(target, reference)
    lips = torch.randn(2, config.channels)
    decoder = generator.decoder
    with torch.no_grad():
        if decoder.flow is not None:
            decoder.flow.weight.normal_(std=0.05)
        face = decoder.drawn(lips, features)
        assert torch.equal(decoder(lips, features), face.picture)
        if decoder.flow is None:
            assert face.paint_mask is None
            assert face.flow is None
            return
        assert face.paint_mask is not None
        assert face.flow is not None
        assert face.paint_mask.shape == (2, 1, *face.picture.shape[2:])
        assert face.flow.abs().max() > 0.02
        other = decoder.drawn(lips, features._replace(reference=torch.full_like(reference, -1.0)))
        y0, y1, x0, x1 = config.drawn
        flow = F.interpolate(face.flow, (y1 - y0, x1 - x0), mode="bilinear", align_corners=False) * config.size / 2
        rows = (torch.arange(y0, y1)[None, :, None] + flow[:, 1]).clamp(0, config.size - 1)
        columns = (torch.arange(x0, x1)[None, None, :] + flow[:, 0]).clamp(0, config.size - 1)
        copied = torch.stack(
            [torch.from_numpy(cv2.remap(one.movedim(0, 2).numpy(), x.numpy(), y.numpy(), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
             for one, x, y in zip(reference, columns, rows, strict=True)]
        ).movedim(3, 1)  # fmt: skip
        # What changes with the reference's pixels alone is what was copied from them; OpenCV looks up at 32nds of a pixel.
        assert (face.picture - other.picture - (1 - face.paint_mask) * (copied + 1)).abs().max() < 0.1
        assert (face.picture - other.picture - (1 - face.paint_mask) * (copied + 1)).abs().mean() < 0.01


def test_rows_of_a_batch_do_not_see_each_other(config: NetworkConfig) -> None:
    """What ties frames together in training (batch statistics) would change the answer in inference."""
    generator, memory = FaceGenerator(config).eval(), LipMemory(config).eval()
    target, reference, lips, mel = some(3, 3, 64, 64), some(3, 3, 64, 64, seed=1), some(3, 16, seed=2), 4 * some(3, 1, 80, 16)
    with torch.no_grad():
        together = generator(target, reference, lips)
        for row in range(3):
            one = slice(row, row + 1)
            torch.testing.assert_close(generator(target[one], reference[one], lips[one]), together[one], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(memory(mel[one])[1], memory(mel)[1][one], atol=1e-5, rtol=1e-4)


# ---- inference


def test_inference_takes_the_audio_recall_alone(config: NetworkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = LipMemory(config).eval()

    def forbidden(*_: object) -> None:
        raise AssertionError("the lips took part")

    monkeypatch.setattr(memory.lip_encoder, "forward", forbidden)
    monkeypatch.setattr(memory.memory, "by_lips", forbidden)
    mel = 4 * some(3, 1, 80, 16)
    with torch.no_grad():
        address, lip_feature, _ = memory(mel)
        audio_feature = memory.audio_encoder(mel)
        recall = memory.memory.by_audio_sharpened(audio_feature)
    assert torch.equal(address, recall.address)
    assert torch.equal(lip_feature, memory.fuse(audio_feature, recall.recalled))


# ---- shapes and presets


@pytest.mark.parametrize("preset", PRESETS)
def test_a_face_is_the_drawn_box_in_range(preset: str) -> None:
    full = PRESETS[preset]
    y0, y1, x0, x1 = full.drawn
    with torch.no_grad():
        generator = FaceGenerator(full).eval()
        drawn = generator(some(1, 3, 128, 128), some(1, 3, 128, 128, seed=1), 30 * some(1, full.channels))
        assert drawn.shape == (1, 3, y1 - y0, x1 - x0)
        assert drawn.abs().max() <= 1
        assert Discriminator(full)(drawn).scores.shape[:2] == (1, 1)


@pytest.mark.parametrize("drawn", [(0, 64, 0, 64), (32, 64, 8, 56), (24, 56, 0, 40), (56, 64, 56, 64)])
def test_any_box_on_the_grid_can_be_drawn(drawn: tuple[int, int, int, int]) -> None:
    y0, y1, x0, x1 = drawn
    generator = FaceGenerator(replace(COMPACT, drawn=drawn)).eval()
    with torch.no_grad():
        assert generator(some(2, 3, 64, 64), some(2, 3, 64, 64), some(2, 16)).shape == (2, 3, y1 - y0, x1 - x0)


def test_both_presets_share_one_code_path() -> None:
    def classes(config: NetworkConfig) -> set[str]:
        built = (LipMemory(config), FaceGenerator(config), Discriminator(config))
        return {type(module).__name__ for network in built for module in network.modules()}

    assert classes(PRESETS["paper"]) == classes(PRESETS["compact"])
    assert [type(m) for m in LipMemory(PAPER).children()] == [type(m) for m in LipMemory(COMPACT).children()]


def test_paper_has_the_published_sizes() -> None:
    paper = PRESETS["paper"]
    assert (paper.size, paper.channels, paper.slots, paper.frames) == (128, 512, 96, 5)
    assert (paper.mel.bands, paper.mel.window, paper.kappa, paper.fusion_dropout) == (80, 16, 16.0, 0.5)
    assert paper.face_widths == (16, 32, 64, 128, 256, 512, 512)
    assert paper.drawn == (0, 128, 0, 128)
    memory = LipMemory(paper)
    assert memory.memory.keys.shape == memory.memory.values.shape == (96, 512)
    assert (memory.fusion[1].in_features, memory.fusion[1].out_features, memory.fusion[0].p) == (1024, 512, 0.5)
    first = memory.lip_encoder.motion[0]
    assert isinstance(first, nn.Conv3d)
    assert first.kernel_size == (5, 7, 7)
    with torch.no_grad():
        features = FaceEncoder(paper)(*[torch.zeros(1, 3, 128, 128)] * 2)
    assert [(f.shape[1], f.shape[2]) for f in features.levels] == [(16, 128), (32, 64), (64, 32), (128, 16), (256, 8), (512, 4), (512, 1)]


@pytest.mark.parametrize("preset", PRESETS)
def test_audio_encoder_strides(preset: str) -> None:
    body = LipMemory(PRESETS[preset]).audio_encoder.body
    strides = [m.stride for m in body.modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1)]
    assert strides == {"paper": [(3, 1), (3, 3), (3, 2)], "compact": [(4, 1), (2, 2), (2, 2), (1, 2)]}[preset]


def test_compact_costs_at_most_one_gflop_a_frame() -> None:
    compact = PRESETS["compact"]
    cost = gflop_per_frame(compact, LipMemory(compact).eval(), FaceGenerator(compact).eval())
    assert 0.1 < cost <= 1.0


# ---- what a checkpoint says of a network


@pytest.mark.parametrize("preset", PRESETS)
def test_a_config_survives_a_checkpoint(preset: str, tmp_path) -> None:
    checkpoints.save(tmp_path / "c.pt", {"network": PRESETS[preset].to_dict()})
    assert checkpoints.settings_of(NetworkConfig, checkpoints.load(tmp_path / "c.pt")["network"], "c.pt") == PRESETS[preset]


def test_unknown_and_missing_settings_are_refused() -> None:
    values = COMPACT.to_dict()
    with pytest.raises(TrainingError, match=r"unknown settings \['depth'\]"):
        checkpoints.settings_of(NetworkConfig, {**values, "depth": 3}, "c.pt")
    del values["slots"]
    with pytest.raises(TrainingError, match="slots"):
        checkpoints.settings_of(NetworkConfig, values, "c.pt")


def test_a_memory_is_loaded_as_it_was_saved(tmp_path) -> None:
    memory = LipMemory(COMPACT)
    content = {"settings": {"network": COMPACT.to_dict()}, "modules": {"memory": memory.state_dict()}}
    config, loaded = load_memory(content, tmp_path)
    assert config == COMPACT
    for key, value in memory.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    for broken in ({}, {"settings": {}}, {**content, "modules": {}}, {**content, "settings": {"network": PAPER.to_dict() | {"slots": 5}}}):
        with pytest.raises(CheckpointInvalid, match="holds no memory"):
            load_memory(broken, tmp_path)


def test_weights_of_another_network_are_refused(tmp_path) -> None:
    checkpoints.save(tmp_path / "c.pt", {"modules": {"averaged": {"memory.x": torch.zeros(1)}}})
    with pytest.raises(CheckpointInvalid, match="another network"):
        load_weights(tmp_path / "c.pt", COMPACT)
    with pytest.raises(CheckpointInvalid, match=r"no readable weights\.safetensors"):
        load_weights(tmp_path, COMPACT)


def test_training_can_go_on_from_the_default_bundle(tmp_path: Path) -> None:
    """The committed weights are all that lasts of a training run: both stages must be able to begin with them."""
    config, memory = load_bundle_memory(BASE)
    assert config.preset == "compact"
    spec = load_spec(BASE)
    assert spec.encoder is not None
    features = torch.randn(4, len(spec.encoder.taps), spec.encoder.channels)
    assert config == spec.network
    address, lip_feature, _ = memory.eval()(features)
    graph = OnnxMemory(BASE, spec, device="cpu").recall(features.numpy())
    # Both hold the same weights as float16.
    np.testing.assert_allclose(graph.address, address.detach().numpy(), atol=1e-3)
    np.testing.assert_allclose(graph.lip_feature, lip_feature.detach().numpy(), atol=1e-2)
    begun = set(load_weights(BASE, config))
    assert begun >= {f"memory.{key}" for key in memory.state_dict() if key.startswith("fusion.")}
    assert {key.split(".")[0] for key in begun} == {"memory", "generator"}
    assert set(load_lip_side(BASE, config)) < set(memory.state_dict())
    with pytest.raises(CheckpointInvalid, match=r"no readable weights\.safetensors"):
        load_bundle_memory(tmp_path)
