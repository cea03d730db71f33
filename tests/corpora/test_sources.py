"""Finding files, and cutting their concatenation into splits."""

import os
from fractions import Fraction

import pytest

from fairseq_expire.corpora.sources import cut, find_files, parse_shares
from fairseq_expire.tokenizers.chunks import FileSlice


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def names(slices, folder):
    return [part.path.relative_to(folder).as_posix() for part in slices]


def content(slices):
    return b"".join(part.path.read_bytes()[part.start : part.stop] for part in slices)


def test_folders_are_read_in_the_order_of_code_points(tmp_path):
    write(tmp_path, dict.fromkeys(["b", "a.txt", "a/z", "a/é", "a/Z", "B", "10", "9"], b"x"))
    assert names(find_files([tmp_path]), tmp_path) == ["10", "9", "B", "a/Z", "a/z", "a/é", "a.txt", "b"]


def test_paths_keep_the_order_they_are_given_in(tmp_path):
    write(tmp_path, {"b/1": b"x", "b/0": b"x", "a": b"x"})
    assert names(find_files([tmp_path / "b", tmp_path / "a", tmp_path / "a"]), tmp_path) == ["b/0", "b/1", "a", "a"]


def test_hidden_and_empty_files_in_folders_are_skipped_and_given_ones_are_not(tmp_path):
    write(tmp_path / ".top", {".git/a": b"x", "a/.b": b"x", "empty": b"", "c": b"x", ".d": b"x"})
    assert names(find_files([tmp_path / ".top"]), tmp_path) == [".top/c"]
    assert names(find_files([tmp_path / ".top" / ".d"]), tmp_path) == [".top/.d"]


@pytest.mark.parametrize(
    "include, exclude, expected",
    [
        (["*.py"], [], ["a.py", "lib/b.py", "tests/c.py"]),
        (["*.py", "*.md"], [], ["a.py", "d.md", "lib/b.py", "tests/c.py"]),
        (["lib"], [], None),
        ([], ["tests"], ["a.py", "d.md", "lib/b.py"]),
        ([], ["*.py", "d*"], None),
        (["*.py"], ["lib", "a.*"], ["tests/c.py"]),
        (["*.PY"], [], None),
    ],
)
def test_patterns(tmp_path, include, exclude, expected):
    # The folder that is given has the name of one of its folders. Patterns must not match it.
    folder = write(tmp_path / "tests", dict.fromkeys(["a.py", "lib/b.py", "tests/c.py", "d.md"], b"x"))
    if expected is None:
        with pytest.raises(ValueError, match=r"no file in it matches .looked for .*name a folder with text"):
            find_files([folder], include=include, exclude=exclude)
    else:
        assert names(find_files([folder], include=include, exclude=exclude), folder) == expected


def test_patterns_do_not_apply_to_files_that_are_given(tmp_path):
    write(tmp_path, {"a.txt": b"x"})
    assert len(find_files([tmp_path / "a.txt"], include=["*.py"], exclude=["*.txt"])) == 1


def test_paths_that_cannot_be_read(tmp_path):
    write(tmp_path, {"empty": b"", "only_empty/a": b"", "links/a": b"x"})
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "links" / "folder").symlink_to(tmp_path)
    (tmp_path / "nothing").mkdir()
    for name, message in {
        "missing": "missing: there is no such file or folder",
        "empty": "empty: the file is empty",
        "pipe": "pipe: expected a regular file",
        "nothing": "nothing: no file in it matches",
        "only_empty": "only_empty: its 1 matching files are all empty",
        "links": "links/folder: a link to a folder",
    }.items():
        with pytest.raises(ValueError, match=message):
            find_files([tmp_path / name])
    assert names(find_files([tmp_path / "links"], exclude=["folder"]), tmp_path) == ["links/a"]


def test_shares_are_exact():
    assert parse_shares("0.9,0.05,0.05") == [Fraction(9, 10), Fraction(1, 20), Fraction(1, 20)]
    assert len(parse_shares("0.7,0.3")) == 2
    assert len(parse_shares("0.3333333,0.3333333,0.3333333")) == 3


@pytest.mark.parametrize(
    "text", ["", "1", "0.9,0.05", "0.9,0.2,-0.1", "1,0,0", "a,b", "0.5,0.2,0.2,0.1", "nan,1", "1/0,1", "0.9 0.1"]
)
def test_bad_shares(text):
    with pytest.raises(ValueError, match=r"--split .*: expected two or three positive numbers"):
        parse_shares(text)


def test_bytes_are_cut_exactly_and_files_divided(tmp_path):
    write(tmp_path, {"a": b"0123456789", "b": b"abcdefghij"})
    splits = cut(find_files([tmp_path]), shares=parse_shares("0.25,0.5,0.25"), level="bytes")
    first, second = tmp_path / "a", tmp_path / "b"
    assert splits == {
        "train": [FileSlice(first, 0, 5, ends_file=False)],
        "valid": [FileSlice(first, 5, 10), FileSlice(second, 0, 5, ends_file=False)],
        "test": [FileSlice(second, 5, 10)],
    }


def test_shares_that_nearly_sum_to_one_lose_nothing(tmp_path):
    write(tmp_path, {"a": b"x" * 3_000_000})
    splits = cut(find_files([tmp_path]), shares=parse_shares("0.3333333,0.3333333,0.3333333"), level="bytes")
    assert [sum(part.num_bytes for part in slices) for slices in splits.values()] == [999999, 1000000, 1000001]


TEXTS = {
    "unix": "one\ntwo\n\nfour\nfive",
    "dos": "one\r\ntwo\r\n\r\nfour\r\nfive\r\n",
    "mac": "one\rtwo\r\rfour\rfive\r",
    "wide": "é\u2028€ \U0001f600\n\U0001f600é\U0001f600\n€",
}


@pytest.mark.parametrize("level", ["bytes", "chars", "words"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_every_cut_is_at_the_first_allowed_place(tmp_path, text, level):
    data = text.encode()
    write(tmp_path, {"a": data, "b": data})
    whole = data + data
    if level == "bytes":
        allowed = set(range(len(whole)))
    elif level == "chars":
        allowed = {len((text + text)[:i].encode()) for i in range(2 * len(text))}
    else:
        line_ends = [
            i + 1
            for i in range(len(data))
            if data[i : i + 1] == b"\n" or (data[i : i + 1] == b"\r" and data[i + 1 : i + 2] != b"\n")
        ]
        # A file ends its last line.
        allowed = {*line_ends, len(data), *(len(data) + end for end in line_ends)}
    allowed -= {0, len(whole)}
    for target in range(1, len(whole)):
        shares = [Fraction(target, len(whole)), 1 - Fraction(target, len(whole))]
        places = [place for place in allowed if place >= target]
        if not places:
            with pytest.raises(ValueError, match=f"valid would be empty: its share .* of {len(whole)} bytes"):
                cut(find_files([tmp_path]), shares=shares, level=level)
            continue
        splits = cut(find_files([tmp_path]), shares=shares, level=level)
        assert content(splits["train"]) == whole[: min(places)]
        assert content(splits["train"]) + content(splits["valid"]) == whole
        assert all(part.ends_file == (part.stop == len(data)) for slices in splits.values() for part in slices)


def test_a_line_that_leaves_nothing_for_the_next_split(tmp_path):
    write(tmp_path, {"a": b"a very long first line\nx\n"})
    with pytest.raises(
        ValueError, match=r"valid would be empty: its share 0.25 of 25 bytes has no room for one of the words"
    ):
        cut(find_files([tmp_path]), shares=parse_shares("0.5,0.25,0.25"), level="words")
