"""Which runner is meant."""

import pytest

from dlprobe.errors import CacheError, RegistryError
from dlprobe.extraction import LocalRunner, RayRunner, extract
from dlprobe.extraction.runners import find_runner


def test_names_and_runners():
    assert isinstance(find_runner("local"), LocalRunner)
    assert find_runner("ray") == RayRunner()
    mine = RayRunner(workers=3)
    assert find_runner(mine) is mine


def test_a_runner_that_there_is_none_of(manifest, backbone, tmp_path):
    with pytest.raises(RegistryError, match="no runner 'slurm'; write one of local, ray"):
        extract(manifest, backbone, tmp_path / "cache", runner="slurm")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("numbers", [{"workers": 0}, {"cpus_per_worker": 0}])
def test_numbers_out_of_range(numbers):
    with pytest.raises(CacheError, match="at least one of each"):
        RayRunner(**numbers)
