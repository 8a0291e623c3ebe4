"""Prepared clips as training samples. Sample i of a run depends on (seed, i) alone: a resumed run sees what it would have seen."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lipdub.bundles.network import EncoderUse, NetworkConfig
from lipdub.errors import TrainingDataError
from lipdub.records import MelSpec
from lipdub.references.shapes import EYE_DISTANCE, LOWER_INNER_LIP, REST_SHARE, UPPER_INNER_LIP
from lipdub.speech.mel import cut_windows
from lipdub.train.features import PreparedFeatures, load_features
from lipdub.train.networks import LIP_POINTS
from lipdub.train.prepare import FORMAT, GRID_HZ, MARGIN

LIP_SMOOTHING = 0.16
"""Share of each neighbouring frame in a frame's lip points: the detector's trembling must not teach."""
FEWEST_CLIPS = 2
FEWEST_FRAMES = 40
"""In all clips together: with less than this second and a half not even the memory's figures can be computed (``JUDGED_FRAMES``)."""
LARGEST_OFFSET_S = 1.0
"""A larger sound offset is a mistake: offsets are looked for within a quarter of a second, and no recorder is off by this."""
SPEAKER_BALANCE = 0.6
"""A speaker is drawn in proportion to (frames of that speaker) to this power: 1 by frames, 0 all alike."""
REFERENCE_JITTER = 0.025
"""Sigma of the scale of reference crops, and twice that of their shift. The alignment does not see the jaw, so little is enough to
keep margins from telling the answer; more of it keeps the decoder from copying skin and blurs."""
OFFSETS_FILE = "offsets.json"
"""Clip id to constant sound offset in seconds, where one was found (``lipdub train offsets``)."""


@dataclass(frozen=True, slots=True, repr=False)
class Clip:
    """One prepared clip of N frames near 25 Hz."""

    source: str
    clip_id: str
    speaker: str
    crops: NDArray[np.uint8]
    """uint8 (N, P, P, 3), memory-mapped."""
    mel: NDArray[np.float16]
    """(80, columns) of the whole sound."""
    times_s: NDArray[np.float64]
    """(N,)"""
    lips: NDArray[np.float32]
    """(N, 40, 2) relative to the resting mouth, unit crop."""
    rest: NDArray[np.float32]
    """(40, 2), the resting mouth."""
    opening: NDArray[np.float32]
    """(N,), over eye distance."""
    pose: NDArray[np.float32]
    """(N, 2), degrees."""
    shot: NDArray[np.int32]
    """(N,), number of the shot that each frame is in."""
    offset_s: float = 0.0
    """The sound that belongs to a frame at time t lies at t + offset_s."""
    features: PreparedFeatures | None = None
    """Of the speech encoder, where they were prepared."""

    def __len__(self) -> int:
        return len(self.times_s)

    def around(self, frames: NDArray[np.int64], offsets: NDArray[np.int64], *, end: int | None = None) -> NDArray[np.int64]:
        """Numbers (n, k) of the frames that lie `offsets` (k,) from `frames` (n,), ends repeated. Never across a cut: what lies in another
        shot is replaced by the frame itself. end: only frames before this one are there."""
        found = np.clip(frames[:, None] + offsets, 0, (len(self) if end is None else end) - 1)
        return np.where(self.shot[found] == self.shot[frames][:, None], found, frames[:, None])

    def __reduce__(self) -> tuple[Callable[..., Clip], tuple[object, ...]]:
        # To a loader's process goes the name of the crops' file, not the gigabytes in it.
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        if isinstance(self.crops, np.memmap) and self.crops.filename is not None:
            values["crops"] = Path(self.crops.filename)
        return _unpickled, (values,)

    def lip_windows(self, frames: NDArray[np.int64], length: int) -> NDArray[np.float32]:
        """The lips of these frames and of those around them, `length` in all: float32 (n, length, 40, 2)."""
        return self.lips[self.around(frames, np.arange(length) - length // 2)]

    def windows(self, frames: NDArray[np.int64], spec: MelSpec) -> NDArray[np.float32]:
        """Mel windows (n, 80, 16) of these frames, float32."""
        return cut_windows(self.mel.astype(np.float32, copy=False), self.times_s[frames] + self.offset_s, spec)

    def heard(self, frames: NDArray[np.int64], config: NetworkConfig) -> NDArray[np.float32]:
        """Windows of speech of these frames as the memory takes them; see `heard_at`."""
        return self.heard_at(self.times_s[frames], config)

    def heard_at(self, times_s: NDArray[np.float64], config: NetworkConfig, *, voice: int = 0) -> NDArray[np.float32]:
        """Windows of speech at times (n,) of the picture, float32: mel (n, 1, 80, 16), or encoder features (n, taps, D). voice: number of
        the variant of the sound, 0 for the sound as it is."""
        sound_s = times_s + self.offset_s
        if config.encoder is None:
            assert config.mel is not None  # the config holds one of the two
            return cut_windows(self.mel.astype(np.float32, copy=False), sound_s, config.mel)[:, None]
        return self.features_of(config.encoder).windows(sound_s, config.encoder.taps, voice)

    def features_of(self, use: EncoderUse) -> PreparedFeatures:
        """What was prepared with that speech encoder. Raises TrainingDataError where nothing was, or it was another one."""
        if self.features is None or self.features.sha256 != use.sha256:
            what = "no features of" if self.features is None else "features of another encoder than"
            raise TrainingDataError(f"'{self.source}' has {what} '{use.name}'; run lipdub prepare --encoder again")
        return self.features


def _unpickled(values: dict[str, Any]) -> Clip:
    if isinstance(values["crops"], Path):
        values = {**values, "crops": np.load(values["crops"], mmap_mode="r", allow_pickle=False)}
    return Clip(**values)


def load_clips(
    folder: Path, *, with_offsets: bool = True, size: int | None = None, on_skip: Callable[[str, str], None] | None = None
) -> list[Clip]:
    """The clips that ``lipdub prepare`` kept in `folder`, with the sound offsets found for them unless told not to.

    size: crop side that the network sees, where it is known. on_skip: told the source of each clip that cannot be used, and why; the
    others are loaded all the same.

    Raises TrainingDataError where there are none or too few, or where they were prepared for another size.
    """
    prepared_size, kept = _read_index(folder)
    if size is not None and prepared_size != size:
        raise TrainingDataError(f"'{folder}' was prepared for {prepared_size} px, the network sees {size}; prepare it with --size {size}")
    offsets = _read_offsets(folder / OFFSETS_FILE) if with_offsets else {}
    clips: list[Clip] = []
    skipped: list[tuple[str, str]] = []
    for source, clip_id, speaker in kept:
        offset_s = offsets.get(clip_id, 0.0)
        try:
            if offset_s is None:
                raise TrainingDataError("its lips agree with no offset of its sound (lipdub train offsets)")
            clips.append(load_clip(folder, source, clip_id, speaker, offset_s, prepared_size))
        except TrainingDataError as error:
            skipped.append((source, str(error)))
            if on_skip is not None:
                on_skip(source, str(error))
    frames = sum(len(clip) for clip in clips)
    if len(clips) < FEWEST_CLIPS or frames < FEWEST_FRAMES:
        damaged = f"; {len(skipped)} were skipped, the first, '{skipped[0][0]}': {skipped[0][1]}" if skipped else ""
        raise TrainingDataError(
            f"'{folder}' holds {len(clips)} usable clips ({frames} frames), at least {FEWEST_CLIPS} ({FEWEST_FRAMES} frames) are needed"
            f"{damaged}; prepare more footage"
        )
    return clips


def _read_index(folder: Path) -> tuple[int, list[tuple[str, str, str]]]:
    """Crop side that the clips were prepared for, and (source, clip id, speaker or "") of each that was kept. Raises TrainingDataError."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingDataError(f"'{folder}' holds no prepared clips; run: lipdub prepare CLIPS -o '{folder}'") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise TrainingDataError(f"'{folder}' was prepared by another version of lipdub; prepare it again")
    try:
        kept = [entry for entry in index["clips"] if entry["why"] is None]
        return int(index["size"]), [(str(entry["source"]), str(entry["clip_id"]), str(entry.get("speaker") or "")) for entry in kept]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TrainingDataError(f"'{folder / 'index.json'}' is damaged; run lipdub prepare again, it keeps what is whole") from error


def _read_offsets(file: Path) -> dict[str, float | None]:
    """Clip id to sound offset in seconds, None for a clip that agrees with none; nothing where there is no such file. Raises
    TrainingDataError."""
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {str(key): None if value is None else float(value) for key, value in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TrainingDataError(f"'{file}' is damaged; delete it, or run lipdub train offsets again") from error


def split_speakers(clips: list[Clip]) -> tuple[list[Clip], list[Clip]]:
    """(to train on, held out): about a tenth of the speakers, at least one, is held out whole. Raises TrainingDataError for one speaker."""
    speakers = sorted({clip.speaker for clip in clips})
    if len(speakers) < 2:
        raise TrainingDataError("all clips are of one speaker; give clips of another one with --val, to judge on")
    chosen = np.random.default_rng(0).permutation(len(speakers))[: max(1, len(speakers) // 10)]
    held = {speakers[i] for i in chosen}
    return [clip for clip in clips if clip.speaker not in held], [clip for clip in clips if clip.speaker in held]


def load_clip(folder: Path, source: str, clip_id: str, speaker: str, offset_s: float, size: int) -> Clip:
    """One clip, looked at whole but for its pictures. Raises TrainingDataError that says what is wrong with it."""
    if not abs(offset_s) <= LARGEST_OFFSET_S:
        raise TrainingDataError(f"its sound offset of {offset_s:g} s is wrong, at most {LARGEST_OFFSET_S:g} s can be")
    stored = round(size * MARGIN)
    try:
        # Opened here, since np.load leaves a damaged file open.
        with (folder / f"{clip_id}.npz").open("rb") as stream, np.load(stream, allow_pickle=False) as data:
            facts = {name: data[name] for name in ("mel", "times_s", "lips", "opening", "pose", "shot")}
        crops = np.load(folder / f"{clip_id}.crops.npy", mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise TrainingDataError(f"'{Path(error.filename).name}' is missing") from error
    except Exception as error:
        # Damaged files make numpy and zipfile raise nearly anything: BadZipFile, EOFError, NotImplementedError, MemoryError, ...
        raise TrainingDataError(
            f"its prepared files cannot be read ({' '.join(str(error).split())[:120] or type(error).__name__})"
        ) from error
    count = len(facts["times_s"]) if facts["times_s"].ndim else 0
    shapes = {"times_s": (count,), "lips": (count, LIP_POINTS, 2), "opening": (count,), "pose": (count, 2), "shot": (count,)}
    mel_fits = facts["mel"].ndim == 2 and facts["mel"].shape[0] == MelSpec().bands
    if count == 0 or not mel_fits or any(facts[name].shape != shape for name, shape in shapes.items()):
        raise TrainingDataError("its prepared files are damaged (its parts are of different lengths, or hold no frame)")
    if crops.dtype != np.uint8 or crops.shape != (count, stored, stored, 3):
        raise TrainingDataError(f"its prepared files are damaged (crops are {crops.dtype} {crops.shape}, not {(count, stored, stored, 3)})")
    if not all(np.issubdtype(part.dtype, np.number) and np.isfinite(part).all() for part in facts.values()):
        raise TrainingDataError("its prepared files are damaged (values that are no numbers)")
    lips, opening = smoothed(facts["lips"].astype(np.float32), facts["shot"]), facts["opening"]
    rest = lips[np.argsort(opening)[: max(1, round(REST_SHARE * count))]].mean(axis=0)
    return Clip(
        source=source, clip_id=clip_id, speaker=speaker or clip_id, crops=crops, mel=facts["mel"], times_s=facts["times_s"],
        lips=lips - rest, rest=rest, opening=opening, pose=facts["pose"], shot=facts["shot"], offset_s=offset_s,
        features=load_features(folder, clip_id),
    )  # fmt: skip


def smoothed(lips: NDArray[np.float32], shot: NDArray[np.int32]) -> NDArray[np.float32]:
    """Lip points (N, 40, 2) averaged a little with those of the frames before and after, of the same shot."""
    at = np.arange(len(lips))
    before, after = (np.where(shot[near] == shot, near, at) for near in (np.maximum(at - 1, 0), np.minimum(at + 1, len(lips) - 1)))
    return np.asarray((1 - 2 * LIP_SMOOTHING) * lips + LIP_SMOOTHING * (lips[before] + lips[after]), np.float32)


def opening_from_lips(lips: Tensor) -> Tensor:
    """Opening over eye distance from lip points (..., 40, 2) in unit crop coordinates; relative points give a relative opening."""
    return (lips[..., LOWER_INNER_LIP, 1] - lips[..., UPPER_INNER_LIP, 1]) / EYE_DISTANCE


def clip_shares(clips: list[Clip], balance: float) -> NDArray[np.float64]:
    """How often each clip is to be drawn, summing to 1: speakers in proportion to (their frames) ** balance, their clips by length."""
    lengths = np.array([len(clip) for clip in clips], np.float64)
    of_speaker: dict[str, float] = {}
    for clip in clips:
        of_speaker[clip.speaker] = of_speaker.get(clip.speaker, 0.0) + len(clip)
    weights = lengths * np.array([of_speaker[clip.speaker] ** (balance - 1) for clip in clips])
    return weights / weights.sum()


class ClipSamples(Dataset[dict[str, Tensor]]):
    """Samples of clips that are drawn at random, speakers balanced. Sample i depends on (seed, i) alone."""

    def __init__(self, clips: list[Clip], *, seed: int, balance: float = SPEAKER_BALANCE) -> None:
        self._clips, self._seed = clips, seed
        self._cumulative = np.cumsum(clip_shares(clips, balance))

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = np.random.default_rng((self._seed, index))
        clip = self._clips[min(int(np.searchsorted(self._cumulative, random.random())), len(self._clips) - 1)]
        return self.sample_of(clip, random)

    def sample_of(self, clip: Clip, random: np.random.Generator) -> dict[str, Tensor]:
        """One sample of that clip."""
        raise NotImplementedError


class Samples(ClipSamples):
    """Random samples of `frames` consecutive pictures (T of a window, or more) with everything that both stages need.

    A sample: ``pictures`` uint8 (T + 2R, S, S, 3) with R further frames on both sides for lip windows; ``reference`` uint8 (S, S, 3);
    ``mel`` float32 (T, 80, 16); where the network stands on an encoder ``features`` float32 (T, taps, D), in
    a random one of the prepared voices; where there is a sync expert ``judged`` float32 (T, K, D), its windows of the sound as it is;
    ``lips`` float32 (T, 40, 2).
    """

    def __init__(
        self, clips: list[Clip], config: NetworkConfig, *, seed: int, frames: int, with_reference: bool,
        balance: float = SPEAKER_BALANCE, judge: EncoderUse | None = None,
    ) -> None:  # fmt: skip
        """judge: how a sync expert hears, where there is one."""
        super().__init__(clips, seed=seed, balance=balance)
        self._config, self._frames, self._with_reference, self._judge = config, frames, with_reference, judge

    def sample_of(self, clip: Clip, random: np.random.Generator) -> dict[str, Tensor]:
        """Around a random frame of the clip."""
        reach = self._config.frames // 2
        middle = int(random.integers(len(clip)))
        offsets = np.arange(-(self._frames // 2) - reach, self._frames - self._frames // 2 + reach)
        indices = clip.around(np.array([middle]), offsets)[0]
        inner = indices[reach : reach + self._frames]
        flip = bool(random.random() < 0.5)
        tone = toned(random)
        jitter = jittered(random, 0.02)
        pictures = cut(clip.crops, indices, self._config.size, jitter, flip, tone)
        sample = {
            "pictures": torch.from_numpy(pictures),
            "mel": torch.from_numpy(clip.windows(inner, MelSpec())),
            "lips": torch.from_numpy(flip_lips(clip.lips[inner]) if flip else clip.lips[inner].copy()),
        }
        if self._config.encoder is not None:
            voice = int(random.integers(clip.features.voices)) if clip.features is not None else 0
            sample["features"] = torch.from_numpy(clip.heard_at(clip.times_s[inner], self._config, voice=voice))
        if self._judge is not None:
            heard_s = clip.times_s[inner] + clip.offset_s
            sample["judged"] = torch.from_numpy(clip.features_of(self._judge).windows(heard_s, self._judge.taps))
        if self._with_reference:
            chosen = np.array([self._choose_reference(clip, middle, random)])
            # Its own margins: a shared crop would tell how far the jaw hangs.
            reference = cut(clip.crops, chosen, self._config.size, jittered(random, REFERENCE_JITTER), flip, tone)
            sample["reference"] = torch.from_numpy(reference[0])
        return sample

    def _choose_reference(self, clip: Clip, middle: int, random: np.random.Generator) -> int:
        """Pose-similar and mouth-dissimilar, half of the time with the most closed mouth, as inference will have it."""
        candidates = random.integers(len(clip), size=8)
        far = candidates[np.abs(candidates - middle) > GRID_HZ / 5]
        candidates = far if len(far) else candidates
        pose_distance = np.abs(clip.pose[candidates] - clip.pose[middle]).sum(axis=1) / 15.0
        if random.random() < 0.5:
            mouth = clip.opening[candidates] / 0.15
        else:
            mouth = -np.abs(clip.opening[candidates] - clip.opening[middle]) / 0.15
        return int(candidates[np.argmin(pose_distance + mouth)])


class _Steps(Sampler[int]):
    """The sample numbers of this process, from a step on: rank r of n takes its share of every step's batch."""

    def __init__(self, first_step: int, steps: int, batch: int, rank: int, ranks: int) -> None:
        self._first, self._steps, self._batch, self._rank, self._ranks = first_step, steps, batch, rank, ranks

    def __iter__(self) -> Iterator[int]:
        for step in range(self._first, self._steps):
            for slot in range(self._batch):
                yield (step * self._ranks + self._rank) * self._batch + slot

    def __len__(self) -> int:
        return (self._steps - self._first) * self._batch


def loader(
    samples: Dataset[dict[str, Tensor]], *, first_step: int, steps: int, batch: int, rank: int, ranks: int, workers: int
) -> DataLoader[dict[str, Tensor]]:
    """Batches of the steps [first_step, steps), the same ones whatever the number of workers."""
    return DataLoader(
        samples,
        batch_size=batch,
        sampler=_Steps(first_step, steps, batch, rank, ranks),
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        # Not forked: OpenCV's and mediapipe's threads do not come along, and a child that waits for one of them waits for ever.
        multiprocessing_context="spawn" if workers else None,
        # Its own: an iterator that begins draws from the generator, and a resumed run would draw once more than one that went through.
        generator=torch.Generator(),
        worker_init_fn=_one_thread,
        pin_memory=torch.cuda.is_available(),
    )


def _one_thread(_: int) -> None:
    cv2.setNumThreads(1)


def to_network(pictures: Tensor) -> Tensor:
    """uint8 pictures (..., H, W, 3) to float32 (..., 3, H, W) in [-1, 1]."""
    return pictures.movedim(-1, -3).float() / 127.5 - 1.0


def to_pixels(pictures: Tensor) -> NDArray[np.uint8]:
    """The inverse of `to_network`, rounded; what lies beyond the range is clipped."""
    levels: NDArray[np.uint8] = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1).cpu().numpy()
    return levels


def jittered(random: np.random.Generator, amount: float) -> NDArray[np.float64]:
    """Random scale (as a factor) and shift (unit crop): (scale, dx, dy)."""
    scale = 1.0 + amount * float(np.clip(random.standard_normal(), -2, 2))
    shift = 0.5 * amount * np.clip(random.standard_normal(2), -2, 2)
    return np.array([scale, *shift])


def toned(random: np.random.Generator) -> NDArray[np.uint8]:
    """A random brightness, contrast and gamma as a table, one per channel: uint8 (256, 3)."""
    ramp = np.linspace(0.0, 1.0, 256)
    gamma = np.exp(0.2 * random.standard_normal())
    contrast = 1.0 + 0.12 * random.standard_normal()
    balance = 1.0 + 0.05 * random.standard_normal(3)
    values = (((ramp**gamma)[:, None] - 0.5) * contrast + 0.5) * balance
    return (np.clip(values, 0, 1) * 255).round().astype(np.uint8)


def cut(
    crops: NDArray[np.uint8],
    indices: NDArray[np.int64],
    size: int,
    jitter: NDArray[np.float64],
    flip: bool,
    tone: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """Network-sized crops (n, S, S, 3) of stored ones, all with the same jitter, mirror and tone."""
    stored = crops.shape[1]
    scale = float(jitter[0]) * stored / (size * MARGIN)
    centre = stored / 2 + jitter[1:] * stored / MARGIN
    matrix = np.array([[scale, 0, centre[0] - scale * size / 2], [0, scale, centre[1] - scale * size / 2]])
    matrix[:, 2] += 0.5 * (scale - 1)
    if flip:
        matrix[0] = [-scale, 0, matrix[0, 2] + scale * (size - 1)]
    result = np.empty((len(indices), size, size, 3), np.uint8)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    for slot, index in enumerate(indices):
        if slot and index == indices[slot - 1]:
            result[slot] = result[slot - 1]
            continue
        warped = cv2.warpAffine(crops[index], matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        result[slot] = cv2.LUT(warped, tone[None])
    return result


# The partner of each lip point when the face is mirrored; both rings run from the right corner (61, 78) under the lip to the left.
_RING_MIRROR = [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 19, 18, 17, 16, 15, 14, 13, 12, 11]
_MIRROR = np.array(_RING_MIRROR + [20 + i for i in _RING_MIRROR])


def flip_lips(lips: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lip points (n, 40, 2) about the vertical axis through zero, each in the place of its partner."""
    return np.ascontiguousarray(lips[:, _MIRROR] * np.array([-1, 1], np.float32))
