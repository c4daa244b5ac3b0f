"""Compiled code on disk: no file that is damaged, outdated or cannot be written reaches the caller."""

import errno
import importlib.util
import os
import sys
import warnings
from pathlib import Path

import numba
import pytest

from steadynorm.ops import _numba_cache, _numba_kernels

SOURCE = """
from steadynorm.ops._numba_types import compiled

@compiled
def double(x):
    return 2 * x
"""


@pytest.fixture
def process(tmp_path, monkeypatch):
    """Give a function that imports a module with one compiled function, as each new process does."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(_numba_cache, "_said", lambda said=set(): said)
    place = tmp_path / "tiny.py"
    place.write_text(SOURCE)

    def begin():
        spec = importlib.util.spec_from_file_location("tiny", place)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.double

    begin.files = lambda: sorted((tmp_path / "__pycache__").glob("tiny.double*"))
    return begin


def hits_and_misses(function):
    return sum(function.stats.cache_hits.values()), sum(function.stats.cache_misses.values())


def test_a_later_process_finds_the_code_of_each_type(process):
    first = process()
    assert (first(3), first(1.5)) == (6, 3.0)
    assert len(process.files()) == 2
    later = process()
    assert (later(1.5), later(3)) == (3.0, 6)
    assert hits_and_misses(later) == (2, 0)


@pytest.mark.parametrize(
    "damage",
    [lambda content: b"", lambda content: content[: len(content) // 2], lambda content: content[:-1] + b"\xff"],
    ids=["empty", "truncated", "altered"],
)
def test_a_damaged_file_is_compiled_again_and_replaced(process, damage):
    process()(3)
    (path,) = process.files()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    second = process()
    assert second(3) == 6
    assert hits_and_misses(second) == (0, 1)
    third = process()
    assert third(3) == 6
    assert hits_and_misses(third) == (1, 0)


def test_a_file_that_cannot_be_read_is_passed_over(process, monkeypatch):
    process()(3)
    monkeypatch.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(PermissionError(errno.EACCES, "denied")))
    assert process()(3) == 6


def test_code_is_not_taken_when_a_file_that_it_calls_has_changed(process, monkeypatch):
    process()(3)
    monkeypatch.setattr(_numba_cache, "_sources", lambda: "changed")
    second = process()
    second(3)
    assert hits_and_misses(second) == (0, 1)


def test_code_depends_on_the_files_of_compiled_functions_and_on_what_they_import(monkeypatch):
    modules = [module for name, module in sys.modules.items() if name.startswith("steadynorm.")]
    values = [value for module in modules for value in vars(module).values()]
    functions = [value.py_func for value in values if isinstance(value, numba.core.dispatcher.Dispatcher)]
    files = {Path(function.__code__.co_filename) for function in functions}
    lines = [line.split() for file in files for line in file.read_text().splitlines()]
    imported = {line[1] for line in lines if line[:1] == ["from"] and line[1].startswith("steadynorm.")}
    assert Path(_numba_kernels.__file__) in files and "steadynorm.statistics.noise" in imported
    read = set()
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.add(path) or b"")
    _numba_cache._sources.__wrapped__()
    assert files | {Path(sys.modules[name].__file__) for name in imported} <= read


def test_code_of_another_numba_is_not_taken(process, monkeypatch):
    process()(3)
    monkeypatch.setattr(numba, "__version__", "0.1")
    second = process()
    second(3)
    assert hits_and_misses(second) == (0, 1)


def test_a_damaged_file_that_cannot_be_removed_is_written_over(process, monkeypatch):
    process()(3)
    (path,) = process.files()
    path.write_bytes(b"")
    monkeypatch.setattr(
        Path, "unlink", lambda path, **_: (_ for _ in ()).throw(PermissionError(errno.EACCES, "denied"))
    )
    assert process()(3) == 6
    third = process()
    assert third(3) == 6
    assert hits_and_misses(third) == (1, 0)


def test_all_code_of_a_function_can_be_thrown_away(process):
    function = process()
    function(3), function(1.5)
    function._cache.flush()
    assert process.files() == []
    assert process()(3) == 6


def test_a_full_disk_costs_one_warning_and_leaves_no_file(process, monkeypatch):
    def fill(path, content):
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    function = process()
    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.warns(RuntimeWarning, match="No space left on device.*NUMBA_CACHE_DIR") as told:
        assert (function(3), function(1.5)) == (6, 3.0)
    assert len(told) == 1
    assert process.files() == []
    assert function(3) == 6


def test_no_directory_at_all_costs_one_warning(process, monkeypatch):
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    with pytest.warns(RuntimeWarning, match="cannot be kept on disk .*no locator"):
        assert process()(3) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert process()(3) == 6


@pytest.mark.parametrize("phase", ["before", "while saving", "object code lost"])
def test_after_ctrl_c_the_next_call_compiles(process, monkeypatch, phase):
    function = process()

    def interrupt(*_):
        raise RuntimeError("no compiled object yet") if phase == "object code lost" else KeyboardInterrupt

    with monkeypatch.context() as patched:
        if phase == "before":
            patched.setattr(function._compiler, "compile", interrupt)
        elif phase == "while saving":
            patched.setattr(Path, "replace", interrupt)
        else:
            patched.setattr(function._cache._impl, "reduce", interrupt)
        try:
            assert function(3) == 6
        except KeyboardInterrupt:
            assert phase != "object code lost"
    assert function(3) == 6
    assert not [path for path in process.files() if path.suffix == ".tmp"]
    assert process()(3) == 6
