"""manifest.json: what is written is read, and damage is reported."""

import json

import pytest

from fairseq_expire.tokenizers.manifest import (
    LabelledCounts,
    LabelledManifest,
    Manifest,
    SplitCounts,
    read_labelled_manifest,
    read_manifest,
    write_manifest,
)

MANIFEST = Manifest(
    version="1.2",
    level="chars",
    options={"line_ends": "keep"},
    source={"corpus": "mine", "include": ["*.txt"]},
    append_eos=True,
    symbols=300,
    dictionary_sha256="ab" * 32,
    splits={
        "train": SplitCounts(
            tokens=11,
            items=1,
            unknown=0,
            source_bytes=12,
            text_bytes=11,
            text_chars=10,
            text_sha256="cd" * 32,
            bin_crc32=1,
            idx_crc32=2,
            words=2,
        ),
        "valid": SplitCounts(
            tokens=5,
            items=2,
            unknown=3,
            source_bytes=5,
            text_bytes=5,
            text_chars=4,
            text_sha256="ef" * 32,
            bin_crc32=3,
            idx_crc32=4,
        ),
    },
)


LABELLED = LabelledManifest(
    version="1.2",
    numpy="2.0",
    corpus="copy",
    parameters={"seed": 1, "distance": [1, 9], "steps": None},
    symbols=8,
    labels=6,
    input_dictionary_sha256="ab" * 32,
    label_dictionary_sha256="cd" * 32,
    splits={
        "train": LabelledCounts(
            tokens=9, items=1, labels=2, input_bin_crc32=1, input_idx_crc32=2, label_bin_crc32=3, label_idx_crc32=4
        )
    },
)


def test_that_of_labelled_data_is_read_as_it_was_written(tmp_path):
    assert read_labelled_manifest(tmp_path) is None
    write_manifest(tmp_path, LABELLED)
    assert read_labelled_manifest(tmp_path) == LABELLED
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"labels": 2,', ""))
    with pytest.raises(ValueError, match=r"manifest.json: in split train, labels is missing; restore the file"):
        read_labelled_manifest(tmp_path)


def test_each_kind_refuses_the_other(tmp_path):
    write_manifest(tmp_path, LABELLED)
    with pytest.raises(
        ValueError, match=r"labelled \(copy\), expected text; read it with --task memory_caching_tagging"
    ):
        read_manifest(tmp_path)
    write_manifest(tmp_path, MANIFEST)
    with pytest.raises(ValueError, match="is text, expected labelled data; read it with --task memory_caching_lm"):
        read_labelled_manifest(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"format": 3', '"format": "labelled 2"'))
    for read, version in {read_manifest: "3", read_labelled_manifest: "labelled 1"}.items():
        with pytest.raises(ValueError, match=f"its format is not {version}, the one this version reads"):
            read(tmp_path)


def test_it_is_read_as_it_was_written(tmp_path):
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == MANIFEST
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["format"] == 3
    assert content["splits"]["train"]["words"] == 2 and "words" not in content["splits"]["valid"]


def test_data_without_one_gives_none(tmp_path):
    assert read_manifest(tmp_path) is None


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda text: text[:40], "not JSON"),
        (lambda text: "", "not JSON"),
        (lambda text: "[]", "not a JSON object"),
        (lambda text: text.replace('"format": 3', '"format": 1'), "its format is not 3"),
        (lambda text: text.replace('"format": 3,', ""), "its format is not 3"),
        (lambda text: text.replace('"level"', '"lvl"'), "level is missing"),
        (lambda text: text.replace('"symbols": 300', '"symbols": 300, "extra": 1'), "extra is not expected"),
        (lambda text: text.replace('"symbols": 300', '"symbols": "300"'), "symbols is '300', expected int"),
        (lambda text: text.replace('"append_eos": true', '"append_eos": 1'), "append_eos is 1, expected bool"),
        (lambda text: text.replace('"tokens": 5', '"tokens": 5.5'), "in split valid, tokens is 5.5, expected int"),
        (lambda text: text.replace('"unknown": 3,', ""), "in split valid, unknown is missing"),
        (lambda text: text.replace('"splits"', '"parts"'), "it has no object named splits"),
        (lambda text: text.replace('"valid": {', '"valid": 3, "test": {'), "in split valid, expected an object"),
    ],
)
def test_damage_is_reported_with_the_file(tmp_path, damage, message):
    write_manifest(tmp_path, MANIFEST)
    path = tmp_path / "manifest.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=message) as caught:
        read_manifest(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")


def test_bytes_that_are_not_utf_8(tmp_path):
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"manifest.json: not JSON"):
        read_manifest(tmp_path)
