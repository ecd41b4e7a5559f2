"""The lock files fit the requirements that they are made from."""
import re

import pytest
from packaging.requirements import Requirement

from tools.environments import ARCHIVES, LOCKS, TEST_REQUIREMENTS, TORCH, package_names

TESTS = [line.partition("#")[0] for line in TEST_REQUIREMENTS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
HOSTS = [f"comfyui-{version}.txt" for version in ARCHIVES]


def locked(name):
    """(requirement, its hashes) of each entry."""
    text = (LOCKS / name).read_text(encoding="utf-8")
    entries = re.findall(r"^(\w.*?) \\\n((?: {4}--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.MULTILINE)
    return [(Requirement(requirement), hashes.split()) for requirement, hashes in entries]


@pytest.mark.parametrize("name", [*HOSTS, "torch.txt", "tests.txt", "lint.txt", "registry.txt", "uv.txt"])
def test_every_entry_has_one_version_and_hashes(name):
    text = (LOCKS / name).read_text(encoding="utf-8")
    found = locked(name)
    assert [requirement.name for requirement, _ in found] == package_names(text)
    assert all(re.fullmatch(r"==[\w.]+", str(requirement.specifier)) for requirement, _ in found)
    assert not re.search(r"^\s*-(?!-hash)|://", text, re.MULTILINE)  # no index of the machine that made it


@pytest.mark.parametrize("name, lines", [*((name, [*TESTS, *TORCH]) for name in HOSTS), ("torch.txt", TORCH), ("tests.txt", TESTS)],
                         ids=[*HOSTS, "torch.txt", "tests.txt"])
def test_a_lock_satisfies_its_requirements(name, lines):
    found = locked(name)
    for wanted in map(Requirement, lines):
        versions = [str(requirement.specifier)[2:] for requirement, _ in found if requirement.name == wanted.name]
        assert versions and all(version in wanted.specifier for version in versions), f"{wanted}: run `python dev.py lock`"


@pytest.mark.parametrize("name", HOSTS)
def test_a_host_adds_nothing_twice_that_the_torch_environment_has(name):
    torch = {str(requirement) for requirement, _ in locked("torch.txt")}
    names = {Requirement(line).name for line in torch}
    assert {str(requirement) for requirement, _ in locked(name) if requirement.name in names} == torch


def test_the_tests_lock_leaves_torch_to_the_users_comfyui():
    assert not {Requirement(line).name for line in TORCH} & {requirement.name for requirement, _ in locked("tests.txt")}
