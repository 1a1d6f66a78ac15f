"""Files for services and tools: workflows, issue forms, hooks, the citation. All are checked without a network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from sources import ROOT

yaml = pytest.importorskip("yaml")
SCHEMAS = {
    "github-workflows": ".github/workflows/*.yml",
    "github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
    "github-issue-config": ".github/ISSUE_TEMPLATE/config.yml",
    "citation-file-format": "CITATION.cff",
}
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

if not WORKFLOWS:
    pytest.skip("not a clone: a source archive has no files for services", allow_module_level=True)


def loaded(path: Path) -> dict:
    # YAML 1.1 takes the key `on` for a truth value.
    return {{True: "on"}.get(key, key): value for key, value in yaml.safe_load(path.read_text()).items()}


PROJECT = (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("schema", SCHEMAS)
def test_schema(schema):
    pytest.importorskip("check_jsonschema")
    files = [str(path) for path in ROOT.glob(SCHEMAS[schema])]
    assert files
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *files]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_what_there_is(path):
    """Targets of make and scripts exist, jobs end some time, and no job may do more than it says."""
    workflow = loaded(path)
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for name, job in workflow["jobs"].items():
        assert "timeout-minutes" in job, f"{name} has no limit"
        for step in job["steps"]:
            words = step.get("run", "").split()
            if words[:1] == ["make"]:
                assert words[1] in targets
            elif words[:1] and words[0].startswith("."):
                assert (ROOT / words[0]).exists()
            assert "secrets." not in str(step)


def test_only_a_tag_publishes():
    job = loaded(ROOT / ".github/workflows/wheels.yml")["jobs"]["publish"]
    assert "startsWith(github.ref, 'refs/tags/v')" in job["if"]
    assert set(job["needs"]) == {"sdist", "wheels"}
    assert job["permissions"] == {"id-token": "write"}


def test_hooks_have_the_versions_of_lint():
    pinned = set(re.findall(r'"([\w-]+==[^"]+)"', re.search(r"^lint = \[(.*?)\]", PROJECT, re.M | re.S)[1]))
    (repository,) = loaded(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    used = {requirement for hook in repository["hooks"] for requirement in hook["additional_dependencies"]}
    assert used <= pinned
    assert {requirement.partition("==")[0] for requirement in used} == {"ruff", "clang-format"}


def test_citation_is_of_this_version():
    citation = loaded(ROOT / "CITATION.cff")
    for key in ("version", "license"):
        assert f'\n{key} = "{citation[key]}"\n' in PROJECT
    assert "arXiv:2111.05496" in str(citation["references"])
