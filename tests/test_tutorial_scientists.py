"""The tutorial on agents that experiment in a real browser: a person does the experiments, answers, and sees the rivals' scores."""

import re

import nbformat
import pytest
from lab import look, needs_chromium, notebook_until, playwright, run_all, serving

from designloop.agents.scientist_views import ScientistGame, play
from designloop.agents.scientists import BayesExperimenter, Experimenter
from designloop.core.errors import ParameterError, StateError
from designloop.core.seeds import derive_seed
from designloop.tasks.boxing_gym import Session


def epidemic(number): return Session("death_process", seed=number, budget=2, n_questions=2)


def test_a_game_by_hand():
    game = ScientistGame(epidemic, {"random": BayesExperimenter("random")}, 0.01, 1.99, 50, seed=3)
    with pytest.raises(StateError, match="2 experiments are left"): game.answer(3)
    game.design.value = 0.5
    game.try_button.click()
    assert "At time 0.5" in game.said and game.session.left == 1 and not game.try_button.disabled and game.answer_button.disabled
    game.experiment(7)
    assert "time=7" in game.said and game.session.left == 1
    game.experiment(1.0)
    assert "Question 1 of 2" in game.said and game.try_button.disabled and not game.answer_button.disabled
    with pytest.raises(StateError, match="all experiments are done"): game.experiment(1.0)
    game.guess.value = 20
    game.answer_button.click()
    game.answer(30)
    assert game.over and game.results[0]["random"] == play(BayesExperimenter("random"), epidemic(0), derive_seed(3, "random", 0)) and "standardised error" in repr(game)
    with pytest.raises(StateError, match="over"): game.answer(1)
    truth = game.session.world.theta
    game.again.click()
    assert game.number == 1 and not game.answers and len(game.results) == 1 and (game.session.world.theta != truth).any() and "<img" in game.snapshot()


@pytest.mark.parametrize("options, words", [(dict(new_session=lambda n: Session("irt", seed=n)), "cannot be played here"),
    (dict(new_session=lambda n: Session("predator_prey", seed=n)), "cannot be played here"), (dict(low=3.0), "is not below"),
                                            (dict(top=0), "top=0"), (dict(rivals={"me": 3}), "scientists by name"), (dict(rivals=[Experimenter()]), "scientists by name")])
def test_what_cannot_be_played_is_refused(options, words):
    with pytest.raises(ParameterError, match=words): ScientistGame(**{**dict(new_session=epidemic, rivals={}, low=0.01, high=1.99, top=50), **options})


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab with the tutorial up to its game; gives its address."
    home, work = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("lab")
    nbformat.write(notebook_until("tutorials/agents_that_experiment.ipynb", "game = ScientistGame"), work / "tutorial.ipynb")
    with serving(work, home) as url: yield url


@needs_chromium
def test_a_person_plays_the_scientist(page, lab):
    run_all(page, lab, "tutorial.ipynb")
    game = page.locator(".designloop-scientist")
    game.scroll_into_view_if_needed(timeout=120_000)
    said = game.get_by_role("status")
    playwright.expect(said).to_contain_text("Game 1: 5 experiments.")
    answer = game.get_by_role("button", name="Answer")
    playwright.expect(answer).to_be_disabled()
    handle = game.locator(".widget-slider", has_text="design").get_by_role("slider")
    for left in (4, 3, 2, 1, 0):
        handle.focus()
        handle.press("ArrowRight")
        game.get_by_role("button", name="Experiment").click()
        playwright.expect(said).to_contain_text(re.compile(rf"^At time \d\.\d+, \d+ of 50 were infected\. {left} experiments left\."))
    playwright.expect(said).to_contain_text("Question 1 of 5")
    playwright.expect(game.get_by_role("button", name="Experiment")).to_be_disabled()
    for question in (2, 3, 4, 5):
        answer.click()
        playwright.expect(said).to_contain_text(f"Question {question} of 5")
    answer.click()
    playwright.expect(said).to_contain_text(re.compile(r"Your standardised error is -?\d+\.\d\d"), timeout=60_000)
    playwright.expect(game.locator("table")).to_contain_text("language model")
    look(page, "scientist_game")
