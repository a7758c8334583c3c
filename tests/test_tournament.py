"""Tournaments: Elo by hand and by its peers, pairings, both orders, the log and what a kill leaves of it, the judge's tastes, every refusal."""
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from designloop.core.errors import OutcomeError, ParameterError, StateError
from designloop.core.records import read_json_lines
from designloop.stats.ratings import elo
from designloop.stats.tournament import Elo, Match, Tournament, Verdict, judge_tastes, matches_in, play_game, round_robin, settle_match, settling

pytestmark = [pytest.mark.filterwarnings("ignore:no chain of wins"), pytest.mark.filterwarnings("ignore:.*not a whole record")]
SKILL = {f"p{i}": float(v) for i, v in enumerate(np.random.default_rng(3).normal(size=8))}


def noisy(first, second, rng): return float(first - second + rng.logistic() > 0)


def test_elo_by_hand_and_by_its_peer():
    table = Elo(1200, 32, 400)
    for p in "ab": table.add(p)
    assert table.expected("a", "b") == 0.5 and table.update("a", "b", 1) == 16 and table.ratings == {"a": 1216, "b": 1184}
    assert np.isclose(table.expected("a", "b"), 1 / (1 + 10 ** (-32 / 400))) and np.isclose(table.expected("a", "b") + table.expected("b", "a"), 1)
    played = Tournament(SKILL, noisy, "round_robin").run()
    peer = elo([m.a for m in played.matches], [m.b for m in played.matches], [m.score for m in played.matches], orders=0)
    assert all(np.isclose(played.elo.ratings[p], peer.score(p).value + 200) for p in SKILL)


@pytest.mark.parametrize("k", [16.0, 64.0, settling])
def test_points_are_conserved_whatever_is_at_stake(k):
    rng, table = np.random.default_rng(0), Elo(k=k)
    for i in range(60):
        if i % 5 == 0: table.add(str(i))
        names = list(table.ratings)
        if len(names) > 1: table.update(*rng.choice(names, 2, replace=False), rng.choice([0, 0.5, 1]))
        assert np.isclose(sum(table.ratings.values()), 1200 * len(names))
    assert settling(19) == 32 and settling(20) == 16


def test_a_late_player_starts_at_the_initial_rating_and_leads_nobody_above_it():
    table = Elo()
    for p in "ab": table.add(p)
    table.update("a", "b", 1)
    table.add("late")
    board = table.leaderboard()
    assert list(board["player"]) == ["a", "late", "b"] and list(board["rank"]) == [1, 2, 3] and board["matches"].sum() == 2


@pytest.mark.parametrize("make, text", [
    (lambda: Elo(k=0), "k=0 is not allowed"), (lambda: Elo(k=-3), "k=-3 is not allowed"), (lambda: Elo(scale=0), "scale=0"), (lambda: Elo(initial=float("nan")), "initial="),
    (lambda: Tournament(["a"], noisy), "needs at least 2"), (lambda: Tournament("ab", noisy), "needs at least 2"), (lambda: Tournament(["a", "a"], noisy), "'a' twice"),
    (lambda: Tournament(["a", "b"], "judge"), "is not a function"), (lambda: Tournament(["a", "b"], noisy, "swis"), "Did you mean 'swiss'"),
    (lambda: Tournament(["a", "b"], noisy, seed=-1), "seed=-1"), (lambda: Tournament(SKILL, noisy).run(0), "rounds=0"), (lambda: Tournament(SKILL, noisy).run(1, 0), "workers=0"),
    (lambda: Tournament(SKILL, noisy).bradley_terry(), "no match has been played"), (lambda: Tournament(SKILL, noisy).weng_lin(), "no match has been played"),
    (lambda: Tournament(SKILL, noisy).tastes(), "there are no games"),
])
def test_bad_input_is_refused(make, text):
    with pytest.raises(ParameterError, match=text): make()


def test_elo_refuses_strangers_and_impossible_scores():
    table = Elo()
    for p in "ab": table.add(p)
    for call, text in ((lambda: table.update("a", "z", 1), "'z' has not joined"), (lambda: table.update("a", "b", 2), "score=2"),
                       (lambda: table.update("a", "a", 1), "against itself"), (lambda: table.add("a"), "has joined already"),
                       (lambda: table.expected("z", "a"), "'z' has not joined")):
        with pytest.raises(ParameterError, match=text): call()
    assert table.ratings == {"a": 1200, "b": 1200} and table.played == {"a": 0, "b": 0}, "a refused match changes nothing"


@pytest.mark.parametrize("n", [2, 5, 8, 9])
def test_a_round_robin_lets_everybody_meet_everybody_once(n):
    played = Tournament([f"p{i}" for i in range(n)], lambda a, b, rng: 0.5, "round_robin").run()
    assert len(played) == n * (n - 1) // 2 and all(set(m.values()) == {1} and len(m) == n - 1 for m in played.met.values())
    for turn in range(played.rounds_played):
        seen = [p for m in played.matches if m.round == turn for p in (m.a, m.b)]
        assert len(seen) == len(set(seen))


@pytest.mark.parametrize("n", [4, 7, 16])
def test_swiss_rounds_repeat_no_pair_while_they_can_and_sort(n):
    names = {f"p{i:02d}": float(-i) for i in range(n)}
    played = Tournament(names, lambda a, b, rng: float(a > b), seed=1).run(3)
    assert max(c for m in played.met.values() for c in m.values()) == 1
    assert all(len({p for m in played.matches if m.round == t for p in (m.a, m.b)}) == n - n % 2 for t in range(3))
    assert played.points["p00"] == max(played.points.values())
    assert max(sum(m.values()) for m in played.met.values()) - min(sum(m.values()) for m in played.met.values()) <= 1, "nobody rests twice before all have"


def test_swiss_sorts_better_than_chance_meetings():
    def lots(t, rng): names = list(rng.permutation(list(t.players))); return list(zip(names[::2], names[1::2], strict=True))
    def right(pairing, s):
        t = Tournament({f"p{i:02d}": float(i) for i in range(16)}, lambda a, b, rng: float(a > b), pairing, seed=s).run(5)
        return np.corrcoef(list(t.points.values()), range(16))[0, 1]
    gain = [right("swiss", s) - right(lots, s) for s in range(30)]         # a t of 3 is passed by chance once in 700
    assert np.mean(gain) / (np.std(gain, ddof=1) / 30 ** 0.5) > 3


def test_own_pairings_are_checked():
    for pairs, text in (([("a", "z")], "two different players"), ([("a", "a")], "two different players"), ([], "no pair")):
        with pytest.raises(OutcomeError, match=text): Tournament(["a", "b"], noisy, lambda t, rng, pairs=pairs: pairs).run(1)
    assert round_robin(Tournament(list("abcd"), noisy), None) == [("a", "d"), ("b", "c")]


def test_both_orders_make_a_leaning_judge_draw():
    first = Tournament(SKILL, lambda a, b, rng: 1.0, "round_robin").run()
    assert all(m.score == 0.5 and m.agreed is False for m in first.matches) and set(first.elo.ratings.values()) == {1200}
    lone = Tournament(SKILL, lambda a, b, rng: 1.0, "round_robin", both_orders=False).run()
    assert all(m.agreed is None and len(m.games) == 1 for m in lone.matches)
    began = np.mean([m.games[0].first == m.a for m in Tournament([str(i) for i in range(24)], noisy_zero, "round_robin", both_orders=False).run().matches])
    assert 0.4 < began < 0.6, "the order is drawn by lot (276 draws; a fair coin leaves this once in 1000)"


def noisy_zero(a, b, rng): return 0.5


def test_an_unreadable_verdict_is_asked_once_more_and_then_a_counted_draw():
    asked = []
    def mumbling(a, b, rng): asked.append(1); return None if len(asked) < 2 else Verdict(1.0, "clear")
    game = play_game(mumbling, "a", "b", (0, 0), np.random.default_rng(0))
    assert (game.outcome, game.asked, game.read, game.note) == (1.0, 2, True, "clear")
    mute = Tournament(["a", "b"], lambda a, b, rng: None, "round_robin").run()
    assert mute.matches[0].score == 0.5 and list(mute.games["asked"]) == [2, 2] and mute.tastes().scores["readable"].value == 0
    for wrong in (2, "a", 0.3, -1):
        with pytest.raises(OutcomeError, match="the judge returned"): play_game(lambda a, b, rng, w=wrong: w, "a", "b", (0, 0), None)


def test_the_judges_tastes_are_found():
    def lengthy(a, b, rng): return float(len(a) > len(b)) if rng.random() < 0.9 else float(len(a) <= len(b))
    t = Tournament({f"p{i}": "x" * (i + 1) for i in range(12)}, lengthy, "round_robin").run().tastes()
    assert t.scores["longer text"].ci[0] > 0.7 and t.scores["first place"].ci[0] < 0.5 < t.scores["first place"].ci[1]
    place = judge_tastes(Tournament(SKILL, lambda a, b, rng: float(rng.random() < 0.8), "round_robin").run(14).games)
    assert place.scores["first place"].ci[0] > 0.6 and place.scores["consistency"].value < 0.6


def test_strengths_and_the_advantage_of_the_first_are_fitted():
    t = Tournament(SKILL, lambda a, b, rng: float(2 * (a - b) + 1 + rng.logistic() > 0), "round_robin").run(21)
    fit = t.bradley_terry()
    assert fit.order_effect.ci[0] < 1 < fit.order_effect.ci[1] and fit.n_clusters == len(t) and fit.n == 2 * len(t)
    order = sorted(SKILL, key=lambda p: -SKILL[p])
    assert fit.table["player"][0] in order[:2] and t.weng_lin().table["player"][0] in order[:3]


def test_a_log_is_continued_as_if_nothing_had_happened(tmp_path):
    whole = Tournament(SKILL, noisy, log=tmp_path / "a.jsonl", seed=5).run(5)
    text = (tmp_path / "a.jsonl").read_bytes()
    for cut in (0, 10, len(text) // 3, len(text) // 2, len(text) - 3, len(text)):
        path = tmp_path / f"{cut}.jsonl"
        path.write_bytes(text[:cut])
        again = Tournament(SKILL, noisy, log=path, seed=5).run(5)
        assert again.matches == whole.matches == matches_in(read_json_lines(path)) and again.elo.ratings == whole.elo.ratings
    longer = Tournament(SKILL, noisy, log=tmp_path / "a.jsonl", seed=5).run(7)
    assert longer.matches[:len(whole)] == whole.matches and len(longer) == 28
    assert Tournament(SKILL, noisy, seed=5).run(5, workers=3).matches == whole.matches


def test_a_log_of_something_else_is_refused(tmp_path):
    path = tmp_path / "log.jsonl"
    Tournament(SKILL, noisy, log=path).run(2)
    for options, text in (({"seed": 1}, "has seed=0, not 1"), ({"pairing": "round_robin"}, "has pairing='swiss'"), ({"both_orders": False}, "has both_orders=True")):
        with pytest.raises(StateError, match=text): Tournament(SKILL, noisy, log=path, **options)
    with pytest.raises(StateError, match="other players"): Tournament({**SKILL, "p0": 9.0}, noisy, log=path)


def test_what_was_played_before_an_error_is_kept(tmp_path):
    calls = []
    def breaking(a, b, rng):
        calls.append(1)
        if len(calls) == 12: raise RuntimeError("the judge has left")
        return noisy(a, b, rng)
    t = Tournament(SKILL, breaking, log=tmp_path / "log.jsonl")
    with pytest.raises(RuntimeError): t.run(4)
    assert len(t) == 5 and len(matches_in(read_json_lines(tmp_path / "log.jsonl"))) == 5
    assert t.run(4).matches == Tournament(SKILL, noisy).run(4).matches


SLOW = """
import sys, time
from designloop.stats.tournament import Tournament
def judge(a, b, rng): time.sleep(0.02); return float(a - b + rng.logistic() > 0)
Tournament({f"p{i}": float(i) for i in range(8)}, judge, log=sys.argv[1], seed=2).run(6)
"""


def test_kill_minus_nine_loses_one_match_at_most(tmp_path):
    path = tmp_path / "log.jsonl"
    running = subprocess.Popen([sys.executable, "-c", SLOW, str(path)])
    end = time.monotonic() + 60
    while time.monotonic() < end and (not path.exists() or path.read_bytes().count(b"\n") < 6): time.sleep(0.02)
    running.kill(); running.wait()
    left = len(matches_in(read_json_lines(path)))
    assert 5 <= left < 24
    judge = lambda a, b, rng: float(a - b + rng.logistic() > 0)
    skill = {f"p{i}": float(i) for i in range(8)}
    assert Tournament(skill, judge, log=path, seed=2).run(6).matches == Tournament(skill, judge, seed=2).run(6).matches


def test_the_page_shows_every_match_and_escapes(tmp_path):
    t = Tournament({"<b>": 1.0, "b": 0.0}, lambda a, b, rng: Verdict(float(a > b), "because <i>"), "round_robin").run()
    page = t._repr_html_()
    assert "&lt;b&gt;" in page and "<i>" not in page and page.count("<details>") == 1 and "because" in page
    assert json.dumps([m.score for m in t.matches]) and isinstance(t.matches[0], Match) and settle_match("b", t.matches[0].games) == 0
