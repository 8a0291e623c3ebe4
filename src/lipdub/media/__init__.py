"""Pictures and sound in and out of files: probe, read, write, mux. The only importer of PyAV and ffmpeg-python.

Time is exact: a frame's time is ``ticks x time_base``, and the output has the ticks of the source. Pictures and sound share one
time zero, the container's own (see `files.origin_of_s`): where a file's sound starts late, ``read_audio`` begins with silence.

Colour is exact where it can be: planes are copied as they are. Pictures that must be converted to RGB and back are converted with
the matrix and range of their own stream. The output carries the source's colour tags.
"""

from lipdub.media.arranging import Laid, arranged, stretched
from lipdub.media.clock import cut_off
from lipdub.media.containers import VIDEO_SUFFIXES
from lipdub.media.converting import to_planes
from lipdub.media.copies import let_go_of_copies, readable
from lipdub.media.credentials import Credentials
from lipdub.media.cues import ranges_in, ranges_of
from lipdub.media.encoders import PictureEncoder, encoder_for
from lipdub.media.excerpt import excerpt, key_frame_s, sound_excerpt
from lipdub.media.joining import CannotCopy, Copies, Joiner, Stretch, plan_copies
from lipdub.media.kept import NOTHING_KEPT, Kept, plan_kept
from lipdub.media.muxing import mux
from lipdub.media.output import COMMENT, check_file, check_folder, check_output, check_picture, check_suffix, unfinished
from lipdub.media.pictures import probe, read_frames, read_planes, read_span
from lipdub.media.playback import play
from lipdub.media.sound import audio_duration_s, first_samples, has_sound, probe_sound, read_audio, write_wav
from lipdub.media.sound_plan import plan_sound
from lipdub.media.stills import encode_picture, fitted_photo
from lipdub.media.writer import Writer

__all__ = [
    "COMMENT",
    "NOTHING_KEPT",
    "VIDEO_SUFFIXES",
    "CannotCopy",
    "Copies",
    "Credentials",
    "Joiner",
    "Kept",
    "Laid",
    "PictureEncoder",
    "Stretch",
    "Writer",
    "arranged",
    "audio_duration_s",
    "check_file",
    "check_folder",
    "check_output",
    "check_picture",
    "check_suffix",
    "cut_off",
    "encode_picture",
    "encoder_for",
    "excerpt",
    "first_samples",
    "fitted_photo",
    "has_sound",
    "key_frame_s",
    "let_go_of_copies",
    "mux",
    "plan_copies",
    "plan_kept",
    "plan_sound",
    "play",
    "probe",
    "probe_sound",
    "ranges_in",
    "ranges_of",
    "read_audio",
    "read_frames",
    "read_planes",
    "read_span",
    "readable",
    "sound_excerpt",
    "stretched",
    "to_planes",
    "unfinished",
    "write_wav",
]
