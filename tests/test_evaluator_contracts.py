"""What every evaluator of the package owes its users, found by looking for the classes."""
import importlib
import inspect
import pickle
import pkgutil

import numpy as np
import pytest
import torch

import designloop.evaluators
from designloop.agents.scientists import Experimenter
from designloop.core.errors import DesignLoopError
from designloop.core.seeds import cap_threads
from designloop.lm.protocol import FunctionLM
from designloop.stats.scores import Report
from designloop.tasks.boxing_gym import Session

cap_threads(1)


def _found() -> list[type]:
    "Every public class with an `evaluate` that a module of designloop.evaluators defines."
    classes = {}
    for module in pkgutil.iter_modules(designloop.evaluators.__path__):
        for cls in vars(importlib.import_module(f"designloop.evaluators.{module.name}")).values():
            if inspect.isclass(cls) and callable(getattr(cls, "evaluate", None)) and not cls.__name__.startswith("_") and not inspect.isabstract(cls):
                if cls.__module__.startswith("designloop.evaluators"): classes[f"{cls.__module__}.{cls.__qualname__}"] = cls
    return [classes[k] for k in sorted(classes)]


CLASSES = _found()
QUICK = {"n_trials": 8, "n_formats": 6, "budget": 200, "batch_size": 5, "nulls": 20}
PARROT = FunctionLM(lambda prompt, rng: f"### Answer: {rng.integers(9)} abc", name="parrot", logprobs=lambda p, c: [-0.1 * (1 + (len(p) + ord(c[-1])) % 7)] * len(c))
BLANK = [{"question": f"What is item {i}?", "choices": ["red", "blue"], "answer": i % 2, "blank": f"Item {i} is ____."} for i in range(6)]
DATA = {"BaseModelEvaluation": {"choice": BLANK}}        # what an evaluator without data of its own is given
DATA["ScientistEvaluation"] = [lambda seed: Session("dugongs", seed, budget=2), lambda seed: Session("death_process", seed, budget=2)]
SUBJECT = {"ScientistEvaluation": Experimenter()}         # whom it judges, if not a language model


def run(cls, seed=0) -> Report:
    quick = {k: v for k, v in QUICK.items() if k in inspect.signature(cls.__init__).parameters}
    return cls(**quick).evaluate(SUBJECT.get(cls.__name__, PARROT), DATA.get(cls.__name__), seed)


def test_there_are_evaluators(): assert {"AIW", "FormatSpread"} <= {c.__name__ for c in CLASSES}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_signature(cls):
    parameters = inspect.signature(cls.evaluate).parameters
    assert list(parameters)[:4] == ["self", "subject", "data", "seed"] and parameters["seed"].default == 0


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_gives_a_report_that_knows_its_intervals_and_its_origin(cls, tmp_path):
    report = run(cls)
    assert isinstance(report, Report) and report.scores and report.title
    assert all(s.ci[0] <= s.value <= s.ci[1] and s.n >= 1 and s.method for s in report.scores.values())
    assert report.provenance.root_seed == 0
    report.save(tmp_path / "report")
    assert Report.load(tmp_path / "report").to_dict()["scores"].keys() == report.scores.keys()
    assert report.to_frame().shape[0] == len(report.scores) and report.to_markdown()


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_a_seed_repeats_and_global_generators_neither_matter_nor_move(cls):
    torch.manual_seed(1); np.random.seed(1)
    state, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = run(cls)
    assert torch.equal(state, torch.get_rng_state()) and (numbers == np.random.get_state()[1]).all()
    torch.manual_seed(2); np.random.seed(2)
    second = run(cls)
    assert {k: s.to_dict() for k, s in first.scores.items()} == {k: s.to_dict() for k, s in second.scores.items()}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_is_picklable_and_refuses_what_is_no_model(cls):
    pickle.loads(pickle.dumps(cls()))
    with pytest.raises(DesignLoopError): cls().evaluate(42, DATA.get(cls.__name__))
