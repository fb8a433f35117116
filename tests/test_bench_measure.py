"""How candidates are measured: in turn, round by round, with the reason of one that fails; and what is printed."""

import gc
from argparse import Namespace
from functools import partial

import pytest
import torch

from roadmap.bench import measure as measure_module
from roadmap.bench.measure import BOUND, Candidate, best_against_peers, measure, speed_ratio
from roadmap.bench.results import Results
from roadmap.errors import ConfigError, DiskError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def few_objects():
    """Let what is imported by now be no matter of each collection."""
    gc.freeze()
    yield
    gc.unfreeze()


def logging(name, log):
    return Candidate(name, 4, lambda: lambda: log.append(name))


def measured(name, times_s, peer=None, images=1):
    return Candidate(name, images, lambda: lambda: None, peer, list(times_s))


def results_of(file=None):
    return Results("net", [], CPU, Namespace(json=file, repeats=1, warm_up=1))


def test_candidates_are_called_in_turn():
    log = []
    candidates = [logging("a", log), logging("b", log)]
    measure(candidates, CPU, repeats=3, warm_up=2)
    assert log == ["a"] * 3 + ["b"] * 3 + ["a", "b"] * 3  # warm-up, once for the memory, then the rounds
    assert [len(candidate.times_s) for candidate in candidates] == [3, 3]


@pytest.mark.parametrize("at", ["build", "warm-up", "third round"])
def test_a_candidate_that_fails_keeps_its_reason_and_the_others_go_on(at):
    calls = iter(range(100))

    def build():
        def call():
            if at == "warm-up" or next(calls) == 5:
                raise RuntimeError("out of\nluck")

        if at == "build":
            raise ConfigError("model.width=7: is odd")
        return call

    broken, sound = Candidate("broken", 1, build), logging("sound", [])
    measure([broken, sound], CPU, repeats=4, warm_up=1)
    assert broken.failed == ("model.width=7: is odd" if at == "build" else "RuntimeError: out of luck")
    assert "Traceback" in broken.trace
    assert broken.times_s == []
    assert (sound.failed, len(sound.times_s)) == (None, 4)


def test_ratios_are_taken_round_by_round():
    slowing = [0.1 * 3**number for number in range(5)]  # another process takes more and more of the machine
    one, other = measured("one", slowing, images=8), measured("other", slowing, images=4)
    assert speed_ratio(one, other) == pytest.approx((2.0, 2.0, 2.0))


def test_memory_is_that_of_the_candidate_alone():
    def build(megabytes):
        own = torch.ones(megabytes * 2**18)  # float32

        def call():
            torch.ones(2**24).add_(own[0])  # 64 MiB more

        return call

    large, small = (Candidate(str(megabytes), 1, partial(build, megabytes)) for megabytes in (256, 1))
    measure([large, small], CPU, repeats=1, warm_up=1)
    assert 0.29 < large.memory_gb < 0.40
    assert 0.04 < small.memory_gb < 0.15


def test_ours_at_its_best_is_compared_with_the_best_peer_and_no_bound():
    sides = [("a", None, 2.0), ("b", None, 1.0), ("c", "timm", 4.0), ("d", "torchvision", 3.0), ("e", BOUND, 0.1)]
    candidates = [measured(name, [seconds, seconds], peer) for name, peer, seconds in sides]
    ours, peer = best_against_peers(candidates)
    assert (ours.name, peer.name, speed_ratio(ours, peer)[0]) == ("b", "d", 3.0)
    assert best_against_peers(candidates[:2]) is None


def test_a_record_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(DiskError, match="missing"):
        results_of(tmp_path / "missing" / "out.json")


def test_nothing_measured_at_all_is_an_error_with_the_reason(capsys):
    results = results_of()
    results.add("gelu", [Candidate("ours", 1, lambda: lambda: None, failed="no | luck")])
    assert "| gelu | ours | failed: no / luck |" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"nothing could be measured; ours: no \| luck"):
        results.require_any()


def test_time_on_the_cpu_is_that_of_the_clock(monkeypatch):
    clock = iter([10.0, 10.25, 20.0, 20.5])
    monkeypatch.setattr(measure_module.time, "perf_counter", lambda: next(clock))
    candidate = logging("a", [])
    measure([candidate], CPU, repeats=2, warm_up=1)
    assert candidate.times_s == [0.25, 0.5]
