"""What every agent and every environment of the package owes its users, found by looking for the classes."""
import importlib
import inspect
import pickle
import pkgutil

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import designloop.agents
import designloop.tasks
from designloop.agents.scientists import AsAgent, BayesExperimenter
from designloop.core.episodes import Agent, Episode, plain, rollout
from designloop.core.errors import DesignLoopError
from designloop.core.sandbox import available_backends
from designloop.core.seeds import cap_threads
from designloop.lm.protocol import FunctionLM
from designloop.tasks.boxing_gym import BoxingText
from designloop.tasks.intercode import PythonEnv, SQLEnv
from designloop.tasks.intercode_bash import BashEnv, CTFEnv
from designloop.tasks.intercode_worlds import make_bash_world, make_ctf_world, make_sql_world, python_tasks

cap_threads(1)


def _found(package, base: type) -> list[type]:
    "Every public class below `base` that a module of the package defines."
    classes = {}
    for module in pkgutil.iter_modules(package.__path__):
        for cls in vars(importlib.import_module(f"{package.__name__}.{module.name}")).values():
            if inspect.isclass(cls) and issubclass(cls, base) and cls.__module__.startswith(package.__name__) and not inspect.isabstract(cls):
                if not cls.__name__.startswith("_"): classes[f"{cls.__module__}.{cls.__qualname__}"] = cls
    return [classes[k] for k in sorted(classes)]


def _sql() -> gymnasium.Env: world = make_sql_world(0); return SQLEnv({world.name: world.spec}, world.tasks)
def _bash() -> gymnasium.Env: world = make_bash_world(0); return BashEnv({world.name: world.tree}, world.tasks)
def _ctf() -> gymnasium.Env: world = make_ctf_world(0); return CTFEnv({world.name: world.tree}, world.tasks)


WORLDS = {"BoxingText": lambda: BoxingText("dugongs"), "SQLEnv": _sql, "BashEnv": _bash, "CTFEnv": _ctf, "PythonEnv": lambda: PythonEnv(python_tasks())}
BASES = {"InterCodeEnv", "Coder"}            # shared parts: their subclasses act
BOXED = {"BashEnv", "CTFEnv", "PythonEnv"}   # run programs
contained = any(not available_backends()[name] for name in ("bubblewrap", "unshare"))
each_world = pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.skipif(n in BOXED and not contained, reason="no backend of the sandbox contains code here"))
                                              for n in WORLDS])


def parrot(prompt, rng):
    "Writes whatever an agent of this package may write, good or not."
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    if "Question" in text: return "<answer>1.5</answer>"
    return str(rng.choice(["<thought>why not</thought><observe>1.5</observe>", "SELECT 1", "submit", "Thought: look\nAction: execute[SELECT 1]",
                           "1. look\n2. answer", "gibberish"]))


def _agent(cls: type, env: gymnasium.Env) -> Agent:
    if cls is AsAgent: return AsAgent(BayesExperimenter(design="random", n_particles=500), env)
    return cls(FunctionLM(parrot, name="parrot"))


AGENTS = [c for c in _found(designloop.agents, Agent) if c.__name__ not in BASES]


def _world_for(cls: type) -> gymnasium.Env: return BoxingText("dugongs", budget=3) if cls.__module__.endswith("scientists") else _sql()


def test_every_environment_and_agent_is_tested_here():
    assert {c.__name__ for c in _found(designloop.tasks, gymnasium.Env)} - BASES == set(WORLDS)
    assert {"ReAct", "TryAgain", "AsAgent", "LMScientist"} <= {c.__name__ for c in AGENTS}


@each_world
def test_gymnasium_accepts_it(name):
    env = WORLDS[name]()
    with np.errstate(all="ignore"): check_env(env, skip_render_check=True)
    env.close()


@each_world
def test_the_same_seed_is_the_same_world(name):
    seen = []
    env = WORLDS[name]()
    for seed in (3, 3, 4, 5, 6):
        first, info = env.reset(seed=seed)
        out = env.step("<observe>1.5</observe>" if name == "BoxingText" else "nothing in particular")
        seen.append((first, plain(info), out[0], out[1:4]))
    env.close()
    assert seen[0] == seen[1] and any(s != seen[0] for s in seen[2:])


@each_world
def test_whatever_is_written_is_answered_or_refused_in_a_sentence(name):
    env = WORLDS[name]()
    env.reset(seed=0)
    for action in ("", "\0", "ünïcode ✂", "<observe>", "[[[[", "skip " * 50, "'; DROP TABLE x; --", "submit"):
        try: observation, reward, terminated, truncated, info = env.step(action)
        except DesignLoopError as error:
            assert str(error) and "\n" not in str(error)
            continue
        assert isinstance(observation, str) and np.isfinite(reward) and isinstance(info, dict)
        if terminated or truncated: env.reset(seed=0)
    env.close()


@pytest.mark.parametrize("cls", AGENTS, ids=lambda c: c.__name__)
def test_an_agent_plays_an_episode_that_can_be_read(cls, tmp_path):
    env = _world_for(cls)
    agent = _agent(cls, env)
    assert isinstance(agent.name, str) and agent.name
    episode = rollout(agent, env, seed=1, max_steps=30, path=tmp_path / "e.jsonl")
    assert len(episode) and episode.ended in ("terminated", "truncated", "max_steps")
    assert Episode.load(tmp_path / "e.jsonl").transcript == episode.transcript and "<details" in episode._repr_html_()
    again = rollout(_agent(cls, env2 := _world_for(cls)), env2, seed=1, max_steps=30)
    assert [s.action for s in again] == [s.action for s in episode]


@pytest.mark.parametrize("cls", AGENTS, ids=lambda c: c.__name__)
def test_an_agent_forgets_the_last_episode(cls):
    env = _world_for(cls)
    agent = _agent(cls, env)
    one = rollout(agent, env, seed=1, max_steps=30)
    rollout(agent, env, seed=2, max_steps=30)
    two = rollout(agent, env, seed=1, max_steps=30)
    assert one.transcript == two.transcript


@pytest.mark.parametrize("cls", [c for c in AGENTS if c is not AsAgent], ids=lambda c: c.__name__)
def test_calls_are_on_the_bill(cls):
    env = _world_for(cls)
    episode = rollout(_agent(cls, env), env, seed=1, max_steps=30)
    assert episode.cost["calls"] >= 1 and episode.cost["tokens"] >= 1
    short = rollout(_agent(cls, env), env, seed=1, budget={"calls": 0})
    assert short.ended == "budget" and len(short) == 0


def test_a_model_that_is_none_is_refused():
    for cls in AGENTS:
        if cls is AsAgent: continue
        with pytest.raises(DesignLoopError, match="must be an LM"): rollout(cls("gpt"), _world_for(cls), seed=0, max_steps=2)


def test_an_environment_can_be_copied_to_another_process():
    for name in ("BoxingText", "SQLEnv"):
        env = pickle.loads(pickle.dumps(WORLDS[name]()))
        assert env.reset(seed=1)[0]
