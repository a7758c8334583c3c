"""Agents, environments and their transcripts: what ends an episode, what is kept, what is refused; moves and dialogues."""
import json

import gymnasium
import numpy as np
import pytest

from designloop.core.episodes import Agent, Decision, Episode, rollout, rollouts
from designloop.core.errors import BudgetExceeded, DataCorrupt, DataMissing, ParameterError, StateError
from designloop.lm.actions import STYLES, ActionSchema, ActionSpace, Argument, Dialogue
from designloop.lm.protocol import FunctionLM, LMError


class Walk(gymnasium.Env):
    "Walk to the right; five steps and it is over."
    name = "walk"
    observation_space, action_space = gymnasium.spaces.Discrete(100), gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = self.np_random.integers(3)
        return {"at": np.int64(self.at), "map": np.zeros(2)}, {"note": "begun"}

    def step(self, action):
        self.at += action
        return {"at": np.int64(self.at), "map": np.ones(2)}, float(action), self.at >= 5, False, {"cost": {"wear": 2}}


class Steady(Agent):
    name = "steady"
    def act(self, observation): return Decision(1, f"at {observation['at']}", {"calls": 1})


def test_an_episode_adds_up_and_repeats():
    one, two = rollout(Steady(), Walk(), seed=4), rollout(Steady(), Walk(), seed=4)
    assert one.ended == "terminated" and one.total_reward == len(one) and one.best_reward == 1
    assert one.cost == {"calls": len(one), "wear": 2 * len(one)}
    assert one.transcript == two.transcript
    assert {len(rollout(Steady(), Walk(), seed=s)) for s in range(20)} == {3, 4, 5}


def test_a_file_says_the_same_as_the_episode(tmp_path):
    episode = rollout(Steady(), Walk(), seed=1, path=tmp_path / "deep" / "e.jsonl", options={"task": 3})
    back = Episode.load(tmp_path / "deep" / "e.jsonl")
    assert back.transcript == episode.transcript and back.row == episode.row and back.task == {"task": 3} and back.info == {"note": "begun"}
    page = episode.save(tmp_path / "e.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and page.count("<details") == len(episode)
    assert episode.save(tmp_path / "again.jsonl").read_text() == (tmp_path / "deep" / "e.jsonl").read_text()
    with pytest.raises(StateError, match="never written over another"): rollout(Steady(), Walk(), path=tmp_path / "again.jsonl")
    with pytest.raises(DataMissing, match="no episode at"): Episode.load(tmp_path / "none.jsonl")
    (tmp_path / "else.jsonl").write_text('{"kind": "record"}\n')
    with pytest.raises(DataCorrupt, match="does not begin with"): Episode.load(tmp_path / "else.jsonl")


@pytest.mark.parametrize("budget, steps", [({"calls": 2}, 2), ({"wear": 3}, 2), ({"steps": 1}, 1), ({"calls": 0}, 0), ({"seconds": 0}, 0)])
def test_budgets_end_an_episode_with_its_steps(budget, steps):
    episode = rollout(Steady(), Walk(), seed=0, budget=budget)
    assert episode.ended == "budget" and len(episode) == steps and "spent" in episode.note
    assert rollout(Steady(), Walk(), seed=0, max_steps=2).ended == "max_steps"


def test_whatever_stops_an_agent_loses_nothing(tmp_path):
    class Breaks(Steady):
        def __init__(self, error): self.error = error
        def act(self, observation):
            if observation["at"] > 2: raise self.error
            return 1
    episode = rollout(Breaks(BudgetExceeded("40 of 40 calls")), Walk(), path=tmp_path / "b.jsonl")
    assert episode.ended == "budget" and episode.note == "40 of 40 calls" and len(episode) and Episode.load(tmp_path / "b.jsonl").ended == "budget"
    assert rollout(Breaks(KeyboardInterrupt()), Walk()).ended == "interrupted"
    with pytest.raises(ZeroDivisionError) as caught: rollout(Breaks(ZeroDivisionError("no")), Walk(), path=tmp_path / "z.jsonl")
    assert len(caught.value.episode) and Episode.load(tmp_path / "z.jsonl").note == "ZeroDivisionError: no"


def test_what_is_no_agent_or_no_world_is_refused():
    with pytest.raises(ParameterError, match="without act"): rollout(object(), Walk())
    with pytest.raises(ParameterError, match="without reset"): rollout(Steady(), object())
    with pytest.raises(ParameterError, match="budget='x'"): rollout(Steady(), Walk(), budget="x")
    with pytest.raises(ParameterError, match="seed=-1"): rollout(Steady(), Walk(), seed=-1)
    class Old(Walk):
        def step(self, action): return 0, 0.0, True, {}
    with pytest.raises(ParameterError, match="tuple of 4"): rollout(Steady(), Old())
    assert [e.seed for e in rollouts(Steady, Walk, 3, progress=False)] == [0, 1, 2]
    with pytest.raises(ParameterError, match="seeds=0"): rollouts(Steady, Walk, 0)
    with pytest.raises(ParameterError, match="of its own for each"): rollouts(Steady(), Walk(), workers=2)
    with pytest.raises(ParameterError, match="Did you mean 'agent'"): rollouts(Steady, Walk, progress=False).by(agents="x")


def test_many_episodes_are_resumed_and_not_mixed(tmp_path):
    made = []
    class Counted(Steady):
        def reset(self, seed=0): super().reset(seed); made.append(seed)
    tasks = [{"task": 0}, {"task": 1}]
    first = rollouts(Counted, Walk, seeds=range(3), tasks=tasks, path=tmp_path, workers=3, progress=False)
    assert len(first) == 6 and len(made) == 6 and list(first.frame.seed) == [0, 1, 2] * 2
    cut = tmp_path / "0001-2.jsonl"
    cut.write_text("\n".join(cut.read_text().splitlines()[:-1]))
    again = rollouts(Counted, Walk, seeds=range(3), tasks=tasks, path=tmp_path, progress=False)
    assert len(made) == 7 and again.frame.steps.tolist() == first.frame.steps.tolist() and (tmp_path / "0001-2.cut1").exists()
    with pytest.raises(StateError, match="another folder"): rollouts(Counted, Walk, seeds=range(3), tasks=tasks[::-1], path=tmp_path, progress=False)


MOVES = [ActionSchema("measure", "look", {"x": Argument("metres", "number", low=-2, high=2), "n": Argument("", "integer", low=1, required=False)}),
         ActionSchema("go", "", {"where": Argument("", "choice", ("left", "right"))}), ActionSchema("stop")]
WRITE = {"tags": lambda name, inside: f"<thought>why</thought>\n<{name}>{inside}</{name}>", "react": lambda name, inside: f"Thought: why\nAction: {name}[{inside}]",
         "json": lambda name, inside: json.dumps({"thought": "why", "action": name, "arguments": json.loads(inside) if inside.startswith("{") else inside})}


@pytest.mark.parametrize("style", STYLES)
def test_every_style_reads_the_same_moves(style):
    space = ActionSpace(MOVES, style)
    for inside, want in (("0.5", {"x": 0.5}), ("0.5, 2", {"x": 0.5, "n": 2}), ('{"x": "0.5", "n": 2}', {"x": 0.5, "n": 2})):
        action = space.parse(WRITE[style]("measure", inside))
        assert action.arguments == want and action.thought == "why", action
    assert space.parse(WRITE[style]("go", "LEFT")).argument == "left" and space.parse(WRITE[style]("stop", "")).name == "stop"
    for name, inside, words in (("measure", "9", "must be a number >= -2 and <= 2"), ("measure", "nan", "must be a number"), ("measure", "", "needs x"),
                                ("go", "lift", "did you mean 'left'"), ("measure", "1, 1.5", "a whole number >= 1"), ("measure", '{"y": 1}', "no argument 'y'")):
        action = space.parse(WRITE[style](name, inside))
        assert not action and words in action.problem and "Your reply could not be used" in action.problem, (name, inside, action)
    assert space.counts["unread"] == 6 and space.counts["seen"] == 11
    assert all(s.name in space.instructions() for s in MOVES)


def test_moves_that_cannot_be_are_refused():
    with pytest.raises(ParameterError, match="name='a b'"): ActionSchema("a b")
    with pytest.raises(ParameterError, match="kind='nmber'.*Did you mean 'number'"): Argument(kind="nmber")
    with pytest.raises(ParameterError, match="different names"): ActionSpace([ActionSchema("a"), ActionSchema("a")])
    with pytest.raises(ParameterError, match="style='xml'"): ActionSpace(MOVES, "xml")
    with pytest.raises(ParameterError, match="reply is a int"): ActionSpace(MOVES).parse(3)


def test_a_dialogue_asks_again_and_keeps_its_history_clean():
    replies = iter(["no form", "<measure>99</measure>", "<measure>1</measure>", "aside", "<oops>", "<oops>"])
    seen = []
    lm = FunctionLM(lambda prompt, rng: (seen.append(prompt), next(replies))[1])
    talk, space = Dialogue(lm, "system"), ActionSpace(MOVES)
    action = talk.ask_action("Where?", space)
    assert action.arguments == {"x": 1.0} and [m["role"] for m in talk.messages] == ["system", "user", "assistant"]
    assert "there is no move in it" in seen[1][-1]["content"] and "x='99' is not allowed" in seen[2][-1]["content"]
    assert talk.ask("What is at 0?", keep=False) == "aside" and len(talk.messages) == 3 and talk.cost["calls"] == 4
    assert not talk.ask_action("And now?", space, tries=2)
    with pytest.raises(ParameterError, match="must be an LM"): Dialogue("gpt")
    with pytest.raises(ParameterError, match="nothing to answer"): Dialogue(lm).ask()
    def broken(prompt, rng): raise LMError("down", final=True)
    down = Dialogue(FunctionLM(broken))
    with pytest.raises(LMError, match="down"): down.ask("hello")
    assert [m["role"] for m in down.messages] == ["user"] and down.cost["calls"] == 0
