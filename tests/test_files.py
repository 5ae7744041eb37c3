"""Files and directories are whole or not there at all, and what was there before is never lost."""

import errno
import os
import re
from pathlib import Path

import pytest

from isthmus.errors import InputError
from isthmus.files import recover, require_free, whole_directory, whole_file

MARKER = "model.json"
ENDINGS = {
    "error": RuntimeError("no"),
    "interrupt": KeyboardInterrupt(),
    "exit": SystemExit(1),
}
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write(path, text, replace=False):
    with whole_directory(path, MARKER, replace=replace) as draft:
        (draft / MARKER).write_text(text)
        (draft / "weights").write_bytes(b"w" * 10)


def refused(message):
    return pytest.raises(InputError, match=re.escape(message))


def ended(ending):
    return pytest.raises(type(ENDINGS[ending]))


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def stop_at_rename(monkeypatch, number, error):
    """Let the renames before the given one happen, and fail at this one and all that follow."""
    rename, seen = Path.rename, []

    def renamed(self, target):
        seen.append(target)
        if len(seen) >= number:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)


class TestFile:
    def test_replaces_the_old_one_at_the_end(self, tmp_path):
        place = tmp_path / "a.onnx"
        place.write_text("old")
        with whole_file(place) as draft:
            draft.write_text("new")
            assert draft.parent == tmp_path
            assert place.read_text() == "old"
        assert place.read_text() == "new"
        assert names(tmp_path) == ["a.onnx"]

    @pytest.mark.parametrize("ending", ENDINGS)
    @pytest.mark.parametrize("old", [True, False])
    def test_an_interrupted_one_leaves_no_trace(self, tmp_path, ending, old):
        place = tmp_path / "a.onnx"
        if old:
            place.write_text("old")
        with ended(ending), whole_file(place) as draft:
            draft.write_text("half")
            raise ENDINGS[ending]
        assert names(tmp_path) == ["a.onnx"] * old
        assert not old or place.read_text() == "old"

    def test_a_full_disk_is_named(self, tmp_path):
        with refused("a.onnx cannot be written: No space left on device."), whole_file(tmp_path / "a.onnx"):
            raise FULL
        assert names(tmp_path) == []

    def test_a_missing_folder_is_named(self, tmp_path):
        place = tmp_path / "none" / "a.onnx"
        with refused("cannot be written: No such file or directory"), whole_file(place):
            pytest.fail("nothing can be written there")

    def test_a_directory_in_the_way_is_named(self, tmp_path):
        (tmp_path / "a.onnx").mkdir()
        with refused("a.onnx cannot be written"), whole_file(tmp_path / "a.onnx"):
            pass
        assert names(tmp_path) == ["a.onnx"]

    def test_relative_paths_and_links(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "real.onnx").write_text("old")
        (tmp_path / "link.onnx").symlink_to("real.onnx")
        with whole_file("link.onnx") as draft:
            draft.write_text("new")
        assert (tmp_path / "link.onnx").is_symlink()
        assert (tmp_path / "real.onnx").read_text() == "new"

    def test_others_may_read_it_as_the_umask_says(self, tmp_path):
        old = os.umask(0o027)
        try:
            with whole_file(tmp_path / "a") as draft:
                draft.write_text("")
            write(tmp_path / "b", "new")
        finally:
            os.umask(old)
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
        assert (tmp_path / "b").stat().st_mode & 0o777 == 0o750


class TestDirectory:
    def test_is_written_and_replaced_only_by_force(self, tmp_path):
        place = tmp_path / "model"
        write(place, "one")
        with refused("exists already; give another name, or --force"):
            write(place, "two")
        assert (place / MARKER).read_text() == "one"
        (place / "stale").write_text("")
        write(place, "two", replace=True)
        assert (place / MARKER).read_text() == "two"
        assert names(place) == [MARKER, "weights"]
        assert names(tmp_path) == ["model"]

    def test_an_empty_directory_is_filled(self, tmp_path):
        (tmp_path / "model").mkdir()
        write(tmp_path / "model", "one")
        assert names(tmp_path) == ["model"]
        assert names(tmp_path / "model") == [MARKER, "weights"]

    @pytest.mark.parametrize("ending", ENDINGS)
    @pytest.mark.parametrize("old", [True, False])
    def test_an_interrupted_one_leaves_no_trace(self, tmp_path, ending, old):
        place = tmp_path / "model"
        if old:
            write(place, "old")
        with ended(ending), whole_directory(place, MARKER, replace=True) as draft:
            (draft / MARKER).write_text("half")
            raise ENDINGS[ending]
        assert names(tmp_path) == ["model"] * old
        assert not old or (place / MARKER).read_text() == "old"

    @pytest.mark.parametrize("replace", [True, False])
    def test_an_unrelated_directory_is_never_replaced(self, tmp_path, replace):
        place = tmp_path / "home"
        place.mkdir()
        (place / "thesis.tex").write_text("years")
        with refused("holds other files and no model.json; it is never replaced"):
            write(place, "new", replace=replace)
        assert (place / "thesis.tex").read_text() == "years"
        assert names(tmp_path) == ["home"]

    def test_nor_one_that_appeared_meanwhile(self, tmp_path):
        place = tmp_path / "model"
        with refused("never replaced"), whole_directory(place, MARKER, replace=True) as draft:
            (draft / MARKER).write_text("new")
            place.mkdir()
            (place / "thesis.tex").write_text("years")
        assert names(place) == ["thesis.tex"]
        assert names(tmp_path) == ["model"]

    def test_a_file_in_the_way(self, tmp_path):
        place = tmp_path / "model"
        place.write_text("mine")
        with refused("is a file; give the name of a directory"):
            write(place, "new", replace=True)
        assert place.read_text() == "mine"

    def test_a_missing_parent(self, tmp_path):
        with refused("none does not exist"):
            write(tmp_path / "none" / "model", "new")

    def test_relative_paths_and_links(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write("model", "one")
        write("./model/", "two", replace=True)
        (tmp_path / "link").symlink_to("model", target_is_directory=True)
        write("link", "three", replace=True)
        assert (tmp_path / "link").is_symlink()
        assert Path("model", MARKER).read_text() == "three"
        assert names(tmp_path) == ["link", "model"]

    def test_a_full_disk_is_named(self, tmp_path):
        place = tmp_path / "model"
        write(place, "old")
        full = refused("model cannot be written: No space left on device.")
        with full, whole_directory(place, MARKER, replace=True) as draft:
            (draft / MARKER).write_text("half")
            raise FULL
        assert (place / MARKER).read_text() == "old"
        assert names(tmp_path) == ["model"]

    def test_a_full_disk_found_when_flushing(self, tmp_path, monkeypatch):
        def full(_):
            raise FULL

        write(tmp_path / "model", "old")
        monkeypatch.setattr(os, "fsync", full)
        with refused("No space left"):
            write(tmp_path / "model", "new", replace=True)
        assert (tmp_path / "model" / MARKER).read_text() == "old"
        assert names(tmp_path) == ["model"]


class TestCrash:
    @pytest.mark.parametrize("number", [1, 2])
    def test_what_stood_there_comes_back(self, tmp_path, monkeypatch, number):
        # The process dies at a rename: no rename after it happens, not even that of the clean-up.
        place = tmp_path / "model"
        write(place, "old")
        with monkeypatch.context() as crash:
            stop_at_rename(crash, number, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                write(place, "new", replace=True)
        assert place.exists() == (number == 1)
        recover(place)
        assert (place / MARKER).read_text() == "old"
        assert names(place) == [MARKER, "weights"]
        assert names(tmp_path) == ["model"]

    def test_a_failed_rename_is_undone_at_once(self, tmp_path, monkeypatch):
        place, rename, seen = tmp_path / "model", Path.rename, []

        def renamed(self, target):
            seen.append(target)
            if len(seen) == 2:
                raise OSError(errno.EIO, "Input/output error")
            return rename(self, target)

        write(place, "old")
        monkeypatch.setattr(Path, "rename", renamed)
        with refused("Input/output error"):
            write(place, "new", replace=True)
        assert (place / MARKER).read_text() == "old"
        assert names(tmp_path) == ["model"]

    def test_the_next_writer_recovers_first(self, tmp_path):
        place = tmp_path / "model"
        write(tmp_path / ".model.aside", "old")
        with refused("exists already"):
            write(place, "new")
        assert (place / MARKER).read_text() == "old"
        write(place, "new", replace=True)
        assert (place / MARKER).read_text() == "new"
        assert names(tmp_path) == ["model"]

    def test_a_crash_before_the_old_one_was_deleted(self, tmp_path):
        place = tmp_path / "model"
        write(place, "new")
        write(tmp_path / ".model.aside", "old")
        recover(place)
        assert (place / MARKER).read_text() == "new"
        write(place, "newer", replace=True)
        assert (place / MARKER).read_text() == "newer"
        assert names(tmp_path) == ["model"]

    def test_recover_is_idle_where_nothing_happened(self, tmp_path):
        recover(tmp_path / "model")
        assert names(tmp_path) == []
        (tmp_path / "model").write_text("mine")
        (tmp_path / ".model.aside").mkdir()
        recover(tmp_path / "model")
        assert (tmp_path / "model").read_text() == "mine"


class TestRequireFree:
    def test_free_places(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty").mkdir()
        for place in (tmp_path / "new", tmp_path / "empty", "relative"):
            require_free(place, MARKER, replace=False)
        assert names(tmp_path) == ["empty"]

    def test_taken_places(self, tmp_path):
        write(tmp_path / "model", "one")
        require_free(tmp_path / "model", MARKER, replace=True)
        with refused("--force"):
            require_free(tmp_path / "model", MARKER, replace=False)

    def test_an_impossible_name(self, tmp_path):
        with refused("cannot be written"):
            require_free(tmp_path / ("m" * 300), MARKER, replace=False)
