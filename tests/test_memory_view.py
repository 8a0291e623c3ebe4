"""A look into the memory: usage, slots against phonemes, closures, the pictures and the command. Networks are fakes, figures are known."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn import draw_photo, draw_video, write_wav
from faces_for_tests import ScriptedDetector, face_at, portrait_face
from fakes import write_fake_bundle
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.font_manager import findfont, get_font

from benchmarks.closures import Closures, closures, random_closures
from lipdub.atomic import files_into
from lipdub.errors import BundleNotFound, MediaError, NoFaceFound, OutputRefused, PhonemesError, WriteFailed
from lipdub.memory_view import agreement as agreement_module
from lipdub.memory_view import look
from lipdub.memory_view import look as look_function
from lipdub.memory_view.agreement import agreement, clusters, information_bits
from lipdub.memory_view.mouths import PortraitCrop, draw, find_portrait, measure_openings
from lipdub.memory_view.pictures import STYLE
from lipdub.memory_view.usage import explained_by_address, slot_features, usage_of
from lipdub.model import open_model
from lipdub.phonetics import alignment_files, classes, espeak
from lipdub.phonetics.alignment import Alignment, Phoneme
from lipdub.phonetics.classes import BILABIAL, CLASSES

ROOT = Path(__file__).parent.parent
PORTRAIT = ROOT / "examples" / "portrait.jpg"
look_module = sys.modules[look_function.__module__]


def one_hot(numbers, slots: int, sharpness: float = 1.0) -> np.ndarray:
    """Addresses whose strongest slot is given and holds `sharpness`; the others share the rest evenly."""
    rest = (1 - sharpness) / (slots - 1)
    return (np.full((len(numbers), slots), rest) + np.eye(slots)[numbers] * (sharpness - rest)).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------ usage


@given(st.integers(2, 40), st.integers(1, 40), st.integers(1, 5))
def test_usage_of_addresses_that_take_turns(slots, used, times):
    used = min(slots, used)
    usage = usage_of(one_hot(list(range(used)) * times, slots))
    assert usage.perplexity == pytest.approx(used)
    assert usage.per_moment == pytest.approx(1)
    assert usage.top_slots == used == usage.used.sum()
    assert usage.slots_for_90 == int(np.ceil(0.9 * used - 1e-6))
    assert usage.share.sum() == pytest.approx(1)


def test_usage_of_flat_addresses():
    usage = usage_of(np.full((5, 20), 1 / 20, np.float32))
    assert usage.perplexity == pytest.approx(20)
    assert usage.per_moment == pytest.approx(20, rel=1e-4)
    assert not usage.used.any()
    with pytest.raises(ValueError, match="at least 1"):
        usage_of(np.zeros((0, 4), np.float32))


def test_a_slots_feature_is_that_of_its_strongest_windows():
    numbers = np.arange(400) % 4
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert slot_features(one_hot(numbers, 4, 0.9), values[numbers]) == pytest.approx(values)


def test_how_much_the_address_explains():
    random = np.random.default_rng(0)
    address = random.dirichlet(np.ones(8), 400).astype(np.float32)
    values = random.normal(size=(8, 5)).astype(np.float32)
    noise = random.normal(size=(400, 5)).astype(np.float32)
    assert explained_by_address(address, address @ values) > 0.999
    assert explained_by_address(address, noise) < 0.05
    assert np.isnan(explained_by_address(address[:20], noise[:20]))
    assert np.isnan(explained_by_address(address, np.ones((400, 5), np.float32)))


# -------------------------------------------------------------------------------------------------------- agreement


@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 1000))
def test_mutual_information(rows, columns, seed):
    random = np.random.default_rng(seed)
    left, right = random.dirichlet(np.ones(rows)), random.dirichlet(np.ones(columns))
    assert information_bits(np.outer(left, right)) == pytest.approx(0, abs=1e-9)
    joint = random.dirichlet(np.ones(rows * columns)).reshape(rows, columns)
    assert -1e-9 <= information_bits(joint) <= np.log2(min(rows, columns)) + 1e-9
    assert information_bits(np.diag(left)) == pytest.approx(-(left * np.log2(left)).sum())


def speech_of(symbols: str, length_s: float = 0.1) -> Alignment:
    return Alignment(tuple(Phoneme(k * length_s, (k + 1) * length_s, symbol) for k, symbol in enumerate(symbols)))


@pytest.fixture
def spoken():
    """Times, mel windows that tell nothing, the class of each moment, an alignment."""
    random = np.random.default_rng(0)
    alignment = speech_of("".join(random.choice(list("paisu "), 120)).replace(" ", "t"))
    times_s = np.arange(0, alignment.end_s - 1e-9, 0.02)
    windows = random.normal(size=(len(times_s), 10, 4)).astype(np.float32)
    return times_s, windows, alignment.classes_at(times_s), alignment


def test_slots_that_are_phonemes_agree(spoken):
    times_s, windows, kinds, alignment = spoken
    found = agreement(times_s, windows, one_hot(kinds, 16, 0.9), alignment)
    assert found.top_slot.information_bits == pytest.approx(found.class_bits)
    assert found.top_slot.accuracy == found.accuracy_address == 1
    assert found.top_slot.purity == pytest.approx(1)
    assert found.top_slot.groups == 6
    assert found.top_slot.shuffled_bits < 0.25 * found.class_bits
    assert found.mel_clusters.information_bits - found.mel_clusters.shuffled_bits < 0.3 * found.class_bits
    assert found.mel_clusters.accuracy < 0.5
    assert found.address_bits > 0.7 * found.class_bits > 10 * found.address_shuffled_bits
    for kind in np.unique(kinds):
        assert int(found.matrix[kind].argmax()) == kind
    assert found.windows.sum() == len(times_s)


def test_slots_that_know_nothing_reach_chance(spoken):
    times_s, windows, _, alignment = spoken
    random = np.random.default_rng(1)
    found = agreement(times_s, windows, random.dirichlet(np.ones(16), len(times_s)).astype(np.float32), alignment)
    assert found.top_slot.information_bits == pytest.approx(found.top_slot.shuffled_bits, abs=0.15)
    assert found.top_slot.accuracy < found.commonest + 0.08
    assert found.address_bits == pytest.approx(found.address_shuffled_bits, abs=0.01)


def test_clusters_of_sound_that_tells_the_phoneme_agree(spoken):
    times_s, windows, kinds, alignment = spoken
    random = np.random.default_rng(2)
    telling = windows * 0.05 + random.normal(size=(16, 10, 4)).astype(np.float32)[kinds]
    found = agreement(times_s, telling, random.dirichlet(np.ones(16), len(times_s)).astype(np.float32), alignment)
    assert found.mel_clusters.accuracy > 0.95
    assert found.accuracy_mel > 0.95


def test_too_little_speech_gives_no_figures():
    alignment = speech_of("pa")
    times_s = np.arange(0, 0.2, 0.02)
    found = agreement(times_s, np.zeros((10, 80, 16), np.float32), np.full((10, 4), 0.25, np.float32), alignment)
    assert np.isnan(found.class_bits)
    assert np.isnan(found.top_slot.accuracy)
    assert np.isfinite(found.matrix[BILABIAL]).all()
    assert look_module.agreement_lines(found) == ("too little speech for figures",)


def test_shuffling_keeps_phonemes_together():
    labels = np.repeat([1, 2, 1, 3], [4, 2, 5, 3])
    segments = np.repeat([0, 1, 2, 3], [4, 2, 5, 3])
    shuffled = agreement_module._shuffled(labels, segments, np.random.default_rng(5))
    assert sorted(shuffled) == sorted(labels)
    assert (np.diff(shuffled) != 0).sum() <= 3


def test_clusters_are_found_again():
    centres = np.array([[0, 0], [9, 0], [0, 9]], np.float32)
    numbers = np.arange(90) % 3
    rows = centres[numbers] + np.random.default_rng(0).normal(size=(90, 2)).astype(np.float32)
    found = clusters(rows, 3, 7)
    assert len({(a, b) for a, b in zip(found, numbers, strict=True)}) == 3
    assert np.array_equal(found, clusters(rows, 3, 7))


# --------------------------------------------------------------------------------------------------------- closures

TIMES = np.arange(0, 2, 0.04) + 0.001  # no frame lies on a border
PAPA = speech_of("papapapapapa")


def test_a_mouth_that_closes_at_bilabials():
    opening = np.where(PAPA.classes_at(TIMES) == BILABIAL, 0.02, 0.2)
    found = closures(TIMES, opening, PAPA)
    assert len(found.lowest) == 6
    assert found.share == 1
    assert found.unmeasured == 0
    assert found.mean_opening == pytest.approx(opening[TIMES < 1.2].mean())


def test_a_frozen_mouth_closes_nowhere():
    assert closures(TIMES, np.full(len(TIMES), 0.1), PAPA).share == 0
    assert random_closures(TIMES, np.full(len(TIMES), 0.1), PAPA) == 0


def test_chance_counts_what_a_fluttering_mouth_reaches():
    flutter = np.where(np.arange(len(TIMES)) % 2 == 0, 0.0, 0.2)
    assert closures(TIMES, flutter, PAPA).share == random_closures(TIMES, flutter, PAPA) == 1
    once = np.where(np.arange(len(TIMES)) == 10, 0.0, 0.2)
    assert random_closures(TIMES, once, PAPA) == pytest.approx(closures(TIMES, once, PAPA).share, abs=0.15)


def test_one_frame_beside_the_span_still_counts():
    alignment = Alignment((Phoneme(0, 0.4, "a"), Phoneme(0.4, 0.5, "m"), Phoneme(0.5, 1, "a")))
    for at, closes in ((0.36, True), (0.52, True), (0.28, False), (0.6, False)):
        opening = np.where(np.abs(TIMES - at) < 0.01, 0.0, 0.2)
        assert closures(TIMES, opening, alignment).closed.tolist() == [closes], at


def test_faces_that_were_not_seen_are_left_out():
    opening = np.where(TIMES < 0.25, np.nan, 0.1)
    found = closures(TIMES, opening, PAPA)
    assert (len(found.lowest), found.unmeasured) == (5, 1)
    nothing = closures(TIMES, np.full(len(TIMES), np.nan), PAPA)
    assert isinstance(nothing, Closures)
    assert np.isnan(nothing.share)
    assert np.isnan(random_closures(TIMES, opening, speech_of("aaa")))
    with pytest.raises(ValueError, match="one opening per time"):
        closures(TIMES, opening[1:], PAPA)


# ----------------------------------------------------------------------------------------------------------- mouths


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """A fake that hears loudness: slot 0 for silence, the last for the loudest; louder is brighter."""
    folder = tmp_path_factory.mktemp("bundle") / "fake"
    write_fake_bundle(folder, size=64, drawn=(32, 64, 8, 56), slots=8)
    return folder


@pytest.fixture(scope="module")
def portrait() -> PortraitCrop:
    return find_portrait(PORTRAIT, 64)


def test_a_portrait_is_an_aligned_crop(portrait):
    assert portrait.target.shape == portrait.reference.shape == (64, 64, 3)
    assert portrait.outline.shape[1] == 2
    assert 0 < portrait.outline.min() < portrait.outline.max() < 1.2
    assert np.isfinite(measure_openings(portrait.target[np.newaxis])).all()


def test_the_portrait_of_a_video_looks_at_the_camera(tmp_path):
    draw_video(tmp_path / "v.mp4", pictures=[np.full((192, 192, 3), 40 + 5 * k, np.uint8) for k in range(20)])
    detector = ScriptedDetector([face_at((96.0, 76.0), height=64.0, yaw_deg=abs(k - 7.0) * 2)] for k in range(20))
    portrait = find_portrait(tmp_path / "v.mp4", 64, detectors=lambda: detector)
    assert portrait.target.mean() == pytest.approx(40 + 5 * 7, abs=2)
    assert detector.seen == 20
    assert detector.closed


def test_who_has_no_face_cannot_sit(tmp_path):
    draw_photo(tmp_path / "p.png")
    with pytest.raises(NoFaceFound, match="--face"):
        find_portrait(tmp_path / "p.png", 64)


def test_lip_features_reach_the_mouth_and_nothing_else(bundle, portrait):
    model = open_model(str(bundle))
    features = np.zeros((40, 4), np.float32)
    features[:, 0] = np.linspace(0, 1, 40)
    told = []
    pictures = draw(model, portrait, features, on_drawn=told.append)
    assert told == [32, 40]
    light = pictures[:, 44:50, 28:36].reshape(40, -1).mean(axis=1)
    assert np.corrcoef(light, features[:, 0])[0, 1] > 0.9
    assert (pictures[:, :16] == pictures[0, :16]).all()
    # On the way through planes, whose chroma has half the sides, a level or two are lost.
    assert np.abs(pictures[0, :16].astype(int) - portrait.target[:16]).mean() < 2


# ------------------------------------------------------------------------------------------------- the whole command


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> tuple[Path, Alignment]:
    """Six seconds of noise that is loud for open vowels and quiet for bilabials; its alignment."""
    random = np.random.default_rng(0)
    symbols = "".join(random.choice(list("paos"), 20))
    alignment = speech_of(symbols, 0.3)
    level = np.repeat([{"p": 0.002, "s": 0.03, "o": 0.15, "a": 0.7}[symbol] for symbol in symbols], 4800)
    file = tmp_path_factory.mktemp("speech") / "speech.wav"
    write_wav(file, (level * random.uniform(-1, 1, len(level))).astype(np.float32))
    return file, alignment


@pytest.fixture(scope="module")
def looked(bundle, speech, tmp_path_factory):
    folder = tmp_path_factory.mktemp("looked") / "out"
    told = []
    report = look(str(bundle), speech[0], PORTRAIT, folder, alignment=speech[1], seconds=3, on_progress=lambda *step: told.append(step))
    return report, folder, told


def test_the_pictures_font_has_every_letter():
    font = get_font(findfont(STYLE["font.family"], fallback_to_default=False))
    assert [
        letter for letters in classes._IPA.values() for letter in letters.replace(" ", "") if not font.get_char_index(ord(letter))
    ] == []


def test_all_files_are_there_and_nothing_else(looked):
    report, folder, told = looked
    assert sorted(os.listdir(folder)) == sorted(report.files) == ["memory.json", "phonemes.png", "slots.png", "track.png", "usage.png"]
    assert os.listdir(folder.parent) == ["out"]
    for name in report.files[:-1]:
        picture = cv2.imread(str(folder / name))
        assert picture is not None
        assert picture.std() > 10
    assert cv2.imread(str(folder / "track.png")).shape[1] > 3 * 200
    assert {stage for stage, _, _ in told} == {"finding a face", "recalling", "drawing", "measuring"}
    assert all(total is None or done <= total for _, done, total in told)


def test_the_figures_are_those_of_the_fake(looked):
    """Loudness picks the slot, so slots tell the phonemes of this speech; slots between its levels are rarely used."""
    report, folder, _ = looked
    found = report.agreement
    assert found.top_slot.information_bits > 0.5 * found.class_bits > 3 * found.top_slot.shuffled_bits
    assert found.top_slot.accuracy > found.commonest + 0.2
    content = json.loads((folder / "memory.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert content["usage"]["perplexity"] == pytest.approx(report.usage.perplexity, abs=1e-5)
    assert len(content["usage"]["share"]) == 8 == len(content["opening"])
    assert content["agreement"]["windows"][BILABIAL] > 0
    assert content["classes"] == list(CLASSES)
    order = [int(found.matrix[classes.classes_of(symbol)[0]] @ np.arange(8) * 100) for symbol in "pa"]
    assert order[0] < order[1]


def blind_to_drawings():
    """Detectors: the first one knows the portrait's face, later ones see none."""
    first = iter([ScriptedDetector([[portrait_face()]])])
    return lambda: next(first, ScriptedDetector(itertools.repeat([])))


def test_mouths_that_nobody_sees_have_no_opening(bundle, speech, tmp_path):
    report = look(str(bundle), speech[0], PORTRAIT, tmp_path / "out", seconds=1, detectors=blind_to_drawings())
    assert np.isnan(report.opening).all()
    assert json.loads((tmp_path / "out" / "memory.json").read_text(encoding="utf-8"))["opening"] == [None] * 8


def test_what_exists_is_replaced_only_with_force(bundle, speech, looked, tmp_path):
    _, folder, _ = looked
    with pytest.raises(OutputRefused, match="--force"):
        look(str(bundle), speech[0], PORTRAIT, folder)
    again = tmp_path / "again"
    again.mkdir()
    for name in ("phonemes.png", "slots.png", "own.txt"):
        (again / name).write_bytes(b"old")
    report = look(str(bundle), speech[0], PORTRAIT, again, seconds=1, force=True, detectors=blind_to_drawings())
    assert "phonemes.png" not in report.files
    assert sorted(os.listdir(again)) == ["memory.json", "own.txt", "slots.png", "track.png", "usage.png"]
    assert (again / "own.txt").read_bytes() == b"old" != (again / "slots.png").read_bytes()
    assert os.listdir(tmp_path) == ["again"]


@pytest.mark.parametrize(
    ("change", "kind", "word"),
    [
        ({"model": "nobody"}, BundleNotFound, "nobody"),
        ({"speech": "none.wav"}, MediaError, "no such file"),
        ({"face": "none.png"}, MediaError, "no such file"),
        ({"out": "file"}, OutputRefused, "it is a file"),
        ({"out": "none/out"}, OutputRefused, "create it first"),
        ({"start_s": 60.0}, MediaError, "earlier start"),
        ({"alignment": Alignment((Phoneme(7, 8, "a"),))}, PhonemesError, "alignment of this speech"),
        ({"seconds": 0.0}, ValueError, "up to 120"),
    ],
)
def test_what_is_refused_leaves_nothing(bundle, speech, tmp_path, change, kind, word):
    (tmp_path / "file").write_bytes(b"old")
    asked = {"model": str(bundle), "speech": speech[0], "face": PORTRAIT, "out": "out", **change}
    for name in ("speech", "face", "out"):
        asked[name] = tmp_path / asked[name]
    with pytest.raises(kind, match=word):
        look(**asked)
    assert os.listdir(tmp_path) == ["file"]


def test_an_input_is_never_replaced(bundle, speech, tmp_path):
    (tmp_path / "slots.png").write_bytes(PORTRAIT.read_bytes())
    with pytest.raises(OutputRefused, match="it is the input"):
        look(str(bundle), speech[0], tmp_path / "slots.png", tmp_path, force=True)


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WriteFailed, match="No space left"), files_into(tmp_path / "out") as folder:
        (folder / "a").write_bytes(b"new")
    assert os.listdir(tmp_path / "out") == []
    with pytest.raises(KeyboardInterrupt), files_into(tmp_path / "other"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["out"]


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """The command line in an empty folder: arguments to (exit code, what it said)."""
    from lipdub.cli import console
    from lipdub.cli.app import main

    def command(*arguments: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        console.results.cache_clear()
        console.errors.cache_clear()
        monkeypatch.setattr(sys, "argv", ["lipdub", "memory", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        console.results.cache_clear()
        console.errors.cache_clear()
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out + said.err

    return command


def test_the_command(run, bundle, speech, tmp_path):
    rows = "".join(f"{one.start_s},{one.end_s},{one.symbol}\n" for one in speech[1])
    (tmp_path / "a.csv").write_text("start_s,end_s,phoneme\n" + rows)
    code, said = run(
        str(bundle), "--speech", str(speech[0]), "--face", str(PORTRAIT), "--alignment", "a.csv", "-o", "out", "--seconds", "1"
    )
    assert code == 0, said
    for word in ("mean share", "usage perplexity", "strongest slot", "mel clusters", "bilabial", "wrote slots.png"):
        assert word in said
    assert (tmp_path / "out" / "phonemes.png").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--espeak", "a", "--speech", "s.wav"], 2, "leave --speech"),
        (["--alignment", "a.csv"], 2, "needs the --speech"),
        (["--speech", "s.wav", "--alignment", "none.csv"], 1, "error: cannot read the alignment"),
        (["--speech", "none.wav", "--face", "none.png"], 1, "error: "),
        (["--seconds", "0"], 2, "--seconds"),
    ],
)
def test_the_command_refuses(run, bundle, tmp_path, arguments, code, word):
    found, said = run(str(bundle), "-o", "out", *arguments)
    assert found == code
    assert word in " ".join(said.split())
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not espeak.can_synthesise(), reason="espeak-ng is not installed")
def test_the_command_speaks_itself(run, bundle, tmp_path):
    code, said = run(str(bundle), "--espeak", "Bob may map it, papa.", "--voice", "en-us+f4", "--face", str(PORTRAIT), "-o", "out", "-q")
    assert (code, said) == (0, "")
    assert {"speech.wav", "alignment.csv", "phonemes.png"} <= set(os.listdir(tmp_path / "out"))
    assert len(alignment_files.read_alignment(tmp_path / "out" / "alignment.csv").spans_of(BILABIAL)) == 6


# -------------------------------------------------------------------------------------------------------- the measure


def test_the_measure_speaks_what_training_has_not_heard(monkeypatch):
    from lipdub.train.synthetic_speech import HELD_OUT_VARIANTS, WORDS

    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.bilabials import SENTENCES

    unseen = {voice for voice, _ in SENTENCES if voice.partition("+")[2] in HELD_OUT_VARIANTS}
    assert len(unseen) >= 2
    for _, text in SENTENCES:
        words = [word.strip(".,").lower() for word in text.split()]
        assert len(words) >= 7
        assert not any(" ".join(words) in " ".join(listed.split()) for listed in WORDS.values())


@pytest.mark.skipif(not espeak.can_synthesise(), reason="espeak-ng is not installed")
def test_the_measure_has_bilabials_enough(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.bilabials import make_speech, measure_utterance, summary

    utterances = make_speech(tmp_path / "speech.wav")
    assert sum(len(one.alignment.spans_of(BILABIAL)) for one in utterances) >= 100
    times_s = np.arange(0, utterances[-1].end_s + 1, 0.04)
    shut = np.full(len(times_s), 0.2)
    for one in utterances:
        for start_s, end_s in one.alignment.spans_of(BILABIAL):
            shut[(times_s >= start_s - 0.02) & (times_s <= end_s + 0.02)] = 0.0
    kinds = {"dubbed": shut, "untouched": shut[::-1], "frozen": np.full(len(times_s), 0.1), "by_slots": shut + 0.5}
    found = summary([measure_utterance(one, times_s, kinds) for one in utterances])
    assert found["dubbed"] == 1
    assert found["frozen"] == found["by_slots"] == 0
    assert found["untouched"] < 0.9
    assert found["random"] < 0.95
