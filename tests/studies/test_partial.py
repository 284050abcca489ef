"""An incomplete cache is refused, or read as far as it goes when that is asked for; never as zeros."""

import shutil

import numpy as np
import pytest

from dlprobe.cache import open_cache
from dlprobe.errors import CacheError
from dlprobe.studies import FitSettings, fit_caches
from dlprobe.studies.fitting.pool import CachePool, open_pools


@pytest.fixture
def partial(tiny_cache, tmp_path):
    """Return a copy of the tiny cache without its third block."""
    path = shutil.copytree(tiny_cache, tmp_path / "partial")
    (path / "records" / "000002.json").unlink()
    return path


def test_it_is_refused_with_the_way_out(partial, tmp_path):
    with pytest.raises(CacheError, match=r"is incomplete: 1 of \d+ blocks"):
        fit_caches([partial], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_windows_take_no_part_at_all(partial, tiny_cache):
    [(pool, _)] = open_pools([partial], allow_partial=True)
    whole = CachePool([open_cache(tiny_cache)])
    missing = np.arange(32, 48)
    assert not pool.kept[missing].any()
    assert pool.kept.sum() == whole.kept.sum() - len(missing)
    read = np.concatenate([block.windows for block in pool.blocks(np.ones(len(pool.windows), bool), seed=0)])
    assert sorted(read) == sorted(set(range(len(pool.windows))) - set(missing))
    groups = np.zeros(len(pool.windows), np.int64)
    assert pool.group_moments(groups).count[0] == (len(groups) - len(missing)) * 64


def test_a_fit_on_what_is_there_says_so(partial, tmp_path):
    settings = FitSettings(
        schemes=("autoencoded-pristine",),
        learning_rates=(1.0,),
        weight_decays=(1e-3,),
        epochs=1,
        baselines=(),
        n_folds=4,
    )
    found = fit_caches([partial], tmp_path / "run", settings=settings, allow_partial=True)
    assert any("partial: 16 of 104 windows" in note for note in found.notes)
