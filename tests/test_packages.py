"""What a fresh clone has: every folder with modules is a package, and git keeps back none of its files."""

import subprocess
from pathlib import Path

import pytest

import medvfm_jax

PACKAGE = Path(medvfm_jax.__file__).parent


def test_every_folder_with_modules_is_a_package():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert len(folders) > 20
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_git_ignores_no_source_file():
    root = PACKAGE.parent
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    ignored = subprocess.run(
        [
            "git",
            "ls-files",
            "--others",
            "--ignored",
            "--exclude-standard",
            "--",
            "medvfm_jax",
            "tests",
            "experiments",
        ],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert [name for name in ignored if not name.endswith((".pyc", ".pyo"))] == []
