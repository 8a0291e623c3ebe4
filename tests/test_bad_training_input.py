"""Bad training data and bad luck, as a user meets them: named, skipped and counted, or one line and exit code 1 before any step is run;
a full disk, a kill and other settings never cost the checkpoint that is there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import needs_torch  # noqa: F401  (skips this file where torch is absent)
import numpy as np
import pytest
import torch
from commands import Ran, Run, in_this_process
from drawn import draw_video
from faces_for_tests import ScriptedDetector, face_at, portrait_frames
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import COMPACT, SIZE, STORED, write_clip, write_clips

from lipdub.errors import CheckpointInvalid
from lipdub.train import checkpoints, networks
from lipdub.train import loop as looping
from lipdub.train import prepare as preparing
from lipdub.train.data import load_clips
from lipdub.train.generator_stage import GeneratorStage
from lipdub.train.memory_stage import MemoryStage
from lipdub.train.networks import LipMemory
from lipdub.train.prepare import PrepareSettings

QUICK = ("--batch", "2", "--workers", "0", "--accelerator", "cpu", "--validate-every", "2")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run `lipdub` with arguments in this process, with toy networks behind its presets."""
    monkeypatch.setitem(networks.PRESETS, "compact", COMPACT)
    with in_this_process(monkeypatch, capfd) as run:
        yield run


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six prepared toy clips."""
    return write_clips(tmp_path_factory.mktemp("toys") / "prepared", clips=6)


@pytest.fixture
def prepared(toys: Path, tmp_path: Path) -> Path:
    """A copy of them that a test may damage."""
    return Path(shutil.copytree(toys, tmp_path / "prepared"))


def refused(ran: Ran, *words: str) -> None:
    """Exit code 1, and one line of error that holds these words."""
    assert ran.code == 1, ran
    (line,) = ran.err.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in ran.out
    for word in words:
        assert word in line, line


def memory_run(prepared: Path, out: Path, *options: str) -> tuple[str | Path, ...]:
    return ("train", "memory", prepared, "-o", out, "--slots", "12", *QUICK, *(options or ("--steps", "2")))


# ---- clips that cannot be prepared


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One usable clip of the portrait among others; a broken file stands in the middle."""
    folder = tmp_path_factory.mktemp("footage")
    speech = (np.random.default_rng(0).standard_normal(16000) * 0.2).astype(np.float32)
    draw_video(folder / "a_good.mp4", pictures=list(portrait_frames(20)), audio=speech)
    draw_video(folder / "b_faceless.mp4", size=(128, 96), frames=20, audio_s=0.8)
    (folder / "c_broken.mp4").write_bytes((folder / "a_good.mp4").read_bytes()[:4000])
    draw_video(folder / "d_mute.mp4", size=(128, 96), frames=20)
    return folder


@pytest.fixture(scope="module")
def of_footage(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``lipdub prepare`` is to write."""
    return tmp_path_factory.mktemp("of_footage") / "prepared"


def test_unusable_footage_is_named_and_counted_and_one_clip_is_not_enough(
    footage: Path, of_footage: Path, run: Run, tmp_path: Path
) -> None:
    ran = run("prepare", footage, "-o", of_footage, "--size", str(SIZE), "--workers", "1")
    assert ran.code == 0, ran
    assert "1 clips, " in ran.out
    dropped = [line for line in ran.out.splitlines() if line.startswith("dropped ")]
    assert len(dropped) == 3
    for name, why in (("b_faceless.mp4", "face"), ("c_broken.mp4", "cannot read"), ("d_mute.mp4", "no sound")):
        assert any(name in line and why in line for line in dropped), name
    ran = run(*memory_run(of_footage, tmp_path / "run"))
    refused(ran, "holds 1 usable clips (20 frames), at least 2", "prepare more footage")
    assert not (tmp_path / "run").exists()


def test_lost_and_damaged_files_are_made_anew(footage: Path, of_footage: Path, run: Run) -> None:
    """Runs after the test before it, whose clips it loses; the ones that were dropped are not looked at again."""
    again = ("prepare", footage, "-o", of_footage, "--size", str(SIZE), "--workers", "1")
    if not of_footage.exists():
        run(*again)
    (crops,), (facts,) = of_footage.glob("*.crops.npy"), of_footage.glob("*.npz")
    before = crops.read_bytes()
    stamps = {file: file.stat().st_mtime_ns for file in of_footage.glob("*.json") if file.stem != facts.stem and file.stem != "index"}
    crops.unlink()
    assert run(*again).code == 0
    assert crops.read_bytes() == before
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    for file in (crops, facts):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        assert preparing._already(of_footage, facts.stem) is None


def test_footage_without_a_face_is_one_line(footage: Path, run: Run, tmp_path: Path) -> None:
    ran = run("prepare", footage / "b_faceless.mp4", footage / "c_broken.mp4", "-o", tmp_path / "none", "--workers", "1")
    why = ("b_faceless.mp4", "a usable face for 0.0 s only", "give clips of one person who speaks to the camera")
    refused(ran, "none of the 2 clips can be used; the first", *why)
    refused(run(*memory_run(tmp_path / "none", tmp_path / "run")), "prepared for 128 px, the network sees 64")
    refused(run(*memory_run(tmp_path, tmp_path / "run")), "holds no prepared clips; run: lipdub prepare")
    assert not (tmp_path / "run").exists()


def scripted(max_faces: int) -> ScriptedDetector:
    """Sees the face of the portrait in each of the twenty frames of the footage."""
    return ScriptedDetector([[face_at()]] * 20)


prepare_clip = partial(preparing.prepare_clip, detectors=scripted)


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Writing beyond `size` fails with EFBIG: as real as a full disk, and it needs no disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_while_preparing_is_no_clips_fault(footage: Path, tmp_path: Path) -> None:
    """It raises OSError (a memory map would end the process), and nothing says that the clip cannot be used."""
    with files_no_larger_than(50_000), pytest.raises(OSError, match="too large"):
        prepare_clip(footage / "a_good.mp4", tmp_path, PrepareSettings(size=SIZE))
    assert not [file for file in tmp_path.iterdir() if not file.name.startswith(".")]
    assert prepare_clip(footage / "a_good.mp4", tmp_path, PrepareSettings(size=SIZE)).why is None


def test_a_clip_that_breaks_what_reads_it_is_named(footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(*_: object, **__: object) -> None:
        raise IndexError("index 9 is out of bounds\nfor axis 0")

    monkeypatch.setattr(preparing, "analyse", odd)
    done = prepare_clip(footage / "a_good.mp4", tmp_path, PrepareSettings(size=SIZE))
    assert done.why == "IndexError: index 9 is out of bounds for axis 0"


def test_what_is_shown_later_is_not_looked_at(footage: Path, tmp_path: Path) -> None:
    told: list[int] = []
    done = prepare_clip(footage / "a_good.mp4", tmp_path, PrepareSettings(size=SIZE), until_s=0.3, on_frames=told.append)
    assert done.why is None
    assert done.frames == sum(told) == 16, "chunks are read whole"
    with np.load(tmp_path / f"{done.clip_id}.npz") as facts:
        assert facts["times_s"][-1] < 0.7


# ---- prepared clips that are damaged


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def not_a_number(folder: Path) -> None:
    with np.load(folder / "clip4.npz") as data:
        facts = dict(data)
    facts["lips"][3, 2, 1] = np.nan
    np.savez(folder / "clip4.npz", **facts)


def test_damaged_clips_in_the_middle_are_named_and_skipped_and_counted(prepared: Path, run: Run, tmp_path: Path) -> None:
    truncate(prepared / "clip1.crops.npy")
    (prepared / "clip2.npz").write_bytes(b"PK\x03\x04 broken")
    (prepared / "clip3.crops.npy").unlink()
    not_a_number(prepared)
    ran = run(*memory_run(prepared, tmp_path / "run", "--steps", "2", "--val", prepared))
    assert ran.code == 0, ran
    lines = [line for line in ran.err.splitlines() if "skipped" in line]
    assert len(lines) == 2, "once for the clips to train on, once for those to judge on"
    (line,) = set(lines)
    assert line.startswith("4 of 6 clips in ")
    for part in ("clip1.mp4 (its prepared files cannot be read", "clip2.mp4 (its prepared", "clip3.mp4 ('clip3.crops.npy' is missing)"):
        assert part in line
    assert "clip4.mp4 (its prepared files are damaged (values that are no numbers))" in line
    assert line.endswith("run lipdub prepare again to make them anew")
    assert (tmp_path / "run" / "latest.pt").exists()


def test_many_damaged_clips_are_counted_and_the_first_few_named(tmp_path: Path, run: Run) -> None:
    folder = write_clips(tmp_path / "many", clips=11)
    for number in range(1, 9):
        (folder / f"clip{number}.npz").unlink()
    ran = run(*memory_run(folder, tmp_path / "run", "--steps", "1", "--val", folder))
    assert "8 of 11 clips in" in ran.err
    assert ran.err.count("is missing") == 2 * 5
    assert "and 3 more; run lipdub prepare again" in ran.err


@pytest.mark.parametrize("stage", ["memory", "generator"])
def test_too_few_whole_clips_end_it_before_any_step(prepared: Path, run: Run, tmp_path: Path, stage: str) -> None:
    for number in range(1, 6):
        truncate(prepared / f"clip{number}.npz")
    arguments: tuple[str | Path, ...] = memory_run(prepared, tmp_path / "run")
    if stage == "generator":
        checkpoints.save(
            tmp_path / "memory.pt", {"settings": {"network": COMPACT.to_dict()}, "modules": {"memory": LipMemory(COMPACT).state_dict()}}
        )
        arguments = ("train", "generator", prepared, "-o", tmp_path / "run", "--memory", tmp_path / "memory.pt", "--steps", "2", *QUICK)
    ran = run(*arguments)
    refused(ran, "holds 1 usable clips (48 frames), at least 2 (40 frames) are needed; 5 were skipped, the first, 'clip1.mp4'")
    assert not (tmp_path / "run").exists()


def test_too_few_frames_end_it_before_any_step(tmp_path: Path, run: Run) -> None:
    folder = write_clips(tmp_path / "brief", clips=2, frames=15)
    refused(run(*memory_run(folder, tmp_path / "run")), "holds 2 usable clips (30 frames), at least 2 (40 frames) are needed")
    folder = write_clips(tmp_path / "val", clips=3, frames=30)
    refused(run(*memory_run(folder, tmp_path / "run")), "no held-out clip has 40 frames", "--val")
    assert not (tmp_path / "run").exists()


def test_one_speaker_is_not_enough_to_judge_on(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    entries = [write_clip(folder, f"clip{number}", seed=number, speaker="Ann") for number in range(3)]
    (folder / "index.json").write_text(json.dumps({"format": preparing.FORMAT, "size": SIZE, "clips": entries}))
    refused(run(*memory_run(folder, tmp_path / "run")), "all clips are of one speaker", "--val")


@pytest.mark.parametrize("wrong", ["NaN", "Infinity", "99.0", "-1.5"])
def test_clips_with_wrong_offsets_are_named_and_skipped(prepared: Path, run: Run, tmp_path: Path, wrong: str) -> None:
    (prepared / "offsets.json").write_text(f'{{"clip0": 0.04, "clip1": {wrong}, "long_gone": 0.08}}')
    skipped: list[tuple[str, str]] = []
    clips = load_clips(prepared, on_skip=lambda *clip: skipped.append(clip))
    assert [source for source, _ in skipped] == ["clip1.mp4"]
    assert "sound offset" in skipped[0][1]
    assert "is wrong" in skipped[0][1]
    assert [clip.offset_s for clip in clips] == [0.04, 0.0, 0.0, 0.0, 0.0]
    (prepared / "offsets.json").write_text('{"clip0": "late"}')
    refused(run(*memory_run(prepared, tmp_path / "run")), "offsets.json' is damaged; delete it, or run lipdub train offsets again")


@pytest.mark.parametrize(
    "content",
    [
        {"format": preparing.FORMAT, "clips": []},
        {"format": preparing.FORMAT, "size": SIZE},
        {"format": preparing.FORMAT, "size": SIZE, "clips": [1]},
        {"format": preparing.FORMAT, "size": SIZE, "clips": [{"source": "a.mp4", "why": None}]},
        {"format": preparing.FORMAT, "size": "large", "clips": []},
        {"format": preparing.FORMAT, "size": SIZE, "clips": None},
    ],
)
def test_a_damaged_index_is_one_line(prepared: Path, run: Run, tmp_path: Path, content: dict[str, Any]) -> None:
    (prepared / "index.json").write_text(json.dumps(content))
    refused(run(*memory_run(prepared, tmp_path / "run")), "index.json' is damaged; run lipdub prepare again, it keeps what is whole")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 0.9999), noise=st.binary(min_size=1, max_size=20), crops=st.booleans())
def test_whatever_bytes_are_hit_the_others_are_loaded(toys: Path, tmp_path: Path, at: float, noise: bytes, crops: bool) -> None:
    """Damaged anywhere, the clip is skipped or still makes sense; no other exception gets out."""
    folder = tmp_path / "hit"
    if not folder.exists():
        shutil.copytree(toys, folder)
    name = "clip1.crops.npy" if crops else "clip1.npz"
    whole = (toys / name).read_bytes()
    # Of the crops the header is what can be misread.
    first = int(at * (128 if crops else len(whole)))
    (folder / name).write_bytes(whole[:first] + noise + whole[first + len(noise) :])
    skipped: list[str] = []
    try:
        clips = load_clips(folder, on_skip=lambda source, _: skipped.append(source))
    finally:
        shutil.copy2(toys / name, folder / name)
    assert len(clips) + len(skipped) == 6
    assert set(skipped) <= {"clip1.mp4"}
    for clip in clips:
        assert clip.crops.shape == (48, STORED, STORED, 3)
        assert np.isfinite(clip.lips).all()


# ---- resuming with other settings


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def with_leaf(values: dict[str, Any], name: str, value: object) -> dict[str, Any]:
    key, _, rest = name.partition(".")
    return {**values, key: with_leaf(values[key], rest, value) if rest else value}


@pytest.mark.parametrize("kind", ["memory", "generator"])
def test_every_setting_of_a_stage_is_named_when_it_differs(toys: Path, kind: str) -> None:
    clips = load_clips(toys)
    if kind == "memory":
        stage: looping.Stage = MemoryStage(COMPACT, clips[:4], clips[4:], 1e-3, 0)
    else:
        stage = GeneratorStage(COMPACT, LipMemory(COMPACT), clips[:4], clips[4:], 1e-3, 2e-4, 0)
    shared = {"stage": kind, **stage.settings()}
    checkpoints.require_same(Path("latest.pt"), shared, shared)
    names = dict(leaves(shared))
    assert {"network.slots", "network.mel.hop"} <= set(names)
    for name, value in names.items():
        with pytest.raises(CheckpointInvalid) as caught:
            checkpoints.require_same(Path("latest.pt"), with_leaf(shared, name, "another"), shared)
        assert f"({name}: 'another' there, {value!r} now); repeat those, or start a new run folder" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_resuming_with_another_configuration_is_refused_with_the_difference(prepared: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(*memory_run(prepared, out)).code == 0
    before = (out / "latest.pt").read_bytes()
    again = ("train", "memory", prepared, "-o", out, "--resume", "--workers", "0", "--accelerator", "cpu", "--steps", "4")
    for options, difference in (
        (("--slots", "10", "--batch", "2"), "network.slots: 12 there, 10 now"),
        (("--slots", "12", "--batch", "3"), "batch: 2 there, 3 now"),
        (("--slots", "12", "--batch", "2", "--rate", "1"), "rate: 0.0008 there, 1.0 now"),
        (("--slots", "12", "--batch", "2", "--seed", "5"), "seed: 0 there, 5 now"),
        (("--slots", "10", "--batch", "3"), "network.slots: 12 there, 10 now; batch: 2 there, 3 now"),
    ):
        refused(run(*again, *options), f"was trained with other settings ({difference}); repeat those, or start a new run folder")
    ran = run("train", "generator", prepared, "-o", out, "--memory", out / "latest.pt", "--resume", "--steps", "4", *QUICK)
    refused(ran, "was trained with other settings (stage: 'memory' there, 'generator' now)")
    assert (out / "latest.pt").read_bytes() == before
    assert run(*again, "--slots", "12", "--batch", "2").code == 0
    assert checkpoints.load(out / "latest.pt")["step"] == 4


def test_a_checkpoint_of_other_parts_is_refused(prepared: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(*memory_run(prepared, out))
    content = checkpoints.load(out / "latest.pt")
    for lost in ("modules", "optimizers", "random", "step"):
        checkpoints.save(out / "latest.pt", {key: value for key, value in content.items() if key != lost})
        refused(
            run(*memory_run(prepared, out, "--resume", "--steps", "4")),
            "holds other parts than this lipdub trains",
            "start a new run folder",
        )


# ---- a full disk, a kill


def whole(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("latest.pt", "best.pt")}


def no_leftovers(out: Path) -> bool:
    return not [file.name for file in out.iterdir() if "lipdub-part" in file.name]


def test_a_disk_that_is_really_full_costs_no_checkpoint(prepared: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(*memory_run(prepared, out)).code == 0
    before = whole(out)
    assert min(map(len, before.values())) > 120_000
    with files_no_larger_than(100_000):
        ran = run(*memory_run(prepared, out, "--resume", "--steps", "6"))
    assert ran.code == 1
    assert "error: cannot write" in ran.err.splitlines()[-1]
    assert "free some disk space, the previous checkpoint is untouched" in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err
    assert whole(out) == before
    assert no_leftovers(out)
    assert run(*memory_run(prepared, out, "--resume", "--steps", "6")).code == 0
    assert checkpoints.load(out / "latest.pt")["step"] == 6


@pytest.mark.parametrize("how", ["save", "replace"])
@pytest.mark.parametrize("name", ["latest.pt", "best.pt"])
def test_no_space_for_either_checkpoint_leaves_both_as_they_were(
    prepared: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    out = tmp_path / "run"
    assert run(*memory_run(prepared, out)).code == 0
    before = whole(out)
    save, replace = torch.save, os.replace

    def half(content: object, part: Path) -> None:
        save(content, part)
        if Path(part).name.startswith(f".{Path(name).stem}."):
            os.truncate(part, 1000)
            raise OSError(errno.ENOSPC, "No space left on device")

    def no_room(part: Path, path: Path) -> None:
        if Path(path).name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(part, path)

    with monkeypatch.context() as full:
        full.setattr(MemoryStage, "validate", lambda stage: looping.Validation({"score": float(stage._number)}))  # always the best so far
        full.setattr(torch, "save", half) if how == "save" else full.setattr(os, "replace", no_room)
        ran = run(*memory_run(prepared, out, "--resume", "--steps", "4"))
    refused(Ran(ran.code, ran.out, ran.err.splitlines()[-1]), f"{name}': No space left on device; free some disk space")
    after = whole(out)
    assert after["latest.pt"] == before["latest.pt"]
    assert name != "best.pt" or after == before
    assert {checkpoints.load(out / which)["step"] for which in after} <= {2, 4}
    assert no_leftovers(out)


def test_a_full_disk_under_tensorboard_is_one_line(prepared: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(looping.SummaryWriter, "add_scalar", full)
    monkeypatch.setattr(looping.SummaryWriter, "close", full)
    refused(run(*memory_run(prepared, tmp_path / "run")), "cannot write into", "No space left on device; free some disk space")


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv.pop(1))
name = sys.argv.pop(1)
from toys import COMPACT
from lipdub.train import loop, networks
from lipdub.train.memory_stage import MemoryStage
from lipdub.cli.app import main
networks.PRESETS["compact"] = COMPACT
MemoryStage.validate = lambda stage: loop.Validation({"score": float(stage._number)})
save = torch.save
def killed(content, part):
    save(content, part)
    if Path(part).name.startswith(f".{Path(name).stem}.") and content["step"] == 4:
        os.truncate(part, 1000)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = killed
main()
"""


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
@pytest.mark.parametrize("name", ["latest.pt", "best.pt"])
def test_killed_in_the_middle_of_a_checkpoint_it_goes_on_from_the_one_before(prepared: Path, run: Run, tmp_path: Path, name: str) -> None:
    out = tmp_path / "run"
    arguments = [str(part) for part in memory_run(prepared, out, "--steps", "6")]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(Path(__file__).parent), name, *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert [part.stat().st_size for part in out.glob(f".{Path(name).stem}.*.lipdub-part.pt")] == [1000]
    assert checkpoints.load(out / "latest.pt")["step"] == 2
    (out / "mine.part").write_text("not ours")
    assert run(*memory_run(prepared, out, "--resume", "--steps", "6")).code == 0
    assert checkpoints.load(out / "latest.pt")["step"] == 6
    assert checkpoints.load(out / "best.pt")["step"] in (2, 4, 6)
    assert [file.name for file in out.iterdir() if "part" in file.name] == ["mine.part"]
