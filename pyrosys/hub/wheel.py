"""Files inside published Python wheels (``pypi://package==version/path/in/wheel``).

Several labs ship weights inside their Python packages. The wheel is downloaded by pip, with the user's own pip
configuration (index, mirrors, proxies, credentials); one member is read from it. Nothing is installed and none of its
code runs, which is why neither its dependencies nor its Python version matter.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from difflib import get_close_matches
from lzma import LZMAError
from pathlib import Path

from pyrosys.errors import InputError, SourceError
from pyrosys.hub.digest import Expected, file_sha256
from pyrosys.hub.files import CHUNK, require_space

__all__ = ["download_wheel_member"]

ADDRESS = re.compile(r"pypi://(?P<package>[A-Za-z0-9][\w.-]*)==(?P<version>\w[\w.!+-]*)/(?P<member>.+)", re.ASCII)


def download_wheel_member(uri: str, folder: Path, *, expected: Expected, progress: bool) -> tuple[Path, str]:
    """Download a wheel into a folder, extract one member from it and return its path and SHA-256.

    Args:
        uri: The address.
        folder: Where to work; what an earlier try has left there is removed, since pip cannot go on with it.
        expected: What is on record; a wrong size is noticed before extraction.
        progress: Whether to show progress.

    Raises:
        InputError: The address is malformed.
        SourceError: pip cannot provide the wheel, or the wheel has no such member.
        IntegrityError: The member is not the one on record.
    """
    address = ADDRESS.fullmatch(uri)
    if address is None:
        raise InputError(f"Expected pypi://package==version/path/in/wheel, found {uri!r}.")
    shutil.rmtree(folder)
    folder.mkdir()
    target = folder / "member"
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        wheel = _download_wheel(f"{address['package']}=={address['version']}", Path(temporary), progress=progress)
        try:
            with zipfile.ZipFile(wheel) as archive:
                member = _find_member(archive, address["member"], wheel.name)
                expected.check_size(member.file_size, uri)
                require_space(folder, member.file_size)
                with archive.open(member) as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file, CHUNK)
        except (zipfile.BadZipFile, zlib.error, LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
            raise SourceError(f"Expected a readable wheel, found {wheel.name}: {error}. Use another source.") from error
    sha256 = file_sha256(target)
    expected.check_sha256(sha256, uri)
    return target, sha256


def _download_wheel(requirement: str, folder: Path, *, progress: bool) -> Path:
    show_progress = progress and sys.__stderr__ is not None and sys.__stderr__.isatty()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(folder), requirement]
    result = subprocess.run(
        command,
        # The current folder is kept off pip's import path, and pip's temporary files where they will be cleaned up.
        env={**os.environ, "PYTHONSAFEPATH": "1", "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=sys.__stderr__ if show_progress else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        lines = result.stderr.strip().splitlines()
        reasons = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["no wheel"]
        raise SourceError(
            f"pip could not download the wheel of {requirement}: {' '.join(reasons)} "
            "Check the name, the version and pip's configuration (`python -m pip config list`), or use another source."
        )
    return wheels[0]


def _find_member(archive: zipfile.ZipFile, name: str, wheel: str) -> zipfile.ZipInfo:
    files = [member.filename for member in archive.infolist() if not member.is_dir()]
    if name not in files:
        similar = get_close_matches(name, files, n=5, cutoff=0.4)
        raise SourceError(f"{wheel} has no file {name!r}. Similar files in it: {', '.join(similar) or 'none'}.")
    return archive.getinfo(name)
