"""The speech encoder on disk and over a stream: features of a moment do not depend on how the sound comes; and a bundle on top of it."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import draw_video, write_wav
from faces_for_tests import LOWER_LIP, UPPER_LIP, portrait_face, portrait_frames, scaled
from fakes import SILENT, TAPS, fake_spec, rewrite_spec, slot_values, write_fake_bundle, write_fake_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipdub import media
from lipdub.bundles import bundle, encoder
from lipdub.bundles.encoder import EncoderSpec
from lipdub.bundles.network import EncoderUse
from lipdub.errors import BundleInvalid, BundleNotFound
from lipdub.model import open_model
from lipdub.options import DubOptions
from lipdub.pipeline import dub
from lipdub.speech.encoder import FeatureTrack, SpeechEncoder, feature_track, grid_windows, interpolated
from lipdub.speech.lip_track import listen
from lipdub.speech.memory import OnnxMemory
from lipdub.speech.whisper_mel import RATE_HZ, log_mel

SPEC = EncoderSpec(
    name="ear", format_version=1, layers=(2, 3), channels=8, bands=80, floor=-7.0, core_s=10.0, context_s=2.0, source="a file",
    license="MIT", graphs={}, created_with="0.1.0",
)  # fmt: skip
SHA = "0" * 64
CORE_S, CONTEXT_S = 1.0, 0.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the fake speech encoder, and bundles that stand on it."""
    house = tmp_path_factory.mktemp("house")
    spec = write_fake_encoder(house / "ear", core_s=CORE_S, context_s=CONTEXT_S)
    write_fake_bundle(house / "hears", heard_by=spec)
    write_fake_bundle(house / "smooth", heard_by=spec, tap_distance_s=0.03)
    return house


@pytest.fixture(scope="module")
def ear(folder: Path) -> SpeechEncoder:
    return opened(folder / "ear")


def opened(folder: Path) -> SpeechEncoder:
    return SpeechEncoder(folder, encoder.load_spec(folder), device="cpu", threads=1)


def noise(count: int, seed: int = 0, level: float = 0.3) -> NDArray[np.float32]:
    return np.clip(level * np.random.default_rng(seed).normal(size=count), -1, 1).astype(np.float32)


def speech_like(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Bursts of buzz with pauses between them, float32 (n,)."""
    random = np.random.default_rng(seed)
    samples = np.zeros(round(seconds * RATE_HZ), np.float32)
    at = 0.2
    while at < seconds:
        long_s, hz = random.uniform(0.1, 0.4), random.uniform(90, 220)
        first, end = round(at * RATE_HZ), min(len(samples), round((at + long_s) * RATE_HZ))
        time_s = np.arange(end - first) / RATE_HZ
        buzz = np.sign(np.sin(2 * np.pi * hz * time_s)) + 0.3 * random.normal(size=len(time_s))
        samples[first:end] = 0.2 * buzz * np.sin(np.pi * np.linspace(0, 1, len(time_s)))
        at += long_s + random.uniform(0.05, 0.5)
    return samples


def cut(samples: NDArray[np.float32], sizes: list[int]) -> Iterator[NDArray[np.float32]]:
    """`samples` in blocks of `sizes`, the rest in one."""
    start = 0
    for size in sizes:
        yield samples[start : start + size]
        start += size
    yield samples[start:]


def quarters(samples: NDArray[np.float32]) -> list[int]:
    """Sizes of blocks of a quarter of a second."""
    return [RATE_HZ // 4] * (4 * len(samples) // RATE_HZ)


def one_line(error: BaseException) -> str:
    said = str(error)
    assert said
    assert "\n" not in said
    return said


# --------------------------------------------------------------------------------------------------------- the description


@given(
    layers=st.lists(st.integers(0, 12), min_size=1, max_size=4, unique=True).map(sorted).map(tuple),
    width=st.integers(1, 64), floor=st.floats(-12, 0), core_s=st.floats(0.02, 30), context_s=st.floats(0, 5),
    source=st.text(), finished=st.booleans(),
)  # fmt: skip
def test_what_is_written_is_read_back(
    layers: tuple[int, ...], width: int, floor: float, core_s: float, context_s: float, source: str, finished: bool
) -> None:
    spec = EncoderSpec(
        name="ear", format_version=1, layers=layers, channels=width * len(layers), bands=encoder.BANDS, floor=floor, core_s=core_s,
        context_s=context_s, source=source, license="MIT", graphs={encoder.GRAPH: SHA} if finished else {}, created_with="0.1.0",
    )  # fmt: skip
    assert EncoderSpec.from_json(spec.to_json()) == spec
    assert spec.columns == 2 * spec.positions == 2 * (spec.core + 2 * spec.context)
    assert spec.tensors.inputs == {"log_mel": ("B", encoder.BANDS, spec.columns)}
    assert spec.tensors.outputs == {"features": ("B", spec.positions, spec.channels)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": ""}, "name"),
        ({"format_version": 2}, "format_version"),
        ({"layers": ()}, "layers must rise"),
        ({"layers": (3, 2)}, "layers must rise"),
        ({"layers": (2, 2)}, "layers must rise"),
        ({"channels": 7}, "channels are shared"),
        ({"channels": 0}, "channels are shared"),
        ({"bands": 128}, "bands must be 80"),
        ({"floor": float("nan")}, "floor"),
        ({"core_s": 0.001}, "a window gives a position"),
        ({"context_s": -1.0}, "a window gives a position"),
        ({"license": ""}, "license"),
        ({"graphs": {"other.onnx": SHA}}, r"graphs must name encoder\.onnx"),
        ({"graphs": {"encoder.onnx": "abc"}}, "sha256"),
    ],
)
def test_it_checks_itself(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(SPEC, **changes)
    described = json.loads(SPEC.to_json()) | changes
    with pytest.raises(BundleInvalid) as caught:
        EncoderSpec.from_json(json.dumps(described), where="encoder.json")
    assert one_line(caught.value).startswith("encoder.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", "no json", '{"format_version": 1}'])
def test_what_is_no_description_is_refused(text: str) -> None:
    with pytest.raises(BundleInvalid) as caught:
        EncoderSpec.from_json(text)
    one_line(caught.value)


def test_a_use_checks_itself() -> None:
    for wrong in ({"name": ""}, {"sha256": "abc"}, {"channels": 0}, {"taps": ()}, {"taps": (1, 0)}, {"taps": (0, 0)}):
        with pytest.raises(ValueError, match=r"a window has|an encoder has"):
            EncoderUse(**{"name": "ear", "sha256": SHA, "channels": 4, "taps": (0,)} | wrong)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------- where it is found


def test_the_encoder_beside_the_bundle_wins(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over one of that name that came with lipdub, and over one in the working folder."""
    shelf = tmp_path / "shelf"
    other = write_fake_encoder(shelf / "ear", channels=4)
    monkeypatch.setattr(bundle, "_shelves", lambda: (shelf,))
    monkeypatch.chdir(shelf)
    spec = encoder.load_spec(folder / "ear")
    assert encoder.find("ear", spec.graphs[encoder.GRAPH], beside=folder / "hears") == (folder / "ear", spec)
    # Elsewhere the one that came with lipdub is taken.
    (tmp_path / "elsewhere").mkdir()
    assert encoder.find("ear", other.graphs[encoder.GRAPH], beside=tmp_path / "elsewhere" / "hears") == (shelf / "ear", other)


def test_another_encoder_of_that_name_is_refused(folder: Path) -> None:
    with pytest.raises(BundleInvalid, match="another encoder") as caught:
        encoder.find("ear", SHA, beside=folder / "hears")
    assert str(folder / "ear") in one_line(caught.value)


def test_an_encoder_that_is_missing_is_told(folder: Path) -> None:
    with pytest.raises(BundleNotFound, match="no_such_ear") as caught:
        encoder.find("no_such_ear", SHA, beside=folder / "hears")
    one_line(caught.value)


@pytest.mark.parametrize("damage", ["altered", "gone", "unfinished"])
def test_a_damaged_encoder_is_refused(folder: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    graph = tmp_path / "ear" / encoder.GRAPH
    if damage == "altered":
        graph.write_bytes(graph.read_bytes() + b"\0")
    elif damage == "gone":
        graph.unlink()
    else:
        unfinished = replace(encoder.load_spec(tmp_path / "ear"), graphs={})
        (tmp_path / "ear" / encoder.SPEC_FILE).write_text(unfinished.to_json())
    with pytest.raises(BundleInvalid) as caught:
        open_model(str(tmp_path / "hears"), device="cpu", threads=1)
    one_line(caught.value)


def test_a_bundle_does_not_open_without_its_encoder(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "hears", tmp_path / "hears")
    with pytest.raises(BundleNotFound, match="'ear'"):
        open_model(str(tmp_path / "hears"), device="cpu", threads=1)


# ----------------------------------------------------------------------------------------------------------- the grid


def test_windows_lie_on_the_grid(ear: SpeechEncoder) -> None:
    """Against the log-mel of the whole sound: window k begins `context` before k cores, silence outside."""
    samples = noise(round(2.7 * RATE_HZ))
    step, context = 2 * ear.spec.core, 2 * ear.spec.context
    whole = np.pad(log_mel(samples), ((0, 0), (context, 4 * step)), constant_values=SILENT)
    windows = list(grid_windows(cut(samples, quarters(samples)), ear.spec))
    assert len(windows) == 3
    for number, window in enumerate(windows):
        assert window.shape == (80, ear.spec.columns)
        np.testing.assert_allclose(window, whole[:, number * step : number * step + ear.spec.columns], atol=1e-5)


@pytest.mark.parametrize(("seconds", "windows"), [(0.0, 1), (0.01, 1), (0.88, 1), (0.98, 2), (1.0, 2), (1.2, 2), (2.0, 3), (2.3, 3)])
@pytest.mark.parametrize("context_s", [0.0, 0.2, 1.5])
def test_windows_go_on_until_a_tenth_of_a_second_behind_the_sound(context_s: float, seconds: float, windows: int) -> None:
    spec = replace(SPEC, core_s=1.0, context_s=context_s)
    samples = noise(round(seconds * RATE_HZ))
    for sizes in ([], [1, 2], quarters(samples)):
        assert sum(1 for _ in grid_windows(cut(samples, sizes), spec)) == windows
    if not len(samples):
        assert sum(1 for _ in grid_windows([], spec)) == 1


@given(
    seconds=st.floats(0.0, 3.5),
    sizes=st.lists(st.integers(0, 30_000), max_size=8),
    times=st.lists(st.floats(0.0, 3.4), min_size=1, max_size=12),
)
@settings(max_examples=30)
def test_a_stream_equals_the_whole(ear: SpeechEncoder, seconds: float, sizes: list[int], times: list[float]) -> None:
    """Any blocks, any rising times, one or many at a time."""
    samples = noise(round(seconds * RATE_HZ), 3)
    whole = feature_track(samples, ear)
    assert len(whole) == -(-len(samples) * 50 // RATE_HZ) + 1
    # What lies behind the end of the sound the whole does not hold.
    times_s = np.sort([time_s for time_s in times if time_s + 0.06 <= seconds] or [0.0])
    expected = interpolated(whole, times_s[:, None] * 50 + np.array(TAPS))
    if seconds < 0.06:
        expected[:, -1] = 0  # a tap behind the end
    for groups in ([times_s], np.split(times_s, range(1, len(times_s)))):
        track = FeatureTrack(cut(samples, sizes), ear, TAPS)
        found = np.concatenate([track.windows(group) for group in groups])
        assert found.dtype == np.float32
        if seconds < 0.06:
            found[:, -1] = 0
        np.testing.assert_allclose(found, expected, atol=1e-5)


@given(cores=st.integers(1, 2), seed=st.integers(0, 5), after=st.floats(0.0, 2.0))
@settings(max_examples=15)
def test_a_moment_has_the_same_features_whatever_came_before_and_comes_after(
    ear: SpeechEncoder, cores: int, seed: int, after: float
) -> None:
    """Cut off before a multiple of the core, all but the first window see the same; whatever is added, all but the last one do."""
    samples = noise(round(4.5 * RATE_HZ), seed)
    whole = feature_track(samples, ear)
    later = feature_track(samples[round(cores * CORE_S * RATE_HZ) :], ear)
    first = ear.spec.core
    kept = len(later) - first
    np.testing.assert_allclose(later[first:], whole[cores * ear.spec.core + first :][:kept], atol=1e-5)
    longer = feature_track(np.concatenate([samples, noise(round(after * RATE_HZ), 9, 0.9)]), ear)
    # 4.5 s end in the fifth window; the fourth one sees 0.2 s of it.
    np.testing.assert_allclose(longer[: 4 * ear.spec.core], whole[: 4 * ear.spec.core], atol=1e-5)


def test_the_fake_shows_when_the_grid_is_not_kept(ear: SpeechEncoder) -> None:
    """Its channel 1 knows the whole window: cut off elsewhere, features differ. So the tests above tell something."""
    samples = np.concatenate([noise(2 * RATE_HZ), np.zeros(2 * RATE_HZ, np.float32)])
    later = feature_track(samples[round(0.5 * RATE_HZ) :], ear)
    assert np.abs(later[50:150, 1] - feature_track(samples, ear)[75:175, 1]).max() > 0.1


def test_features_are_those_of_the_whole_mel_where_the_encoder_only_looks_near(ear: SpeechEncoder) -> None:
    """Channel 0 by hand: nothing shows where one window ends and the next one begins."""
    samples = noise(round(3.3 * RATE_HZ), 4)
    loudness = np.pad(log_mel(samples).mean(axis=0), 2, constant_values=SILENT)
    by_hand = 0.25 * loudness[1:-3:2] + 0.5 * loudness[2:-2:2] + 0.25 * loudness[3:-1:2]
    found = feature_track(samples, ear)[:, 0]
    np.testing.assert_allclose(found[: len(by_hand)], by_hand[: len(found)], atol=1e-5)


# ----------------------------------------------------------------------------------------------------------------- times


@given(time_s=st.floats(0.05, 2.9))
@settings(max_examples=25)
def test_an_impulse_lies_at_its_time(ear: SpeechEncoder, time_s: float) -> None:
    samples = np.zeros(3 * RATE_HZ, np.float32)
    samples[round(time_s * RATE_HZ)] = 1.0
    loudness = feature_track(samples, ear)[:, 0] - SILENT
    middle_s = float((loudness * np.arange(len(loudness))).sum() / loudness.sum()) / 50
    assert abs(middle_s - time_s) <= 0.01
    assert loudness[np.abs(np.arange(len(loudness)) / 50 - time_s) > 0.045].max() < 1e-5


def test_before_the_sound_the_first_position_goes_on(ear: SpeechEncoder) -> None:
    samples = noise(2 * RATE_HZ, 5)
    first = feature_track(samples, ear)[0]
    track = FeatureTrack([samples], ear, (0,))
    np.testing.assert_allclose(track.windows(np.array([-60.0, -1.0, -0.001, 0.0]))[:, 0], np.repeat(first[None], 4, axis=0), atol=1e-3)


@pytest.mark.parametrize("early", [-0.02, -1.0, -60.0])
def test_a_sound_may_be_asked_for_before_it_begins_first_of_all(ear: SpeechEncoder, early: float) -> None:
    samples = noise(2 * RATE_HZ, 5)
    found = FeatureTrack([samples], ear, (0,)).windows(np.array([early]))
    np.testing.assert_allclose(found[0, 0], feature_track(samples, ear)[0], atol=1e-5)


@pytest.mark.parametrize("seconds", [0.7, 1.0, 1.98, 2.0, 2.3])
def test_after_the_sound_the_end_goes_on_as_silence(ear: SpeechEncoder, seconds: float) -> None:
    samples = noise(round(seconds * RATE_HZ), 6)
    track = FeatureTrack([samples], ear, TAPS)
    track.windows(np.arange(0, seconds, 0.04))
    soon, later, much_later = (track.windows(np.array([seconds + by]))[0, 1] for by in (3.0, 30.0, 3600.0))
    np.testing.assert_array_equal(soon, later)
    np.testing.assert_array_equal(later, much_later)
    assert later[0] == pytest.approx(SILENT, abs=1e-5)


def test_no_sound_at_all_is_silence(ear: SpeechEncoder) -> None:
    for blocks in ([], [np.zeros(0, np.float32)], [np.zeros(3, np.float32)]):
        track = FeatureTrack(blocks, ear, TAPS)
        found = track.windows(np.array([0.0, 1.0]))
        assert found.shape == (2, 3, ear.spec.channels)
        np.testing.assert_allclose(found[:, :, 0], SILENT, atol=1e-5)
    assert feature_track(np.zeros(0, np.float32), ear).shape == (1, ear.spec.channels)


def test_nothing_asked_is_nothing_answered(ear: SpeechEncoder) -> None:
    track = FeatureTrack([noise(100)], ear, TAPS)
    assert track.windows(np.zeros(0)).shape == (0, 3, ear.spec.channels)


@given(
    steps=st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=15),
    taps=st.sampled_from([(0,), TAPS, (-12, 0, 12)]),
)
@settings(max_examples=30)
def test_times_may_go_back_by_a_second(ear: SpeechEncoder, steps: list[float], taps: tuple[int, ...]) -> None:
    samples = noise(6 * RATE_HZ, 7)
    whole = feature_track(samples, ear)
    track = FeatureTrack(cut(samples, quarters(samples)), ear, taps)
    time_s = latest_s = 2.0
    for step in steps:
        time_s = min(5.5, max(0.3, latest_s - 1, time_s + step))
        latest_s = max(latest_s, time_s)
        found = track.windows(np.array([time_s]))
        np.testing.assert_allclose(found[0], interpolated(whole, time_s * 50 + np.array(taps)), atol=1e-4)


@given(rows=st.integers(1, 6), positions=st.lists(st.floats(-5, 12), min_size=1, max_size=8))
def test_between_two_positions_features_are_interpolated(rows: int, positions: list[float]) -> None:
    track = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
    expected = np.stack([np.interp(positions, np.arange(rows), track[:, channel]) for channel in range(3)], axis=1)
    np.testing.assert_allclose(interpolated(track, np.array(positions)), expected, atol=1e-5)


def test_memory_stays_flat_over_ten_minutes(ear: SpeechEncoder) -> None:
    block = noise(RATE_HZ, 8)
    track = FeatureTrack((block for _ in range(600)), ear, TAPS)
    held = []
    tracemalloc.start()
    try:
        for second in range(600):
            track.windows(second + np.arange(5) / 5)
            held.append(len(track._features))
            if second == 20:
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A window and a second, however long the sound.
    assert max(held) <= ear.spec.core + 3 * 50
    assert peak - before < 2 * 2**20


# ----------------------------------------------------------------------------------------------------------- the graph


def test_a_graph_that_answers_no_numbers_is_refused(tmp_path: Path) -> None:
    write_fake_encoder(tmp_path / "ear", nan=True)
    with pytest.raises(BundleInvalid, match=r"encoder\.onnx gave no features but NaN or infinity") as caught:
        feature_track(noise(100), opened(tmp_path / "ear"))
    one_line(caught.value)


def test_a_sound_that_is_no_number_is_refused(ear: SpeechEncoder) -> None:
    samples = noise(RATE_HZ)
    samples[5000] = np.nan
    with pytest.raises(BundleInvalid, match="NaN or infinity"):
        FeatureTrack([samples], ear, TAPS).windows(np.array([0.3]))


@pytest.mark.parametrize("changes", [{"channels": 4}, {"core_s": 2.0}])
def test_a_description_that_the_graph_does_not_fit_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(BundleInvalid, match=r"encoder\.onnx (takes|gives)"):
        SpeechEncoder(folder / "ear", replace(encoder.load_spec(folder / "ear"), **changes), device="cpu")


def test_threads_may_ask_at_once(ear: SpeechEncoder) -> None:
    samples = noise(3 * RATE_HZ)
    expected = feature_track(samples, ear)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: feature_track(samples, ear), range(8)):
            np.testing.assert_array_equal(found, expected)


def test_it_says_what_it_is(ear: SpeechEncoder) -> None:
    assert repr(ear) == "SpeechEncoder(ear, CPUExecutionProvider)"


# ------------------------------------------------------------------------------------------------ a bundle on top of it


def memory_of(folder: Path) -> OnnxMemory:
    return OnnxMemory(folder, bundle.load_spec(folder), device="cpu", threads=1)


def test_a_bundle_on_an_encoder_hears_it_alone() -> None:
    use = EncoderUse("ear", SHA, 6, TAPS)
    spec = replace(fake_spec(), mel=None, encoder=use)
    assert bundle.tensors(bundle.MEMORY_GRAPH, spec).inputs == {bundle.FEATURES: ("B", 3, 6)}
    assert bundle.BundleSpec.from_json(spec.to_json()) == spec
    for changes in ({"mel": fake_spec().mel}, {"encoder": None}):
        with pytest.raises(ValueError, match="either mel or the features of an encoder"):
            replace(spec, **changes)
    with pytest.raises(ValueError, match="voice_bands"):
        replace(spec, voice_bands=1)


@pytest.mark.parametrize("count", [0, 1, 9])
def test_a_memory_recalls_features(folder: Path, count: int) -> None:
    memory = memory_of(folder / "hears")
    windows = np.random.default_rng(count).normal(size=(count, 3, 6)).astype(np.float32)
    recall = memory.recall(windows)
    assert recall.address.shape == (count, 8)
    assert recall.lip_feature.shape == (count, 4)
    for row in range(count):
        np.testing.assert_allclose(memory.recall(windows[row : row + 1]).lip_feature[0], recall.lip_feature[row], atol=1e-5)
    with pytest.raises(ValueError, match=r"windows must be float32 \(3, 3, 6\), got float32 \(3, 80, 16\)"):
        memory.recall(np.zeros((3, 80, 16), np.float32))


def test_a_track_gives_the_windows_that_the_memory_takes(folder: Path, ear: SpeechEncoder) -> None:
    memory, samples = memory_of(folder / "hears"), noise(RATE_HZ)
    times_s = np.arange(0, 0.9, 0.04)
    windows = memory.track(cut(samples, quarters(samples))).windows(times_s)
    np.testing.assert_allclose(windows, interpolated(feature_track(samples, ear), times_s[:, None] * 50 + np.array(TAPS)), atol=1e-5)
    opening = memory.recall(windows).lip_feature[:, 0]
    silent = memory.recall(memory.track([0 * samples]).windows(times_s)).lip_feature
    assert (opening > 0.6).all()
    np.testing.assert_allclose(silent, np.repeat(slot_values(8, 4)[:1], len(times_s), axis=0), atol=0.02)


@pytest.mark.parametrize("name", ["hears", "smooth"])
def test_listening_follows_the_sound(folder: Path, tmp_path: Path, name: str) -> None:
    memory = memory_of(folder / name)
    levels = np.repeat([0.9, 0.0, 0.01], RATE_HZ).astype(np.float32)
    write_wav(tmp_path / "speech.wav", levels * np.random.default_rng(0).uniform(-1, 1, len(levels)))
    times_s = np.arange(75) / 25
    told: list[int] = []
    track = listen(tmp_path / "speech.wav", memory, times_s, rest_in_pauses=True, on_frames=told.append)
    found = track.frames(0, 75)
    feature, silence = (found.feature, found.silence) if hasattr(found, "feature") else found
    track.close()
    assert sum(told) == len(feature) == 75
    loud, pause, soft = feature[2:20, 0], feature[32:45, 0], feature[55:70, 0]
    assert loud.min() > soft.max() > soft.min() > pause.max()
    np.testing.assert_allclose(feature[32:45], np.repeat([memory.spec.rest_feature], 13, axis=0), atol=1e-5)
    assert (silence[32:45] == 1).all()
    assert (silence[2:20] == 0).all()
    assert 12 <= track.pauses <= 26


def test_a_model_opens_by_its_folder_alone(folder: Path) -> None:
    model = open_model(str(folder / "hears"), device="cpu", threads=1)
    assert model.spec.encoder == EncoderUse("ear", encoder.load_spec(folder / "ear").graphs[encoder.GRAPH], 6, TAPS)
    assert model.spec.mel is None


def test_taps_that_the_graph_does_not_have_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    use = bundle.load_spec(tmp_path / "hears").encoder
    assert use is not None
    rewrite_spec(tmp_path / "hears", encoder=replace(use, taps=(-1, 0)))
    with pytest.raises(BundleInvalid, match=r"memory\.onnx takes features"):
        open_model(str(tmp_path / "hears"), device="cpu", threads=1)


def test_louder_speech_draws_a_brighter_mouth(folder: Path, tmp_path: Path) -> None:
    side, frames = 256, 25
    draw_video(tmp_path / "clip.mp4", pictures=[scaled(pixels, (side, side)) for pixels in portrait_frames(frames)], fps=25)
    levels = np.repeat([0.9, 0.006, 0.0], [8000, 4000, 4000])
    write_wav(tmp_path / "speech.wav", levels * np.random.default_rng(1).uniform(-1, 1, len(levels)))
    options = DubOptions(device="cpu", preset="ultrafast", crf=4, threads=1, model=str(folder / "hears"))
    report = dub(tmp_path / "clip.mp4", tmp_path / "speech.wav", tmp_path / "out.mp4", options)
    assert report.frames == report.dubbed == frames
    middle = portrait_face().landmarks[[UPPER_LIP, LOWER_LIP], :2].mean(axis=0) * side / 512
    x, y = middle.astype(int)
    drawn, source = (
        np.concatenate([chunk.pixels for chunk in media.read_frames(tmp_path / name)])[:, y - 4 : y + 5, x - 6 : x + 7].mean(axis=(1, 2, 3))
        for name in ("out.mp4", "clip.mp4")
    )
    brighter = drawn - source
    assert brighter[2:11].min() > brighter[15:17].max() + 10
    assert brighter[15:17].min() > brighter[23:].max() + 5
