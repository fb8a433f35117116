"""How candidates are measured: in turn, round by round, with the reason of one that fails; and what is told of them."""

import time

import pytest
import torch

from roadmap.bench.measure import BOUND, Candidate, Result, measure, speed_ratio
from roadmap.bench.sheet import Sheet, best_against_peers
from roadmap.errors import ConfigError, DiskError

CPU = torch.device("cpu")


def noting(name, log, seconds=None):
    return Candidate(name, lambda: lambda: log.append(name) or seconds, images=4)


def test_contestants_are_called_in_turn():
    log = []
    results = measure([noting("a", log), noting("b", log)], CPU, repeats=3, warm_up=2)
    assert log == ["a"] * 3 + ["b"] * 3 + ["a", "b"] * 3  # warm-up, once for the memory, then the rounds
    assert [len(result.times_s) for result in results] == [3, 3]


def test_a_call_may_tell_its_own_seconds():
    (result,) = measure([noting("a", [], seconds=0.5)], CPU, repeats=4, warm_up=1)
    assert (result.times_s, result.images_per_s) == ([0.5] * 4, 8.0)


@pytest.mark.parametrize("at", ["start", "warm-up", "third round"])
def test_a_contestant_that_fails_is_kept_with_its_reason_and_the_others_go_on(at):
    log, calls = [], iter(range(100))

    def start():
        def call():
            if at == "warm-up" or next(calls) == 5:
                raise RuntimeError("out of\nluck")

        if at == "start":
            raise ConfigError("model.width=7: is odd")
        return call

    broken, sound = measure([Candidate("broken", start, 1), noting("sound", log)], CPU, repeats=4, warm_up=1)
    assert broken.failed == ("model.width=7: is odd" if at == "start" else "RuntimeError: out of luck")
    assert "Traceback" in broken.trace
    assert broken.times_s == []
    assert (sound.failed, len(sound.times_s)) == (None, 4)


def test_ratios_are_taken_round_by_round():
    slowing = [0.1 * 3**number for number in range(5)]  # another process takes more and more of the machine
    one, other = Result("one", 8), Result("other", 4)
    one.times_s, other.times_s = slowing, list(slowing)
    assert speed_ratio(one, other) == pytest.approx((2.0, 2.0, 2.0))


def test_memory_is_that_of_the_contestant_alone():
    def holding(megabytes):
        def start():
            kept = torch.ones(megabytes * 2**18)  # float32

            def call():
                torch.ones(2**24).add_(kept[0])  # 64 MiB more

            return call

        return Candidate(str(megabytes), start, 1)

    large, small = measure([holding(256), holding(1)], CPU, repeats=1, warm_up=1)
    assert 0.29 < large.memory_gb < 0.40
    assert 0.04 < small.memory_gb < 0.15


def test_ours_at_its_best_stands_against_the_best_peer_and_no_bound():
    sides = [("a", None, 2.0), ("b", None, 1.0), ("c", "timm", 4.0), ("d", "torchvision", 3.0), ("e", BOUND, 0.1)]
    results = [Result(name, 1, peer, [seconds, seconds]) for name, peer, seconds in sides]
    against = best_against_peers(results)
    assert (against["ours"], against["peer"], against["ratio"][0]) == ("b", "d", 3.0)
    assert best_against_peers(results[:2]) is None


def test_a_record_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path):
    with pytest.raises(DiskError, match="missing"):
        Sheet("net", [], CPU, {"repeats": 1, "warm_up": 1}, tmp_path / "missing" / "out.json")


def test_nothing_measured_at_all_is_an_error_with_the_reason(capsys):
    sheet = Sheet("net", [], CPU, {"repeats": 1, "warm_up": 1}, None)
    sheet.add("gelu", [Result("ours", 1, failed="no | luck")])
    assert "| gelu | ours | failed: no / luck |" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"nothing could be measured; ours: no \| luck"):
        sheet.check()


def test_time_on_the_cpu_is_wall_time():
    (result,) = measure([Candidate("nap", lambda: lambda: time.sleep(0.02), 1)], CPU, repeats=2, warm_up=1)
    assert min(result.times_s) >= 0.02
