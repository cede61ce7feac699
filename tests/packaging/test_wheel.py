"""What an installation puts on a machine: one top-level package, with the C sources inside it."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all files in a wheel of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [wheel] = folder.glob("optmigd-*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_an_agents_own_config_and_protocol_are_left_alone(names: set[str]) -> None:
    tops = {name.split("/", 1)[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"optmigd"}


def test_everything_that_is_needed_at_run_time_is_in_it(names: set[str]) -> None:
    sources = {
        f"optmigd/{path.relative_to(ROOT)}"
        for folder in ("protocol", "enclave_shim", "config")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".c", ".h", ".toml", ".service")
    }
    sources |= {
        str(path.relative_to(ROOT))
        for path in (ROOT / "optmigd").rglob("*")
        if path.suffix in (".py", ".c") or path.name == "py.typed"
    }
    assert len(sources) > 100
    assert sources <= names
