"""Nearest neighbours are scored where a fit asks for them, and are no probe that a study can move over images."""

from dataclasses import replace

import pytest

from dlprobe.errors import DataError
from dlprobe.studies import fit_caches
from dlprobe.studies.designs.kinds import robustness
from dlprobe.studies.designs.kinds.transfer import trained_on
from dlprobe.studies.runs import read_run

SCHEME = "autoencoded-pristine"


@pytest.fixture(scope="module")
def run(toy_cache, quick, tmp_path_factory):
    """Return a fit with nearest neighbours beside the Dice probe."""
    folder = tmp_path_factory.mktemp("neighbours") / "run"
    fit_caches([toy_cache], folder, settings=replace(quick, schemes=(SCHEME,), baselines=("knn",)))
    return read_run(folder)


def test_neighbours_are_no_map_over_images(run):
    assert "knn" in set(run.tables["images"]["method"])
    with pytest.raises(DataError, match="knn has no map that can be saved and moved over images; name another method"):
        robustness.tested_probes(run, "knn", SCHEME)
    with pytest.raises(DataError, match="knn has no probe that is saved with who trained it"):
        trained_on(run, "knn", SCHEME)


def test_the_probe_beside_them_is_found_with_the_photographs_that_it_is_tested_on(run):
    found = robustness.tested_probes(run, "dice", SCHEME)
    images = run.tables["images"].query("method == 'dice'")
    assert len(found) == images["fold"].nunique()
    assert set().union(*(sources for _, sources in found)) == set(images["source_id"])
    for (_, tested), trained in zip(found, trained_on(run, "dice", SCHEME), strict=True):
        assert trained
        assert not tested & trained
