"""The exception tree of lipdub.

    LipdubError                  one line for the user; exit code 1
    ├── WriteFailed              a file that could not be written: no space, no permission, the folder is gone
    ├── MediaError               a file that holds pictures or sound
    │   ├── UnreadableMedia      missing, empty, truncated, a directory, no media at all
    │   ├── NoVideoStream        sound only, where pictures are needed
    │   ├── NoAudioStream        no sound, no samples, or samples that are no numbers
    │   ├── OutputRefused        the output path cannot be used (exists, folder missing, read-only, equals an input)
    │   └── EncodingFailed       FFmpeg or OpenCV could not encode or mux
    ├── ModelError               a bundle or one of its graphs
    │   ├── BundleNotFound       no such name or path
    │   ├── BundleInvalid        altered, of another format version, or graphs that do not fit what they declare
    │   └── ProviderUnavailable  the asked-for device did not really load
    ├── NoFaceFound              nobody to dub in the whole video, or (``--strict``) in one frame
    ├── ManifestError            a batch manifest that cannot be run
    ├── StorageFailed            a file in the cloud that cannot be looked at, fetched or put
    ├── ClusterFailed            a cluster that cannot be reached, or that lacks what the rows ask for
    ├── CurvesInvalid            a file of lip motion that cannot be read
    ├── PhonemesError            an alignment that cannot be read, or no synthesiser where speech is to be made
    └── TrainingError            training data, checkpoints and export
        ├── TrainingDataError    too little or unusable prepared data
        ├── CheckpointInvalid    no checkpoint, a checkpoint that would run code, or one of another configuration
        ├── MemoryCollapsed      the audio-lip memory uses (almost) one slot, or ignores the sound
        └── ExportFailed         graph and torch disagree, or torch cannot make the graph

Every message says what is wrong, where, and what to do next; foreign exceptions are mapped where they can appear
(``media/``, ``runtime/``, ``bundles/``, ``train/``) and chained with ``from``.
"""

from __future__ import annotations


class LipdubError(Exception):
    """Base of all errors that a user can do something about. Its text is one line: what, where, what to do next."""


class WriteFailed(LipdubError):
    """A file could not be written: no space, no permission, or its folder is gone. What was there before is untouched."""


class MediaError(LipdubError):
    """A file that holds pictures or sound cannot be used."""


class UnreadableMedia(MediaError):
    """The file is missing, empty, truncated, a directory, or no media at all."""


class NoVideoStream(MediaError):
    """The file holds no pictures where pictures are needed."""


class NoAudioStream(MediaError):
    """The file holds no sound, sound of zero length, or samples that are not finite numbers."""


class OutputRefused(MediaError):
    """The output path cannot be used: it exists, its folder is missing or read-only, or it is one of the inputs."""


class EncodingFailed(MediaError):
    """FFmpeg or OpenCV could not encode or mux; nothing was left behind."""


class ModelError(LipdubError):
    """A model bundle, or one of its graphs, cannot be used."""


class BundleNotFound(ModelError):
    """There is no bundle of that name or at that path."""


class BundleInvalid(ModelError):
    """The bundle was altered, is of another format version, or its graphs do not fit what it declares."""


class ProviderUnavailable(ModelError):
    """The device that was asked for did not really load."""


class NoFaceFound(LipdubError):
    """There is nobody to dub: in the whole video, or (``--strict``) in one of its frames."""


class ManifestError(LipdubError):
    """A batch manifest cannot be run. `problems`: all that is wrong with it, one line each, with the line of the file."""

    def __init__(self, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class StorageFailed(LipdubError):
    """A file at a URL cannot be looked at, fetched or put."""


class ClusterFailed(LipdubError):
    """A cluster cannot be reached, or it lacks what the rows of a batch ask for."""


class CurvesInvalid(LipdubError):
    """A file of lip motion cannot be read, or holds what lips cannot do."""


class PhonemesError(LipdubError):
    """An alignment cannot be read, or speech with known phonemes cannot be made."""


class TrainingError(LipdubError):
    """Preparing, training or exporting cannot go on."""


class TrainingDataError(TrainingError):
    """The prepared data is missing, too small or unusable."""


class CheckpointInvalid(TrainingError):
    """Not a checkpoint, one that would run code when loaded, or one of another configuration."""


class MemoryCollapsed(TrainingError):
    """The audio-lip memory uses (almost) one slot, or its recall ignores the sound."""


class ExportFailed(TrainingError):
    """The exported graph disagrees with torch, or torch cannot make it."""
