"""The sdist and the wheel have the right files, and the metadata are consistent.

.ci/run installs the wheel in new environments.
"""

from __future__ import annotations

import configparser
import email
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import npstream

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Copy the repository without ignored files. Build an sdist of it, and a wheel of the sdist."""
    pytest.importorskip("build")
    pytest.importorskip("twine")
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy]
    subprocess.run(command, check=True, capture_output=True)
    (sdist,) = out.glob("*.tar.gz")
    (wheel,) = out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def metadata(distributions):
    with zipfile.ZipFile(distributions[1]) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_twine_accepts_the_sdist_and_the_wheel(distributions):
    command = [sys.executable, "-m", "twine", "check", "--strict", *distributions]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("PASSED") == 2


def test_the_wheel_has_every_module_and_nothing_else(distributions):
    with zipfile.ZipFile(distributions[1]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "npstream").rglob("*.py")}
    assert names == modules | {"npstream/py.typed"}


def test_the_sdist_has_what_the_wheel_needs(distributions):
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "setup.cfg", "pyproject.toml", "npstream/py.typed"} <= names


def test_the_version_is_written_in_one_file(metadata):
    assert metadata["Version"] == npstream.__version__
    files = [ROOT / "setup.cfg", ROOT / "pyproject.toml", *(ROOT / "npstream").rglob("*.py")]
    assert [path.name for path in files if f'"{npstream.__version__}"' in path.read_text()] == [
        "__init__.py"
    ]


def test_the_classifiers_are_versions_that_ci_runs(metadata):
    classifiers = metadata.get_all("Classifier")
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(classifiers))
    supported = SpecifierSet(metadata["Requires-Python"])
    assert versions
    assert all(version in supported for version in versions)
    assert f"3.{int(versions[0][2:]) - 1}" not in supported
    # CI has no Mac, and no Windows.
    systems = [name for name in classifiers if name.startswith("Operating System")]
    assert systems == ["Operating System :: POSIX :: Linux"]
    # CI tests the oldest version, the newest one that is installed, and those in between.
    script = (ROOT / ".ci" / "run").read_text()
    for step in ("supported | head -n 1", "supported | tac", "supported | sed '1d;$d'"):
        assert step in script


def test_the_metadata_require_the_packages_of_setup_cfg(metadata):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["install_requires"].split("\n")
    required = [Requirement(line) for line in listed if line]
    stored = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    assert {item.name for item in stored if "extra" not in str(item.marker)} == {
        item.name for item in required
    }


def test_the_changelog_is_in_the_form_of_keep_a_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.*)$", text, re.M)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", name) for name in versions[1:])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.M)) <= kinds
