"""CONTRIBUTING.md says where all that is no text, or was not written here, comes from; SECURITY.md names tests that there are."""
import re
from fnmatch import fnmatch

from support.packed import repository_files
from tools.environments import ROOT

TABLE = re.compile(r"^\| `([^`]+)` \|.*\|.*\|$", re.MULTILINE)


def is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False


def test_every_file_that_is_no_text_has_a_row_and_every_row_a_file():
    files = {path.relative_to(ROOT).as_posix(): path for path in repository_files()}
    listed = TABLE.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Licenses")[2].partition("\n## ")[0])
    no_text = [name for name, path in files.items() if not is_text(path.read_bytes())]
    assert [name for name in no_text if not any(fnmatch(name, row) for row in listed)] == []  # give each a row there
    assert [row for row in listed if not any(fnmatch(name, row) for name in files)] == []


def test_the_notice_that_ggml_asks_for_goes_with_its_tables():
    text = (ROOT / "unet" / "weights" / "ggml_grids.py").read_text(encoding="utf-8")
    assert all(words in text for words in ("The ggml authors", "The above copyright notice and this permission notice shall be"))


def test_the_tests_that_hold_us_to_what_is_promised_exist():
    named = re.findall(r"\btest_\w+\.py", (ROOT / ".github" / "SECURITY.md").read_text(encoding="utf-8"))
    assert named and set(named) <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}
