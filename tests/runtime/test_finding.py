"""Reading files that a kernel may refuse to give."""

from pathlib import Path

from mae_export.runtime.finding import Finding, read_quietly


def test_device_tree_strings_end_without_their_nul(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson AGX Orin\0")
    assert read_quietly(tmp_path / "model") == "NVIDIA Jetson AGX Orin"


def test_what_cannot_be_read_is_empty(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\n")
    assert (read_quietly(tmp_path / "gone"), read_quietly(tmp_path), read_quietly(tmp_path / "bytes")) == ("", "", "�")


def test_a_finding_is_fine_unless_it_says_otherwise() -> None:
    finding = Finding(what="swap", found="none")
    assert (finding.level, finding.fix) == ("ok", "")
