"""The wheel in an environment of its own, with what `pip install lipdub` brings and no extra: every command works, or says what to install.

Nothing is downloaded: the environment borrows the installed packages of requirements/runtime.txt, one by one.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from drawn import draw_video, write_wav
from faces_for_tests import SPEECH, portrait_frames
from packaging.requirements import Requirement
from typer.main import get_command

from lipdub import media
from lipdub.cli.app import _EXTRAS, app

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TRAIN = r'error: {} needs torch; install it with: pip install "lipdub\[train\]"'


def commands(command: object, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """All commands there are, as words."""
    below = getattr(command, "commands", {})
    if not below or getattr(command, "invoke_without_command", False):
        yield words
    for name, one in below.items():
        yield from commands(one, (*words, name))


@dataclass(frozen=True)
class Case:
    """How a command is called, and the only line that it may fail with; "" where it works."""

    words: str
    fails: str = ""


CASES = {
    "sync": Case("talk.mp4 speech.wav -o out.mp4 -q"),
    "batch": Case("manifest.csv -q"),
    "evaluate": Case("dubbed.mp4 --source talk.mp4 --speech speech.wav -q"),
    "sheet": Case("talk.mp4 -o sheet.png"),
    "references": Case("talk.mp4 -o bank.png"),
    "faces": Case("talk.mp4 -o faces.png -q"),
    "lips": Case("speech.wav -o lips.csv -q"),
    "preview": Case("talk.mp4 speech.wav 0.5 -o moment.png -q"),
    "memory": Case("base -o look --seconds 1"),
    "cache": Case(""),
    "cache clear": Case(""),
    "cache path": Case(""),
    "doctor": Case("--no-dub"),
    "bench": Case("talk.mp4 --seconds 1 -q"),
    "adapt": Case("talk.mp4 -o anna", TRAIN.format("adapt")),
    "prepare": Case("spoken.mp4 -o prepared"),
    "train encoder": Case("weights.pt -o encoder", TRAIN.format("train encoder")),
    "train interior": Case("prepared -o run", TRAIN.format("train interior")),
    "train hearing": Case("prepared -o hearing", TRAIN.format("train hearing")),
    "train lips": Case("prepared -o lips", TRAIN.format("train lips")),
    "train memory": Case("prepared -o run", TRAIN.format("train memory")),
    "train expert": Case("prepared -o run", TRAIN.format("train expert")),
    "train reader": Case("prepared -o run", TRAIN.format("train reader")),
    "train offsets": Case("prepared", TRAIN.format("train offsets").replace("torch", "scipy")),
    "train generator": Case("prepared --memory weights.pt -o run", TRAIN.format("train generator")),
    "export-onnx": Case("weights.pt -o mine", TRAIN.format("export-onnx")),
}
OPTIONS = {
    "batch manifest.csv --ray local": r'error: --ray needs Ray; install it with: pip install "lipdub\[ray\]"',
    "batch cloud.csv": r'error: manifest .* install them with: pip install "lipdub\[cloud\]" .*',
    "evaluate dubbed.mp4 --source talk.mp4 --speech speech.wav --syncnet weights.pt": TRAIN.format("--syncnet"),
    "export-onnx models -o mine": TRAIN.format("export-onnx"),
}


def test_there_is_a_case_for_every_command() -> None:
    assert {" ".join(words) for words in commands(get_command(app))} == set(CASES)


def test_every_module_of_an_extra_is_known_where_it_is_missing() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    modules = {"scikit-learn": "sklearn"}
    named = {name: [re.split(r"[^\w-]", line)[0] for line in extras[name]] for name in ("train", "ray", "cloud")}
    brought = {modules.get(package, package).replace("-", "_"): extra for extra, packages in named.items() for package in packages}
    assert brought == _EXTRAS


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="make setup installs it")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that holds the wheel and what it needs to run."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for name in runtime_packages():
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {".", "..", "__pycache__"}:
            place = site / top
            if not place.exists():
                place.symlink_to(Path(str(distribution.locate_file(top))))
    return next(folder.glob("bin/python")) if os.name != "nt" else folder / "Scripts" / "python.exe"


def requirements(name: str) -> list[Requirement]:
    lines = (line.partition("  #")[0] for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines())
    return [Requirement(line) for line in lines if line.strip() and not line.startswith(("#", "-"))]


def runtime_packages() -> list[str]:
    """What requirements/runtime.txt names here; another OpenCV where that is the one that is installed."""
    names = [one.name for one in requirements("runtime") if one.marker is None or one.marker.evaluate()]
    return [next(found for found in CV2 if is_installed(found)) if name in CV2 else name for name in names]


CV2 = ("opencv-python-headless", "opencv-contrib-python", "opencv-python")


def is_installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    pictures = list(portrait_frames(50))
    draw_video(folder / "talk.mp4", pictures=pictures, fps=25)
    samples = media.first_samples(SPEECH, 16000, 32000)
    write_wav(folder / "speech.wav", samples)
    draw_video(folder / "spoken.mp4", pictures=pictures, fps=25, audio=samples)
    shutil.copy(folder / "talk.mp4", folder / "dubbed.mp4")
    (folder / "manifest.csv").write_text("video;speech;output\ntalk.mp4;speech.wav;batch.mp4\n")
    (folder / "cloud.csv").write_text("video,speech,output\ns3://bucket/talk.mp4,speech.wav,cloud.mp4\n")
    (folder / "weights.pt").write_bytes(b"weights")
    (folder / "prepared").mkdir()
    return folder


def lipdub(python: Path, work: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LIPDUB"))}
    environment |= {"HOME": str(work / "home"), "LIPDUB_CACHE": str(work / "cache")}
    command = [str(python), "-m", "lipdub", *words]
    return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("command", CASES)
def test_every_command_of_the_wheel(installed: Path, work: Path, command: str) -> None:
    case = CASES[command]
    ran = lipdub(installed, work, *command.split(), *case.words.split())
    assert "Traceback" not in ran.stderr
    if case.fails:
        assert (ran.returncode, re.fullmatch(case.fails, ran.stderr.strip()) is not None) == (1, True), ran.stderr
    else:
        assert ran.returncode == 0, ran.stderr + ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("words", OPTIONS)
def test_options_that_need_an_extra(installed: Path, work: Path, words: str) -> None:
    ran = lipdub(installed, work, *words.split())
    assert ran.returncode == 1
    assert re.fullmatch(OPTIONS[words], ran.stderr.strip()), ran.stderr


NEVER = ("jax", "jaxlib", "librosa", "llvmlite", "matplotlib", "numba", "scipy", "sentencepiece", "sklearn", "sounddevice", "torch")
"""What a dub does without: libraries that other commands, training or other parts of mediapipe use."""


def test_a_dub_loads_nothing_that_it_can_do_without(tmp_path: Path) -> None:
    """Whatever is installed: the first dub after an installation has nothing to compile, and is as quick as the second."""
    draw_video(tmp_path / "talk.mp4", pictures=list(portrait_frames(10)), fps=25)
    write_wav(tmp_path / "speech.wav", media.first_samples(SPEECH, 16000, 6400))
    program = (
        "import sys; sys.argv[1:] = 'sync talk.mp4 speech.wav -o out.mp4 -q --no-cache'.split()\n"
        "from lipdub.cli.app import main\n"
        "try: main()\n"
        f"finally: print(sorted(set({NEVER!r}) & {{name.partition('.')[0] for name in sys.modules}}))"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[]\n", "")


@pytest.mark.slow
def test_a_read_only_installation_without_a_home_says_nothing(installed: Path, work: Path) -> None:
    folders = [folder for folder in installed.parents[1].rglob("*") if folder.is_dir() and not folder.is_symlink()]
    for folder in folders:
        folder.chmod(0o555)
    try:
        words = ["sync", "talk.mp4", "speech.wav", "-o", "again.mp4", "-q"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LIPDUB", "XDG"))}
        command, environment = [str(installed), "-m", "lipdub", *words], {**environment, "HOME": os.devnull}
        ran = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=300, check=False)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_the_requirements_are_complete_without_what_a_dub_never_loads() -> None:
    """They are installed with --no-deps, so what is not listed is not there; the CPU's differ in ONNX Runtime alone."""
    runtime, cpu = ({one.name for one in requirements(name)} for name in ("runtime", "cpu"))
    assert runtime.isdisjoint({*NEVER, "scikit-learn", "opencv-contrib-python"} - {"matplotlib"})
    assert "onnxruntime-gpu" in runtime
    assert cpu == runtime - {"onnxruntime-gpu"} | {"onnxruntime"}
    wanted = {Requirement(line).name for line in PROJECT["project"]["dependencies"]}
    assert {name.lower().replace("_", "-") for name in wanted} <= runtime


@pytest.mark.parametrize("command", [name for name, case in CASES.items() if case.fails])
def test_commands_that_need_an_extra_name_it(tmp_path: Path, command: str) -> None:
    """The same in this environment, with torch made missing: quick, and without a wheel."""
    case = CASES[command]
    (tmp_path / "weights.pt").write_bytes(b"weights")
    program = f"import sys; sys.modules.update(dict.fromkeys({sorted(_EXTRAS)!r})); from lipdub.cli.app import main; main()"
    words = [sys.executable, "-c", program, *command.split(), *case.words.split()]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, re.fullmatch(case.fails, ran.stderr.strip()) is not None) == (1, True), ran.stderr
