"""The libraries: there, of the right kind, and working. Looked at in a process of their own, where a crash is a red line."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict

from lipdub.checkup.doctor.finding import Finding, guarded, one_line

REINSTALL = "install lipdub again into a new environment (README, 'Small installs')"
_NEEDED = {"numpy": "numpy", "cv2": "", "av": "av", "ffmpeg": "ffmpeg-python", "mediapipe": "mediapipe"}
"""Module to the package that brings it; cv2 comes from one of several."""
_SAME_FOLDER: Mapping[str, tuple[str, ...]] = {
    "cv2": ("opencv-contrib-python", "opencv-contrib-python-headless", "opencv-python", "opencv-python-headless"),
    "onnxruntime": ("onnxruntime", "onnxruntime-directml", "onnxruntime-gpu", "onnxruntime-openvino"),
}
"""Packages that write into the same folder: with two of them installed, it holds a mixture."""
CPU_INSTALL = "onnxruntime"
_INSTALLS = {CPU_INSTALL: "the CPU install: no GPU is used", "onnxruntime-gpu": "the install for CPUs and NVIDIA GPUs"}
"""What an ONNX Runtime makes of the installation."""


def look(task: object) -> list[dict[str, str]]:
    """All findings about libraries, as JSON."""
    found = guarded("libraries", imports, REINSTALL)
    for module in _SAME_FOLDER:
        found += guarded(module, lambda module=module: packages_of(module), REINSTALL)  # type: ignore[misc]
    found += guarded("face detection", faces, REINSTALL)
    found += guarded("ffmpeg", ffmpeg, "install FFmpeg 5 or later, or pip install --force-reinstall --no-deps imageio-ffmpeg")
    found += guarded("encoders", encoders, "pip install --force-reinstall av")
    return [asdict(finding) for finding in found]


def imports() -> Iterator[Finding]:
    """Each library loads; which versions."""
    versions = []
    for module, package in _NEEDED.items():
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:
            hint = (
                "install the system's libGL and glib (Debian: apt install libgl1 libglib2.0-0)"
                if "lib" in str(error).lower()
                else REINSTALL
            )
            yield Finding(module, "red", f"does not load: {one_line(error)}", hint)
        else:
            if package:
                versions.append(f"{package} {version_of(package)}")
    if versions:
        yield Finding("libraries", "green", ", ".join(versions))


def packages_of(module: str) -> Iterator[Finding]:
    """Exactly one package brings the module."""
    installed = [f"{package} {version}" for package in _SAME_FOLDER[module] if (version := version_of(package))]
    if len(installed) == 1:
        kind = _INSTALLS.get(installed[0].split()[0], "")
        yield Finding(module, "green", f"from {installed[0]}, and from no other package{kind and f'; {kind}'}")
    elif installed:
        wanted = "opencv-contrib-python" if module == "cv2" else "onnxruntime-gpu"
        names = " ".join(line.split()[0] for line in installed)
        yield Finding(
            module,
            "red",
            f"{' and '.join(installed)} lie in the same folder and have overwritten each other",
            f"pip uninstall -y {names} && pip install {wanted}",
        )
    else:
        yield Finding(module, "red", f"no package that brings {module} is installed", REINSTALL)


def faces() -> Iterator[Finding]:
    """mediapipe really finds a face: other versions of the libraries below it load, and then fail."""
    from lipdub import media
    from lipdub.checkup.sample_media import PORTRAIT
    from lipdub.faces.detector import MediapipeDetector

    with closing(media.read_planes(PORTRAIT)) as chunks:
        picture = next(chunks).picture(0)
    with MediapipeDetector() as detector:
        found = detector.detect(picture)
    if len(found) == 1:
        yield Finding("face detection", "green", f"mediapipe {version_of('mediapipe')} finds the face of a portrait")
    else:
        fix = "pip install --force-reinstall --no-deps mediapipe==0.10.21"
        yield Finding("face detection", "red", f"mediapipe {version_of('mediapipe')} finds {len(found)} faces in a portrait of one", fix)


def ffmpeg() -> Iterator[Finding]:
    """The ffmpeg program that joins picture and sound."""
    from lipdub.media import facts

    programs = list(facts.programs())
    used = next((program for program in programs if program.new_enough), None)
    if used is None:
        what = ", ".join(f"{program.path} {program.version or 'does not run'}" for program in programs) or "there is none"
        yield Finding("ffmpeg", "red", what, "install FFmpeg 5 or later, or pip install --force-reinstall --no-deps imageio-ffmpeg")
        return
    passed_over = next((program for program in programs if program is not used), None)
    if programs[0] is used or passed_over is None:
        yield Finding("ffmpeg", "green", f"{used.version} at {used.path}")
    else:
        why = f"passed over: {passed_over.path} {passed_over.version or 'does not run'}"
        yield Finding("ffmpeg", "yellow", f"{used.version} at {used.path}; {why}", "nothing to do; FFmpeg 5 or later on PATH would be used")
    if not facts.program_encodes(used, "aac"):
        yield Finding("ffmpeg's aac", "red", f"{used.path} was built without an AAC encoder", "install a full build of FFmpeg")


def encoders() -> Iterator[Finding]:
    """The encoders inside PyAV, each proved by a picture or a moment of sound."""
    from lipdub.media import facts

    for codec in ("libx264", "aac"):
        complaint = facts.complaint_of_encoder(codec)
        if complaint:
            yield Finding(codec, "red", complaint, "pip install --force-reinstall --only-binary av av")
        else:
            yield Finding(codec, "green", f"encodes ({facts.versions()})")
    if not facts.complaint_of_encoder("h264_nvenc"):
        yield Finding("h264_nvenc", "green", "encodes on the GPU, too; lipdub encodes with libx264")


def version_of(package: str) -> str:
    """The installed version of a package, "" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
