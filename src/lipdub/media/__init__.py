"""Pictures and sound in and out of files: probe, read, write, mux. The only importer of PyAV and ffmpeg-python.

Time is exact: a frame's time is ``ticks x time_base``, copied tick for tick from the file to the output. Time zero is the
container's own zero (see `files.origin_of_s`), for pictures and sound alike, so ``read_audio`` starts with silence where a file's
sound starts late. Colour is carried like time: planes are copied as they are; where pictures are converted, it is with the matrix
and range of their own stream, there and back, and the tags are copied.
"""

from lipdub.atomic import part_file
from lipdub.media.containers import VIDEO_SUFFIXES
from lipdub.media.muxing import mux
from lipdub.media.output import COMMENT, check_folder, check_output, check_suffix
from lipdub.media.pictures import SPAN_FRAMES, probe, read_frames, read_planes, read_span, read_span_planes
from lipdub.media.sound import audio_duration_s, has_sound, read_audio
from lipdub.media.writer import Writer

__all__ = [
    "COMMENT",
    "SPAN_FRAMES",
    "VIDEO_SUFFIXES",
    "Writer",
    "audio_duration_s",
    "check_folder",
    "check_output",
    "check_suffix",
    "has_sound",
    "mux",
    "part_file",
    "probe",
    "read_audio",
    "read_frames",
    "read_planes",
    "read_span",
    "read_span_planes",
]
